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
ROUNDS = 3  # in which latencies are measured
KEPT = ("subject", "recording", "window", "label", "fold", "variant")  # and the fusion's logits and weights


@dataclass(frozen=True)
class Trial:
    """One variant on one fold."""

    variant: AblationVariant
    fold: PlannedFold  # whose runs are the variant's
    test: tuple[str, ...]  # test recordings in which there is something for it to see


@dataclass(frozen=True)
class Ablated:
    tree: dict[str, Any]  # results.json
    path: str  # where it lies, empty where something is missing
    failed: list[str]
    text: str


def run_ablation(
    experiment: Experiment, parts: Sequence[str] = ABLATION_PARTS, sizes: Sequence[str] = ("cheap", "half")
) -> Ablated:
    """Train and test every variant on every fold, or what is left of them; `fold.index` does not matter.

    Raises:
        ConfigError: A variant or a fold that cannot be made.
        DataError: Nothing could be scored, or another process is at the same.
    """
    e = experiment
    made, left_out = build_ablation_variants(e, parts, sizes)
    data, results = open_dataset(e), Store(e.store.results)
    trials = plan_trials(e, made, data)
    name = f"ablations/{ablation_key(e, trials)}"
    failed: list[str] = []
    with results.lock(f"{name}/lock"):
        if results.is_committed(name):
            tree = _read(results, name)
        else:
            with cluster.connect_to_ray(e.runtime):
                models = {t.fold.runs[-1].key: t.fold for t in trials}  # those that are masked are others' own
                reasons = train_folds(e, list(models.values()), data, results)
                predictions, failed = _scored(e, trials, data, results, reasons)
            if predictions.empty:
                raise DataError(f"no variant could be scored; the first: {failed[0]}")
            costs = _costs(e, made, trials, data, results)
            tree = _tree(e, made, trials, data, predictions, costs)
            if not failed:
                results.commit(name, _files(e, tree, predictions))
    return Ablated(
        tree, "" if failed else f"{results}/{name}", failed, _text(tree, left_out, failed, f"{results}/{name}")
    )


def plan_trials(experiment: Experiment, made: Sequence[AblationVariant], data: Dataset) -> list[Trial]:
    """Every variant on every fold of the experiment's own splits; equal trainings are one `Run`."""
    ids = data.windows.ids
    trials: list[Trial] = []
    for fold in plan_cv_folds(experiment, data):
        for variant in made:
            e = variant.apply_to(replace(experiment, fold=replace(experiment.split, index=fold.number)))
            seen = ids[ids[[f"has_{m}" for m in variant.list_tested_modalities(experiment)]].any(axis=1)]
            known = set(seen["id"])
            test = tuple(i for i in fold.split.test if i in known)
            runs = plan_runs(e, fold.split, data.digest)
            trials.append(Trial(variant, PlannedFold(fold.number, fold.split, runs), test))
    # An encoder alone wants no embeddings, and the same encoder under a fusion does.
    whole = {run.key: run for t in trials for run in t.fold.runs if run.embedded_recordings}
    return [replace(t, fold=replace(t.fold, runs=[whole.get(r.key, r) for r in t.fold.runs])) for t in trials]


def ablation_key(experiment: Experiment, trials: Sequence[Trial]) -> str:
    """Equal only for equal variants, tested on equal recordings."""
    asked = [
        [
            t.variant.name,
            t.variant.group,
            t.variant.reference,
            sorted(t.variant.visible_modalities),
            t.fold.runs[-1].key,
            sorted(t.test),
        ]
        for t in trials
    ]
    return f"{experiment.name}-{digest(FORMAT, asked)}"


def _scored(
    e: Experiment, trials: Sequence[Trial], data: Dataset, results: Store, reasons: dict[str, str]
) -> tuple[pd.DataFrame, list[str]]:
    """Predictions of all variants, and a line for each model that is missing."""
    failed: dict[str, None] = {}  # in order, each once
    tasks: list[tuple[Trial, ScoringTask]] = []
    prefixes = {key: find_finished_prefix(results, key) for key in dict.fromkeys(t.fold.runs[-1].key for t in trials)}
    for trial in trials:
        key = trial.fold.runs[-1].key
        if not prefixes[key]:
            reason = reasons.get(key, reasons.get("", "it has no finished checkpoint"))
            failed[f"{_named(trial)} could not be trained: {reason}"] = None
        elif trial.test:
            tasks.append(
                (trial, ScoringTask(f"{results}/{prefixes[key]}", trial.test, trial.variant.visible_modalities))
            )
    # Equal questions of two variants are one; those of one checkpoint lie together, which is then read once.
    unique = sorted({task for _, task in tasks}, key=lambda t: (t.checkpoint_path, t.visible_modalities))
    found = dict(zip(unique, score_checkpoints(e, unique, data.shards, data.index), strict=True))
    tables = []
    for trial, task in tasks:
        table = found[task]
        if isinstance(table, str):
            failed[f"{_named(trial)} could not be scored: {table}"] = None
            continue
        table = table.assign(fold=trial.fold.number, variant=trial.variant.name)
        tables.append(table[[c for c in table if c in KEPT or str(c).startswith(("fusion.logit_", "weight."))]])
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(), list(failed)


def _named(trial: Trial) -> str:
    return f'fold {trial.fold.number} of "{trial.variant.name}"'


