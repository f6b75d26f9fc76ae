"""Recordings under conditions, through Ray Data: read with the distortion, cut, predicted, a condition at a time.

A task takes one person and one kind of distortion: what the kind leaves alone is read once for all of its steps.
"""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import ray
import ray.data

from eav_ray.config import DataConfig, Modality, Preprocessing, RuntimeConfig
from eav_ray.data import sets, windows
from eav_ray.data.distort import Corruption
from eav_ray.data.distort_audio import AudioCorruption
from eav_ray.data.distort_eeg import CorruptedDataset
from eav_ray.data.distort_video import VideoCorruption
from eav_ray.data.manifest import DatasetReader, Recording
from eav_ray.data.session import PreparedEEG, prepare_eeg
from eav_ray.data.shard import compute_window_shapes, encode_window
from eav_ray.errors import DataError
from eav_ray.models.build import DataShapes
from eav_ray.report.progress import ProgressBar
from eav_ray.runtime import cluster
from eav_ray.runtime.eeg_stage import retried
from eav_ray.runtime.predict import UNIT, Predict, on_actors
from eav_ray.training.metrics import is_averaged_column

MEASURED = 2  # recordings that are read and predicted to say how long all will take


@dataclass(frozen=True)
class Condition:
    """Recordings as they are, or disturbed in one way."""

    name: str
    kind: str  # "clean", of `distort.KINDS`, or "together"
    step: int  # 0 for clean
    corruptions: tuple[Corruption, ...]


@dataclass(frozen=True)
class Work:
    """What every task knows."""

    data: DataConfig
    preprocessing: Preprocessing
    modalities: tuple[Modality, ...]  # of the checkpoint
    shapes: DataShapes
    recordings_by_subject: tuple[tuple[Recording, ...], ...]  # the recordings of each that are predicted
    whole: dict[str, tuple[Recording, ...]]  # all recordings of each of them, which `profile.eeg.align` looks at
    others: tuple[tuple[str, str], ...]  # (person, path) of all speech of the data set


