"""Comparisons paired over people: an exact test, how many people go which way, and what could have been found."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from eav_ray.evaluation.statistics import Interval, compute_difference_interval, compute_subject_accuracy
from eav_ray.training.metrics import RULE_SOURCES, STACKING
from eav_ray.words import format_count

ALPHA = 0.05


POWER = 0.8  # with which as many people as are wanted would find a difference


MIN_SUBJECTS = 6  # with fewer the smallest p value of a signed-rank test is above ALPHA


WILCOXON_EFFICIENCY = 3 / math.pi  # of the signed-rank test beside the t test, of normal differences


N_EXACT = 50  # differences up to which the null distribution is counted, and above which it is taken as normal


MAX_WANTED_IN_TEXT = 10_000


@dataclass(frozen=True)
class PairedComparison:
    """One source against another, person by person."""

    ours: str
    other: str
    difference: Interval  # ours less the other
    n_subjects: int
    n_better: int  # people of whom ours is the greater
    n_worse: int
    n_equal: int
    p_value: float  # exact signed-rank test, two-sided; NaN below `MIN_SUBJECTS`, 1 where nobody differs
    effect: float  # matched-pairs rank-biserial correlation (Kerby 2014): 1 where everybody gains
    n_subjects_wanted: int | None  # `count_subjects_wanted` of this difference
    n_comparisons: int = 1  # tested together with it, itself included
    holm_p_value: float = math.nan  # adjusted for these
    smallest_holm_p_value: float = math.nan  # were all people of all of these on one side

    @property
    def significant(self) -> bool:
        return self.holm_p_value < ALPHA

    @property
    def verdict(self) -> str:
        return describe_verdict(self.holm_p_value, self.smallest_holm_p_value, self.n_subjects, self.n_comparisons)

    def __str__(self) -> str:
        d = self.difference
        bounds = "no interval" if math.isnan(d.low) else f"95 % {100 * d.low:+.2f} to {100 * d.high:+.2f}"
        parts = [
            f"{self.ours} against {self.other}, paired over {format_count(self.n_subjects, 'person')}: "
            f"{100 * d.mean:+.2f} points ({bounds}), {self.n_better} better, {self.n_worse} worse, {self.n_equal} equal"
        ]
        if not math.isnan(self.p_value):
            parts.append(
                f"Wilcoxon p = {self.p_value:.3g}, Holm {self.holm_p_value:.3g} (of {self.n_comparisons}), "
                f"rank-biserial {self.effect:+.2f}"
            )
        parts.append(self.verdict)
        if self.n_subjects_wanted is not None:
            wanted = format_subjects_wanted(self.n_subjects_wanted)
            parts.append(f"a difference of this size wants {wanted} people (power {POWER:g})")
        return "; ".join(parts)


def compare_paired(correct: pd.DataFrame, ours: str, others: Mapping[str, pd.Series]) -> list[PairedComparison]:
    """Compare one source with several, with Holm's correction for as many.

    Args:
        correct: One row a recording: `subject`, and whether each source is right.
        others: Name -> whether it is right, for the rows of `correct`.
    """
    return compare_pairs(correct.assign(**others), [(ours, name) for name in others])


def compare_pairs(correct: pd.DataFrame, pairs: Iterable[tuple[str, str]]) -> list[PairedComparison]:
    """Compare each pair's first source with its second, over people, with Holm's correction for all of them.

    Args:
        correct: One row a recording: `subject`, and whether each source is right.
    """
    differences = []
    for ours, other in pairs:
        by_recording = correct[ours].astype(float) - correct[other].astype(float)
        differences.append((ours, other, by_recording.groupby(correct["subject"]).mean().to_numpy()))
    return compare_differences(differences)


def compare_differences(differences: Sequence[tuple[str, str, np.ndarray]]) -> list[PairedComparison]:
    """Test paired differences, with Holm's correction for all that are tested.

    Args:
        differences: What is compared with what, and one difference a person.
    """
    comparisons = [_compare(ours, other, np.asarray(values, float)) for ours, other, values in differences]
    adjusted = holm([one.p_value for one in comparisons])
    smallest = holm([compute_smallest_p_value(one.n_subjects) for one in comparisons])
    n_tested = sum(not math.isnan(p) for p in adjusted)
    return [
        replace(one, n_comparisons=n_tested, holm_p_value=p, smallest_holm_p_value=least)
        for one, p, least in zip(comparisons, adjusted, smallest, strict=True)
    ]


def _compare(ours: str, other: str, values: np.ndarray) -> PairedComparison:
    interval = compute_difference_interval(values) if len(values) else Interval(*[math.nan] * 4)
    p, effect = signed_rank(values)
    n_better, n_worse = int((values > 1e-12).sum()), int((values < -1e-12).sum())
    n_equal = len(values) - n_better - n_worse
    p = math.nan if len(values) < MIN_SUBJECTS else p
    wanted = count_subjects_wanted(interval.mean, interval.sd)
    return PairedComparison(ours, other, interval, len(values), n_better, n_worse, n_equal, p, effect, wanted)


def comparison_to_dict(comparison: PairedComparison) -> dict[str, Any]:
    """Turn a comparison into what results hold of it; numbers that are not there are NaN."""
    return {
        "n_subjects": comparison.n_subjects,
        "n_better": comparison.n_better,
        "n_worse": comparison.n_worse,
        "n_equal": comparison.n_equal,
        "difference": comparison.difference.mean,
        "interval": [comparison.difference.low, comparison.difference.high],
        "p": comparison.p_value,
        "holm": comparison.holm_p_value,
        "n_comparisons": comparison.n_comparisons,
        "effect": comparison.effect,
        "n_subjects_wanted": comparison.n_subjects_wanted,
        "verdict": comparison.verdict,
    }


def signed_rank(differences: np.ndarray) -> tuple[float, float]:
    """Test by Wilcoxon's signed ranks, exactly, equal differences included; people without one say nothing.

    Returns:
        p value, two-sided, and rank-biserial correlation.
    """
    nonzero = differences[np.abs(differences) > 1e-12]
    if not len(nonzero):
        return 1.0, 0.0
    # Differences of shares that are equal but for rounding share a rank.
    ranks = stats.rankdata(np.abs(nonzero).round(9))
    effect = float((ranks * np.sign(nonzero)).sum() / ranks.sum())
    if len(nonzero) > N_EXACT:
        result: Any = stats.wilcoxon(nonzero.round(9), method="asymptotic")
        return float(result.pvalue), effect
    # Shared ranks are halves: doubled they are whole numbers, and their sums can be counted.
    doubled = np.rint(2 * ranks).astype(int)
    chances = np.ones(1)  # of each sum of the ranks that are positive, were signs tossed
    for rank in doubled:
        gap = np.zeros(rank)
        chances = (np.concatenate([chances, gap]) + np.concatenate([gap, chances])) / 2
    positive = int(doubled[nonzero > 0].sum())
    tail = min(chances[: positive + 1].sum(), chances[positive:].sum())
    return min(1.0, 2 * float(tail)), effect


def compute_smallest_p_value(n_subjects: int) -> float:
    """Compute the p value of the signed-rank test where all people are on one side; NaN where it is not made."""
    return 2.0 ** (1 - n_subjects) if n_subjects >= MIN_SUBJECTS else math.nan


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values (Holm 1979), in the order given; NaN, a test that was not made, stays and does not count."""
    p = np.array(p_values, float)
    tested = np.flatnonzero(~np.isnan(p))
    order, n = tested[np.argsort(p[tested], kind="stable")], len(tested)
    p[order] = np.minimum(1.0, np.maximum.accumulate(np.arange(n, 0, -1) * p[order])) if n else []
    return p.tolist()


