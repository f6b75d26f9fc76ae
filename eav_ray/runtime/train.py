"""One outer fold: each encoder alone, then the fusion on all of them; or all together."""

from dataclasses import dataclass, replace

from eav_ray.config import Experiment, digest
from eav_ray.data.cache import Windows
from eav_ray.data.shard import Index
from eav_ray.data.split import Split, check_subjects, items_of, make_split
from eav_ray.models.build import Shapes
from eav_ray.report.table import warnings_of
from eav_ray.runtime import cluster
from eav_ray.runtime.groups import run_all
from eav_ray.runtime.preprocess import open_index
from eav_ray.storage import Store
from eav_ray.training.estimate import START_S, seconds_per_fused_window, seconds_per_window
from eav_ray.training.plan import Run, encoder_run, fusion_run, joint_run
from eav_ray.training.run import is_done


@dataclass(frozen=True)
class Data:
    """The shards of an experiment, opened."""

    shards: Store
    index: Index
    windows: Windows

    @property
    def digest(self) -> str:
        return digest(self.index.fingerprint)


def open_data(experiment: Experiment) -> Data:
    shards, index = open_index(experiment)
    store = experiment.store
    windows = Windows(shards, index, cache=store.cache, cache_gb=store.cache_gb)
    check_subjects(windows.ids, experiment.data)
    return Data(shards, index, windows)


def runs_of(experiment: Experiment, split: Split, data: Data) -> list[Run]:
    """The trainings that one split needs; the last one is the result."""
    e = experiment
    embed = tuple(sorted({*split.train, *split.validation}))
    names = sorted(e.data.modalities)
    encoders = [encoder_run(e, m, split, data.digest, embed) for m in names]
    if len(names) == 1:
        return [replace(encoders[0], embed=())]
    if e.train.mode == "end_to_end":
        return [Run("joint", e, split, data.digest)]
    staged = [*encoders, fusion_run(e, split, data.digest, embed)]
    if e.train.mode == "staged_then_joint":
        return [*staged, joint_run(e, split, data.digest, embed)]
    return staged


def train(experiment: Experiment) -> str:
    """Train one fold, or continue it.

    Returns:
        Path of the finished checkpoint.
    """
    data = open_data(experiment)
    split = make_split(items_of(data.windows.ids, experiment.data, experiment.seed), experiment.fold)
    runs = runs_of(experiment, split, data)
    results = Store(experiment.store.results)
    with cluster.session(experiment.runtime):
        announce(experiment, runs, data)
        seen = tuple(sorted({*split.train, *split.validation}))
        done = run_all(experiment, runs, data.shards, data.index, seen, title="train")
    prefix = done[runs[-1].key]
    for line in warnings_of(results.read_json(f"{prefix}/metrics.json")):
        print(line)
    return f"{results}/{prefix}"


def announce(experiment: Experiment, runs: list[Run], data: Data, *, searched: list[Run] | None = None) -> float:
    """Say how many trainings are left and about how long they will take, before they start; returns seconds.

    Args:
        searched: The fusion trainings of a search, one per candidate and fold.
    """
    results = Store(experiment.store.results)
    todo = [r for r in {r.key: r for r in runs}.values() if not is_done(r, results)]
    shapes = Shapes(data.index.eeg_channels, len(data.index.classes))
    each = seconds_per_window(experiment, shapes) if any(run.kind != "fusion" for run in todo) else {}
    fusion_s = seconds_per_fused_window(experiment, shapes)
    seconds = START_S  # a joint step costs what its encoders cost
    for run in todo:
        windows = len(data.windows.rows_of(run.split.train)) * run.epochs
        cost = sum(each[m] for m in run.experiment.data.modalities) if run.kind != "fusion" else fusion_s
        seconds += windows * cost / (experiment.runtime.workers * experiment.runtime.groups)
    workers = min(experiment.search.at_once or cluster.room(experiment.runtime), experiment.search.batch)
    for run in searched or []:
        windows = len(data.windows.rows_of(run.split.train)) * run.optim.epochs
        seconds += windows * fusion_s / workers
    encoders = sum(r.kind == "encoder" for r in todo)
    parts = f"{encoders} encoder trainings, {len(todo) - encoders} fusion or joint trainings"
    if searched:
        parts += f", {len(searched)} fusion trainings of the search"
    skipped = len({r.key for r in runs}) - len(todo)
    already = f" ({skipped} finished earlier)" if skipped else ""
    print(f"to do: {parts}{already}; about {duration(seconds)}", flush=True)
    return seconds


def duration(seconds: float) -> str:
    if seconds < 5400:
        return f"{seconds / 60:.1f} minutes"
    return f"{seconds / 3600:.1f} hours"
