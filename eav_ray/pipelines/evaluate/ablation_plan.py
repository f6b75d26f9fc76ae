"""Plan the trainings of an ablation."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from eav_ray.config import Experiment, digest
from eav_ray.data.shards.dataset import Dataset
from eav_ray.evaluation.ablation_variants import AblationVariant
from eav_ray.pipelines.train.cross_validation import PlannedFold, plan_cv_folds
from eav_ray.training.run_spec import plan_runs

FORMAT = 2  # raise when what is kept of an ablation changes


@dataclass(frozen=True)
class VariantFold:
    """One variant on one fold."""

    variant: AblationVariant
    fold: PlannedFold  # whose runs are the variant's
    test_ids: tuple[str, ...]  # test recordings in which there is something for it to see


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
