"""Measure what each ablation variant costs to train and to run."""

from collections.abc import Sequence
from typing import Any

from eav_ray.config import Experiment
from eav_ray.data.shards.dataset import Dataset
from eav_ray.evaluation.ablation_variants import AblationVariant
from eav_ray.pipelines.evaluate.ablation_plan import VariantFold
from eav_ray.pipelines.evaluate.model_costs import average_fold_seconds, measure_model_costs, read_training_seconds
from eav_ray.storage import Store


def measure_costs(
    e: Experiment,
    chosen_variants: Sequence[AblationVariant],
    variant_folds: Sequence[VariantFold],
    data: Dataset,
    results: Store,
) -> dict[str, dict[str, Any]]:
    """By a variant's name; one that is masked costs what its whole model does."""
    measured = measure_model_costs({v.name: v.apply_to(e) for v in chosen_variants}, data, e.runtime)
    seconds = read_training_seconds([run for t in variant_folds for run in t.fold.runs], results)
    costs = {}
    for v in chosen_variants:
        folds = [t.fold.runs for t in variant_folds if t.variant is v]
        training_cost = {"seconds": average_fold_seconds(folds, seconds), "run": folds[0][-1].key}
        costs[v.name] = measured[v.name] | training_cost
    return costs
