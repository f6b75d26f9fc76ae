"""Recordings under conditions, through Ray Data: read with the corruption, cut, predicted, a condition at a time.

A task takes one person and one kind of corruption: what the kind leaves alone is read once for all of its steps.
"""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import ray
import ray.data
import torch

from eav_ray.config import DataConfig, ModalityName, Preprocessing, RuntimeConfig
from eav_ray.data.corruptions.audio import AudioCorruption
from eav_ray.data.corruptions.base import Corruption
from eav_ray.data.corruptions.eeg import corrupt_dataset
from eav_ray.data.corruptions.video import VideoCorruption
from eav_ray.data.datasets import registry
from eav_ray.data.preprocessing import windowing
from eav_ray.data.preprocessing.eeg import PreparedEEG, prepare_eeg
from eav_ray.data.recordings import DatasetReader, Recording
from eav_ray.distributed import cluster
from eav_ray.distributed.ray_workarounds import map_with_retries
from eav_ray.errors import DataError
from eav_ray.evaluation.window_predictor import stack_column
from eav_ray.models.encoders.base import DataShapes
from eav_ray.pipelines.inference.inference_windows import make_rows
from eav_ray.pipelines.inference.predict import RECORDINGS_PER_TASK, PredictionActor, map_on_actors, measure_subjects
from eav_ray.tracking.progress import ProgressBar
from eav_ray.training.checkpoint import OpenedCheckpoint
from eav_ray.training.metrics import is_averaged_column
from eav_ray.training.subject_statistics import SubjectMoments

N_TIMED_RECORDINGS = 2  # recordings that are read and predicted to say how long all will take


@dataclass(frozen=True)
class Condition:
    """Recordings as they are, or corrupted in one way."""

    name: str
    kind: str  # "clean", of `corruptions.base.CORRUPTION_KINDS`, or "combined"
    severity: int  # 0 for clean, then 1 for the mildest
    corruptions: tuple[Corruption, ...]


CLEAN = Condition("clean", "clean", 0, ())


@dataclass(frozen=True)
class RobustnessInputs:
    """What every task knows."""

    data: DataConfig
    preprocessing: Preprocessing
    modalities: tuple[ModalityName, ...]  # of the checkpoint
    shapes: DataShapes
    recordings_by_subject: tuple[tuple[Recording, ...], ...]  # the recordings of each that are predicted
    # All recordings of each of them, which `preprocessing.eeg.align` and normalisation within subjects look at.
    subject_recordings: dict[str, tuple[Recording, ...]]
    speech_files: tuple[tuple[str, str], ...]  # (person, path) of all speech of the data set