def _costs(
    e: Experiment, made: Sequence[AblationVariant], trials: Sequence[Trial], data: Dataset, results: Store
) -> dict[str, dict[str, Any]]:
    """By a variant's name; one that is masked costs what its whole model does."""
    shapes = DataShapes(data.index.eeg_channels, len(data.index.classes))
    experiments = {v.name: v.apply_to(e) for v in made}
    alike = {name: _computes(x) for name, x in experiments.items()}
    one_of = {model: experiments[name] for name, model in alike.items()}
    times: dict[str, list[float]] = {model: [] for model in one_of}
    with open_progress_bar("latency", ROUNDS * len(one_of), "models") as bar:
        for _ in range(ROUNDS):  # in turns: what else the machine does meanwhile is not held against one of them
            for model, x in one_of.items():
                times[model] += estimate.measure_latency_ms(x, shapes, _device(e))
                bar.set_done(bar.done + 1)
    measured = {}
    for model, ms in times.items():
        counted = {k: estimate.compute_model_cost(_priced_by(one_of[model], k), shapes) for k in ("parameters", "gmac")}
        latency = {"latency_ms": float(np.median(ms)), "p95_ms": float(np.quantile(ms, 0.95)), "repeats": len(ms)}
        measured[model] = counted | latency
    every = {run.key: run for t in trials for run in t.fold.runs}
    timed = {key: _seconds_of(run, results) for key, run in every.items()}
    found = {}
    for v in made:
        folds = [t.fold.runs for t in trials if t.variant is v]
        trained = {"seconds": _mean([[timed[run.key] for run in runs] for runs in folds]), "run": folds[0][-1].key}
        found[v.name] = measured[alike[v.name]] | trained
    return found


def _priced_by(experiment: Experiment, what: Any) -> Experiment:
    return replace(experiment, search=replace(experiment.search, cost=what))


def _computes(experiment: Experiment) -> str:
    """Equal for models that compute the same of a window, however they were trained."""
    names = sorted(experiment.data.modalities)
    sections = {m: to_dict(getattr(experiment.model, m)) for m in names}
    fusion = replace(experiment.fusion, dropout=0.0, modality_dropout=0.0, weight_loss=0.0)
    return digest(sections, fusion if len(names) > 1 else None)


def _mean(folds: Sequence[Sequence[float | None]]) -> float | None:
    """Seconds of the training of one fold, of all its runs; the mean over folds. None where one was not timed."""
    sums = [sum(s for s in runs if s is not None) for runs in folds if None not in runs]
    return float(np.mean(sums)) if sums and len(sums) == len(folds) else None


def _seconds_of(run: Run, results: Store) -> float | None:
    """Of all epochs of a run, whichever attempt they were of; None where they were not timed."""
    if run.kind == "fusion" and run.experiment.fusion.kind == "late_mean":
        return 0.0  # nothing to train
    prefix = find_finished_prefix(results, run.key)
    history = results.read_json(f"{prefix}/metrics.json").get("history", []) if prefix else []
    return float(sum(epoch["seconds"] for epoch in history)) if history else None


def _device(e: Experiment) -> torch.device:
    """Where latency is measured: this process's GPU, where trainings are on GPUs and it has one."""
    return torch.device("cuda" if e.runtime.gpus_per_worker and torch.cuda.is_available() else "cpu")


def hardware(e: Experiment) -> dict[str, Any]:
    """Of the machine that measures latency, and how busy it is; and the workers of a training."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    device = torch.cuda.get_device_name() if _device(e).type == "cuda" else name
    threads = max(1, int(e.runtime.cpus_per_worker))
    at = {"device": device, "threads": threads, "cores": os.cpu_count() or 1, "load": os.getloadavg()[0]}
    return at | {"workers": e.runtime.workers, "gpus": e.runtime.gpus_per_worker}


def _tree(
    e: Experiment,
    made: Sequence[AblationVariant],
    trials: Sequence[Trial],
    data: Dataset,
    predictions: pd.DataFrame,
    costs: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "name": e.name,
        "protocol": e.split.protocol,
        "folds": len({t.fold.number for t in trials}),
        "modalities": sorted(e.data.modalities),
        "classes": list(data.index.classes),
        "runs": {str(t.fold.number): t.fold.runs[-1].key for t in trials if t.variant.name == BASE_VARIANT},
        "hardware": hardware(e),
    } | ablation.compare_variants(predictions, made, e, costs)


def _files(e: Experiment, tree: dict[str, Any], predictions: pd.DataFrame) -> dict[str, bytes]:
    documents = {"experiment": to_dict(e), "results": tree, "versions": list_package_versions()}
    found = {
        f"{n}.json": json.dumps(d, indent=1, sort_keys=True, allow_nan=False).encode() for n, d in documents.items()
    }
    page = render_document(
        f"Ablation {tree['name']}", [*ablation.render_ablation_sections(tree), *cost.render_cost_sections(tree)]
    )
    return found | {"predictions.parquet": arrow.encode_dataframe(predictions), "ablation.html": page.encode()}


def _read(results: Store, name: str) -> dict[str, Any]:
    found = results.read_committed(name)
    try:
        return json.loads(found["results.json"])
    except (KeyError, ValueError):
        raise DataError(f"{results}/{name} was damaged; delete it and give the command again") from None


def _text(tree: dict[str, Any], left_out: list[str], failed: list[str], path: str) -> str:
    h = tree["hardware"]
    head = f"{tree['protocol']}, {tree['folds']} folds; latency: one window, {h['threads']} thread(s) of {h['device']}"
    head += cost.format_load_warning(h)
    lines = [head, *left_out, ablation.format_ablation(tree), ""]
    if failed:
        count = len(failed)
        lines.append(f"{count} models are missing; the same command takes them up again; the first: {failed[0]}")
    else:
        lines.append(f"results: {path}")
    return "\n".join(lines)
