"""Compare sources of predicted numbers, paired over people, and say whether a fusion helps.

A difference is always that by which ours is better: of CCC ours less the other, of RMSE the other less ours.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

import numpy as np
import pandas as pd

from eav_ray.config import order_modalities
from eav_ray.data.recordings import TARGET_PREFIX
from eav_ray.evaluation.comparisons import (
    MIN_SUBJECTS,
    PairedComparison,
    compare_differences,
    comparison_to_dict,
)
from eav_ray.evaluation.number_scores import (
    average_correlation,
    average_numbers,
    average_rmse,
    find_level,
    list_number_sources,
    score_subjects,
    select_pairs,
)
from eav_ray.evaluation.results_tree import ResultsTree
from eav_ray.evaluation.statistics import Interval
from eav_ray.training.metrics import MEAN_SOURCE
from eav_ray.words import format_count

Measure = Literal["ccc", "rmse"]
MEASURE_TITLES: dict[Measure, str] = {"ccc": "CCC", "rmse": "RMSE"}


@dataclass(frozen=True)
class NumberComparison:
    """Two sources of one target."""

    target: str
    measure: Measure
    paired: PairedComparison

    def __str__(self) -> str:
        one = self.paired
        parts = [
            f"{self.target}: {one.ours} against {one.other}, paired over {format_count(one.n_subjects, 'person')}: "
            f"{format_gain(one.difference.mean, self.measure)} "
            f"({format_gain_interval(one.difference, self.measure)}), {one.n_better} better, {one.n_worse} worse, "
            f"{one.n_equal} equal"
        ]
        if not math.isnan(one.p_value):
            parts.append(
                f"Wilcoxon p = {one.p_value:.3g}, Holm {one.holm_p_value:.3g} (of {one.n_comparisons}), rank-biserial "
                f"{one.effect:+.2f}"
            )
        return "; ".join([*parts, one.verdict])

    def to_dict(self) -> ResultsTree:
        """Turn it into what results hold of it."""
        return {"target": self.target, "ours": self.paired.ours, "other": self.paired.other} | comparison_to_dict(
            self.paired
        )


def format_gain(gain: float, measure: Measure) -> str:
    """Format by how much a source is better: CCC has no unit, RMSE that of the target."""
    return f"CCC {gain:+.3f}" if measure == "ccc" else f"RMSE {-gain:+.3g}"


def format_gain_interval(difference: Interval, measure: Measure) -> str:
    """Format the interval of a difference as `format_gain` does: of RMSE below 0, where ours is better."""
    if math.isnan(difference.low):
        return "no interval"
    if measure == "ccc":
        return f"95 % {difference.low:+.3f} to {difference.high:+.3f}"
    return f"95 % {-difference.high:+.3g} to {-difference.low:+.3g}"


@dataclass(frozen=True)
class Rivals:
    """Two sources that are compared in how they predict one target."""

    position: int  # of the target
    target: str
    ours: str
    other: str
    measure: Measure


def compute_gains(recordings: pd.DataFrame, rivals: Rivals) -> np.ndarray:
    """Compute by how much one source is better than another, one number a subject.

    Over the recordings that both have a number of, so that a modality is not held against a fusion on others. Of CCC
    the subjects whose targets differ.

    Args:
        recordings: From `number_scores.average_numbers`.
    Returns:
        Nothing where one of the two diverged: what is left of it is no fair rival.
    """
    pairs = [select_pairs(recordings, source, rivals.position) for source in (rivals.ours, rivals.other)]
    common = pairs[0].index.intersection(pairs[1].index)
    mine, theirs = (score_subjects(one.loc[common]) for one in pairs)
    if rivals.measure == "ccc":
        gains = (mine["ccc"] - theirs["ccc"])[mine["counts"]].to_numpy(float)
    else:
        gains = (theirs["rmse"] - mine["rmse"]).to_numpy(float)
    return gains if np.isfinite(gains).all() else np.empty(0)


def compare_numbers(recordings: pd.DataFrame, rivals: Sequence[Rivals]) -> list[NumberComparison]:
    """Compare pairs of sources, with Holm's correction for all of them.

    Args:
        recordings: From `number_scores.average_numbers`.
    """
    gains = [compute_gains(recordings, one) for one in rivals]
    scales = [_measure_unit(recordings, one) for one in rivals]
    tested = compare_differences(
        [(one.ours, one.other, g / scale) for one, g, scale in zip(rivals, gains, scales, strict=True)]
    )
    return [
        NumberComparison(one.target, one.measure, replace(test, difference=_rescale(test.difference, scale)))
        for one, test, scale in zip(rivals, tested, scales, strict=True)
    ]


def _measure_unit(recordings: pd.DataFrame, rivals: Rivals) -> float:
    """Measure what differences are divided by for a test, which rounds them by an absolute step: the unit of a target
    must not matter.
    """
    if rivals.measure == "ccc":
        return 1.0
    true = recordings[f"{TARGET_PREFIX}{rivals.position}"].to_numpy(float)
    spread = float(np.nanstd(true)) if np.isfinite(true).any() else 0.0
    return spread if spread > 0 else 1.0


def _rescale(interval: Interval, scale: float) -> Interval:
    return Interval(*(scale * value for value in (interval.mean, interval.sd, interval.low, interval.high)))


@dataclass(frozen=True)
class ComparisonTable:
    """Comparisons that are corrected together."""

    title: str
    measure: Measure
    rows: list[NumberComparison]


def compare_number_sources(
    windows: pd.DataFrame, modalities: Sequence[str], targets: Sequence[str]
) -> list[ComparisonTable]:
    """Compare the fusion with each modality and with `mean`, and modalities with each other; Holm in each table.

    By CCC of the targets that have one within subjects, and by RMSE of all. Nothing of one modality.
    """
    if len(modalities) < 2:
        return []
    sources = list_number_sources(modalities)
    recordings = average_numbers(windows, sources)
    names = order_modalities(modalities)
    groups = {
        "The fusion against the rest": [("fusion", other) for other in (*names, MEAN_SOURCE)],
        "Modalities against each other": list(combinations(names, 2)),
    }
    within = [k for k in range(len(targets)) if find_level(recordings, k) == "within"]
    positions: dict[Measure, list[int]] = {"ccc": within, "rmse": list(range(len(targets)))}
    tables = []
    for title, pairs in groups.items():
        for measure in positions:
            rivals = [Rivals(k, targets[k], *pair, measure) for k in positions[measure] for pair in pairs]
            if rivals:
                tables.append(ComparisonTable(title, measure, compare_numbers(recordings, rivals)))
    return tables


@dataclass(frozen=True)
class NumberClaim:
    """The fusion against the best single modality and the mean of the modalities, for one target."""

    target: str
    best_single: str
    comparisons: list[NumberComparison]  # with the one and the other

    @property
    def helps(self) -> bool:
        """Whether it is better than both, each difference significant."""
        return all(one.paired.difference.mean > 0 and one.paired.significant for one in self.comparisons)

    def __str__(self) -> str:
        n_subjects = min(one.paired.n_subjects for one in self.comparisons)
        if n_subjects < MIN_SUBJECTS:
            of = format_count(n_subjects, "person")
            return f"{self.target}: whether the fusion helps cannot be said of {of}: a test over people wants more"
        differences = " and ".join(
            f"{format_gain(one.paired.difference.mean, one.measure)} against {one.paired.other} (Holm p = "
            f"{one.paired.holm_p_value:.3g})"
            for one in self.comparisons
        )
        verdict = "the fusion helps" if self.helps else "the fusion is not shown to help"
        return f"{self.target}: {verdict}: {differences}, paired over {format_count(n_subjects, 'person')}"


def judge_number_fusion(windows: pd.DataFrame, modalities: Sequence[str], targets: Sequence[str]) -> list[NumberClaim]:
    """Say for each target whether the fusion beats the best single modality and the mean of the modalities.

    By CCC, or by RMSE where it is not defined within subjects. Holm's correction is for both of all targets. The best
    modality is chosen on the rows that it is compared on, which makes the bar higher, never lower.

    Returns:
        Nothing of one modality.
    """
    if len(modalities) < 2:
        return []
    recordings = average_numbers(windows, list_number_sources(modalities))
    rivals, best = [], []
    for k, target in enumerate(targets):
        measure: Measure = "ccc" if find_level(recordings, k) == "within" else "rmse"
        rates = {m: _rate_source(recordings, m, k, measure) for m in order_modalities(modalities)}
        best.append(max(rates, key=rates.__getitem__))
        rivals += [Rivals(k, target, "fusion", other, measure) for other in (best[-1], MEAN_SOURCE)]
    compared = compare_numbers(recordings, rivals)
    return [NumberClaim(target, best[k], compared[2 * k : 2 * k + 2]) for k, target in enumerate(targets)]


def _rate_source(recordings: pd.DataFrame, source: str, position: int, measure: Measure) -> float:
    """Rate a source so that more is better; one without a score is the worst."""
    scores = score_subjects(select_pairs(recordings, source, position))
    rate = average_correlation(scores, "ccc").mean if measure == "ccc" else -average_rmse(scores).mean
    return -math.inf if math.isnan(rate) else rate