def predict_conditions(
    inputs: RobustnessInputs,
    groups: Sequence[tuple[Condition, ...]],
    checkpoint: OpenedCheckpoint,
    runtime: RuntimeConfig,
    bar: ProgressBar,
    subject_statistics: dict[str, SubjectMoments],
) -> Iterator[tuple[str, pd.DataFrame]]:
    """The predictions of each condition (its name, a table) as soon as all recordings are through.

    Args:
        groups: Conditions of one kind together.
        subject_statistics: Of `measure_clean_subjects`.
    """
    predictions = map_on_actors(
        _read_conditions(inputs, groups),
        _ConditionPredictor,
        checkpoint,
        runtime,
        subject_statistics,
        max_actors=max(1, cluster.count_fitting_workers(runtime) // 2),
    )
    total = sum(len(recordings) for recordings in inputs.recordings_by_subject)
    parts: dict[str, list[pd.DataFrame]] = {c.name: [] for group in groups for c in group}
    rows_seen: dict[str, Counter[tuple[str, str]]] = {name: Counter() for name in parts}
    recordings_left = dict.fromkeys(parts, total)
    for batch in predictions.iter_batches(batch_size=None, batch_format="pandas"):
        assert isinstance(batch, pd.DataFrame)
        for name, table in batch.groupby("condition"):
            assert isinstance(name, str)
            parts[name].append(table)
            ids = zip(table["subject"], table["recording"], table["rows"], strict=True)
            for (subject, recording, n_rows), n_new in Counter(ids).items():
                rows_seen[name][subject, recording] += n_new
                if rows_seen[name][subject, recording] == n_rows:
                    recordings_left[name] -= 1
                    bar.set_done(bar.done + 1)
            if not recordings_left[name]:
                yield name, _concatenate_parts(parts.pop(name))


def measure_clean_subjects(
    inputs: RobustnessInputs, checkpoint: OpenedCheckpoint, runtime: RuntimeConfig
) -> dict[str, SubjectMoments]:
    """Measure by what each subject is normalised, over their recordings as they are.

    A microphone fails after somebody was measured: what is corrupted is not taken into the measure.

    Returns:
        By modality; nothing of a checkpoint that does not normalise within subjects.
    """
    if not checkpoint.experiment.list_normalised_modalities():
        return {}
    everything = tuple(inputs.subject_recordings[own[0].subject] for own in inputs.recordings_by_subject)
    ids = pd.DataFrame([{"id": r.id, "subject": r.subject, "order": r.order} for own in everything for r in own])
    rows = _read_conditions(replace(inputs, recordings_by_subject=everything), [(CLEAN,)])
    return measure_subjects(rows, checkpoint, runtime, lambda: ids)


def _read_conditions(inputs: RobustnessInputs, groups: Sequence[tuple[Condition, ...]]) -> ray.data.Dataset:
    """Read windows under conditions, a task for each subject and group."""
    rows = [
        {"group": g, "subject_index": p} for g in range(len(groups)) for p in range(len(inputs.recordings_by_subject))
    ]
    tasks: Any = partial(_make_condition_windows, groups=tuple(groups), inputs=inputs)
    return map_with_retries(ray.data.from_items(rows, override_num_blocks=len(rows)).flat_map, tasks, num_cpus=1)


def _concatenate_parts(parts: list[pd.DataFrame]) -> pd.DataFrame:
    table = pd.concat(parts, ignore_index=True).drop(columns=["condition", "rows"])
    # A batch in which nothing could be read has no numbers, and makes a column of objects of them all.
    numbers = [c for c in table.columns if is_averaged_column(c)]
    table[numbers] = table[numbers].astype(float)
    table["label"] = table["label"].astype(int)
    return table.sort_values(["subject", "recording", "reason", "window"], ignore_index=True)


def _make_condition_windows(
    row: dict[str, Any], *, groups: tuple[tuple[Condition, ...], ...], inputs: RobustnessInputs
) -> Iterator[dict[str, Any]]:
    """One person under the conditions of one kind: windows, as `predict` makes them, with their condition."""
    conditions, recordings = groups[row["group"]], inputs.recordings_by_subject[row["subject_index"]]
    corrupted = {d.modality for c in conditions for d in c.corruptions}
    clean_modalities: list[ModalityName] = [m for m in inputs.modalities if m not in corrupted]
    corrupted_modalities: list[ModalityName] = [m for m in inputs.modalities if m in corrupted]
    dataset = registry.open_reader(inputs.data)
    clean_eeg = prepare_subject_eeg(dataset, recordings, inputs) if "eeg" in clean_modalities else {}
    corrupted_eeg = {
        c.name: prepare_subject_eeg(dataset, recordings, inputs, c) for c in conditions if "eeg" in corrupted_modalities
    }
    for at in range(0, len(recordings), RECORDINGS_PER_TASK):
        part = recordings[at : at + RECORDINGS_PER_TASK]
        clean_signals = {r.id: read_signals(r, inputs, clean_modalities, clean_eeg.get(r.id)) for r in part}
        for c in conditions:
            for r in part:
                corrupted_signals = read_signals(
                    r, inputs, corrupted_modalities, corrupted_eeg.get(c.name, {}).get(r.id), c
                )
                found = _make_rows(r, inputs, merge_signals(clean_signals[r.id], corrupted_signals))
                yield from (one | {"condition": c.name, "rows": len(found)} for one in found)


def prepare_subject_eeg(
    dataset: DatasetReader,
    recordings: Sequence[Recording],
    inputs: RobustnessInputs,
    condition: Condition | None = None,
) -> dict[str, PreparedEEG | DataError]:
    """The EEG of recordings of one person, by id, under a condition."""
    with_eeg = [r for r in recordings if r.eeg is not None]
    corruption = next((d for d in condition.corruptions if d.modality == "eeg"), None) if condition else None
    source = corrupt_dataset(dataset, corruption, inputs.preprocessing.eeg.unit) if corruption else dataset
    subject_recordings = inputs.subject_recordings.get(with_eeg[0].subject, ()) if with_eeg else ()
    channels = inputs.shapes.eeg_channel_names
    prepared = prepare_eeg(source, with_eeg, inputs.preprocessing.eeg, subject_recordings, channels)
    return {r.id: found for r, found in prepared}


def read_signals(
    recording: Recording,
    inputs: RobustnessInputs,
    modalities: Sequence[ModalityName],
    prepared: PreparedEEG | DataError | None,
    condition: Condition | None = None,
) -> windowing.RecordingSignals:
    """Some modalities of one recording, under a condition."""
    corruption_by_modality = {d.modality: d for d in condition.corruptions} if condition else {}
    return windowing.read_signals(
        recording,
        windowing.WindowFormat(inputs.preprocessing, tuple(modalities), inputs.shapes.eeg_channels),
        prepared,
        audio_corruption=AudioCorruption(corruption_by_modality["audio"], recording, inputs.speech_files)
        if "audio" in corruption_by_modality
        else None,
        video_corruption=VideoCorruption(corruption_by_modality["video"], recording.id)
        if "video" in corruption_by_modality
        else None,
    )


def merge_signals(first: windowing.RecordingSignals, second: windowing.RecordingSignals) -> windowing.RecordingSignals:
    """Two readings of one recording, of different modalities."""
    return windowing.RecordingSignals(
        {**first.arrays, **second.arrays},
        {**first.durations_s, **second.durations_s},
        first.problems + second.problems,
        missing_s={**first.missing_s, **second.missing_s},
    )


def _make_rows(
    recording: Recording, inputs: RobustnessInputs, signals: windowing.RecordingSignals
) -> list[dict[str, Any]]:
    modalities, shapes, preprocessing = inputs.modalities, inputs.shapes, inputs.preprocessing
    window_format = windowing.WindowFormat(preprocessing, modalities, shapes.eeg_channels)
    windowed = windowing.cut_signals(signals, recording, window_format)
    return make_rows(recording, windowed, preprocessing, modalities, shapes)


class _ConditionPredictor(PredictionActor):
    """An actor: one loaded checkpoint, batches of windows under several conditions."""

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {str(c): column.to_numpy() for c, column in self.predict_table(batch).items()}

    def predict_table(self, batch: dict[str, np.ndarray]) -> pd.DataFrame:
        tables = []
        for name in dict.fromkeys(batch["condition"].tolist()):
            is_condition = batch["condition"] == name
            condition_batch = {key: values[is_condition] for key, values in batch.items()}
            table = pd.DataFrame(super().__call__(condition_batch))
            counts = dict(
                zip(
                    zip(condition_batch["subject"], condition_batch["recording"], strict=True),
                    condition_batch["rows"],
                    strict=True,
                )
            )
            table["rows"] = [counts[key] for key in zip(table["subject"], table["recording"], strict=True)]
            tables.append(table.assign(condition=name))
        return pd.concat(tables, ignore_index=True)


@dataclass(frozen=True)
class ConditionCost:
    """Seconds of one core, measured."""

    load_s: float  # what a person's EEG file costs beyond its recordings
    read_s: dict[str, float]  # of a modality of one recording, corrupted
    predict_s: float  # one recording

    def estimate_seconds(
        self, groups: Sequence[tuple[Condition, ...]], inputs: RobustnessInputs, cores: int, actors: int
    ) -> float:
        """Of all groups: reading and predicting go on at once, where there is a core for each."""
        count = sum(map(len, inputs.recordings_by_subject))
        reading = predicting = 0.0
        for group in groups:
            corrupted = {d.modality for c in group for d in c.corruptions}
            for m, cost in self.read_s.items():
                reading += count * cost * (len(group) if m in corrupted else 1)
            reading += self.load_s * len(inputs.recordings_by_subject)
            predicting += count * self.predict_s * len(group)
        if cores <= actors:
            return reading + predicting
        return max(reading / (cores - actors), predicting / actors)


def measure_cost(
    inputs: RobustnessInputs,
    groups: Sequence[tuple[Condition, ...]],
    checkpoint: OpenedCheckpoint,
    runtime: RuntimeConfig,
    subject_statistics: dict[str, SubjectMoments],
) -> ConditionCost:
    """Read and predict a recording or two in this process, one of each kind of corruption at its strongest.

    Args:
        subject_statistics: Of `measure_clean_subjects`.
    """
    sample = inputs.recordings_by_subject[0][:N_TIMED_RECORDINGS]
    torch.set_num_threads(max(1, int(runtime.cpus_per_worker)))
    dataset = registry.open_reader(inputs.data)
    device = cluster.choose_driver_device(runtime)
    model = _ConditionPredictor(checkpoint, runtime, subject_statistics, device)
    started = time.monotonic()
    prepared = prepare_subject_eeg(dataset, sample, inputs)
    load_time = time.monotonic() - started
    read_times = {m: [] for m in inputs.modalities}
    predict_times: list[float] = []
    for condition in [group[-1] for group in groups]:
        corrupted_modalities: list[ModalityName] = [d.modality for d in condition.corruptions] or list(
            inputs.modalities
        )
        for m in corrupted_modalities:
            started = time.monotonic()
            if m == "eeg":
                prepared = prepare_subject_eeg(dataset, sample, inputs, condition)
            for r in sample:
                read_signals(r, inputs, [m], prepared.get(r.id), condition)
            read_times[m].append((time.monotonic() - started) / len(sample))
    signals = {r.id: read_signals(r, inputs, list(inputs.modalities), prepared.get(r.id)) for r in sample}
    for _ in range(2):  # the first call of a model takes longer
        rows = [row | {"condition": "", "rows": 0} for r in sample for row in _make_rows(r, inputs, signals[r.id])]
        started = time.monotonic()
        model.predict_table({key: stack_column([row[key] for row in rows]) for key in rows[0]})
        predict_times.append((time.monotonic() - started) / len(sample))
    mean = {m: float(np.mean(seconds)) for m, seconds in read_times.items() if seconds}
    return ConditionCost(max(0.0, load_time - len(sample) * mean.get("eeg", load_time)), mean, predict_times[-1])
