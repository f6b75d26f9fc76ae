"""A checkpoint at work: on the test rows of its split, once, or through Ray Data on recordings that it never saw."""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd
import ray
import ray.data
import torch

from eav_ray.config import MODALITIES, Experiment, ModalityName, RuntimeConfig
from eav_ray.data.datasets import registry
from eav_ray.data.preprocessing.extras import require_preprocessing_extras
from eav_ray.data.recordings import UNKNOWN_LABEL, Listing, list_target_columns
from eav_ray.data.shards.dataset import open_shards
from eav_ray.distributed import cluster
from eav_ray.distributed.connection import connect_experiment
from eav_ray.distributed.ray_workarounds import configure_ray_data, map_with_retries
from eav_ray.errors import ConfigError, DataError
from eav_ray.evaluation.compatibility import check_preprocessing, match_dataset_channels
from eav_ray.evaluation.predictor import Predictor
from eav_ray.pipelines.inference.inference_windows import cut_raw_windows, read_shard_windows
from eav_ray.pipelines.preprocess import eeg_stage
from eav_ray.tracking.progress import ProgressBar, open_progress_bar
from eav_ray.training.checkpoint import OpenedCheckpoint
from eav_ray.training.metrics import holds_numbers, is_averaged_column
from eav_ray.training.subject_statistics import FeatureSums, SubjectMoments, select_accessible_recordings
from eav_ray.words import format_count

BATCH_SIZE = 32


RECORDINGS_PER_TASK = 8  # recordings that one task reads


PredictionsCallback = Callable[[pd.DataFrame], None]


def predict_recordings(
    experiment: Experiment, checkpoint: OpenedCheckpoint, on_predictions: PredictionsCallback
) -> list[str]:
    """Predictions for raw recordings, with the preprocessing that the checkpoint was trained with.

    Labels, and the numbers that are predicted, need not be known.

    Args:
        experiment: The checkpoint's own, with `data` changed to where the new recordings are.
        on_predictions: Is given the predictions, one row a window (`predictions.build_predictions`, with labels by
            name, empty where they are not known), part after part, in the order of the recordings.
    Returns:
        A line for each recording that could not be read.
    """
    modalities = _require_known_modalities(experiment, checkpoint)
    dataset, listing = registry.scan_dataset(experiment.data, experiment.preprocessing.features, needs_truth=False)
    for line in (*listing.remarks, _describe_unknown(experiment, listing)):
        print_note(line)
    if "eeg" in experiment.data.modalities:
        _, note = match_dataset_channels(
            experiment, checkpoint, registry.list_eeg_channels(dataset, listing, experiment.preprocessing.eeg.channels)
        )
        print_note(note)
    # Modalities that are not wanted are missing ones to the model, which knows what to do without them.
    # Given features that are not wanted were not attached.
    masked_modalities = dict.fromkeys(m for m in MODALITIES if m in modalities and m not in experiment.data.modalities)
    recordings = [replace(r, **masked_modalities) for r in listing.recordings]
    if not recordings:
        raise DataError(f"there is nothing to predict in {experiment.data.root}; run `eav check` to see why")
    require_preprocessing_extras(experiment)
    failed = [f"{p.subject} {p.recording} {p.file}: {p.reason}" for p in listing.problems]
    with (
        connect_experiment(experiment) as experiment,
        _preserve_row_order(),
        open_progress_bar("predict", len(recordings), "recordings") as bar,
    ):
        preprocessing = checkpoint.experiment.preprocessing
        channels = checkpoint.state.shapes.eeg_channel_names
        units = [
            tuple(part[i : i + RECORDINGS_PER_TASK])
            for part in (list(g) for _, g in groupby(recordings, key=lambda r: r.subject))
            for i in range(0, len(part), RECORDINGS_PER_TASK)
        ]
        cut_windows = partial(
            cut_raw_windows,
            units=units,
            preprocessing=preprocessing,
            modalities=modalities,
            shapes=checkpoint.state.shapes,
        )
        rows = map_with_retries(
            eeg_stage.prepare_eeg_units(
                experiment.data, preprocessing, units, channels=channels, needs_truth=False
            ).flat_map,
            cut_windows,
            num_cpus=1,
        )
        ids = pd.DataFrame([{"id": r.id, "subject": r.subject, "order": r.order} for r in recordings])
        subject_statistics = measure_subjects(rows, checkpoint, experiment.runtime, lambda: ids)
        return failed + _deliver_predictions(
            map_on_actors(rows, PredictionActor, checkpoint, experiment.runtime, subject_statistics),
            dataset.classes,
            on_predictions,
            bar,
        )


