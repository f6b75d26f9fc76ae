"""A checkpoint tested on another data set than the one it was trained on, over the classes that both have by name."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from eav_ray.config import DataConfig, Experiment, digest
from eav_ray.data.datasets import registry
from eav_ray.data.recordings import LISTENING
from eav_ray.data.shards.dataset import Dataset
from eav_ray.data.shards.index import ShardIndex
from eav_ray.data.splits import LabeledRecording, list_labeled_recordings
from eav_ray.distributed.scoring import ScoringTask, score_checkpoints
from eav_ray.errors import ConfigError, DataError
from eav_ray.evaluation.compatibility import check_preprocessing, match_dataset_channels
from eav_ray.evaluation.correctness import COMBINED_SOURCES, list_sources, mark_correct_recordings
from eav_ray.evaluation.statistics import compute_balanced_accuracy
from eav_ray.reporting import tables
from eav_ray.reporting.tables import MAX_FOLD_LINES, format_accuracy_table
from eav_ray.training.checkpoint import OpenedCheckpoint
from eav_ray.training.metrics import LOGIT_PREFIX, WINDOW_COLUMNS, combine_by_rules
from eav_ray.words import format_recordings


@dataclass(frozen=True)
class TransferResult:
    predictions: (
        pd.DataFrame
    )  # as `split_predictions.predict_test_split` returns them; labels and logits are numbered by `classes`
    classes: tuple[str, ...]  # that both sets have, in the checkpoint's order
    modalities: tuple[str, ...]  # that were seen
    correct: pd.DataFrame  # one row a recording, one column a source
    text: str


def is_training_dataset(experiment: Experiment, checkpoint: OpenedCheckpoint, index: ShardIndex) -> bool:
    """Whether an experiment names the data set that a checkpoint was trained on, so that equal ids are equal people.

    A reader names the same people wherever the files lie and whatever is made of them; two tables of a user are one
    data set where they lie in one place or their windows are the same.
    """
    data, training_data = experiment.data, checkpoint.experiment.data
    if checkpoint.state.data_digest == digest(index.fingerprint):
        return True
    return data.dataset == training_data.dataset and (
        data.dataset not in registry.GENERIC_DATASETS or data.root == training_data.root
    )


def evaluate_transfer(experiment: Experiment, data: Dataset, checkpoint: OpenedCheckpoint) -> TransferResult:
    """Predictions for all recordings of another data set, computed once and kept.

    Logits are those of the shared classes alone, so that a class which cannot be right is not named. A modality of the
    checkpoint that the other set lacks, or that `data.modalities` leaves out, is missing to the model.

    Args:
        experiment: Names the shards of the other data set; `data.subjects` may name some of its people.
        data: These shards.
        checkpoint: A finished one.
    Raises:
        ConfigError: Fewer than two classes or no modality in common, other preprocessing, nothing to score, or it is
            the checkpoint's own data set and holds people whom it was trained on or chosen by.
        DataError: The checkpoint or a shard is damaged.
    """
    items = list_labeled_recordings(data.windows.ids, experiment.data, experiment.seed)
    if is_training_dataset(experiment, checkpoint, data.index):
        check_subjects_unseen(items, checkpoint)
    trained_on, tested_on = describe_datasets(checkpoint.experiment.data, experiment.data)
    checkpoint_classes = checkpoint.state.classes
    classes = select_shared_classes(checkpoint_classes, data.index.classes, trained_on, tested_on)
    shown, notes = select_shared_modalities(experiment, checkpoint, data.index)
    check_preprocessing(experiment, checkpoint, shown)
    label_by_id = map_labels(items, data.index.classes, classes)
    ids = data.windows.ids
    present_ids = set(ids["id"][ids[[f"has_{m}" for m in shown]].any(axis=1)])
    test_ids = tuple(sorted(i for i in label_by_id if i in present_ids))
    if not test_ids:
        raise ConfigError(
            f"no recording of {tested_on} has both a class of {', '.join(classes)} and {', '.join(shown)}"
        )
    # One worker, as its batches must not matter here; scoring takes all that there is room for.
    scoring_experiment = replace(experiment, runtime=replace(experiment.runtime, workers=1))
    task = ScoringTask(checkpoint, test_ids, shown, is_other_dataset=True)
    (scored,) = score_checkpoints(scoring_experiment, [task], data)
    predictions = restrict_to_classes(scored.require(), checkpoint_classes, classes, label_by_id, shown)
    head = f"trained on {trained_on}, tested on {tested_on}, {len(classes)} shared classes: {', '.join(classes)}"
    unshared_notes = [
        f"not shared: {', '.join(k for k in named if k not in classes)} ({title})"
        for named, title in ((checkpoint_classes, trained_on), (data.index.classes, tested_on))
        if set(named) - set(classes)
    ]
    combined_sources = COMBINED_SOURCES if len(shown) > 1 else ("fusion",)  # a rule of one modality is that one
    sources = [
        s for s in list_sources(sorted(checkpoint.experiment.data.modalities)) if s in (*shown, *combined_sources)
    ]
    correct = mark_correct_recordings(predictions, sources)
    lines = [head, *unshared_notes, *notes, *_format_result(correct, sources, shown, len(classes))]
    if len(shown) > 1:
        lines.append(tables.format_fusion_comparison(correct, shown))
    return TransferResult(predictions, classes, shown, correct, "\n".join(lines))


def describe_datasets(trained: DataConfig, tested: DataConfig) -> tuple[str, str]:
    """What the two data sets are called: by their readers, and by where they lie where one reader reads both."""
    if trained.dataset != tested.dataset:
        return trained.dataset, tested.dataset
    return f"{trained.dataset} ({trained.root})", f"{tested.dataset} ({tested.root})"


def check_subjects_unseen(items: Sequence[LabeledRecording], checkpoint: OpenedCheckpoint) -> None:
    """Raises ConfigError where someone of these recordings was trained on or chosen by."""
    known_subjects = {i.split("/")[0] for i in (*checkpoint.split.train, *checkpoint.split.validation)}
    shared_subjects = sorted({i.subject for i in items} & known_subjects)
    if shared_subjects:
        more = f" and {len(shared_subjects) - 1} more" if shared_subjects[1:] else ""
        raise ConfigError(
            f"{checkpoint.path} was trained on this very data set, {shared_subjects[0]}{more} among others; test it on "
            "its own test side with `eav evaluate`, or name people in data.subjects whom it never saw"
        )


def select_shared_classes(
    checkpoint_classes: Sequence[str], dataset_classes: Sequence[str], trained_on: str, tested_on: str
) -> tuple[str, ...]:
    """The classes of a checkpoint that another data set has too, by name.

    Raises:
        ConfigError: Fewer than two.
    """
    shared = tuple(k for k in checkpoint_classes if k in dataset_classes)
    if len(shared) < 2:
        raise ConfigError(
            f"{trained_on} and {tested_on} have {len(shared)} classes in common, and at least 2 are needed: the "
            f"checkpoint knows {', '.join(checkpoint_classes)}; the data set has {', '.join(dataset_classes)}; classes "
            "are the same where they are spelled alike"
        )
    return shared


def select_shared_modalities(
    experiment: Experiment, checkpoint: OpenedCheckpoint, index: ShardIndex
) -> tuple[tuple[str, ...], list[str]]:
    """The modalities that are seen, and a line for each note on them.

    EEG is matched by electrode; without one of them it is left out where there is something else to go by.

    Args:
        index: Of the other data set's shards.
    Raises:
        ConfigError: None in common.
        DataError: Only EEG, and without an electrode that the checkpoint knows.
    """
    checkpoint_modalities, wanted_modalities = (
        sorted(checkpoint.experiment.data.modalities),
        sorted(experiment.data.modalities),
    )
    shown = [m for m in checkpoint_modalities if m in wanted_modalities]
    if not shown:
        raise ConfigError(
            f"data.modalities names {', '.join(wanted_modalities)}, but {checkpoint.path} was trained on "
            f"{', '.join(checkpoint_modalities)}: none in common; name one of these that the data set offers"
        )
    notes = []
    if "eeg" in shown:
        try:
            _, note = match_dataset_channels(experiment, checkpoint, index.eeg_channel_names, index.eeg_channels)
            notes += [note] if note else []
        except DataError as error:
            if len(shown) == 1:
                raise
            shown.remove("eeg")
            notes.append(f"eeg is masked: {error}")
    hidden = [m for m in checkpoint_modalities if m not in wanted_modalities]
    if hidden:
        notes.append(f"masked, as not in data.modalities: {', '.join(hidden)}")
    if ignored := [m for m in wanted_modalities if m not in checkpoint_modalities]:
        notes.append(f"ignored, as never trained on: {', '.join(ignored)}")
    return tuple(shown), notes


def map_labels(
    items: Sequence[LabeledRecording], dataset_classes: Sequence[str], classes: Sequence[str]
) -> dict[str, int]:
    """Id -> number of the class in `classes`, for the recordings that can be scored.

    Args:
        dataset_classes: Classes by the numbers that the items' labels are.
    """
    number = {label: classes.index(k) for label, k in enumerate(dataset_classes) if k in classes}
    return {i.id: number[i.label] for i in items if i.label in number and i.task != LISTENING}


def restrict_to_classes(
    table: pd.DataFrame,
    checkpoint_classes: Sequence[str],
    classes: Sequence[str],
    label_by_id: dict[str, int],
    shown: Sequence[str],
) -> pd.DataFrame:
    """Predictions of a checkpoint, with the logits of some of its classes alone, in that order.

    Args:
        table: As `training.predictions.build_predictions` makes it, logits numbered by `checkpoint_classes`.
        label_by_id: The new labels, by id.
        shown: Modalities whose columns are kept.
    """
    columns = {c: table[c].to_numpy() for c in (*WINDOW_COLUMNS, "label")}
    ids = table["subject"] + "/" + table["recording"]
    columns["label"] = ids.map(label_by_id).to_numpy(np.int64)
    numbers = [checkpoint_classes.index(k) for k in classes]
    logits = {s: table[[f"{s}.{LOGIT_PREFIX}{k}" for k in numbers]].to_numpy() for s in ("fusion", *shown)}
    unimodal_BMK = np.stack([logits[m] for m in shown], 1)
    # Anew: the mean of probabilities among the shared classes is not that of all, cut.
    rules = combine_by_rules(unimodal_BMK, np.asarray(~np.isnan(unimodal_BMK).all(-1)))
    for source, logits_BK in ({"fusion": logits["fusion"]} | rules | {m: logits[m] for m in shown}).items():
        columns |= {f"{source}.{LOGIT_PREFIX}{n}": logits_BK[:, n] for n in range(len(classes))}
    columns |= {f"{part}.{m}": table[f"{part}.{m}"] for m in shown for part in ("weight", "corrected")}
    return pd.DataFrame(columns)


def _format_result(correct: pd.DataFrame, sources: list[str], shown: Sequence[str], n_classes: int) -> list[str]:
    n_subjects = correct["subject"].nunique()
    shares = ", ".join(f"{s} {100 * compute_balanced_accuracy(correct, s):.2f}" for s in sources)
    return [
        f"accuracy in percent, {format_recordings(len(correct), n_subjects)} of the other data set",
        format_accuracy_table(correct, sources, n_classes, {}, subject_columns=n_subjects <= MAX_FOLD_LINES),
        f"balanced accuracy of recordings: {shares}; chance {100 / n_classes:.2f}",
        tables.format_statistics(correct, shown, n_classes),
    ]
