"""Recordings scored by finished checkpoints, on the memory-mapped windows; each checkpoint once, then kept.

A few actors, as many as the cluster has room for, open the windows once and go through all checkpoints: a process of
its own for each would cost seconds.
"""

from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import pandas as pd
import ray
import torch
from ray.util import ActorPool

from eav_ray.config import Experiment, digest
from eav_ray.data import arrow
from eav_ray.data.shard import ShardIndex, compute_window_shapes
from eav_ray.data.split import check_disjoint, list_labeled_recordings
from eav_ray.errors import ConfigError, DataError
from eav_ray.report.progress import stage
from eav_ray.runtime import cluster
from eav_ray.storage import COMMIT, Store, sha256, split_store_path
from eav_ray.training import checkpoint as ckpt
from eav_ray.training.frames import compute_frames_correct, predict_with_frames
from eav_ray.training.run import (
    build_empty_predictions,
    build_predictions,
    open_worker_context,
    select_rows_with_modality,
)
from eav_ray.training.source import MaskedSource, RawSource, WindowLabels, make_inference_batches

BATCH = 32
FORMAT = 2  # raise when what is kept of a task changes


@dataclass(frozen=True)
class Task:
    """One checkpoint and what it is to score."""

    path: str  # of a finished checkpoint
    test: tuple[str, ...]  # ids of recordings
    shown: tuple[str, ...] = ()  # modalities that it may see of them; all, where none are named
    other_data: bool = False  # they are of another data set than its own, where an equal id is another person
    trained: bool = False  # these are recordings that it was trained on, for the gap between both


def score(experiment: Experiment, tasks: list[Task], shards: Store, index: ShardIndex) -> list[pd.DataFrame | str]:
    """Predictions of all tasks, computed once and kept under `evaluations/` in the results store.

    Args:
        experiment: Whose data and seed give the labels, and whose stores and runtime are used.
    Returns:
        For each task a table with one row a window (`training.run.to_frame`), or a line that says why there is none.
    """
    results = Store(experiment.store.results)
    names = [_name(task, index) for task in tasks]
    stored = {n: _read(results, name) for n, name in enumerate(names) if results.exists(name)}
    todo = [n for n in range(len(tasks)) if n not in stored]
    made = _scored(experiment, {n: tasks[n] for n in todo}, shards, index, names) if todo else {}
    return [stored[n] if n in stored else made[n] for n in range(len(tasks))]


def is_kept(results: Store, task: Task, index: ShardIndex) -> bool:
    return results.exists(_name(task, index))


def _name(task: Task, index: ShardIndex) -> str:
    """By the hash of the checkpoint's files and the recordings: equal questions have one answer."""
    store, prefix = split_store_path(task.path)
    identity = sha256(store.read(f"{prefix}/{COMMIT}"))[:16]
    seen = [sorted(task.shown)] if task.shown else []
    return f"evaluations/{identity}-{digest(FORMAT, sorted(task.test), index.fingerprint, *seen)}.parquet"


def _read(results: Store, name: str) -> pd.DataFrame:
    return arrow.decode_dataframe(results.read(name), f"{results}/{name}")