def predict_shards(
    experiment: Experiment, checkpoint: OpenedCheckpoint, on_predictions: PredictionsCallback
) -> list[str]:
    """As `predict`, for the windows that preprocessing left in `store.shards`."""
    modalities = _require_known_modalities(experiment, checkpoint)
    check_preprocessing(experiment, checkpoint)
    data = open_shards(experiment)
    channel_order: list[int] = []
    if "eeg" in experiment.data.modalities:
        channel_order, note = match_dataset_channels(
            experiment, checkpoint, data.index.eeg_channel_names, data.index.eeg_channels
        )
        print_note(note)
    subjects = experiment.data.subjects
    files = [s for s in data.index.shards if not subjects or not s.subject or s.subject in subjects]
    total = sum(s.rows for s in files)
    if not total:
        raise DataError(f"there is nothing to predict in {data.shards}; run `eav check` to see why")
    with (
        connect_experiment(experiment) as experiment,
        _preserve_row_order(),
        open_progress_bar("predict", total, "windows") as bar,
    ):
        read_windows = partial(
            read_shard_windows,
            files=files,
            shards=data.shards,
            experiment=experiment,
            modalities=modalities,
            n_channels=checkpoint.state.shapes.eeg_channels,
            channel_order=channel_order,
        )
        numbers = ray.data.from_items([{"shard": i} for i in range(len(files))], override_num_blocks=len(files))
        rows = map_with_retries(numbers.flat_map, read_windows, num_cpus=1)
        subject_statistics = measure_subjects(rows, checkpoint, experiment.runtime, lambda: data.windows.ids)
        return _deliver_predictions(
            map_on_actors(rows, PredictionActor, checkpoint, experiment.runtime, subject_statistics),
            data.index.classes,
            on_predictions,
            bar,
            count_windows=True,
        )


def _describe_unknown(experiment: Experiment, listing: Listing) -> str:
    """Write a line on recordings of which nobody says what they are; empty where there is none."""
    data = experiment.data
    n_unknown = sum(r.label == UNKNOWN_LABEL for r in listing.recordings)
    what, how = "label", "empty"
    if data.predicts_numbers:
        n_unknown = sum(any(map(math.isnan, r.targets)) for r in listing.recordings)
        what, how = ", ".join(data.targets.names), "NaN"
    if not n_unknown:
        return ""
    recordings = format_count(len(listing.recordings), "recording")
    return f"{data.root}: {what} of {n_unknown} of {recordings} is not known, and {how} in the table"


def print_note(note: str) -> None:
    """Print a line on what is not used of a data set, where there is one."""
    if note:
        print(note, file=sys.stderr, flush=True)


def _require_known_modalities(experiment: Experiment, checkpoint: OpenedCheckpoint) -> tuple[ModalityName, ...]:
    """The modalities of the checkpoint, of which the experiment names some."""
    modalities = checkpoint.experiment.data.modalities
    unknown = [m for m in experiment.data.modalities if m not in modalities]
    if unknown:
        raise ConfigError(
            f"data.modalities names {', '.join(unknown)}, but {checkpoint.path} was trained on "
            f"{', '.join(modalities)}; name some of these"
        )
    return modalities


@contextmanager
def _preserve_row_order() -> Iterator[None]:
    """Ray Data, quietly, and giving out rows in the order in which they went in: tables are written as they come."""
    configure_ray_data()
    options = ray.data.DataContext.get_current().execution_options
    earlier, options.preserve_order = options.preserve_order, True
    try:
        yield
    finally:
        options.preserve_order = earlier


def map_on_actors(
    rows: ray.data.Dataset,
    actor: type["PredictionActor | MeasuringActor"],
    checkpoint: OpenedCheckpoint,
    runtime: RuntimeConfig,
    argument: Any = None,
    *,
    max_actors: int = 1,
) -> ray.data.Dataset:
    """Windows through actors that have loaded a checkpoint, batch after batch.

    Args:
        argument: The third one that an actor is made with.
        max_actors: How many actors there may be.
    """
    # Predicting is short: an actor that died is an error, and the same command starts anew.
    return map_with_retries(
        rows.map_batches,
        actor,
        retries=0,
        fn_constructor_args=(checkpoint, runtime, argument),
        batch_size=BATCH_SIZE,
        num_cpus=runtime.cpus_per_worker,
        num_gpus=runtime.gpus or None,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=max_actors),
    )


