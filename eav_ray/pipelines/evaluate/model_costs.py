"""Measure what models cost to train and to run."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from eav_ray.config import Experiment, RuntimeConfig, digest, to_dict
from eav_ray.data.shards.dataset import Dataset
from eav_ray.distributed import cluster
from eav_ray.pipelines.evaluate.provenance import describe_cpu_model
from eav_ray.storage import Store
from eav_ray.tracking.progress import open_progress_bar
from eav_ray.training import cost as cost_module
from eav_ray.training.checkpoint import find_finished_checkpoints
from eav_ray.training.prepared_run import describe_shapes
from eav_ray.training.run_spec import Run

LATENCY_ROUNDS = 3  # in which latencies are measured


def measure_model_costs(
    experiments: Mapping[str, Experiment], data: Dataset, runtime: RuntimeConfig
) -> dict[str, dict[str, float]]:
    """Measure `parameters`, `gmac`, `latency_ms`, `p95_ms` and `repeats` of the model of each experiment.

    Models that compute the same of a window are measured once.

    Args:
        runtime: Of now, connected, which says where latency is measured.
    """
    shapes = describe_shapes(data.index)
    model_by_name = {name: _compute_model_identity(e) for name, e in experiments.items()}
    experiment_by_model = {model: replace(experiments[name], runtime=runtime) for name, model in model_by_name.items()}
    times: dict[str, list[float]] = {model: [] for model in experiment_by_model}
    device = cluster.choose_driver_device(runtime)
    with open_progress_bar("latency", LATENCY_ROUNDS * len(experiment_by_model), "models") as bar:
        # In turns: what else the machine does meanwhile is not held against one of them.
        for _ in range(LATENCY_ROUNDS):
            for model, e in experiment_by_model.items():
                times[model] += cost_module.measure_latency_ms(e, shapes, device)
                bar.set_done(bar.done + 1)
    measured = {}
    for model, ms in times.items():
        latency = {"latency_ms": float(np.median(ms)), "p95_ms": float(np.quantile(ms, 0.95)), "repeats": len(ms)}
        measured[model] = count_model_costs(experiment_by_model[model], data) | latency
    return {name: measured[model] for name, model in model_by_name.items()}


def count_model_costs(experiment: Experiment, data: Dataset) -> dict[str, float]:
    """Count the `parameters` of a model and its multiplications for a window, `gmac` (10^9).

    Raises:
        ConfigError: It cannot be made for these windows.
    """
    shapes = describe_shapes(data.index)
    return {k: cost_module.compute_model_cost(_with_search_cost(experiment, k), shapes) for k in ("parameters", "gmac")}


def _with_search_cost(experiment: Experiment, cost_kind: Any) -> Experiment:
    return replace(experiment, search=replace(experiment.search, cost=cost_kind))


def _compute_model_identity(experiment: Experiment) -> str:
    """Equal for models that compute the same of a window, however they were trained."""
    names = sorted(experiment.data.modalities)
    sections = {m: to_dict(experiment.model[m]) for m in names}
    optims = [experiment.train.encoders[m] for m in names]
    adapters = [[optim.lora_rank, optim.trained_blocks] if optim.lora_rank else [] for optim in optims]
    return digest(sections, adapters, experiment.fusion.drop_training_keys() if len(names) > 1 else None)


def read_training_seconds(runs: Sequence[Run], results: Store) -> dict[str, float | None]:
    """Read how long each training took, over all its epochs and attempts, by key; None where it was not timed."""
    unique = {run.key: run for run in runs}
    checkpoints = find_finished_checkpoints(results, unique)
    seconds: dict[str, float | None] = {}
    for key, run in unique.items():
        history = checkpoints[key].metrics.get("history", []) if key in checkpoints else []
        seconds[key] = float(sum(epoch["seconds"] for epoch in history)) if history else None
        if run.kind == "fusion" and not run.experiment.fusion.has_parameters:
            seconds[key] = 0.0  # nothing to train
    return seconds


def average_fold_seconds(folds: Sequence[Sequence[Run]], seconds: Mapping[str, float | None]) -> float | None:
    """Average over folds how long all trainings of one took; None where one was not timed.

    Args:
        folds: The trainings of each.
        seconds: From `read_training_seconds`.
    """
    known = [[s for run in runs if (s := seconds[run.key]) is not None] for runs in folds]
    if not folds or any(len(own) < len(runs) for own, runs in zip(known, folds, strict=True)):
        return None
    return float(np.mean([sum(own) for own in known]))


def describe_latency_hardware(e: Experiment) -> dict[str, Any]:
    """Describe the machine that measures latency, and how busy it is; and the workers of a training."""
    on_gpu = cluster.choose_driver_device(e.runtime).type == "cuda"
    device = torch.cuda.get_device_name() if on_gpu else describe_cpu_model()
    threads = max(1, int(e.runtime.cpus_per_worker))
    facts = {"device": device, "threads": threads, "cores": os.cpu_count() or 1, "load": os.getloadavg()[0]}
    return facts | {"workers": e.runtime.workers, "gpus": e.runtime.gpus}
