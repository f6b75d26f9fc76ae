"""Estimate and announce the trainings that a job will run."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from eav_ray.config import Experiment, RuntimeConfig, digest, to_dict
from eav_ray.data.shards.dataset import Dataset
from eav_ray.distributed.timings import Timings, make_model_key, make_search_key, read_timings
from eav_ray.models.encoders.base import DataShapes
from eav_ray.storage import Store
from eav_ray.storage.published_weights import find_published_weights, name_network
from eav_ray.training.cost import (
    WORKER_GROUP_START_S,
    count_learning_parameters,
    estimate_seconds_per_fused_window,
    estimate_seconds_per_window,
)
from eav_ray.training.embeddings import has_embeddings
from eav_ray.training.positions import find_newest_positions
from eav_ray.training.prepared_run import describe_shapes
from eav_ray.training.run_spec import Run
from eav_ray.training.runner import find_finished_runs
from eav_ray.words import format_count, format_duration

RUN_OVERHEAD_S = 3.0  # assumed of a training beside its epochs, where none was measured here
SEARCH_START_S = 15.0  # assumed of Ray Tune, to its first candidate, where no search was measured here


def announce_workload(
    experiment: Experiment,
    runs: list[Run],
    data: Dataset,
    *,
    candidate_runs: Sequence[Run] = (),
    refit_runs: Sequence[Run] = (),
    n_scored: int = 0,
    max_concurrent_trials: int = 1,
) -> float:
    """Say how many trainings are left and about how long they will take, before they start; returns seconds.

    Args:
        candidate_runs: The trainings of a search, of all candidates and folds that are left.
        refit_runs: Those of its best candidates.
        n_scored: How many candidates of a search were scored earlier.
        max_concurrent_trials: How many of a search go on side by side: fusions on a worker each, other trainings each
            on a group.
    """
    results = Store(experiment.store.results)
    unique = {run.key: run for run in runs}
    finished = find_finished_runs(list(unique.values()), results)
    todo = [run for key, run in unique.items() if key not in finished]
    frozen = {run.features_prefix: run for run in (*todo, *candidate_runs, *refit_runs) if run.features_prefix}
    frozen = {key: run for key, run in frozen.items() if not has_embeddings(results, key)}
    earlier = [f"{format_count(len(unique) - len(todo), 'training')} finished"] if len(todo) < len(unique) else []
    earlier += [f"{format_count(n_scored, 'candidate')} scored"] if n_scored else []
    if not (todo or candidate_runs or refit_runs):
        print(f"nothing to do: {' and '.join(earlier)} earlier", flush=True)
        return 0.0
    begun = find_begun_epochs(todo, results)
    estimator = WorkloadEstimator(experiment, data, read_timings(results, experiment.runtime), begun)
    seconds = estimator.estimate_queue(todo, list(frozen.values()))
    seconds += estimator.estimate_search(candidate_runs, max_concurrent_trials)
    seconds += estimator.estimate_queue(refit_runs) if refit_runs else 0.0
    parts = []
    if frozen:
        encoders = format_count(len(frozen), "frozen encoder")
        parts.append(f"{encoders} once over {format_count(len(data.windows), 'window')}")
    parts += [f"{format_run_counts(todo)}{_format_begun(todo, begun)}"] if todo else []
    parts += [f"{format_run_counts(candidate_runs)} of the search"] if candidate_runs else []
    parts += [f"{format_run_counts(refit_runs)} of the refit"] if refit_runs else []
    already = f" ({' and '.join(earlier)} earlier)" if earlier else ""
    print(f"to do: {'; '.join(parts)}{already}; about {format_duration(seconds)}", flush=True)
    trained = [run for run in todo if run.kind == "encoder"]
    warnings = list_run_licence_warnings([*todo, *candidate_runs, *refit_runs])
    for line in (*warnings, *describe_partial_trainings(trained, data)):
        print(line, flush=True)
    return seconds


class WorkloadEstimator:
    """Estimates how long trainings take: by what was measured of such trainings here, or by a model of each once."""

    def __init__(
        self, experiment: Experiment, data: Dataset, timings: Timings, begun: Mapping[str, int] | None = None
    ) -> None:
        self._begun = begun or {}
        self._experiment, self._runtime, self._data, self._timings = experiment, experiment.runtime, data, timings
        self._speed = _SpeedEstimator(describe_shapes(data.index), self._runtime)
        start, overhead = timings.group_start_s, timings.run_overhead_s
        self._group_start_s = WORKER_GROUP_START_S if start is None else start
        self._run_overhead_s = RUN_OVERHEAD_S if overhead is None else overhead

    def estimate_queue(self, runs: Sequence[Run], frozen: Sequence[Run] = ()) -> float:
        """Estimate the seconds of a queue of trainings, with the start of its groups.

        Args:
            frozen: Encoders that keep their weights and run once over all windows; backward, which they do without, is
                twice forward.
        """
        if not runs and not frozen:
            return 0.0
        r = self._runtime
        frozen_s = sum(
            len(self._data.windows)
            * self._speed.estimate_encoder(run.experiment, run.experiment.data.modalities[0])
            / 3
            for run in frozen
        )
        worker_s = frozen_s + sum(map(self._estimate_run, runs))
        return self._group_start_s + (worker_s / r.workers + self._run_overhead_s * len(runs)) / r.groups

    def estimate_search(self, runs: Sequence[Run], max_concurrent_trials: int) -> float:
        """Estimate the seconds of all candidates of a search."""
        if not runs:
            return 0.0
        e, r = self._experiment, self._runtime
        if e.search.mode == "full":  # each candidate starts a group
            starts = self._group_start_s * e.search.candidates
            worker_s = sum(map(self._estimate_run, runs)) / r.workers + self._run_overhead_s * len(runs)
            return (starts + worker_s) / max_concurrent_trials
        folds = {run.split.train: len(self._data.windows.find_rows(run.split.train)) for run in runs}
        key = make_search_key(e, r, sum(folds.values()))
        if (measured := self._timings.candidate_fold_s.get(key)) is not None:
            return len(runs) * measured / max_concurrent_trials
        return SEARCH_START_S + sum(map(self._estimate_run, runs)) / max_concurrent_trials

    def _estimate_run(self, run: Run) -> float:
        """Seconds of one worker; a joint step costs what its encoders cost, the head of a frozen encoder nothing.

        Candidates of a search are taken to be as large as the experiment.
        """
        left = run.epochs - self._begun.get(run.key, 0) if self._begun else run.epochs
        windows = len(self._data.windows.find_rows(run.split.train)) * left
        if (measured := self._timings.window_s.get(make_model_key(run, self._runtime))) is not None:
            return windows * measured
        if run.kind == "fusion":
            return windows * self._speed.estimate_fusion(run.experiment)
        if run.features_prefix:
            return 0.0
        return windows * sum(self._speed.estimate_encoder(run.experiment, m) for m in run.experiment.data.modalities)


class _SpeedEstimator:
    """Seconds that one worker trains on a window, of each model once."""

    def __init__(self, shapes: DataShapes, runtime: RuntimeConfig) -> None:
        self._shapes, self._runtime = shapes, runtime  # runs were planned before it was connected
        self._seconds: dict[str, float] = {}

    def estimate_encoder(self, experiment: Experiment, modality: str) -> float:
        optim = experiment.train.encoders[modality]
        key = digest(modality, experiment.model[modality], optim.trained_blocks, optim.lora_rank)
        if key not in self._seconds:
            data = replace(experiment.data, modalities=(modality,))
            unimodal = replace(experiment, data=data, runtime=self._runtime)
            self._seconds[key] = estimate_seconds_per_window(unimodal, self._shapes)[modality]
        return self._seconds[key]

    def estimate_fusion(self, experiment: Experiment) -> float:
        names = sorted(experiment.data.modalities)
        key = digest(experiment.fusion, [to_dict(experiment.model[m]) for m in names], names)
        if key not in self._seconds:
            connected = replace(experiment, runtime=self._runtime)
            self._seconds[key] = estimate_seconds_per_fused_window(connected, self._shapes)
        return self._seconds[key]


def find_begun_epochs(runs: Sequence[Run], results: Store) -> dict[str, int]:
    """Find how many epochs of each training an earlier job has saved, by key; those without one are left out."""
    positions = find_newest_positions(results, [run.key for run in runs])
    begun = {run.key: positions[run.key].epoch for run in runs if run.key in positions}
    return {run.key: begun[run.key] for run in runs if 0 < begun.get(run.key, 0) < run.epochs}


def _format_begun(runs: Sequence[Run], begun: Mapping[str, int]) -> str:
    if not begun:
        return ""
    if len(runs) == 1:
        return f", which goes on after epoch {begun[runs[0].key]} of {runs[0].epochs}"
    return f", of which {len(begun)} {'goes' if len(begun) == 1 else 'go'} on from what was saved"


def describe_partial_training(experiment: Experiment, data: Dataset) -> list[str]:
    """Say how much of encoders learns, a line for each of which only a part does."""
    lines = []
    for m in sorted(experiment.data.modalities):
        optim = experiment.train.encoders[m]
        n, rank = optim.trained_blocks, optim.lora_rank
        if not n and not rank:
            continue
        learning, whole = count_learning_parameters(experiment, m, describe_shapes(data.index))
        blocks = "the last block" if n == 1 else f"the last {n} blocks" if n else "all blocks"
        part = f"additions of rank {rank} to {blocks} learn" if rank else f"only {blocks} of the encoder can learn"
        lines.append(f"{m}: {part}, {learning:,} of {whole:,} parameters with those of the head")
    return lines


def describe_partial_trainings(runs: Sequence[Run], data: Dataset) -> list[str]:
    """Describe how much of the encoders of some trainings learns, each once."""
    lines = [line for e in _list_models(runs) for line in describe_partial_training(e, data)]
    return list(dict.fromkeys(lines))


def list_run_licence_warnings(runs: Sequence[Run]) -> list[str]:
    """List the warnings of `list_licence_warnings` of all that is trained, each once."""
    return list(dict.fromkeys(line for e in _list_models(runs) for line in list_licence_warnings(e)))


def _list_models(runs: Sequence[Run]) -> list[Experiment]:
    """List an experiment for each model that some runs train."""
    experiments = [run.experiment for run in runs]
    return list({(id(e.model), id(e.train), e.data.modalities): e for e in experiments}.values())


def list_licence_warnings(experiment: Experiment) -> list[str]:
    """List the networks and published weights that may not be used commercially, a line each."""
    found = []
    for m in experiment.data.modalities:
        if licence := experiment.model[m].non_commercial_licence:
            found.append(f"{m}: {name_network(experiment.model[m])} is licensed {licence}: not for commercial use")
        weights = find_published_weights(getattr(experiment.model[m], "weights", ""))
        if weights and weights.is_non_commercial:
            found.append(f"{m} starts from {weights.name}, which is licensed {weights.licence}: not for commercial use")
    return found


def format_run_counts(runs: Sequence[Run]) -> str:
    """`24 encoder trainings, 1 fusion training`."""
    kinds = Counter(run.kind for run in runs)
    return ", ".join(format_count(kinds[k], f"{k} training") for k in ("encoder", "fusion", "joint") if kinds[k])