def measure_subjects(
    rows: ray.data.Dataset,
    checkpoint: OpenedCheckpoint,
    runtime: RuntimeConfig,
    list_recordings: Callable[[], pd.DataFrame],
) -> dict[str, SubjectMoments]:
    """Measure by what each subject's windows are normalised, over the recordings that the access level allows.

    The recordings are read once for it, before they are read to be predicted.

    Args:
        list_recordings: Lists them: `id`, `subject`, `order`.
    Returns:
        By modality; nothing of a checkpoint that does not normalise within subjects.
    """
    e = checkpoint.experiment
    if not e.list_normalised_modalities():
        return {}
    ids = list_recordings()
    accessible = frozenset(select_accessible_recordings(ids, ids["id"], e.split))
    measured = map_on_actors(rows, MeasuringActor, checkpoint, runtime, accessible)
    sums: dict[str, dict[str, FeatureSums]] = {}
    for row in measured.iter_rows():
        part = FeatureSums(*np.frombuffer(row["sums"]).reshape(3, -1))
        by_subject = sums.setdefault(row["modality"], {})
        subject = str(row["subject"])
        by_subject[subject] = by_subject[subject] + part if subject in by_subject else part
    return {m: SubjectMoments.from_sums(by_subject) for m, by_subject in sums.items()}


class MeasuringActor:
    """An actor: sums the features of the windows that may be looked at, subject by subject."""

    def __init__(self, checkpoint: OpenedCheckpoint, runtime: RuntimeConfig, accessible: frozenset[str]) -> None:
        self._predictor = Predictor(checkpoint, cluster.set_up_torch(runtime))
        self._accessible = accessible

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        ids = [f"{s}/{r}" for s, r in zip(batch["subject"], batch["recording"], strict=True)]
        keep = np.array([one in self._accessible for one in ids], bool)
        found = list(self._predictor.sum_subject_features({name: x[keep] for name, x in batch.items()}))
        columns = {"subject": [s for s, _, _ in found], "modality": [m for _, m, _ in found]}
        sums = [np.stack([each.count, each.total, each.squares]).tobytes() for _, _, each in found]
        return {name: np.array(values, object) for name, values in (columns | {"sums": sums}).items()}


def _deliver_predictions(
    rows: ray.data.Dataset,
    classes: tuple[str, ...],
    on_predictions: PredictionsCallback,
    bar: ProgressBar,
    *,
    count_windows: bool = False,
) -> list[str]:
    """Give predictions to `on_predictions`; a line for each row that says why there is none."""
    failed: list[str] = []
    recordings_done: set[tuple[str, str]] = set()
    n_rows = n_delivered = 0
    for batch in rows.iter_batches(batch_size=None, batch_format="pandas"):
        assert isinstance(batch, pd.DataFrame)
        if not len(batch):
            continue
        n_rows += len(batch)
        recordings_done |= set(zip(batch["subject"], batch["recording"], strict=True))
        bad = batch[batch["reason"] != ""]
        failed += [f"{row['subject']} {row['recording']}: {row['reason']}" for _, row in bad.iterrows()]
        good = batch[batch["reason"] == ""].drop(columns="reason").reset_index(drop=True)
        if len(good):
            # A part in which something could not be read has a column of objects of its numbers, and Arrow's are no
            # numbers that pandas writes as empty where they are NaN.
            numbers = [c for c in good.columns if is_averaged_column(c)] + list_target_columns(good.columns)
            good[numbers] = good[numbers].astype(float)
            if not holds_numbers(good):
                # Names, as the numbers are of these recordings' classes and not of the checkpoint's.
                good["label"] = np.array([*classes, ""], object)[good["label"].astype(int)]  # UNKNOWN_LABEL is the last
            good["window"] = good["window"].astype(int)
            on_predictions(good)
            n_delivered += len(good)
        bar.set_done(n_rows if count_windows else len(recordings_done))
    if not n_delivered and not failed:
        raise DataError("there is nothing to predict: no recording with any of the modalities of the checkpoint")
    return failed


class PredictionActor:
    """An actor: one loaded checkpoint, batch after batch."""

    def __init__(
        self,
        checkpoint: OpenedCheckpoint,
        runtime: RuntimeConfig,
        subject_statistics: dict[str, SubjectMoments] | None = None,
        device: torch.device | None = None,
    ) -> None:
        """Load the checkpoint.

        Args:
            subject_statistics: By modality, what encoders that normalise within subjects go by.
            device: Where to compute in a process that is no actor.
        """
        self._predictor = Predictor(checkpoint, device or cluster.set_up_torch(runtime), subject_statistics)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        table = self._predictor(batch)
        return {str(c): table[c].to_numpy() for c in table.columns}
