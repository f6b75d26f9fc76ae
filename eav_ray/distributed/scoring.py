"""Recordings scored by finished checkpoints, on the memory-mapped windows; each checkpoint once, then kept.

A few actors, as many as the cluster has room for, open the windows once and go through all checkpoints: a process of
its own for each would cost seconds.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import pandas as pd
import ray
from ray.util import ActorPool

from eav_ray.config import Experiment, digest
from eav_ray.data.io import parquet
from eav_ray.data.modalities.registry import get_modality
from eav_ray.data.shards.dataset import Dataset
from eav_ray.data.shards.index import ShardIndex
from eav_ray.data.shards.window_cache import WindowCache
from eav_ray.data.splits import check_disjoint, list_labeled_recordings
from eav_ray.distributed import cluster
from eav_ray.distributed.connection import connect_experiment
from eav_ray.errors import ConfigError, DataError
from eav_ray.evaluation.frame_scores import compute_frames_correct, predict_with_frames
from eav_ray.storage import Store
from eav_ray.tracking.progress import open_progress_bar
from eav_ray.training.access import list_split_recordings
from eav_ray.training.checkpoint import OpenedCheckpoint, build_trained_model
from eav_ray.training.dataloader import (
    MaskedSource,
    RawSource,
    WindowLabels,
    find_channel_orders,
    make_inference_batches,
    select_rows_with_modality,
)
from eav_ray.training.metrics import WINDOW_COLUMNS
from eav_ray.training.predictions import build_empty_predictions, build_predictions
from eav_ray.training.prepared_run import open_worker_context
from eav_ray.training.subject_statistics import normalise_source

BATCH_SIZE = 32
FORMAT_VERSION = 2  # raise when what is kept of a task changes


@dataclass(frozen=True)
class ScoringTask:
    """One checkpoint and what it is to score."""

    checkpoint: OpenedCheckpoint  # a finished one
    recordings: tuple[str, ...]  # ids of recordings
    visible_modalities: tuple[str, ...] = ()  # modalities that it may see of them; all, where none are named
    is_other_dataset: bool = False  # they are of another data set than its own, where an equal id is another person
    allows_training_recordings: bool = False  # these are recordings that it was trained on, for the gap between both


@dataclass(frozen=True)
class ScoringResult:
    """What came of a task."""

    predictions: pd.DataFrame  # one row a window (`training.predictions.build_predictions`); empty where none were made
    problem: str = ""  # why none were made

    def require(self) -> pd.DataFrame:
        """Return the predictions.

        Raises:
            DataError: There are none.
        """
        if self.problem:
            raise DataError(self.problem)
        return self.predictions


def score_checkpoints(experiment: Experiment, tasks: list[ScoringTask], data: Dataset) -> list[ScoringResult]:
    """Predict the recordings of all tasks, once; predictions are kept under `evaluations/` in the results store.

    Args:
        experiment: Whose data and seed give the labels, and whose stores and runtime are used.
    """
    results = Store(experiment.store.results)
    names = [format_table_name(task, data.index) for task in tasks]
    scored = {n: ScoringResult(_read_table(results, name)) for n, name in enumerate(names) if results.exists(name)}
    todo = {n: task for n, task in enumerate(tasks) if n not in scored}
    for n, result in _score_tasks(experiment, todo, data) if todo else ():
        if not result.problem:
            results.write(names[n], parquet.encode_dataframe(result.predictions))
        scored[n] = result
    return [scored[n] for n in range(len(tasks))]


def is_stored(results: Store, task: ScoringTask, index: ShardIndex) -> bool:
    return results.exists(format_table_name(task, index))


def format_table_name(task: ScoringTask, index: ShardIndex) -> str:
    """Name a table of predictions by the checkpoint's files and the recordings: equal questions have one answer."""
    identity = task.checkpoint.commit_sha256[:16]
    visible = [sorted(task.visible_modalities)] if task.visible_modalities else []
    return (
        f"evaluations/{identity}-{digest(FORMAT_VERSION, sorted(task.recordings), index.fingerprint, *visible)}.parquet"
    )


def _read_table(results: Store, name: str) -> pd.DataFrame:
    return parquet.decode_dataframe(results.read(name), results.format_path(name))


def _score_tasks(
    experiment: Experiment, tasks: dict[int, ScoringTask], data: Dataset
) -> Iterator[tuple[int, ScoringResult]]:
    """Score tasks on actors; yields the number of each, and what came of it, as soon as it is complete."""
    # A person at a time: one checkpoint that has many people to score is shared between the actors too.
    parts = [
        (number, replace(task, recordings=tuple(ids)))
        for number, task in tasks.items()
        for _, ids in groupby(sorted(task.recordings), key=lambda i: i.split("/")[0])
    ]
    n_missing = Counter(number for number, _ in parts)
    scored: dict[int, list[ScoringResult]] = {number: [] for number in tasks}
    allowed_recordings = tuple(sorted({i for task in tasks.values() for i in task.recordings}))
    total = sum(len(task.recordings) for task in tasks.values())
    with connect_experiment(experiment) as experiment, open_progress_bar("score", total, "recordings") as bar:
        runtime = experiment.runtime
        # An actor that died starts again and takes its part up again, once.
        scorer: Any = ray.remote(
            num_cpus=runtime.cpus_per_worker,
            num_gpus=runtime.gpus,
            scheduling_strategy="SPREAD",  # also where a trial asks, whose own place has no room
            max_restarts=1,
            max_task_retries=1,
        )(Scorer)
        count = min(len(parts), cluster.count_fitting_workers(runtime))
        pool = ActorPool([scorer.remote(experiment, data, allowed_recordings) for _ in range(count)])
        for number, result, size in pool.map_unordered(lambda actor, part: actor.score.remote(*part), parts):
            bar.set_done(bar.done + size)
            scored[number].append(result)
            n_missing[number] -= 1
            if not n_missing[number]:
                yield number, _join_parts(tasks[number], scored.pop(number))


