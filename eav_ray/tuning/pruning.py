"""Decide which candidates stop early."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from eav_ray.config import SearchConfig


@dataclass(frozen=True)
class PruningSchedule:
    """When fusions are scored on the way, and which of them stay.

    Attributes:
        rungs: Of a fusion's own epochs, ascending, between 0 and 1.
        keeps_training: Is asked of each fusion that it scored: its run's number, the share, the score. What it says
            must not depend on other fusions of this stack.
    """

    rungs: tuple[float, ...] = ()
    keeps_training: Callable[[int, float, float], bool] = lambda run, share, score: True

    def resolve_epochs(self, epochs: int) -> dict[int, float]:
        """Epochs done -> the share that they are; of equal ones the last, and none at the end."""
        return {n: share for share in self.rungs if 0 < (n := round(share * epochs)) < epochs}


def compute_pruning_thresholds(
    rows: Sequence[dict[str, Any]], metric: str, before_candidate: int, search: SearchConfig
) -> dict[float, float]:
    """The bars of a candidate: by how far it is, the median of the means that earlier candidates had there.

    How far it is counts folds: 1 after the first, 1.25 after a quarter of the epochs of the second. With `search.prune`
    there are bars after folds, with `search.rungs` inside them.

    Args:
        rows: Of `candidates.parquet`.
        before_candidate: Candidates with a lower number count.
    """
    candidates: dict[int, dict[int, dict[str, Any]]] = {}
    for row in rows:
        if row["candidate"] < before_candidate:
            candidates.setdefault(row["candidate"], {})[row["fold"]] = row
    means: dict[float, list[float]] = {}
    for folds in candidates.values():
        completed: list[float] = []
        for _, row in sorted(folds.items()):
            for rung in search.rungs:
                means.setdefault(compute_folds_done(len(completed), rung), []).append(
                    compute_mean([*completed, row.get(format_rung_column(rung), math.nan)])
                )
            if row.get("epochs_share", 1.0) < 1:
                break  # it was left in this fold
            completed.append(row[metric])
            if search.prune:
                means.setdefault(compute_folds_done(len(completed)), []).append(compute_mean(completed))
    finite = {folds_done: [mean for mean in found if math.isfinite(mean)] for folds_done, found in means.items()}
    return {far: statistics.median(found) for far, found in sorted(finite.items()) if found}


def compute_folds_done(folds: int, rung: float = 0.0) -> float:
    """How far a candidate is that has so many folds behind it, and this share of the epochs of the next."""
    return round(folds + rung, 6)


def compute_mean(scores: Sequence[float]) -> float:
    return sum(scores) / len(scores)


def format_rung_column(rung: float) -> str:
    """Column of `candidates.parquet` with the score at a look."""
    return f"rung_{rung:g}"
