"""Measure what each ablation variant costs to train and to run."""

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from eav_ray.config import Experiment, digest, to_dict
from eav_ray.data.shards.dataset import Dataset
from eav_ray.distributed import cluster
from eav_ray.evaluation.ablation_variants import AblationVariant
from eav_ray.pipelines.evaluate.ablation_plan import VariantFold
from eav_ray.pipelines.evaluate.provenance import describe_cpu_model
from eav_ray.storage import Store
from eav_ray.tracking.progress import open_progress_bar
from eav_ray.training import cost as cost_module
from eav_ray.training.checkpoint import find_finished_checkpoint
from eav_ray.training.prepared_run import describe_shapes
from eav_ray.training.run_spec import Run

LATENCY_ROUNDS = 3  # in which latencies are measured


def measure_costs(
    e: Experiment,
    chosen_variants: Sequence[AblationVariant],
    variant_folds: Sequence[VariantFold],
    data: Dataset,
    results: Store,
) -> dict[str, dict[str, Any]]:
    """By a variant's name; one that is masked costs what its whole model does."""
    shapes = describe_shapes(data.index)
    experiments = {v.name: v.apply_to(e) for v in chosen_variants}
    model_by_variant = {name: _compute_model_identity(x) for name, x in experiments.items()}
    experiment_by_model = {model: experiments[name] for name, model in model_by_variant.items()}
    times: dict[str, list[float]] = {model: [] for model in experiment_by_model}
    with open_progress_bar("latency", LATENCY_ROUNDS * len(experiment_by_model), "models") as bar:
        for _ in range(
            LATENCY_ROUNDS
        ):  # in turns: what else the machine does meanwhile is not held against one of them
            for model, x in experiment_by_model.items():
                times[model] += cost_module.measure_latency_ms(x, shapes, cluster.choose_driver_device(e.runtime))
                bar.set_done(bar.done + 1)
    measured = {}
    for model, ms in times.items():
        analytic_costs = {
            k: cost_module.compute_model_cost(_with_search_cost(experiment_by_model[model], k), shapes)
            for k in ("parameters", "gmac")
        }
        latency = {"latency_ms": float(np.median(ms)), "p95_ms": float(np.quantile(ms, 0.95)), "repeats": len(ms)}
        measured[model] = analytic_costs | latency
    run_by_key = {run.key: run for t in variant_folds for run in t.fold.runs}
    training_seconds = {key: _read_training_seconds(run, results) for key, run in run_by_key.items()}
    costs = {}
    for v in chosen_variants:
        folds = [t.fold.runs for t in variant_folds if t.variant is v]
        training_cost = {
            "seconds": _compute_mean_seconds([[training_seconds[run.key] for run in runs] for runs in folds]),
            "run": folds[0][-1].key,
        }
        costs[v.name] = measured[model_by_variant[v.name]] | training_cost
    return costs


def _with_search_cost(experiment: Experiment, cost_kind: Any) -> Experiment:
    return replace(experiment, search=replace(experiment.search, cost=cost_kind))


def _compute_model_identity(experiment: Experiment) -> str:
    """Equal for models that compute the same of a window, however they were trained."""
    names = sorted(experiment.data.modalities)
    sections = {m: to_dict(experiment.model[m]) for m in names}
    return digest(sections, experiment.fusion.drop_training_keys() if len(names) > 1 else None)


def _compute_mean_seconds(folds: Sequence[Sequence[float | None]]) -> float | None:
    """Seconds of the training of one fold, of all its runs; the mean over folds. None where one was not timed."""
    sums = [sum(s for s in runs if s is not None) for runs in folds if None not in runs]
    return float(np.mean(sums)) if sums and len(sums) == len(folds) else None


def _read_training_seconds(run: Run, results: Store) -> float | None:
    """Of all epochs of a run, whichever attempt they were of; None where they were not timed."""
    if run.kind == "fusion" and not run.experiment.fusion.has_parameters:
        return 0.0  # nothing to train
    checkpoint = find_finished_checkpoint(results, run.key)
    history = checkpoint.metrics.get("history", []) if checkpoint else []
    return float(sum(epoch["seconds"] for epoch in history)) if history else None


def describe_latency_hardware(e: Experiment) -> dict[str, Any]:
    """Of the machine that measures latency, and how busy it is; and the workers of a training."""
    on_gpu = cluster.choose_driver_device(e.runtime).type == "cuda"
    device = torch.cuda.get_device_name() if on_gpu else describe_cpu_model()
    threads = max(1, int(e.runtime.cpus_per_worker))
    facts = {"device": device, "threads": threads, "cores": os.cpu_count() or 1, "load": os.getloadavg()[0]}
    return facts | {"workers": e.runtime.workers, "gpus": e.runtime.gpus}
