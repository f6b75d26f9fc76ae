"""Summarize the scores of a candidate over its inner folds."""

import math
from typing import Any

from eav_ray.training.run_spec import SELECTION_METRIC
from eav_ray.tuning.pruning import compute_folds_done, compute_mean

FoldScores = dict[str, Any]  # what is known of a candidate on one fold: a row


CANDIDATE_COLUMNS = ("study", "candidate", "state", "changes")  # columns of a row that are not of its fold


def summarize_candidate(
    number: int,
    fold_scores: list[FoldScores],
    folds: int,
    pruning_thresholds: dict[float, float],
    *,
    unbatchable_reason: str = "",
    failed: str = "",
) -> dict[str, Any]:
    """A candidate that has its last fold behind it, or a mean below the bar, or has failed; empty for any other."""
    ordered = sorted(fold_scores, key=lambda fold: fold["fold"])
    mean = compute_mean([fold[SELECTION_METRIC] for fold in ordered]) if ordered else math.nan
    n_completed = sum(fold.get("epochs_share", 1.0) == 1 for fold in ordered)
    folds_done = compute_folds_done(
        n_completed, ordered[-1].get("epochs_share", 0.0) if n_completed < len(ordered) else 0.0
    )
    pruned = n_completed < folds and mean < pruning_thresholds.get(folds_done, -math.inf)
    if n_completed < folds and not pruned and math.isfinite(mean) and not failed:
        return {}
    summary = {
        "candidate": number,
        SELECTION_METRIC: mean,
        "folds": ordered,
        "unbatchable_reason": unbatchable_reason,
        "pruned": pruned,
    }
    return summary | ({"failed": failed} if failed else {})
