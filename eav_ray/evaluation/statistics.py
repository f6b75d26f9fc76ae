"""What an accuracy is worth: intervals, chance, and comparisons paired over people. Windows are never the unit."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.metrics import f1_score

from eav_ray.training.metrics import RULE_SOURCES, STACKING

N_BOOTSTRAP_DRAWS = 10_000  # of a bootstrap


ALPHA = 0.05


CHANCE_BAND_COVERAGE = 0.999  # of the chance band


N_CHANCE_DRAWS = 200_000  # draws of the band of balanced accuracy, whose ends are rare


IMBALANCE_RATIO = 1.05  # the largest class over the smallest, from which classes are called unequal


MIN_SUBJECTS = 6  # with fewer the smallest p value of a signed-rank test is above ALPHA


@dataclass(frozen=True)
class Interval:
    """Mean over people, and where 95 % of a bootstrap lie."""

    mean: float
    sd: float  # over people; NaN of one
    low: float
    high: float


def compute_bootstrap_interval(correct: pd.DataFrame, source: str, *, seed: int = 0) -> Interval:
    """Of a source's accuracy.

    A bootstrap in two stages (Davison and Hinkley 1997, 3.8): people are drawn with replacement, and of each their
    recordings. What one person's recordings have in common is so not taken for evidence about others. Of a single
    person it speaks of their recordings alone.

    Args:
        correct: One row a recording: `subject`, and whether each source is right.
    """
    return _compute_interval([group.to_numpy(float) for _, group in correct.groupby("subject")[source]], seed)


def _compute_interval(values: Sequence[np.ndarray], seed: int) -> Interval:
    """
    Args:
        values: Of each person's recordings.
    """
    rng = np.random.default_rng(seed)
    means = np.array([v.mean() for v in values])
    drawn_means = np.empty((N_BOOTSTRAP_DRAWS, len(values)))
    for subject, v in enumerate(values):
        # Of 0 and 1 a drawn mean is binomial; of differences it is drawn from the values.
        if set(np.unique(v)) <= {0.0, 1.0}:
            drawn_means[:, subject] = rng.binomial(len(v), v.mean(), N_BOOTSTRAP_DRAWS) / len(v)
        else:
            drawn_means[:, subject] = v[rng.integers(0, len(v), (N_BOOTSTRAP_DRAWS, len(v)))].mean(1)
    drawn_means = _resample_subjects(drawn_means, rng)
    low, high = np.quantile(drawn_means.mean(1), [0.025, 0.975])
    sd = float(means.std(ddof=1)) if len(means) > 1 else math.nan
    return Interval(float(means.mean()), sd, float(low), float(high))


def _resample_subjects(drawn: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The second stage of a bootstrap: people with replacement.

    Args:
        drawn: (draws, people, ...) of the first, in which each person's recordings were drawn.
    """
    draws, n_subjects = drawn.shape[:2]
    if n_subjects == 1:
        return drawn
    # Someone who is drawn twice has their recordings drawn twice, each time anew.
    subject_index = rng.integers(0, n_subjects, (draws, n_subjects))
    draw_index = rng.permuted(np.tile(np.arange(draws), (n_subjects, 1)), axis=1).T
    return drawn[draw_index, subject_index]


def compute_balanced_interval(correct: pd.DataFrame, source: str) -> Interval:
    """Of balanced accuracy: the mean over classes of the share that is right, of all people's recordings together.

    The same two stages as `interval`; a draw without any recording of a class averages the others.

    Args:
        correct: One row a recording: `subject`, `label`, and whether the source is right.
    Returns:
        The SD is NaN: a single person need not have every class.
    """
    rng = np.random.default_rng(0)
    classes = np.unique(correct["label"])
    counts_per_subject, drawn = [], []  # of each person: (classes, wrong and right)
    for _, group in correct.groupby("subject"):
        right = [group.loc[group["label"] == k, source].to_numpy(bool) for k in classes]
        p = np.array([[(~r).sum(), r.sum()] for r in right])
        counts_per_subject.append(p)
        draws = rng.multinomial(p.sum(), p.ravel() / p.sum(), N_BOOTSTRAP_DRAWS)
        drawn.append(draws.reshape(N_BOOTSTRAP_DRAWS, *p.shape))
    counts = _resample_subjects(np.stack(drawn, 1), rng).sum(1)
    with np.errstate(invalid="ignore"):
        low, high = np.quantile(np.nanmean(counts[..., 1] / counts.sum(-1), axis=1), [0.025, 0.975])
    total_counts = np.sum(counts_per_subject, axis=0)
    return Interval(float((total_counts[:, 1] / total_counts.sum(1)).mean()), math.nan, float(low), float(high))


def compute_chance_band(n_recordings: int, n_classes: int) -> tuple[float, float]:
    """Accuracies that guessing reaches in 99.9 % of the cases: binomial over recordings."""
    low, high = stats.binom.interval(CHANCE_BAND_COVERAGE, n_recordings, 1 / n_classes)
    return float(low) / n_recordings, float(high) / n_recordings


def has_unequal_classes(label: np.ndarray, n_classes: int) -> bool:
    """Whether classes differ so much in number that accuracy says little, or one is not there at all."""
    counts = np.unique(label, return_counts=True)[1]
    return len(counts) < n_classes or bool(counts.max() > IMBALANCE_RATIO * counts.min())


