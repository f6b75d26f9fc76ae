"""What the parts of an experiment are worth, and what they cost: its variants over all folds of its protocol.

The trainings of all variants and folds are one queue, equal ones once: variants share the encoders that they do not
change. Each test recording is scored once by each variant's model of its fold.
"""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from eav_ray.config import Experiment, digest, to_dict
from eav_ray.data import arrow
from eav_ray.errors import DataError
from eav_ray.models.build import DataShapes
from eav_ray.report import ablation, cost
from eav_ray.report.page import render_document
from eav_ray.report.progress import open_progress_bar
from eav_ray.runtime import cluster
from eav_ray.runtime.protocol import PlannedFold, find_finished_prefix, plan_cv_folds, train_folds
from eav_ray.runtime.score import ScoringTask, score_checkpoints
from eav_ray.runtime.train import Dataset, open_dataset, plan_runs
from eav_ray.storage import Store, list_package_versions
from eav_ray.training import estimate
from eav_ray.training.plan import Run
from eav_ray.training.variants import ABLATION_PARTS, BASE_VARIANT, AblationVariant, build_ablation_variants

FORMAT = 1  # raise when what is kept of an ablation changes
LATENCY_ROUNDS = 3  # in which latencies are measured
PREDICTION_COLUMNS = (
    "subject",
    "recording",
    "window",
    "label",
    "fold",
    "variant",
)  # and the fusion's logits and weights


@dataclass(frozen=True)
class VariantFold:
    """One variant on one fold."""

    variant: AblationVariant
    fold: PlannedFold  # whose runs are the variant's
    test_ids: tuple[str, ...]  # test recordings in which there is something for it to see


@dataclass(frozen=True)
class AblationResult:
    results: dict[str, Any]  # results.json
    path: str  # where it lies, empty where something is missing
    failed: list[str]
    text: str


def run_ablation(
    experiment: Experiment, parts: Sequence[str] = ABLATION_PARTS, sizes: Sequence[str] = ("cheap", "half")
) -> AblationResult:
    """Train and test every variant on every fold, or what is left of them; `fold.index` does not matter.

    Raises:
        ConfigError: A variant or a fold that cannot be made.
        DataError: Nothing could be scored, or another process is at the same.
    """
    e = experiment
    chosen_variants, left_out_notes = build_ablation_variants(e, parts, sizes)
    data, results = open_dataset(e), Store(e.store.results)
    variant_folds = plan_variant_folds(e, chosen_variants, data)
    name = f"ablations/{compute_ablation_key(e, variant_folds)}"
    failed: list[str] = []
    with results.lock(f"{name}/lock"):
        if results.is_committed(name):
            tree = _read_results(results, name)
        else:
            with cluster.connect_to_ray(e.runtime):
                models = {t.fold.runs[-1].key: t.fold for t in variant_folds}  # those that are masked are others' own
                reasons = train_folds(e, list(models.values()), data, results)
                predictions, failed = _score_variants(e, variant_folds, data, results, reasons)
            if predictions.empty:
                raise DataError(f"no variant could be scored; the first: {failed[0]}")
            costs = measure_costs(e, chosen_variants, variant_folds, data, results)
            tree = _build_results(e, chosen_variants, variant_folds, data, predictions, costs)
            if not failed:
                results.commit(name, _encode_files(e, tree, predictions))
    return AblationResult(
        tree,
        "" if failed else f"{results}/{name}",
        failed,
        _format_summary(tree, left_out_notes, failed, f"{results}/{name}"),
    )


def plan_variant_folds(
    experiment: Experiment, chosen_variants: Sequence[AblationVariant], data: Dataset
) -> list[VariantFold]:
    """Every variant on every fold of the experiment's own splits; equal trainings are one `Run`."""
    ids = data.windows.ids
    variant_folds: list[VariantFold] = []
    for fold in plan_cv_folds(experiment, data):
        for variant in chosen_variants:
            e = variant.apply_to(replace(experiment, split=replace(experiment.split, index=fold.number)))
            present = ids[ids[[f"has_{m}" for m in variant.list_tested_modalities(experiment)]].any(axis=1)]
            present_ids = set(present["id"])
            test_ids = tuple(i for i in fold.split.test if i in present_ids)
            runs = plan_runs(e, fold.split, data.digest)
            variant_folds.append(VariantFold(variant, PlannedFold(fold.number, fold.split, runs), test_ids))
    # An encoder alone wants no embeddings, and the same encoder under a fusion does.
    embedding_runs = {run.key: run for t in variant_folds for run in t.fold.runs if run.embedded_recordings}
    return [
        replace(t, fold=replace(t.fold, runs=[embedding_runs.get(r.key, r) for r in t.fold.runs]))
        for t in variant_folds
    ]


