"""Compare ablation variants on the same recordings, paired over subjects."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from eav_ray.config import Experiment, select_worn_modalities
from eav_ray.evaluation.ablation_variants import (
    ABLATION_PARTS,
    BASE_VARIANT,
    AblationVariant,
    format_masked_name,
    format_subset_name,
    list_modality_subsets,
)
from eav_ray.evaluation.comparisons import PairedComparison, compare_pairs
from eav_ray.evaluation.correctness import mark_correct_recordings
from eav_ray.evaluation.results_tree import to_json_value
from eav_ray.evaluation.statistics import compute_accuracy_interval, compute_balanced_accuracy
from eav_ray.training.metrics import RECORDING_COLUMNS

SOURCE = "fusion"  # of a model of one modality its only logits


def compare_variants(
    predictions: pd.DataFrame, variants: Sequence[AblationVariant], base: Experiment, costs: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """The part of an ablation's results that its predictions give, of plain lists, dictionaries and numbers.

    Each group is compared on the recordings that all of it could score, its own variants and what they are compared
    with; Holm's correction is for the comparisons of a group.

    Args:
        predictions: One row a window: `variant`, subject, recording, label and the logits of `fusion`.
        variants: The variants; one without predictions is left out, and named in `missing`.
        costs: Of each variant, by its name.
    Returns:
        groups: name -> how many people and recordings; variants: an entry for each, in its group, which has the
        experiment itself first; worn: each subset with a worn sensor against the same without; missing: names.
    """
    correct_by_variant = {
        str(n): mark_correct_recordings(windows, [SOURCE]).set_index(RECORDING_COLUMNS)[SOURCE]
        for n, windows in predictions.groupby("variant")
    }
    labels = predictions[[*RECORDING_COLUMNS, "label"]].drop_duplicates(RECORDING_COLUMNS)
    results: dict[str, Any] = {"groups": {}, "variants": [], "worn": []}
    results["missing"] = [v.name for v in variants if v.name not in correct_by_variant]
    for group in [g for g in ABLATION_PARTS if any(v.group == g for v in variants)]:
        members = [v for v in variants if v.group == group and {v.name, v.reference} <= correct_by_variant.keys()]
        if BASE_VARIANT not in correct_by_variant or not members:
            continue
        names = list(dict.fromkeys([BASE_VARIANT, *(v.reference for v in members), *(v.name for v in members)]))
        common = pd.concat({n: correct_by_variant[n] for n in names}, axis=1, join="inner").reset_index()
        common = common.merge(labels, on=RECORDING_COLUMNS)
        if common.empty:
            results["missing"] += [v.name for v in members]
            continue
        results["groups"][group] = {"n_subjects": int(common["subject"].nunique()), "recordings": len(common)}
        compared = [next(v for v in variants if v.name == BASE_VARIANT), *members]
        pairs = compare_pairs(common, [(v.name, v.reference) for v in members])
        for variant, comparison in zip(compared, [None, *pairs], strict=True):
            results["variants"].append(
                {
                    "group": group,
                    "name": variant.name,
                    "mode": variant.mode if variant.name != BASE_VARIANT else BASE_VARIANT,
                    "size": variant.size,
                    "changes": variant.changes,
                    "modalities": variant.list_tested_modalities(base),
                    "accuracy": to_json_value(asdict(compute_accuracy_interval(common, variant.name))),
                    "balanced_accuracy": compute_balanced_accuracy(common, variant.name),
                    "comparison": comparison_to_dict(comparison) if comparison else None,
                    "cost": costs.get(variant.name, {}),
                }
            )
        for modality in select_worn_modalities(base.data.modalities):
            results["worn"] += _compare_with_and_without(modality, common, group, members, base, costs)
    return results


def comparison_to_dict(comparison: PairedComparison) -> dict[str, Any]:
    """Turn a comparison into what is kept of it."""
    tree = asdict(comparison.difference)
    counts = ("n_subjects", "n_better", "n_worse", "n_equal", "n_comparisons", "n_subjects_wanted")
    names = ("other", *counts, "p_value", "effect", "significant", "verdict")
    tree |= {name: getattr(comparison, name) for name in names}
    return to_json_value(tree | {"holm": comparison.holm_p_value})


def _compare_with_and_without(
    modality: str,
    common: pd.DataFrame,
    group: str,
    members: Sequence[AblationVariant],
    base: Experiment,
    costs: dict[str, dict[str, Any]],
) -> list[dict[str, Any]]:
    """Every subset with a modality against the same without it."""
    rows: list[tuple[str, str, str, str]] = []  # mode, size, with, without
    if group == "subsets":
        for mode, name in (("retrained", format_subset_name), ("masked", format_masked_name)):
            with_modality = [some for some in list_modality_subsets(base) if modality in some and len(some) > 1]
            pairs = [(name(some), name([m for m in some if m != modality])) for some in with_modality]
            pairs.append((BASE_VARIANT, name([m for m in base.data.modalities if m != modality])))
            rows += [(mode, BASE_VARIANT, *pair) for pair in pairs]
    if group == "sizes":
        sizes = dict.fromkeys(v.size for v in members)
        rows = [("retrained", size, size, f"{size} without {modality}") for size in sizes]
    rows = [row for row in rows if {row[2], row[3]} <= set(common.columns)]
    results = []
    for (mode, size, ours, other), one in zip(rows, compare_pairs(common, [row[2:] for row in rows]), strict=True):
        extra_cost = _compute_extra_cost(costs.get(ours, {}), costs.get(other, {})) if mode == "retrained" else {}
        results.append(
            {"modality": modality, "group": group, "mode": mode, "size": size, "with": ours, "without": other}
            | {"extra_cost": extra_cost, "difference": comparison_to_dict(one)}
        )
    return results


def _compute_extra_cost(ours: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    shared_keys = [k for k in ("parameters", "gmac", "seconds", "latency_ms") if k in ours and k in other]
    return {k: ours[k] - other[k] for k in shared_keys if ours[k] is not None and other[k] is not None}