def describe_verdict(holm_p_value: float, smallest_holm_p_value: float, n_subjects: int, n_comparisons: int) -> str:
    """Say what a test has shown, or that with so few people and so many comparisons it could not show anything.

    Args:
        holm_p_value: NaN where there is no test.
        smallest_holm_p_value: What it would be if the data were as clear as they can be.
    """
    alone = f"of {format_count(n_subjects, 'person')} no difference could be significant"
    if holm_p_value < ALPHA:
        return f"significant (Holm p < {ALPHA:g})"
    if math.isnan(holm_p_value):
        return alone
    if smallest_holm_p_value >= ALPHA:
        return f"{alone} among {format_count(n_comparisons, 'comparison')}"
    return "not significant"


def count_subjects_wanted(mean: float, sd: float) -> int | None:
    """Count the people with whom a difference would be found with a power of 0.8 (two-sided 0.05, one comparison).

    For the t test by the normal approximation with the correction of Guenther (1981), which is within one person of the
    noncentral t from 6 people on; divided by the efficiency of the signed-rank test, 3 / pi. It takes the difference
    that was seen for the true one, which of few people it seldom is.

    Args:
        mean, sd: Of the differences over people.
    Returns:
        None where there is no difference, or nothing says how people differ.
    """
    if not mean or not sd > 1e-12 or math.isnan(mean):
        return None
    quantile = float(stats.norm.isf(ALPHA / 2))
    needed = ((quantile + float(stats.norm.ppf(POWER))) * sd / mean) ** 2 + quantile**2 / 2
    return max(MIN_SUBJECTS, math.ceil(needed / WILCOXON_EFFICIENCY))


def format_subjects_wanted(count: int) -> str:
    """Format how many people a difference wants."""
    return f"over {MAX_WANTED_IN_TEXT:,}" if count > MAX_WANTED_IN_TEXT else f"{count:,}"


def collect_fusion_baselines(correct: pd.DataFrame, modalities: Sequence[str]) -> dict[str, pd.Series]:
    """Collect what a fusion is compared with, each as whether it is right.

    Every modality, the rules of fusion and stacking where they are there, and the modality that is best for each
    person, chosen on the very recordings: a bar that no single machine can reach.
    """
    baselines = {source: correct[source] for source in (*modalities, *RULE_SOURCES, STACKING) if source in correct}
    best_modality = compute_subject_accuracy(correct, list(modalities)).idxmax(axis=1)
    column = pd.Index(modalities).get_indexer(pd.Index(correct["subject"].map(best_modality)))
    correct_best = correct[list(modalities)].to_numpy(bool)[np.arange(len(correct)), column]
    baselines["best single modality per subject"] = pd.Series(correct_best, index=correct.index)
    return baselines
