"""Encoders beside each other: each alone under the experiment's protocol, baselines beside, on the same folds.

The trainings of all encoders, seeds and folds are one queue, equal ones once, so that no group of workers waits between
two encoders; what `eav protocol` has trained of one counts, and the other way round.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from eav_ray.config import Experiment, to_dict
from eav_ray.data.shards.dataset import Dataset, open_dataset
from eav_ray.distributed.connection import connect_experiment
from eav_ray.distributed.scoring import ScoringTask, score_checkpoints
from eav_ray.errors import DataError
from eav_ray.evaluation.encoder_comparison import (
    BALANCED_ACCURACY,
    BASELINE,
    CCC,
    ENCODER,
    ModelPredictions,
    compare_models,
    list_score_rows,
    measure_spreads,
    score_models,
)
from eav_ray.pipelines.evaluate.baseline import run_baselines
from eav_ray.pipelines.evaluate.encoder_plan import (
    FOLDER,
    FORMAT,
    RESULTS_FILE,
    EncoderPlan,
    EncoderProtocol,
    plan_comparison,
)
from eav_ray.pipelines.evaluate.model_costs import (
    average_fold_seconds,
    describe_latency_hardware,
    measure_model_costs,
    read_training_seconds,
)
from eav_ray.pipelines.train.cross_validation import train_folds
from eav_ray.pipelines.train.workload import list_licence_warnings
from eav_ray.reporting.html import Page
from eav_ray.reporting.sections.encoders import (
    build_encoder_sections,
    describe_comparison,
    describe_latency,
    format_encoders,
)
from eav_ray.storage import Store, check_format, encode_documents, list_package_versions
from eav_ray.training.checkpoint import find_finished_checkpoints
from eav_ray.training.metrics import RECORDING_COLUMNS
from eav_ray.words import format_count

SOURCE = "fusion"  # of a model of one modality its only outputs


@dataclass(frozen=True)
class EncoderComparison:
    """A comparison of encoders.

    Attributes:
        results: What `encoders.json` holds.
        path: The folder with `encoders.csv`, `encoders.json` and `encoders.html`; empty where something is missing.
        failed: A line for each encoder that is missing.
    """

    results: dict[str, Any]
    path: str
    failed: list[str]
    text: str

    @property
    def scores(self) -> pd.DataFrame:
        """One row a model, seed and subject: `model`, `seed`, `subject`, `score`, and of what it is."""
        return pd.DataFrame(self.results["scores"])


def compare_encoders(
    experiment: Experiment,
    encoders: str,
    *,
    n_seeds: int = 1,
    baselines: Sequence[str] = (),
    references: Sequence[str] = (),
) -> EncoderComparison:
    """Train and test every encoder on every fold, or what is left of them, and compare them.

    Args:
        experiment: `split.index` does not matter.
        encoders: The path of a YAML file with a list of encoders, or their short forms with commas
            (`evaluation.encoder_variants.read_encoder_variants`).
        n_seeds: How many seeds each encoder is trained with, from the experiment's on.
        baselines: Kinds of baselines; all by default, and `none` for none.
        references: Names of encoders that others of their modality are compared with; the first by default.
    Raises:
        ConfigError: An encoder, fold or baseline that cannot be made: nothing is trained then.
        DataError: No encoder could be trained and scored, or another process is at the same.
    """
    e = experiment
    data, results = open_dataset(e), Store(e.store.results)
    plan = plan_comparison(e, encoders, n_seeds, baselines, references, data)
    name = f"{FOLDER}/{plan.make_key(e, data)}"
    failed: list[str] = []
    with results.lock_unfinished(name) as results:
        if results.is_committed(name):
            tree = _read_results(results, name)
            print(f"nothing to do: {format_count(len(plan.runs), 'training')} finished earlier", flush=True)
        else:
            baseline_predictions = predict_baselines(e, plan, data)
            with connect_experiment(e) as e:
                reasons = train_folds(e, [fold for p in plan.protocols for fold in p.folds], data, results)
                encoder_predictions, failed = _score_protocols(e, plan, data, results, reasons)
            if not encoder_predictions:
                raise DataError(f"no encoder could be trained and scored; the first: {failed[0]}")
            tree = _build_results(e, plan, data, results, encoder_predictions, baseline_predictions)
            if not failed:
                results.commit(name, _encode_files(e, tree))
    path = "" if failed else results.format_path(name)
    return EncoderComparison(tree, path, failed, _format_summary(tree, failed, path))


def predict_baselines(e: Experiment, plan: EncoderPlan, data: Dataset) -> dict[str, list[ModelPredictions]]:
    """Predict the same folds by the baselines of each modality, or read what is stored of them."""
    found = {}
    for modality, sources in plan.baselines.items():
        alone = replace(e, data=replace(e.data, modalities=(modality,)))
        result = run_baselines(alone, [source.kind for source in sources], data).result
        found[modality] = [
            ModelPredictions(title, BASELINE, source, result.predictions) for source, title in result.titles.items()
        ]
    return found


def _score_protocols(
    e: Experiment, plan: EncoderPlan, data: Dataset, results: Store, reasons: dict[str, str]
) -> tuple[list[ModelPredictions], list[str]]:
    """Predict the test recordings of every encoder of which no fold is missing, and name those that are left out."""
    checkpoints = find_finished_checkpoints(results, [f.runs[-1].key for p in plan.protocols for f in p.folds])
    missing: dict[str, str] = {}  # name of an encoder -> why
    tasks: list[tuple[EncoderProtocol, ScoringTask, int]] = []
    for protocol in plan.protocols:
        for fold in protocol.folds:
            key = fold.runs[-1].key
            if key in checkpoints:
                tasks.append((protocol, ScoringTask(checkpoints[key], fold.split.test), fold.number))
            else:
                reason = reasons.get(key, reasons.get("", "it has no finished checkpoint"))
                missing.setdefault(protocol.variant.name, f"{_describe_fold(protocol, fold.number)}: {reason}")
    tasks = [task for task in tasks if task[0].variant.name not in missing]
    scored = score_checkpoints(e, [task for _, task, _ in tasks], data)
    tables: dict[tuple[str, int], list[pd.DataFrame]] = {}
    for (protocol, _, number), one in zip(tasks, scored, strict=True):
        if one.problem:
            missing.setdefault(protocol.variant.name, f"{_describe_fold(protocol, number)}: {one.problem}")
        else:
            table = one.predictions.assign(fold=number)
            tables.setdefault((protocol.variant.name, protocol.seed), []).append(table)
    found = [
        ModelPredictions(
            p.variant.name, ENCODER, SOURCE, pd.concat(tables[p.variant.name, p.seed], ignore_index=True), p.seed
        )
        for p in plan.protocols
        if p.variant.name not in missing
    ]
    return found, [f'"{name}" is left out, {reason}' for name, reason in missing.items()]


def _describe_fold(protocol: EncoderProtocol, number: int) -> str:
    return f"fold {number} with seed {protocol.seed} could not be trained or scored"


def _build_results(
    e: Experiment,
    plan: EncoderPlan,
    data: Dataset,
    results: Store,
    predictions: list[ModelPredictions],
    baseline_predictions: dict[str, list[ModelPredictions]],
) -> dict[str, Any]:
    costs = _measure_costs(e, plan, data, results, {p.model for p in predictions})
    targets = list(data.index.targets)
    blocks, tables = [], []
    for modality in plan.modalities:
        protocols, baselines = plan.list_protocols(modality), baseline_predictions.get(modality, [])
        names = {p.variant.name for p in protocols}
        own = [p for p in predictions if p.model in names]
        if not own:
            continue
        scores = score_models([*own, *baselines], modality, targets)
        tables.append(scores)
        kinds = {p.model: p.kind for p in (*own, *baselines)}
        rows = compare_models(scores, kinds, plan.references[modality], measure_spreads(own[0].windows, targets))
        recordings = own[0].windows[RECORDING_COLUMNS].drop_duplicates()
        blocks.append(
            {
                "modality": modality,
                "reference": plan.references[modality],
                "n_subjects": int(recordings["subject"].nunique()),
                "recordings": len(recordings),
                "folds": len(protocols[0].folds),
                "chance": {CCC: 0.0} if targets else {BALANCED_ACCURACY: 1 / len(data.index.classes)},
                "rows": [row | {"cost": costs.get(row["model"], {})} for row in rows],
                "licences": _list_licences(plan, modality),
                "notes": [] if baselines or not plan.baselines else [f"there is no baseline of {modality}"],
            }
        )
    return {
        "format": FORMAT,
        "name": e.name,
        "protocol": e.split.protocol,
        "access": e.split.access,
        "seeds": plan.seeds,
        "classes": list(data.index.classes),
        "targets": targets,
        "hardware": describe_latency_hardware(e),
        "encoders": {p.variant.name: p.variant.changes for p in plan.protocols},
        "runs": {
            name: [f.runs[-1].key for p in plan.protocols if p.variant.name == name for f in p.folds] for name in costs
        },
        "blocks": blocks,
        "scores": list_score_rows(pd.concat(tables, ignore_index=True)),
    }


def _list_licences(plan: EncoderPlan, modality: str) -> list[str]:
    """List the terms under which networks and weights of a modality may not be used commercially, each once."""
    lines = [line for p in plan.list_protocols(modality) for line in list_licence_warnings(p.experiment)]
    return list(dict.fromkeys(lines))


def _measure_costs(
    e: Experiment, plan: EncoderPlan, data: Dataset, results: Store, names: set[str]
) -> dict[str, dict[str, Any]]:
    """Measure what each encoder costs, by its name."""
    protocols = [p for p in plan.protocols if p.variant.name in names]
    measured = measure_model_costs({p.variant.name: p.experiment for p in protocols}, data, e.runtime)
    seconds = read_training_seconds([run for p in protocols for run in p.runs], results)
    costs = {}
    for name, cost in measured.items():
        folds = [fold.runs for p in protocols if p.variant.name == name for fold in p.folds]
        costs[name] = cost | {"seconds": average_fold_seconds(folds, seconds)}
    return costs


def _encode_files(e: Experiment, tree: dict[str, Any]) -> dict[str, bytes]:
    page = Page(
        f"Encoders of {tree['name']}",
        build_encoder_sections(tree),
        heading=f"Encoders of {tree['name']}",
        introduction=f"{describe_comparison(tree)}; {describe_latency(tree)}.",
    )
    table = pd.DataFrame(tree["scores"]).astype({"seed": "Int64"})
    return encode_documents({"experiment": to_dict(e), "versions": list_package_versions()}) | {
        RESULTS_FILE: json.dumps(tree, indent=1, allow_nan=False).encode(),
        "encoders.csv": table.to_csv(index=False).encode(),
        "encoders.html": page.render().encode(),
    }


def _read_results(results: Store, name: str) -> dict[str, Any]:
    found, path = results.read_committed(name), results.format_path(name)
    try:
        tree = json.loads(found[RESULTS_FILE])
        number = tree.get("format")
    except (KeyError, ValueError, AttributeError):
        raise DataError(f"{path} was damaged; delete it and give the command again") from None
    check_format(number, FORMAT, path, "delete it and give the command again")
    return tree


def _format_summary(tree: dict[str, Any], failed: list[str], path: str) -> str:
    lines = [f"{describe_comparison(tree)}; {describe_latency(tree)}", format_encoders(tree), *failed]
    lines.append("rerun the same command to take them up again" if failed else f"results: {path}")
    return "\n".join(lines)
