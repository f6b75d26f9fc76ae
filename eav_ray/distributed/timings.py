"""Keep how long trainings took, so that the next are announced by what was measured, not by what is assumed.

`timings.json` in the results store: seconds of start-up for each machine, and worker-seconds a window for each model.
"""

import contextlib
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from eav_ray.config import EncoderOptimConfig, Experiment, RuntimeConfig, digest, to_dict
from eav_ray.data.shards.dataset import Dataset
from eav_ray.distributed import cluster
from eav_ray.distributed.run_queue import QueueState
from eav_ray.errors import DataError
from eav_ray.storage import Store
from eav_ray.training.run_spec import Progress, Run

TIMINGS_FILE, TIMINGS_FORMAT = "timings.json", 1
MAX_MODELS = 500  # that are kept, the newest


@dataclass
class Timings:
    """What was measured on one machine or cluster; None or missing where nothing was.

    Attributes:
        group_start_s: Seconds from asking for a group of workers to its first training, and from its last to its end.
        run_overhead_s: Seconds of a training beside its epochs: building, validating, saving, embedding.
        window_s: Worker-seconds that a training needs for a window, by `make_model_key`.
        candidate_fold_s: Worker-seconds that a search needs for a candidate on an inner fold, by `make_search_key`.
    """

    group_start_s: float | None = None
    run_overhead_s: float | None = None
    window_s: dict[str, float] = field(default_factory=dict)
    candidate_fold_s: dict[str, float] = field(default_factory=dict)


def read_timings(results: Store, runtime: RuntimeConfig) -> Timings:
    """Read what was measured here before; nothing where it cannot be read."""
    with contextlib.suppress(DataError, TypeError, AttributeError):
        tree = _read_tree(results).get(_name_machine(runtime), {})
        return Timings(**tree)
    return Timings()


def _read_tree(results: Store) -> dict[str, Any]:
    tree = results.read_json(TIMINGS_FILE) if results.exists(TIMINGS_FILE) else {}
    return dict(tree["machines"]) if tree.get("format") == TIMINGS_FORMAT else {}


def write_timings(results: Store, runtime: RuntimeConfig, timings: Timings) -> None:
    """Keep what was measured here. An estimate is no reason to fail: where it cannot be written, it is not kept."""
    for kept in (timings.window_s, timings.candidate_fold_s):
        for key in list(kept)[:-MAX_MODELS]:
            del kept[key]
    with contextlib.suppress(DataError, TypeError, AttributeError, KeyError):
        machines = _read_tree(results) | {_name_machine(runtime): asdict(timings)}
        results.write_json(TIMINGS_FILE, {"format": TIMINGS_FORMAT, "machines": machines})


def _name_machine(runtime: RuntimeConfig) -> str:
    return cluster.resolve_address(runtime) or socket.gethostname()


def make_model_key(run: Run, runtime: RuntimeConfig) -> str:
    """Make a key that is equal for trainings that take equally long for a window."""
    e = run.experiment
    models = {m: to_dict(e.model[m]) for m in sorted(e.data.modalities)}
    inputs = {m: to_dict(e.preprocessing.get_section(m)) for m in models}
    fusion = None if run.kind == "encoder" else to_dict(e.fusion)
    settings = [e.preprocessing.window_s, run.optim.batch, run.optim.encoder_lr_scale, bool(run.features_prefix)]
    if isinstance(run.optim, EncoderOptimConfig):
        settings += [run.optim.trained_blocks, run.optim.lora_rank]
    return digest(run.kind, models, inputs, fusion, settings, _list_speed_settings(runtime))


def make_search_key(experiment: Experiment, runtime: RuntimeConfig, n_windows: int) -> str:
    """Make a key that is equal for searches whose candidates take about as long on a fold.

    Args:
        n_windows: Of the training sides of its inner folds.
    """
    models = {m: to_dict(experiment.model[m]) for m in sorted(experiment.data.modalities)}
    settings = [experiment.optim.epochs, experiment.search.fusion_batch_size, n_windows]
    return digest(models, to_dict(experiment.fusion), settings, _list_speed_settings(runtime))


def _list_speed_settings(runtime: RuntimeConfig) -> list[Any]:
    r = runtime
    hardware = [r.workers, r.cpus_per_worker, r.gpus, r.precision]
    return [*hardware, r.engine, r.zero_stage, r.offload, r.micro_batch, r.gradient_checkpointing]


class TimingRecorder:
    """Measures the trainings of one job from what they report."""

    def __init__(self, experiment: Experiment, runs: Sequence[Run], data: Dataset) -> None:
        self._runtime, self._runs, self._data = experiment.runtime, {run.key: run for run in runs}, data
        self._rates: dict[str, list[float]] = {}  # of each run, windows a second of each epoch

    def note(self, progress: Progress) -> None:
        """Note how fast a run went through an epoch that it has finished."""
        rate = progress.metrics.get("windows_per_s")
        if progress.key in self._runs and rate and progress.epoch and progress.epoch == int(progress.epoch):
            self._rates.setdefault(progress.key, []).append(rate)

    def write(self, results: Store, state: QueueState, wall_s: float) -> None:
        """Keep what was measured.

        Args:
            wall_s: Seconds from asking for the groups to their end.
        """
        if not self._rates or state.stopped:
            return
        runtime, counts = self._runtime, self._data.windows.ids["id"].value_counts()
        timings, epochs_s = read_timings(results, runtime), 0.0
        for key, rates in self._rates.items():
            run, seconds = self._runs[key], sum(1 / rate for rate in rates)  # of a window, in each epoch
            epochs_s += seconds * int(counts.reindex(list(run.split.train), fill_value=0).sum())
            model_key = make_model_key(run, runtime)
            timings.window_s.pop(model_key, None)  # the newest last
            timings.window_s[model_key] = runtime.workers * seconds / len(rates)
        timings.group_start_s = max(0.0, wall_s - state.busy_s)
        beside_s = state.busy_s - epochs_s / runtime.groups
        timings.run_overhead_s = max(0.0, beside_s * runtime.groups / len(self._rates))
        write_timings(results, runtime, timings)
