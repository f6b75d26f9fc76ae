"""What an accuracy is worth: intervals over people, and what guessing reaches. Windows are never the unit."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import special, stats
from sklearn.metrics import f1_score

from eav_ray.data.splits import IMBALANCE_RATIO

COVERAGE = 0.95  # of intervals


CHANCE_BAND_COVERAGE = 0.999  # of the chance band


N_CHANCE_DRAWS = 200_000  # draws of the band of balanced accuracy, whose ends are rare


@dataclass(frozen=True)
class Interval:
    """Mean over people, and where the mean of all such people lies in 95 % of the cases.

    The ends are NaN where nothing says how much people differ: of one person, and where all have the same value.
    """

    mean: float
    sd: float  # over people; NaN of one
    low: float
    high: float


def compute_difference_interval(values: np.ndarray) -> Interval:
    """Compute Student's t interval of the mean of one value a person, such as differences of shares.

    A person is the unit, with the mean over all of their recordings: how far recordings scatter is in the scatter of
    these means already, and to draw recordings again, as a bootstrap in two stages does, counts it twice.

    Args:
        values: One a person.
    """
    mean, sd = compute_mean_and_sd(values)
    half_width = compute_half_width(sd, len(values))
    return Interval(mean, sd, mean - half_width, mean + half_width)


def compute_share_interval(values: np.ndarray, share: float | None = None) -> Interval:
    """Compute the interval of a mean share: Student's t on the scale of log odds, by the delta method.

    It stays between 0 and 1 and is longer towards one half. On the plain scale it holds the truth too rarely near 0
    and 1 (89 to 93 % in place of 95 % where people lie around 0.9, SD 0.1), and a bootstrap (BCa) does so below 20
    people wherever they lie (`benchmarks/statistics.py`).

    Args:
        values: Of each person, between 0 and 1, or a jackknife's pseudo-values.
        share: The estimate, where it is not the mean of `values`.
    """
    mean, sd = compute_mean_and_sd(values)
    share = mean if share is None else share
    if not 0 < share < 1:  # nobody, or everybody, is ever right
        return Interval(share, sd, math.nan, math.nan)
    center, half_width = special.logit(share), compute_half_width(sd, len(values)) / (share * (1 - share))
    return Interval(share, sd, float(special.expit(center - half_width)), float(special.expit(center + half_width)))


def compute_mean_and_sd(values: np.ndarray) -> tuple[float, float]:
    """Compute the mean of one value a person, and their SD; NaN of one person."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def compute_half_width(sd: float, n_subjects: int) -> float:
    """Compute half of Student's t interval of a mean; NaN where people do not differ, or there is one alone."""
    if not sd > 1e-12:
        return math.nan
    return float(special.stdtrit(n_subjects - 1, (1 + COVERAGE) / 2)) * sd / math.sqrt(n_subjects)


def compute_accuracy_interval(correct: pd.DataFrame, source: str) -> Interval:
    """Compute a source's accuracy, the mean over people of each person's share of right recordings, and its interval.

    Args:
        correct: One row a recording: `subject`, and whether each source is right.
    """
    return compute_share_interval(correct.groupby("subject")[source].mean().to_numpy(float))


def compute_balanced_interval(correct: pd.DataFrame, source: str) -> Interval:
    """Compute balanced accuracy, and its interval by a jackknife over people.

    Balanced accuracy is the mean over classes of the recall, and the recall of a class the mean over the people who
    have recordings of it. Where everybody has every class this is the mean over people of each person's balanced
    accuracy, and the pseudo-values of the jackknife are these.

    Args:
        correct: One row a recording: `subject`, `label`, and whether the source is right.
    """
    recall_SK = correct.groupby(["subject", "label"])[source].mean().unstack().to_numpy(float)
    share, n = _average_recall(recall_SK), len(recall_SK)
    if n == 1:
        return compute_share_interval(np.array([share]))
    without_one = np.array([_average_recall(np.delete(recall_SK, k, axis=0)) for k in range(n)])
    return compute_share_interval(n * share - (n - 1) * without_one, share)


def compute_balanced_accuracy(correct: pd.DataFrame, source: str) -> float:
    """Compute balanced accuracy as `compute_balanced_interval` defines it."""
    return _average_recall(correct.groupby(["subject", "label"])[source].mean().unstack().to_numpy(float))


def _average_recall(recall_SK: np.ndarray) -> float:
    """Average over people, then over classes; NaN stands where a person has no recording of a class."""
    present = ~np.isnan(recall_SK)
    counts = present.sum(0)
    return float((np.where(present, recall_SK, 0).sum(0)[counts > 0] / counts[counts > 0]).mean())


def compute_chance_band(n_recordings: int, n_classes: int) -> tuple[float, float]:
    """Accuracies that guessing reaches in 99.9 % of the cases: binomial over recordings."""
    low, high = stats.binom.interval(CHANCE_BAND_COVERAGE, n_recordings, 1 / n_classes)
    return float(low) / n_recordings, float(high) / n_recordings


def has_unequal_classes(label: np.ndarray, n_classes: int) -> bool:
    """Whether classes differ so much in number that accuracy says little, or one is not there at all."""
    counts = np.unique(label, return_counts=True)[1]
    return len(counts) < n_classes or bool(counts.max() > IMBALANCE_RATIO * counts.min())


def compute_balanced_chance_band(correct: pd.DataFrame, n_classes: int) -> tuple[float, float]:
    """As `compute_chance_band`, of balanced accuracy: binomial over each person's recordings of each class.

    Args:
        correct: One row a recording: `subject` and `label`.
    """
    rng, recalls = np.random.default_rng(0), []
    for counts in correct.groupby("label")["subject"].value_counts().groupby("label").agg(list):
        # People with as many recordings as others are drawn as one: the sum of their binomials is binomial.
        sizes = zip(*np.unique(counts, return_counts=True), strict=True)
        drawn = sum(rng.binomial(n * k, 1 / n_classes, N_CHANCE_DRAWS) / n for n, k in sizes)
        recalls.append(drawn / len(counts))
    low, high = np.quantile(np.mean(recalls, axis=0), [(1 - CHANCE_BAND_COVERAGE) / 2, (1 + CHANCE_BAND_COVERAGE) / 2])
    return float(low), float(high)


def is_within_chance(correct: pd.DataFrame, source: str, n_classes: int) -> bool:
    """Whether a source does no better or worse than guessing may: by balanced accuracy where classes are unequal, as
    naming the largest class is guessing too.

    Args:
        correct: One row a recording: `subject`, `label`, and whether the source is right.
    """
    if has_unequal_classes(correct["label"].to_numpy(), n_classes):
        low, high = compute_balanced_chance_band(correct, n_classes)
        share = compute_balanced_accuracy(correct, source)
    else:
        low, high = compute_chance_band(len(correct), n_classes)
        share = float(correct[source].mean())
    return low <= share <= high


def compute_subject_accuracy(correct: pd.DataFrame, sources: list[str]) -> pd.DataFrame:
    """Accuracy of each source for each person: rows people, columns sources."""
    return correct.groupby("subject")[sources].mean()


def compute_oracle_correct(correct: pd.DataFrame, modalities: Sequence[str]) -> pd.Series:
    """Right where any modality is: what a fusion could reach that always heeds the right one."""
    return correct[list(modalities)].any(axis=1)


def macro_f1(truth: np.ndarray, guess: np.ndarray) -> float:
    """Mean of the F1 scores of the classes that occur; a class that is never named has 0."""
    return float(f1_score(truth, guess, labels=np.unique(truth), average="macro"))