def compute_ablation_key(experiment: Experiment, variant_folds: Sequence[VariantFold]) -> str:
    """Equal only for equal variants, tested on equal recordings."""
    identities = [
        [
            t.variant.name,
            t.variant.group,
            t.variant.reference,
            sorted(t.variant.visible_modalities),
            t.fold.runs[-1].key,
            sorted(t.test_ids),
        ]
        for t in variant_folds
    ]
    return f"{experiment.name}-{digest(FORMAT, identities)}"


def _score_variants(
    e: Experiment, variant_folds: Sequence[VariantFold], data: Dataset, results: Store, reasons: dict[str, str]
) -> tuple[pd.DataFrame, list[str]]:
    """Predictions of all variants, and a line for each model that is missing."""
    failed: dict[str, None] = {}  # in order, each once
    tasks: list[tuple[VariantFold, ScoringTask]] = []
    prefixes = {
        key: find_finished_prefix(results, key) for key in dict.fromkeys(t.fold.runs[-1].key for t in variant_folds)
    }
    for variant_fold in variant_folds:
        key = variant_fold.fold.runs[-1].key
        if not prefixes[key]:
            reason = reasons.get(key, reasons.get("", "it has no finished checkpoint"))
            failed[f"{_describe_variant_fold(variant_fold)} could not be trained: {reason}"] = None
        elif variant_fold.test_ids:
            tasks.append(
                (
                    variant_fold,
                    ScoringTask(
                        f"{results}/{prefixes[key]}", variant_fold.test_ids, variant_fold.variant.visible_modalities
                    ),
                )
            )
    # Equal questions of two variants are one; those of one checkpoint lie together, which is then read once.
    unique = sorted({task for _, task in tasks}, key=lambda t: (t.checkpoint_path, t.visible_modalities))
    table_by_task = dict(zip(unique, score_checkpoints(e, unique, data.shards, data.index), strict=True))
    tables = []
    for variant_fold, task in tasks:
        table = table_by_task[task]
        if isinstance(table, str):
            failed[f"{_describe_variant_fold(variant_fold)} could not be scored: {table}"] = None
            continue
        table = table.assign(fold=variant_fold.fold.number, variant=variant_fold.variant.name)
        tables.append(
            table[[c for c in table if c in PREDICTION_COLUMNS or str(c).startswith(("fusion.logit_", "weight."))]]
        )
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(), list(failed)


def _describe_variant_fold(variant_fold: VariantFold) -> str:
    return f'fold {variant_fold.fold.number} of "{variant_fold.variant.name}"'