def _join_parts(task: ScoringTask, parts: list[ScoringResult]) -> ScoringResult:
    if failed := [part for part in parts if part.problem]:
        return failed[0]
    tables = [part.predictions for part in parts if len(part.predictions)]
    if not tables:
        problem = f"{task.checkpoint.path} has nothing to score: no recording has any of its modalities"
        return ScoringResult(pd.DataFrame(), problem)
    return ScoringResult(pd.concat(tables, ignore_index=True).sort_values(WINDOW_COLUMNS, ignore_index=True))


class Scorer:
    """An actor: the windows, opened once, and the checkpoint that it scored last."""

    def __init__(self, experiment: Experiment, data: Dataset, allowed_recordings: tuple[str, ...]) -> None:
        device = cluster.set_up_torch(experiment.runtime)
        self._context = open_worker_context(experiment, data, device, allowed_recordings)
        windows = self._context.windows
        items = list_labeled_recordings(windows.ids, experiment.data, experiment.seed)
        self._labels = WindowLabels.from_windows(windows, {i.id: i.truth for i in items})
        self._checkpoint: OpenedCheckpoint | None = None

    def score(self, number: int, task: ScoringTask) -> tuple[int, ScoringResult, int]:
        """Return the number given, what came of the task, and how many recordings that was."""
        try:
            result = ScoringResult(self._predict(task))
        except (ConfigError, DataError) as error:
            result = ScoringResult(pd.DataFrame(), str(error))
        return number, result, len(task.recordings)

    def _open_subject_recordings(self, task: ScoringTask) -> tuple[WindowCache, tuple[str, ...]]:
        """Open the recordings of the subjects that are scored: those of the checkpoint's split, as in its training, or
        where these are other people, those that are scored."""
        subjects = {recording.split("/")[0] for recording in task.recordings}
        known = () if task.is_other_dataset else list_split_recordings(self._split, task.recordings)
        recordings = tuple(r for r in known if r.split("/")[0] in subjects) or task.recordings
        return self._context.open_windows(recordings), recordings

    def _predict(self, task: ScoringTask) -> pd.DataFrame:
        if task.checkpoint != self._checkpoint:
            checkpoint = task.checkpoint
            self._split = checkpoint.split
            self._model = build_trained_model(checkpoint).to(self._context.device).eval()
            self._checkpoint = checkpoint
        if not (task.allows_training_recordings or task.is_other_dataset):
            check_disjoint(replace(self._split, validation=(), test=task.recordings))
        windows, names, device = self._context.windows, self._model.modalities, self._context.device
        rows, parts = select_rows_with_modality(windows, task.recordings, task.visible_modalities or tuple(names)), []
        # What another data set lacks, or has of another shape, is zeros that are masked.
        preprocessing, n_channels = task.checkpoint.experiment.preprocessing, task.checkpoint.state.shapes.eeg_channels
        zero_shapes = {
            m: get_modality(m).compute_shape(preprocessing, n_channels)
            for m in names
            if task.is_other_dataset and m not in task.visible_modalities
        }
        seen = [m for m in names if m not in zero_shapes]
        channel_orders = find_channel_orders(windows, seen, task.checkpoint.state.shapes.eeg_channel_names)
        stored = normalise_source(
            RawSource(windows, names, zero_shapes, channel_orders),
            task.checkpoint.experiment,
            task.checkpoint.state.shapes,
            windows,
            lambda: self._open_subject_recordings(task),
        )
        source = MaskedSource(stored, task.visible_modalities or tuple(names))
        scale = task.checkpoint.state.scale
        for part, batch in make_inference_batches(source, self._labels, rows, BATCH_SIZE):
            inputs = {m: x.to(device) for m, x in batch.inputs.items()}
            output, frames = predict_with_frames(self._model, inputs, batch.present_BM.to(device))
            present, label = source.get_presence(part), self._labels.label[part]
            table = build_predictions(output, windows.ids.iloc[part], present, names, label, scale)
            parts.append(table.assign(**compute_frames_correct(frames, names, present, label)))
        # An encoder that a fusion follows may be given people of whom nobody recorded its modality.
        empty = build_empty_predictions(names, self._model.n_outputs, scale)
        return pd.concat(parts, ignore_index=True) if parts else empty