def predicted(
    work: Work, groups: Sequence[tuple[Condition, ...]], path: str, runtime: RuntimeConfig, bar: ProgressBar
) -> Iterator[tuple[str, pd.DataFrame]]:
    """The predictions of each condition (its name, a table) as soon as all recordings are through.

    Args:
        groups: Conditions of one kind together.
        path: Of the checkpoint.
    """
    rows = [{"group": g, "person": p} for g in range(len(groups)) for p in range(len(work.recordings_by_subject))]
    tasks: Any = partial(_windows, groups=tuple(groups), work=work)
    read = retried(ray.data.from_items(rows, override_num_blocks=len(rows)).flat_map, tasks, num_cpus=1)
    made = on_actors(read, _PredictEach, path, runtime, most=max(1, cluster.count_fitting_workers(runtime) // 2))
    total = sum(len(recordings) for recordings in work.recordings_by_subject)
    parts: dict[str, list[pd.DataFrame]] = {c.name: [] for group in groups for c in group}
    seen: dict[str, Counter[tuple[str, str]]] = {name: Counter() for name in parts}
    left = dict.fromkeys(parts, total)
    for batch in made.iter_batches(batch_size=None, batch_format="pandas"):
        assert isinstance(batch, pd.DataFrame)
        for name, table in batch.groupby("condition"):
            assert isinstance(name, str)
            parts[name].append(table)
            ids = zip(table["subject"], table["recording"], table["rows"], strict=True)
            for (subject, recording, wanted), rows_here in Counter(ids).items():
                seen[name][subject, recording] += rows_here
                if seen[name][subject, recording] == wanted:
                    left[name] -= 1
                    bar.set_done(bar.done + 1)
            if not left[name]:
                yield name, _whole(parts.pop(name))


def _whole(parts: list[pd.DataFrame]) -> pd.DataFrame:
    table = pd.concat(parts, ignore_index=True).drop(columns=["condition", "rows"])
    # A batch in which nothing could be read has no numbers, and makes a column of objects of them all.
    numbers = [c for c in table.columns if is_averaged_column(c)]
    table[numbers] = table[numbers].astype(float)
    table["label"] = table["label"].astype(int)
    return table.sort_values(["subject", "recording", "reason", "window"], ignore_index=True)


def _windows(row: dict[str, Any], *, groups: tuple[tuple[Condition, ...], ...], work: Work) -> Iterator[dict[str, Any]]:
    """One person under the conditions of one kind: windows, as `predict` makes them, with their condition."""
    conditions, recordings = groups[row["group"]], work.recordings_by_subject[row["person"]]
    touched = {d.modality for c in conditions for d in c.distortions}
    still: list[Modality] = [m for m in work.modalities if m not in touched]
    moved: list[Modality] = [m for m in work.modalities if m in touched]
    dataset = sets.open_reader(work.data)
    eeg_as_is = eeg_of(dataset, recordings, work) if "eeg" in still else {}
    eeg = {c.name: eeg_of(dataset, recordings, work, c) for c in conditions if "eeg" in moved}
    for at in range(0, len(recordings), UNIT):
        part = recordings[at : at + UNIT]
        as_is = {r.id: read(r, work, still, eeg_as_is.get(r.id)) for r in part}
        for c in conditions:
            for r in part:
                disturbed = read(r, work, moved, eeg.get(c.name, {}).get(r.id), c)
                found = _rows(r, work, joined(as_is[r.id], disturbed))
                yield from (one | {"condition": c.name, "rows": len(found)} for one in found)


def eeg_of(
    dataset: DatasetReader, recordings: Sequence[Recording], work: Work, condition: Condition | None = None
) -> dict[str, PreparedEEG | DataError]:
    """The EEG of recordings of one person, by id, under a condition."""
    here = [r for r in recordings if r.eeg is not None]
    corruption = next((d for d in condition.corruptions if d.modality == "eeg"), None) if condition else None
    source = CorruptedDataset(dataset, corruption, work.preprocessing.eeg.unit) if corruption else dataset
    whole = work.whole.get(here[0].subject, ()) if here else ()
    return {r.id: found for r, found in prepare_eeg(source, here, work.preprocessing.eeg, whole)}


def read(
    recording: Recording,
    work: Work,
    modalities: Sequence[Modality],
    prepared: PreparedEEG | DataError | None,
    condition: Condition | None = None,
) -> windows.RecordingSignals:
    """Some modalities of one recording, under a condition."""
    of = {d.modality: d for d in condition.corruptions} if condition else {}
    return windows.read_signals(
        recording,
        work.preprocessing,
        modalities,
        prepared_eeg=prepared,
        eeg_channels=work.shapes.eeg_channels,
        audio_corruption=AudioCorruption(of["audio"], recording, work.others) if "audio" in of else None,
        video_corruption=VideoCorruption(of["video"], recording.id) if "video" in of else None,
    )


def joined(one: windows.RecordingSignals, other: windows.RecordingSignals) -> windows.RecordingSignals:
    """Two readings of one recording, of different modalities."""
    return windows.RecordingSignals(
        {**one.arrays, **other.arrays}, {**one.durations_s, **other.durations_s}, one.problems + other.problems
    )


def _rows(recording: Recording, work: Work, signals: windows.RecordingSignals) -> list[dict[str, Any]]:
    """Windows to be predicted, and one for each file that cannot be used, which says why."""
    modalities, shapes, preprocessing = work.modalities, work.shapes, work.preprocessing
    names = ["subject", "recording", "window", "label", *modalities, *(f"has_{m}" for m in modalities)]
    made = windows.cut_signals(signals, recording, preprocessing, modalities, eeg_channels=shapes.eeg_channels)
    stored = [encode_window(w, preprocessing) for w in made.windows]
    found = [{name: stored_window[name] for name in names} | {"reason": ""} for stored_window in stored]
    # What cannot be read at all is a row too: it is waited for, and scored as wrong.
    for reason in [p.reason for p in made.problems] or ([] if found else ["it has none of the modalities"]):
        empty: dict[str, Any] = {"subject": recording.subject, "recording": recording.recording, "window": 0}
        for m, (shape, dtype) in compute_window_shapes(preprocessing, shapes.eeg_channels).items():
            if m in modalities:
                empty |= {m: np.zeros(shape, dtype.to_pandas_dtype()), f"has_{m}": False}
        found.append(encode_window(empty, preprocessing) | {"label": recording.label, "reason": reason})
    return found


class _PredictEach(Predict):
    """An actor: one loaded checkpoint, batches of windows under several conditions."""

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {str(c): column.to_numpy() for c, column in self.table(batch).items()}

    def table(self, batch: dict[str, np.ndarray]) -> pd.DataFrame:
        tables = []
        for name in dict.fromkeys(batch["condition"].tolist()):
            mine = batch["condition"] == name
            of = {key: values[mine] for key, values in batch.items()}
            table = pd.DataFrame(super().__call__(of))
            counts = dict(zip(zip(of["subject"], of["recording"], strict=True), of["rows"], strict=True))
            table["rows"] = [counts[key] for key in zip(table["subject"], table["recording"], strict=True)]
            tables.append(table.assign(condition=name))
        return pd.concat(tables, ignore_index=True)


@dataclass(frozen=True)
class Price:
    """Seconds of one core, measured."""

    load: float  # what a person's EEG file costs beyond its recordings
    read: dict[str, float]  # of a modality of one recording, disturbed
    predict: float  # one recording

    def seconds(self, groups: Sequence[tuple[Condition, ...]], work: Work, cores: int, actors: int) -> float:
        """Of all groups: reading and predicting go on at once, where there is a core for each."""
        count = sum(map(len, work.recordings_by_subject))
        reading = predicting = 0.0
        for group in groups:
            touched = {d.modality for c in group for d in c.corruptions}
            for m, cost in self.read.items():
                reading += count * cost * (len(group) if m in touched else 1)
            reading += self.load * len(work.recordings_by_subject)
            predicting += count * self.predict * len(group)
        if cores <= actors:
            return reading + predicting
        return max(reading / (cores - actors), predicting / actors)


def measure(work: Work, groups: Sequence[tuple[Condition, ...]], path: str, threads: float) -> Price:
    """Read and predict a recording or two in this process, one of each kind of distortion at its strongest."""
    some = work.recordings_by_subject[0][:MEASURED]
    dataset, model = sets.open_reader(work.data), _PredictEach(path, threads)
    began = time.monotonic()
    prepared = eeg_of(dataset, some, work)
    first = time.monotonic() - began
    cost = {m: [] for m in work.modalities}
    predict: list[float] = []
    for condition in [group[-1] for group in groups]:
        moved: list[Modality] = [d.modality for d in condition.corruptions] or list(work.modalities)
        for m in moved:
            began = time.monotonic()
            if m == "eeg":
                prepared = eeg_of(dataset, some, work, condition)
            for r in some:
                read(r, work, [m], prepared.get(r.id), condition)
            cost[m].append((time.monotonic() - began) / len(some))
    signals = {r.id: read(r, work, list(work.modalities), prepared.get(r.id)) for r in some}
    for _ in range(2):  # the first call of a model takes longer
        rows = [row | {"condition": "", "rows": 0} for r in some for row in _rows(r, work, signals[r.id])]
        began = time.monotonic()
        model.table({key: _column([row[key] for row in rows]) for key in rows[0]})
        predict.append((time.monotonic() - began) / len(some))
    mean = {m: float(np.mean(seconds)) for m, seconds in cost.items() if seconds}
    return Price(max(0.0, first - len(some) * mean.get("eeg", first)), mean, predict[-1])


def _column(values: list[Any]) -> np.ndarray:
    """As Ray Data batches it: a window of frames is a list of files."""
    if isinstance(values[0], list):
        column = np.empty(len(values), dtype=object)
        column[:] = values
        return column
    return np.stack(values) if isinstance(values[0], np.ndarray) else np.array(values)