def _scored(
    experiment: Experiment, tasks: dict[int, Task], shards: Store, index: ShardIndex, names: list[str]
) -> dict[int, pd.DataFrame | str]:
    runtime, results = experiment.runtime, Store(experiment.store.results)
    # A person at a time: one checkpoint that has many people to score is shared between the actors too.
    parts = [
        (number, replace(task, test=tuple(ids)))
        for number, task in tasks.items()
        for _, ids in groupby(sorted(task.test), key=lambda i: i.split("/")[0])
    ]
    left = {number: sum(p[0] == number for p in parts) for number in tasks}
    tables: dict[int, list[pd.DataFrame]] = {number: [] for number in tasks}
    found: dict[int, pd.DataFrame | str] = {}
    everything = tuple(sorted({i for task in tasks.values() for i in task.test}))
    total = sum(len(task.test) for task in tasks.values())
    with cluster.connect_to_ray(runtime), stage("test, once", total, "recordings") as bar:
        # An actor that died starts again and takes its part up again, once.
        scorer: Any = ray.remote(
            num_cpus=runtime.cpus_per_worker,
            num_gpus=runtime.gpus_per_worker,
            scheduling_strategy="SPREAD",  # also where a trial asks, whose own place has no room
            max_restarts=1,
            max_task_retries=1,
        )(_Scorer)
        count = min(len(parts), cluster.count_fitting_workers(runtime))
        pool = ActorPool([scorer.remote(experiment, str(shards), index, everything) for _ in range(count)])
        for number, table, size in pool.map_unordered(lambda actor, part: actor.score.remote(*part), parts):
            bar.to(bar.done + size)
            left[number] -= 1
            if isinstance(table, str):
                found[number] = table
            else:
                tables[number].append(table)
            if not left[number] and number not in found:
                order = ["subject", "recording", "window"]
                parted = [part for part in tables.pop(number) if len(part)]
                if not parted:
                    found[number] = f"{tasks[number].path} has nothing to score: no recording has any of its modalities"
                    continue
                whole = pd.concat(parted, ignore_index=True).sort_values(order, ignore_index=True)
                results.write(names[number], arrow.encode_dataframe(whole))
                found[number] = whole
    return found


class _Scorer:
    """An actor: the windows, opened once, and the checkpoint that it scored last."""

    def __init__(self, experiment: Experiment, shards: str, index: ShardIndex, recordings: tuple[str, ...]) -> None:
        torch.set_num_threads(max(1, int(experiment.runtime.cpus_per_worker)))
        device = torch.device("cuda" if cluster.has_gpu(experiment.runtime) else "cpu")
        self._context = open_worker_context(experiment, Store(shards), index, device, allowed_recordings=recordings)
        windows = self._context.windows
        items = list_labeled_recordings(windows.ids, experiment.data, experiment.seed)
        self._labels = WindowLabels.from_windows(windows, {i.id: i.label for i in items})
        self._path = ""

    def score(self, number: int, task: Task) -> tuple[int, pd.DataFrame | str, int]:
        """The number given, a table or why there is none, and how many recordings that was."""
        try:
            return number, self._table(task), len(task.test)
        except (ConfigError, DataError) as error:
            return number, str(error), len(task.test)

    def _table(self, task: Task) -> pd.DataFrame:
        if task.path != self._path:
            checkpoint = ckpt.read_checkpoint(*split_store_path(task.path))
            self._split = checkpoint.split
            self._shapes = compute_window_shapes(checkpoint.experiment.preprocessing, checkpoint.shapes.eeg_channels)
            self._model = ckpt.build_trained_model(checkpoint).to(self._context.device).eval()
            self._path = task.path
        if not (task.trained or task.other_data):
            check_disjoint(replace(self._split, validation=(), test=task.test))
        windows, names, device = self._context.windows, self._model.modalities, self._context.device
        rows, parts = select_rows_with_modality(windows, task.test, task.shown or tuple(names)), []
        # What another data set lacks, or has of another shape, is zeros that are masked.
        lacking = {m: self._shapes[m][0] for m in names if task.other_data and m not in task.shown}
        source = MaskedSource(RawSource(windows, names, lacking), task.shown or tuple(names))
        for part, batch in make_inference_batches(source, self._labels, rows, BATCH):
            inputs = {m: x.to(device) for m, x in batch.inputs.items()}
            output, alone = predict_with_frames(self._model, inputs, batch.present_BM.to(device))
            present, label = source.get_presence(part), self._labels.label[part]
            table = build_predictions(output, windows.ids.iloc[part], present, names, label)
            parts.append(table.assign(**compute_frames_correct(alone, names, present, label)))
        # An encoder that a fusion follows may be given people of whom nobody recorded its modality.
        return pd.concat(parts, ignore_index=True) if parts else build_empty_predictions(names, self._model.n_outputs)