def measure_costs(
    e: Experiment,
    chosen_variants: Sequence[AblationVariant],
    variant_folds: Sequence[VariantFold],
    data: Dataset,
    results: Store,
) -> dict[str, dict[str, Any]]:
    """By a variant's name; one that is masked costs what its whole model does."""
    shapes = DataShapes(data.index.eeg_channels, len(data.index.classes))
    experiments = {v.name: v.apply_to(e) for v in chosen_variants}
    model_by_variant = {name: _compute_model_identity(x) for name, x in experiments.items()}
    experiment_by_model = {model: experiments[name] for name, model in model_by_variant.items()}
    times: dict[str, list[float]] = {model: [] for model in experiment_by_model}
    with open_progress_bar("latency", LATENCY_ROUNDS * len(experiment_by_model), "models") as bar:
        for _ in range(
            LATENCY_ROUNDS
        ):  # in turns: what else the machine does meanwhile is not held against one of them
            for model, x in experiment_by_model.items():
                times[model] += estimate.measure_latency_ms(x, shapes, _choose_latency_device(e))
                bar.set_done(bar.done + 1)
    measured = {}
    for model, ms in times.items():
        analytic_costs = {
            k: estimate.compute_model_cost(_with_search_cost(experiment_by_model[model], k), shapes)
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
    sections = {m: to_dict(getattr(experiment.model, m)) for m in names}
    fusion = replace(experiment.fusion, dropout=0.0, modality_dropout=0.0, modality_weight_loss=0.0)
    return digest(sections, fusion if len(names) > 1 else None)


def _compute_mean_seconds(folds: Sequence[Sequence[float | None]]) -> float | None:
    """Seconds of the training of one fold, of all its runs; the mean over folds. None where one was not timed."""
    sums = [sum(s for s in runs if s is not None) for runs in folds if None not in runs]
    return float(np.mean(sums)) if sums and len(sums) == len(folds) else None


def _read_training_seconds(run: Run, results: Store) -> float | None:
    """Of all epochs of a run, whichever attempt they were of; None where they were not timed."""
    if run.kind == "fusion" and run.experiment.fusion.kind == "late_mean":
        return 0.0  # nothing to train
    prefix = find_finished_prefix(results, run.key)
    history = results.read_json(f"{prefix}/metrics.json").get("history", []) if prefix else []
    return float(sum(epoch["seconds"] for epoch in history)) if history else None


def _choose_latency_device(e: Experiment) -> torch.device:
    """Where latency is measured: this process's GPU, where trainings are on GPUs and it has one."""
    return torch.device("cuda" if e.runtime.gpus_per_worker and torch.cuda.is_available() else "cpu")


def describe_latency_hardware(e: Experiment) -> dict[str, Any]:
    """Of the machine that measures latency, and how busy it is; and the workers of a training."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    device = torch.cuda.get_device_name() if _choose_latency_device(e).type == "cuda" else name
    threads = max(1, int(e.runtime.cpus_per_worker))
    facts = {"device": device, "threads": threads, "cores": os.cpu_count() or 1, "load": os.getloadavg()[0]}
    return facts | {"workers": e.runtime.workers, "gpus": e.runtime.gpus_per_worker}


def _build_results(
    e: Experiment,
    chosen_variants: Sequence[AblationVariant],
    variant_folds: Sequence[VariantFold],
    data: Dataset,
    predictions: pd.DataFrame,
    costs: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "name": e.name,
        "protocol": e.split.protocol,
        "folds": len({t.fold.number for t in variant_folds}),
        "modalities": sorted(e.data.modalities),
        "classes": list(data.index.classes),
        "runs": {str(t.fold.number): t.fold.runs[-1].key for t in variant_folds if t.variant.name == BASE_VARIANT},
        "hardware": describe_latency_hardware(e),
    } | ablation.compare_variants(predictions, chosen_variants, e, costs)


def _encode_files(e: Experiment, tree: dict[str, Any], predictions: pd.DataFrame) -> dict[str, bytes]:
    documents = {"experiment": to_dict(e), "results": tree, "versions": list_package_versions()}
    files = {
        f"{n}.json": json.dumps(d, indent=1, sort_keys=True, allow_nan=False).encode() for n, d in documents.items()
    }
    page = render_document(
        f"Ablation {tree['name']}", [*ablation.render_ablation_sections(tree), *cost.render_cost_sections(tree)]
    )
    return files | {"predictions.parquet": arrow.encode_dataframe(predictions), "ablation.html": page.encode()}


def _read_results(results: Store, name: str) -> dict[str, Any]:
    found = results.read_committed(name)
    try:
        return json.loads(found["results.json"])
    except (KeyError, ValueError):
        raise DataError(f"{results}/{name} was damaged; delete it and give the command again") from None


def _format_summary(tree: dict[str, Any], left_out_notes: list[str], failed: list[str], path: str) -> str:
    hardware = tree["hardware"]
    head = f"{tree['protocol']}, {tree['folds']} folds; latency: one window, {hardware['threads']} thread(s) of {hardware['device']}"
    head += cost.format_load_warning(hardware)
    lines = [head, *left_out_notes, ablation.format_ablation(tree), ""]
    if failed:
        count = len(failed)
        lines.append(f"{count} models are missing; the same command takes them up again; the first: {failed[0]}")
    else:
        lines.append(f"results: {path}")
    return "\n".join(lines)