def compute_balanced_chance_band(label: np.ndarray, n_classes: int) -> tuple[float, float]:
    """As `compute_chance_band`, of balanced accuracy: binomial over the recordings of each class that occurs.

    Args:
        label: Of each recording.
    """
    counts = np.unique(label, return_counts=True)[1]
    rng = np.random.default_rng(0)
    drawn = np.mean([rng.binomial(n, 1 / n_classes, N_CHANCE_DRAWS) / n for n in counts], axis=0)
    low, high = np.quantile(drawn, [(1 - CHANCE_BAND_COVERAGE) / 2, (1 + CHANCE_BAND_COVERAGE) / 2])
    return float(low), float(high)


def is_within_chance(correct: pd.DataFrame, source: str, n_classes: int) -> bool:
    """Whether a source does no better or worse than guessing may: by balanced accuracy where classes are unequal, as
    naming the largest class is guessing too.

    Args:
        correct: One row a recording: `label`, and whether the source is right.
    """
    label = correct["label"].to_numpy()
    if has_unequal_classes(label, n_classes):
        low, high = compute_balanced_chance_band(label, n_classes)
        share = float(correct.groupby("label")[source].mean().mean())
    else:
        low, high = compute_chance_band(len(correct), n_classes)
        share = float(correct[source].mean())
    return low <= share <= high


@dataclass(frozen=True)
class PairedComparison:
    """One source against another, person by person."""

    ours: str
    other: str
    difference: Interval  # ours less the other
    n_subjects: int
    p_value: float  # Wilcoxon's signed-rank test, two-sided; 1 where nobody differs
    effect: float  # matched-pairs rank-biserial correlation (Kerby 2014): 1 where everybody gains
    holm_p_value: float = math.nan  # adjusted for the comparisons made with it

    @property
    def significant(self) -> bool:
        return self.holm_p_value < ALPHA

    def __str__(self) -> str:
        d = self.difference
        description = (
            f"{self.ours} against {self.other}, paired over {self.n_subjects} people: {100 * d.mean:+.2f} points "
            f"(95 % {100 * d.low:+.2f} to {100 * d.high:+.2f}), Wilcoxon p = {self.p_value:.3g}, Holm "
            f"{self.holm_p_value:.3g}, rank-biserial {self.effect:+.2f}"
        )
        if self.n_subjects < MIN_SUBJECTS:
            return f"{description}: of {self.n_subjects} people no difference could be significant"
        return description if self.significant else f"{description}: not significant"


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
    comparisons = []
    for ours, other in pairs:
        differences = correct[ours].astype(float) - correct[other].astype(float)
        values = [group.to_numpy() for _, group in differences.groupby(correct["subject"])]
        p, effect = signed_rank(np.array([v.mean() for v in values]))
        comparisons.append(PairedComparison(ours, other, _compute_interval(values, 0), len(values), p, effect))
    adjusted = holm([one.p_value for one in comparisons])
    return [replace(one, holm_p_value=p) for one, p in zip(comparisons, adjusted, strict=True)]


def signed_rank(differences: np.ndarray) -> tuple[float, float]:
    """(p value, rank-biserial correlation) of paired differences; people without one say nothing."""
    nonzero = differences[np.abs(differences) > 1e-12]
    if not len(nonzero):
        return 1.0, 0.0
    ranks = stats.rankdata(np.abs(nonzero))
    effect = float((ranks * np.sign(nonzero)).sum() / ranks.sum())
    result: Any = stats.wilcoxon(nonzero)
    return float(result.pvalue), effect


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values (Holm 1979), in the order given."""
    order, n = np.argsort(p_values), len(p_values)
    adjusted = np.minimum(1.0, np.maximum.accumulate(np.arange(n, 0, -1) * np.array(p_values)[order]))
    return adjusted[np.argsort(order)].tolist()


def collect_fusion_baselines(correct: pd.DataFrame, modalities: Sequence[str]) -> dict[str, pd.Series]:
    """What a fusion is compared with, each as whether it is right: every modality, the rules of fusion and stacking
    where they are there, and the modality that is best for each person, chosen on the very recordings: a bar that no
    single machine can reach."""
    baselines = {source: correct[source] for source in (*modalities, *RULE_SOURCES, STACKING) if source in correct}
    best_modality = compute_subject_accuracy(correct, list(modalities)).idxmax(axis=1)
    column = pd.Index(modalities).get_indexer(pd.Index(correct["subject"].map(best_modality)))
    correct_best = correct[list(modalities)].to_numpy(bool)[np.arange(len(correct)), column]
    baselines["best single modality per subject"] = pd.Series(correct_best, index=correct.index)
    return baselines


def compute_subject_accuracy(correct: pd.DataFrame, sources: list[str]) -> pd.DataFrame:
    """Accuracy of each source for each person: rows people, columns sources."""
    return correct.groupby("subject")[sources].mean()


def compute_oracle_correct(correct: pd.DataFrame, modalities: Sequence[str]) -> pd.Series:
    """Right where any modality is: what a fusion could reach that always heeds the right one."""
    return correct[list(modalities)].any(axis=1)


def macro_f1(truth: np.ndarray, guess: np.ndarray) -> float:
    """Mean of the F1 scores of the classes that occur; a class that is never named has 0."""
    return float(f1_score(truth, guess, labels=np.unique(truth), average="macro"))


def describe_significance(comparison: PairedComparison) -> str:
    if comparison.n_subjects < MIN_SUBJECTS:
        return f"of {comparison.n_subjects} people no difference could be significant"
    return f"significant (Holm p < {ALPHA:g})" if comparison.significant else "not significant"
