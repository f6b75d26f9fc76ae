"""What a checkpoint is worth when recordings go bad: its test recordings corrupted in steps, and predicted again."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any

import pandas as pd

from eav_ray.config import MODALITIES, Experiment, ModalityName, RuntimeConfig, digest
from eav_ray.config.paths import retarget_experiment
from eav_ray.data.corruptions.base import COMBINED_KINDS, CORRUPTION_KINDS, Corruption, compute_levels, select_kinds
from eav_ray.data.datasets import registry
from eav_ray.data.io import parquet
from eav_ray.data.preprocessing.extras import require_preprocessing_extras
from eav_ray.data.recordings import DatasetReader, Listing, Recording
from eav_ray.distributed import cluster, ray_workarounds
from eav_ray.distributed.connection import connect_runtime
from eav_ray.errors import ConfigError, DataError
from eav_ray.evaluation.compatibility import match_dataset_channels, names_training_dataset
from eav_ray.evaluation.expected_result import refuse_final
from eav_ray.evaluation.robustness import ROBUSTNESS_FORMAT as TREE_FORMAT
from eav_ray.evaluation.robustness import build_robustness_results
from eav_ray.pipelines.evaluate.number_limits import require_classes
from eav_ray.pipelines.evaluate.robustness_stage import (
    CLEAN,
    Condition,
    RobustnessInputs,
    measure_clean_subjects,
    measure_cost,
    predict_conditions,
)
from eav_ray.pipelines.inference.predict import print_note
from eav_ray.reporting.sections.robustness import format_robustness
from eav_ray.storage import Store, list_package_versions, sha256
from eav_ray.tracking.progress import open_progress_bar
from eav_ray.training.checkpoint import OpenedCheckpoint, open_finished_checkpoint
from eav_ray.words import format_count, format_duration, format_recordings

FORMAT = 2  # raise when corruptions or predictions come out differently


@dataclass(frozen=True)
class RobustnessOptions:
    """What the command line asks for, beside the checkpoint and the data."""

    modalities: tuple[str, ...] = ()  # to corrupt; all where empty
    steps: int = 3
    kinds: tuple[str, ...] = ()  # all where empty
    all_recordings: bool = False  # all recordings of the data root, not the test side of the checkpoint


@dataclass(frozen=True)
class RobustnessResult:
    results: dict[str, Any]  # of results.json
    path: str  # of the folder that holds it
    text: str


def run_robustness(path: str, changes: dict[str, Any], options: RobustnessOptions, out: str) -> RobustnessResult:
    """Predict the test recordings of a checkpoint as they are, under each kind and step, and with everything corrupted.

    Args:
        changes: Keys of the checkpoint's experiment: `data.root`, `runtime.cpus_per_worker`.
        out: The results store; what it holds already is not computed again.
    Raises:
        ConfigError: An unknown kind or modality.
        DataError: The data root does not hold the test recordings, or has other classes or channels.
    """
    checkpoint = open_finished_checkpoint(path)
    require_classes(
        checkpoint.experiment.data, "`eav robustness`", "give a checkpoint that was trained on classes", of=path
    )
    experiment = retarget_experiment(checkpoint.experiment, changes)
    dataset, listing = registry.scan_dataset(experiment.data, experiment.preprocessing.features)
    recordings, recordings_description = _select_recordings(checkpoint, experiment, dataset, listing, options)
    speech_files = _list_speech_files(experiment)
    conditions = plan_conditions(experiment, options, {subject_id for subject_id, _ in speech_files})
    results = Store(out)
    data = {k: v for k, v in asdict(experiment.data).items() if k != "subjects"}
    babble_sources = (
        speech_files if any(c.kind == "audio.babble" for c in conditions) else ()
    )  # whoever came later is in it too
    key_digest = digest(FORMAT, data, [asdict(c) for c in conditions], [r.id for r in recordings], babble_sources)
    name = f"robustness/{sha256(f'{checkpoint.commit_sha256}{key_digest}'.encode())[:16]}"
    facts = {
        "checkpoint": {"path": checkpoint.path, "commit_sha256": checkpoint.commit_sha256},
        "data": data,
        "seed": experiment.seed,
        "steps": options.steps,
        "protocol": checkpoint.split.protocol,
        "recordings_description": recordings_description,
        "classes": list(checkpoint.state.classes),
        "versions": list_package_versions(),
    }
    with results.lock(f"{name}/lock") as results:
        tree = results.read_json(f"{name}/results.json") if results.exists(f"{name}/results.json") else {}
        if tree.get("format") != TREE_FORMAT:  # predictions of an earlier version are counted anew
            inputs = _build_inputs(checkpoint, experiment, listing, recordings, speech_files)
            tables = _load_or_predict(inputs, conditions, checkpoint, experiment.runtime, results, name)
            modalities = sorted(experiment.data.modalities)
            tree = build_robustness_results(
                tables, [_condition_to_dict(c) for c in conditions], modalities, len(checkpoint.state.classes), facts
            )
            results.write_json(f"{name}/results.json", tree)
    return RobustnessResult(
        tree,
        results.format_path(name),
        f"{format_robustness(tree)}\nrobustness: {results.format_path(f'{name}/results.json')}",
    )


def plan_conditions(experiment: Experiment, options: RobustnessOptions, speakers: set[str]) -> list[Condition]:
    """All conditions, those of a kind together, the clean one first.

    Args:
        speakers: Who there is speech of in the data set.
    """
    modalities = experiment.data.modalities
    unknown = [m for m in options.modalities if m not in modalities]
    if unknown:
        raise ConfigError(f"--modalities names {', '.join(unknown)}; it may name some of {', '.join(modalities)}")
    kinds = select_kinds(options.kinds, options.modalities or modalities)
    if "audio.babble" in kinds and len(speakers) < 2:
        if options.kinds:
            raise ConfigError(
                "babble is speech of other people, and the data root has only one person with audio; leave it out of "
                "--corruptions, or give a data.root with more people"
            )
        print("audio.babble is left out: the data root has only one person with audio", flush=True)
        kinds = tuple(k for k in kinds if k != "audio.babble")
    conditions = [CLEAN]
    for kind in kinds:
        for step, level in enumerate(compute_levels(kind, options.steps), start=1):
            conditions.append(Condition(f"{kind}.{step}", kind, step, (Corruption(kind, level, experiment.seed),)))
    return conditions + _plan_combined_conditions(kinds, options.steps, experiment.seed)


def _plan_combined_conditions(kinds: Sequence[str], steps: int, seed: int) -> list[Condition]:
    """All modalities corrupted at once, each by one kind; nothing where there is one modality only."""
    kinds_by_modality = {m: [k for k in kinds if CORRUPTION_KINDS[k].modality == m] for m in MODALITIES}
    chosen_kinds = [
        next((k for k in COMBINED_KINDS[m] if k in modality_kinds), modality_kinds[0])
        for m, modality_kinds in kinds_by_modality.items()
        if modality_kinds
    ]
    if len(chosen_kinds) < 2:
        return []
    return [
        Condition(
            f"combined.{n + 1}",
            "combined",
            n + 1,
            tuple(Corruption(k, compute_levels(k, steps)[n], seed) for k in chosen_kinds),
        )
        for n in range(steps)
    ]


def _select_recordings(
    checkpoint: OpenedCheckpoint,
    experiment: Experiment,
    dataset: DatasetReader,
    listing: Listing,
    options: RobustnessOptions,
) -> tuple[list[Recording], str]:
    """The recordings that are predicted, and in words which these are."""
    root, path, test_ids = experiment.data.root, checkpoint.path, set(checkpoint.split.test)
    if dataset.classes != checkpoint.state.classes:
        raise DataError(
            f"{path} was trained on the classes {', '.join(checkpoint.state.classes)}, but {root} has "
            f"{', '.join(dataset.classes)}; give a data root with the same classes"
        )
    absent = [m for m in experiment.data.modalities if m not in checkpoint.experiment.data.modalities]
    if absent:
        raise ConfigError(f"data.modalities names {', '.join(absent)}, which {path} was not trained on")
    if "eeg" in experiment.data.modalities:
        _, note = match_dataset_channels(
            experiment, checkpoint, registry.list_eeg_channels(dataset, listing, experiment.preprocessing.eeg.channels)
        )
        print_note(note)
    if options.all_recordings:
        if not listing.recordings:
            raise DataError(f"there is no recording in {root}; run `eav check` to see why")
        training_ids = {*checkpoint.split.train, *checkpoint.split.validation}
        n_trained = (
            sum(r.id in training_ids for r in listing.recordings)
            if names_training_dataset(checkpoint, experiment)
            else 0
        )
        if n_trained:
            refuse_final(checkpoint, "tested")
        return list(listing.recordings), f"all recordings of the data root, {n_trained} of them trained on or chosen by"
    refuse_final(checkpoint, "tested")
    if not test_ids:
        raise ConfigError(f"{path} was trained on an inner fold, which has no test rows; give the refit checkpoint")
    subjects = experiment.data.subjects
    wanted_ids = {i for i in test_ids if not subjects or i.partition("/")[0] in subjects}
    if not wanted_ids:
        tested_subjects = ", ".join(sorted({i.partition("/")[0] for i in test_ids}))
        raise ConfigError(f"data.subjects names nobody whom {path} is tested on; those are {tested_subjects}")
    missing = sorted(wanted_ids - {r.id for r in listing.recordings})
    if missing:
        raise DataError(
            f"{root} does not hold {len(missing)} of the {format_count(len(wanted_ids), 'recording')} that {path} is "
            "tested on (the "
            f"first: {missing[0]}); set data.root to the data that it was trained from, or give --all to test "
            "whatever is there"
        )
    return [r for r in listing.recordings if r.id in wanted_ids], "the test side of the checkpoint's own split"


def _list_speech_files(experiment: Experiment) -> tuple[tuple[str, str], ...]:
    """(person, path) of all speech of the data set, whoever is predicted."""
    if "audio" not in experiment.data.modalities:
        return ()
    _, listing = registry.scan_dataset(replace(experiment.data, subjects=()), experiment.preprocessing.features)
    return tuple((r.subject, r.audio) for r in listing.recordings if r.audio is not None)


def _build_inputs(
    checkpoint: OpenedCheckpoint,
    experiment: Experiment,
    listing: Listing,
    recordings: list[Recording],
    speech_files: tuple[tuple[str, str], ...],
) -> RobustnessInputs:
    require_preprocessing_extras(experiment)
    # Modalities that are not wanted are missing ones to the model, which knows what to do without them.
    modalities: tuple[ModalityName, ...] = checkpoint.experiment.data.modalities
    # Given features that are not wanted were not attached.
    masked_modalities = dict.fromkeys(m for m in MODALITIES if m in modalities and m not in experiment.data.modalities)
    recordings_by_subject = [
        tuple(replace(r, **masked_modalities) for r in group)
        for _, group in groupby(recordings, key=lambda r: r.subject)
    ]
    subject_recordings = {
        of[0].subject: tuple(replace(r, **masked_modalities) for r in listing.recordings if r.subject == of[0].subject)
        for of in recordings_by_subject
    }
    # A modality that its preprocessing refuses is masked, as it would be in use, whatever training did with such.
    preprocessing = replace(checkpoint.experiment.preprocessing, on_bad="partial")
    return RobustnessInputs(
        experiment.data,
        preprocessing,
        modalities,
        checkpoint.state.shapes,
        tuple(recordings_by_subject),
        subject_recordings,
        speech_files,
    )


def _load_or_predict(
    inputs: RobustnessInputs,
    conditions: list[Condition],
    checkpoint: OpenedCheckpoint,
    runtime: RuntimeConfig,
    results: Store,
    name: str,
) -> dict[str, pd.DataFrame]:
    """Predictions of all conditions; those that the store lacks are computed, and kept each as it ends."""
    files = {c.name: f"{name}/{c.name}.parquet" for c in conditions}
    todo = [c for c in conditions if not results.exists(files[c.name])]
    if todo:
        groups = [tuple(group) for _, group in groupby(todo, key=lambda c: c.kind)]
        count = sum(map(len, inputs.recordings_by_subject))
        with connect_runtime(runtime) as runtime:
            ray_workarounds.configure_ray_data()
            subject_statistics = measure_clean_subjects(inputs, checkpoint, runtime)
            cost = measure_cost(inputs, groups, checkpoint, runtime, subject_statistics)
            n_workers = cluster.count_fitting_workers(runtime)
            seconds = cost.estimate_seconds(groups, inputs, n_workers, max(1, n_workers // 2))
            amount = format_count(len(todo), "condition")
            amount += f" ({len(conditions) - len(todo)} others are there)" if len(todo) < len(conditions) else ""
            print(
                f"robustness: {amount} x {format_recordings(count, len(inputs.recordings_by_subject))}; about "
                f"{format_duration(seconds)} on {format_count(n_workers, 'CPU')}",
                flush=True,
            )
            with open_progress_bar("robustness", len(todo) * count, "recordings") as bar:
                for condition_name, table in predict_conditions(
                    inputs, groups, checkpoint, runtime, bar, subject_statistics
                ):
                    results.write(files[condition_name], parquet.encode_dataframe(table))
    return {c: parquet.decode_dataframe(results.read(file), results.format_path(file)) for c, file in files.items()}


def _condition_to_dict(condition: Condition) -> dict[str, Any]:
    """A condition, for the tree."""
    found: dict[str, Any] = {"name": condition.name, "kind": condition.kind, "severity": condition.severity}
    found["modalities"] = [d.modality for d in condition.corruptions]
    found["levels"] = [
        {"kind": d.kind, "level": d.level, "unit": CORRUPTION_KINDS[d.kind].unit} for d in condition.corruptions
    ]
    return found
