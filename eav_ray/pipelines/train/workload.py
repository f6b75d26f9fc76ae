"""Estimate and announce the trainings that a job will run."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from eav_ray.config import Experiment, RuntimeConfig, digest, to_dict
from eav_ray.data.shards.dataset import Dataset
from eav_ray.models.encoders.base import DataShapes
from eav_ray.storage import Store
from eav_ray.training.cost import WORKER_GROUP_START_S, estimate_seconds_per_fused_window, estimate_seconds_per_window
from eav_ray.training.embeddings import has_embeddings
from eav_ray.training.run_spec import Run
from eav_ray.training.runner import find_finished_runs


def announce_workload(
    experiment: Experiment,
    runs: list[Run],
    data: Dataset,
    *,
    candidate_runs: Sequence[Run] = (),
    refit_runs: Sequence[Run] = (),
    max_concurrent_trials: int = 1,
) -> float:
    """Say how many trainings are left and about how long they will take, before they start; returns seconds.

    Args:
        candidate_runs: The trainings of a search, of all candidates and folds.
        refit_runs: Those of its best candidates.
        max_concurrent_trials: How many of a search go on side by side: fusions on a worker each, other trainings each
            on a group.
    """
    e = experiment
    results = Store(e.store.results)
    unique = {run.key: run for run in runs}
    finished = find_finished_runs(list(unique.values()), results)
    todo = [run for key, run in unique.items() if key not in finished]
    models = {r.key: r.experiment for r in todo}  # candidates of a search are taken to be as large as the experiment
    speed = _SpeedEstimator(DataShapes(data.index.eeg_channels, data.index.n_outputs), e.runtime)

    def estimate_seconds(run: Run) -> float:
        """Seconds of one worker; a joint step costs what its encoders cost, the head of a frozen encoder nothing."""
        windows = len(data.windows.find_rows(run.split.train)) * run.epochs
        model = models.get(run.key, e)
        if run.kind == "fusion":
            return windows * speed.estimate_fusion(model)
        return (
            0.0
            if run.features_prefix
            else windows * sum(speed.estimate_encoder(model, m) for m in run.experiment.data.modalities)
        )

    frozen = {run.features_prefix: run for run in (*todo, *candidate_runs, *refit_runs) if run.features_prefix}
    frozen = {key: run for key, run in frozen.items() if not has_embeddings(results, key)}
    # Backward, which they do without, is twice forward.
    frozen_seconds = sum(
        len(data.windows) * speed.estimate_encoder(e, run.experiment.data.modalities[0]) / 3 for run in frozen.values()
    )
    seconds = WORKER_GROUP_START_S + (frozen_seconds + sum(map(estimate_seconds, (*todo, *refit_runs)))) / (
        e.runtime.workers * e.runtime.groups
    )
    encoders = sum(r.kind == "encoder" for r in todo)
    parts = [f"{len(frozen)} frozen encoders once over {len(data.windows)} windows"] if frozen else []
    parts += [f"{encoders} encoder trainings, {len(todo) - encoders} fusion or joint trainings"]
    if candidate_runs:
        is_fusion_search = e.search.mode == "fusion"
        seconds += sum(map(estimate_seconds, candidate_runs)) / (
            max_concurrent_trials * (1 if is_fusion_search else e.runtime.workers)
        )
        seconds += (
            0 if is_fusion_search else WORKER_GROUP_START_S * e.search.candidates / max_concurrent_trials
        )  # each starts a group
        parts += [f"{format_run_counts(candidate_runs)} of the search", f"{format_run_counts(refit_runs)} of the refit"]
    skipped = len(unique) - len(todo)
    already = f" ({skipped} finished earlier)" if skipped else ""
    print(f"to do: {'; '.join(parts)}{already}; about {format_duration(seconds)}", flush=True)
    return seconds


class _SpeedEstimator:
    """Seconds that one worker trains on a window, of each model once."""

    def __init__(self, shapes: DataShapes, runtime: RuntimeConfig) -> None:
        self._shapes, self._runtime = shapes, runtime  # runs were planned before it was connected
        self._seconds: dict[str, float] = {}

    def estimate_encoder(self, experiment: Experiment, modality: str) -> float:
        key = digest(modality, experiment.model[modality])
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


def format_run_counts(runs: Sequence[Run]) -> str:
    """`24 encoder trainings, 8 fusion trainings`."""
    kinds = Counter(run.kind for run in runs)
    return ", ".join(f"{kinds[kind]} {kind} trainings" for kind in ("encoder", "fusion", "joint") if kinds[kind])


def format_duration(seconds: float) -> str:
    if seconds < 5400:
        return f"{seconds / 60:.1f} minutes"
    return f"{seconds / 3600:.1f} hours"
