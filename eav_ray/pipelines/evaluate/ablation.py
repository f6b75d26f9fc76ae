"""What the parts of an experiment are worth, and what they cost: its variants over all folds of its protocol.

The trainings of all variants and folds are one queue, equal ones once: variants share the encoders that they do not
change. Each test recording is scored once by each variant's model of its fold.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from eav_ray.config import Experiment, to_dict
from eav_ray.data.io import parquet
from eav_ray.data.shards.dataset import Dataset, open_dataset
from eav_ray.distributed.connection import connect_experiment
from eav_ray.distributed.scoring import ScoringTask, score_checkpoints
from eav_ray.errors import DataError
from eav_ray.evaluation import ablation
from eav_ray.evaluation.ablation_variants import ABLATION_PARTS, BASE_VARIANT, AblationVariant, build_ablation_variants
from eav_ray.pipelines.evaluate.ablation_costs import measure_costs
from eav_ray.pipelines.evaluate.ablation_plan import FORMAT, VariantFold, compute_ablation_key, plan_variant_folds
from eav_ray.pipelines.evaluate.model_costs import describe_latency_hardware
from eav_ray.pipelines.evaluate.number_limits import require_classes
from eav_ray.pipelines.train.cross_validation import train_folds
from eav_ray.reporting.html import Page
from eav_ray.reporting.sections import ablation as sections_ablation
from eav_ray.reporting.sections import cost
from eav_ray.storage import Store, check_format, list_package_versions
from eav_ray.training.checkpoint import find_finished_checkpoints
from eav_ray.words import format_count

PREDICTION_COLUMNS = (
    "subject",
    "recording",
    "window",
    "label",
    "fold",
    "variant",
)  # and the fusion's logits and weights


@dataclass(frozen=True)
class AblationResult:
    results: dict[str, Any]  # results.json
    path: str  # where it lies, empty where something is missing
    failed: list[str]
    text: str


def run_ablation(
    experiment: Experiment, parts: Sequence[str] = ABLATION_PARTS, sizes: Sequence[str] = ("handcrafted", "half")
) -> AblationResult:
    """Train and test every variant on every fold, or what is left of them; `split.index` does not matter.

    Raises:
        ConfigError: A variant or a fold that cannot be made.
        DataError: Nothing could be scored, or another process is at the same.
    """
    e = experiment
    require_classes(
        e.data, "`eav ablate`", "compare variants by `eav protocol`, each with its own experiment, and their pages"
    )
    chosen_variants, left_out_notes = build_ablation_variants(e, parts, sizes)
    data, results = open_dataset(e), Store(e.store.results)
    variant_folds = plan_variant_folds(e, chosen_variants, data)
    name = f"ablations/{compute_ablation_key(e, variant_folds)}"
    failed: list[str] = []
    with results.lock_unfinished(name) as results:
        if results.is_committed(name):
            tree = _read_results(results, name)
        else:
            with connect_experiment(e) as e:
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
        "" if failed else results.format_path(name),
        failed,
        _format_summary(tree, left_out_notes, failed, results.format_path(name)),
    )


def _score_variants(
    e: Experiment, variant_folds: Sequence[VariantFold], data: Dataset, results: Store, reasons: dict[str, str]
) -> tuple[pd.DataFrame, list[str]]:
    """Predictions of all variants, and a line for each model that is missing."""
    failed: dict[str, None] = {}  # in order, each once
    tasks: list[tuple[VariantFold, ScoringTask]] = []
    keys = dict.fromkeys(t.fold.runs[-1].key for t in variant_folds)
    checkpoints = find_finished_checkpoints(results, keys)
    for variant_fold in variant_folds:
        key = variant_fold.fold.runs[-1].key
        checkpoint = checkpoints.get(key)
        if checkpoint is None:
            reason = reasons.get(key, reasons.get("", "it has no finished checkpoint"))
            failed[f"{_describe_variant_fold(variant_fold)} could not be trained: {reason}"] = None
        elif variant_fold.test_ids:
            task = ScoringTask(checkpoint, variant_fold.test_ids, variant_fold.variant.visible_modalities)
            tasks.append((variant_fold, task))
    # Equal questions of two variants are one; those of one checkpoint lie together, which is then read once.
    unique = sorted({task for _, task in tasks}, key=lambda t: (t.checkpoint.path, t.visible_modalities))
    scored = dict(zip(unique, score_checkpoints(e, unique, data), strict=True))
    tables = []
    for variant_fold, task in tasks:
        if problem := scored[task].problem:
            failed[f"{_describe_variant_fold(variant_fold)} could not be scored: {problem}"] = None
            continue
        table = scored[task].predictions.assign(fold=variant_fold.fold.number, variant=variant_fold.variant.name)
        tables.append(
            table[[c for c in table if c in PREDICTION_COLUMNS or str(c).startswith(("fusion.logit_", "weight."))]]
        )
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(), list(failed)


def _describe_variant_fold(variant_fold: VariantFold) -> str:
    return f'fold {variant_fold.fold.number} of "{variant_fold.variant.name}"'


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
    sections = [*sections_ablation.build_ablation_sections(tree), *cost.build_cost_sections(tree)]
    page = Page(f"Ablation {tree['name']}", sections).render()
    return files | {"predictions.parquet": parquet.encode_dataframe(predictions), "ablation.html": page.encode()}


def _read_results(results: Store, name: str) -> dict[str, Any]:
    found = results.read_committed(name)
    try:
        tree = json.loads(found["results.json"])
        number = tree.get("format")
    except (KeyError, ValueError, AttributeError):
        raise DataError(f"{results.format_path(name)} was damaged; delete it and give the command again") from None
    check_format(number, FORMAT, results.format_path(name), "delete it and give the command again")
    return tree


def _format_summary(tree: dict[str, Any], left_out_notes: list[str], failed: list[str], path: str) -> str:
    hardware = tree["hardware"]
    head = (
        f"{tree['protocol']}, {format_count(tree['folds'], 'fold')}; latency: one window, "
        f"{format_count(hardware['threads'], 'thread')} of {hardware['device']}"
    )
    head += cost.format_load_warning(hardware)
    lines = [head, *left_out_notes, sections_ablation.format_ablation(tree), ""]
    if failed:
        missing = f"{format_count(len(failed), 'model')} {'is' if len(failed) == 1 else 'are'} missing"
        lines.append(f"{missing}; rerun the same command to train them; the first: {failed[0]}")
    else:
        lines.append(f"results: {path}")
    return "\n".join(lines)
