"""What an accuracy is worth: intervals, chance, and comparisons paired over people. Windows are never the unit."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

DRAWS = 10_000  # of a bootstrap
ALPHA = 0.05
BAND = 0.999  # of the chance band
GUESSES = 200_000  # draws of the band of balanced accuracy, whose ends are rare
UNEQUAL = 1.05  # the largest class over the smallest, from which classes are called unequal
MIN_SUBJECTS = 6  # with fewer the smallest p value of a signed-rank test is above ALPHA


@dataclass(frozen=True)
class Interval:
    """Mean over people, and where 95 % of a bootstrap lie."""

    mean: float
    sd: float  # over people; NaN of one
    low: float
    high: float


def interval(correct: pd.DataFrame, source: str, *, seed: int = 0) -> Interval:
    """Of a source's accuracy.

    A bootstrap in two stages (Davison and Hinkley 1997, 3.8): people are drawn with replacement, and of each their
    recordings. What one person's recordings have in common is so not taken for evidence about others. Of a single
    person it speaks of their recordings alone.

    Args:
        correct: One row a recording: `subject`, and whether each source is right.
    """
    return _interval([group.to_numpy(float) for _, group in correct.groupby("subject")[source]], seed)


def _interval(values: Sequence[np.ndarray], seed: int) -> Interval:
    """
    Args:
        values: Of each person's recordings.
    """
    rng = np.random.default_rng(seed)
    means = np.array([v.mean() for v in values])
    drawn = np.empty((DRAWS, len(values)))
    for subject, v in enumerate(values):
        # Of 0 and 1 a drawn mean is binomial; of differences it is drawn from the values.
        if set(np.unique(v)) <= {0.0, 1.0}:
            drawn[:, subject] = rng.binomial(len(v), v.mean(), DRAWS) / len(v)
        else:
            drawn[:, subject] = v[rng.integers(0, len(v), (DRAWS, len(v)))].mean(1)
    drawn = _resample_subjects(drawn, rng)
    low, high = np.quantile(drawn.mean(1), [0.025, 0.975])
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
    who = rng.integers(0, n_subjects, (draws, n_subjects))
    turn = rng.permuted(np.tile(np.arange(draws), (n_subjects, 1)), axis=1).T
    return drawn[turn, who]


def balanced_interval(correct: pd.DataFrame, source: str, *, seed: int = 0) -> Interval:
    """Of balanced accuracy: the mean over classes of the share that is right, of all people's recordings together.

    The same two stages as `interval`; a draw without any recording of a class averages the others.

    Args:
        correct: One row a recording: `subject`, `label`, and whether the source is right.
    Returns:
        The SD is NaN: a single person need not have every class.
    """
    rng = np.random.default_rng(seed)
    classes = np.unique(correct["label"])
    counts_per_subject = [
        np.array(
            [[(~r).sum(), r.sum()] for r in (group.loc[group["label"] == k, source].to_numpy(bool) for k in classes)]
        )
        for _, group in correct.groupby("subject")
    ]  # of each person: (classes, wrong and right)
    drawn = np.stack(
        [rng.multinomial(p.sum(), p.ravel() / p.sum(), DRAWS).reshape(DRAWS, *p.shape) for p in counts_per_subject], 1
    )
    counts = _resample_subjects(drawn, rng).sum(1)
    with np.errstate(invalid="ignore"):
        low, high = np.quantile(np.nanmean(counts[..., 1] / counts.sum(-1), axis=1), [0.025, 0.975])
    whole = np.sum(counts_per_subject, axis=0)
    return Interval(float((whole[:, 1] / whole.sum(1)).mean()), math.nan, float(low), float(high))


def chance_band(recordings: int, n_classes: int) -> tuple[float, float]:
    """Accuracies that guessing reaches in 99.9 % of the cases: binomial over recordings."""
    low, high = stats.binom.interval(BAND, recordings, 1 / n_classes)
    return float(low) / recordings, float(high) / recordings


def unequal(label: np.ndarray, n_classes: int) -> bool:
    """Whether classes differ so much in number that accuracy says little, or one is not there at all."""
    counts = np.unique(label, return_counts=True)[1]
    return len(counts) < n_classes or bool(counts.max() > UNEQUAL * counts.min())


def balanced_chance_band(label: np.ndarray, n_classes: int, *, seed: int = 0) -> tuple[float, float]:
    """As `chance_band`, of balanced accuracy: binomial over the recordings of each class that occurs.

    Args:
        label: Of each recording.
    """
    counts = np.unique(label, return_counts=True)[1]
    rng = np.random.default_rng(seed)
    drawn = np.mean([rng.binomial(n, 1 / n_classes, GUESSES) / n for n in counts], axis=0)
    low, high = np.quantile(drawn, [(1 - BAND) / 2, (1 + BAND) / 2])
    return float(low), float(high)


def inside_chance(correct: pd.DataFrame, source: str, n_classes: int) -> bool:
    """Whether a source does no better or worse than guessing may: by balanced accuracy where classes are unequal, as
    naming the largest class is guessing too.

    Args:
        correct: One row a recording: `label`, and whether the source is right.
    """
    label = correct["label"].to_numpy()
    if unequal(label, n_classes):
        low, high = balanced_chance_band(label, n_classes)
        share = float(correct.groupby("label")[source].mean().mean())
    else:
        low, high = chance_band(len(correct), n_classes)
        share = float(correct[source].mean())
    return low <= share <= high


@dataclass(frozen=True)
class Paired:
    """One source against another, person by person."""

    ours: str
    other: str
    difference: Interval  # ours less the other
    n_subjects: int
    p_value: float  # Wilcoxon's signed-rank test, two-sided; 1 where nobody differs
    effect: float  # matched-pairs rank-biserial correlation (Kerby 2014): 1 where everybody gains
    holm: float = math.nan  # adjusted for the comparisons made with it

    @property
    def significant(self) -> bool:
        return self.holm < ALPHA

    def __str__(self) -> str:
        d = self.difference
        description = (
            f"{self.ours} against {self.other}, paired over {self.n_subjects} people: {100 * d.mean:+.2f} points "
            f"(95 % {100 * d.low:+.2f} to {100 * d.high:+.2f}), Wilcoxon p = {self.p_value:.3g}, Holm {self.holm:.3g}, "
            f"rank-biserial {self.effect:+.2f}"
        )
        if self.n_subjects < MIN_SUBJECTS:
            return f"{description}: of {self.n_subjects} people no difference could be significant"
        return description if self.significant else f"{description}: not significant"


def against(correct: pd.DataFrame, ours: str, others: Mapping[str, pd.Series], *, seed: int = 0) -> list[Paired]:
    """One source against several, with Holm's correction for as many.

    Args:
        correct: One row a recording: `subject`, and whether each source is right.
        others: Name -> whether it is right, for the rows of `correct`.
    """
    found = []
    for name, other in others.items():
        gained = correct[ours].astype(float) - other.astype(float)
        values = [group.to_numpy() for _, group in gained.groupby(correct["subject"])]
        means = np.array([v.mean() for v in values])
        p, effect = signed_rank(means)
        found.append(Paired(ours, name, _interval(values, seed), len(values), p, effect))
    adjusted = holm([one.p_value for one in found])
    return [replace(one, holm=p) for one, p in zip(found, adjusted, strict=True)]


def pairwise(correct: pd.DataFrame, sources: Sequence[str], *, seed: int = 0) -> list[Paired]:
    """Every source against every other, with Holm's correction for all pairs."""
    found: list[Paired] = []
    for n, ours in enumerate(sources):
        found += against(correct, ours, {other: correct[other] for other in sources[n + 1 :]}, seed=seed)
    adjusted = holm([one.p_value for one in found])
    return [replace(one, holm=p) for one, p in zip(found, adjusted, strict=True)]


def signed_rank(differences: np.ndarray) -> tuple[float, float]:
    """(p value, rank-biserial correlation) of paired differences; people without one say nothing."""
    nonzero = differences[np.abs(differences) > 1e-12]
    if not len(nonzero):
        return 1.0, 0.0
    ranks = stats.rankdata(np.abs(nonzero))
    effect = float((ranks * np.sign(nonzero)).sum() / ranks.sum())
    found: Any = stats.wilcoxon(nonzero)
    return float(found.pvalue), effect


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values (Holm 1979), in the order given."""
    order, adjusted, most = np.argsort(p_values), [0.0] * len(p_values), 0.0
    for rank, n in enumerate(order):
        most = max(most, min(1.0, (len(p_values) - rank) * p_values[n]))
        adjusted[n] = most
    return adjusted


def rivals(correct: pd.DataFrame, modalities: Sequence[str]) -> dict[str, pd.Series]:
    """What a fusion is compared with, each as whether it is right: every modality, `late_mean` where it is there, and
    the modality that is best for each person, chosen on the very recordings: a bar that no single machine can reach."""
    found = {m: correct[m] for m in modalities}
    if "late_mean" in correct:
        found["late_mean"] = correct["late_mean"]
    best = compute_subject_accuracy(correct, list(modalities)).idxmax(axis=1)
    best_per_recording = correct["subject"].map(best)
    right = [bool(row[m]) for m, (_, row) in zip(best_per_recording, correct[list(modalities)].iterrows(), strict=True)]
    found["best single per person"] = pd.Series(right, index=correct.index)
    return found


def compute_subject_accuracy(correct: pd.DataFrame, sources: list[str]) -> pd.DataFrame:
    """Accuracy of each source for each person: rows people, columns sources."""
    return correct.groupby("subject")[sources].mean()


def oracle(correct: pd.DataFrame, modalities: Sequence[str]) -> pd.Series:
    """Right where any modality is: what a fusion could reach that always heeds the right one."""
    return correct[list(modalities)].any(axis=1)


def macro_f1(truth: np.ndarray, guess: np.ndarray) -> float:
    """Mean of the F1 scores of the classes that occur; a class that is never named has 0."""
    scores = []
    for k in np.unique(truth):
        right = int(((truth == k) & (guess == k)).sum())
        scores.append(2 * right / (int((truth == k).sum()) + int((guess == k).sum())))
    return float(np.mean(scores))


def text(correct: pd.DataFrame, modalities: Sequence[str], n_classes: int) -> str:
    """Lines for the terminal: the interval of each source, chance, the oracle, and the fusion against the rest.

    Args:
        correct: As `table.correct_per_recording` makes it.
    """
    n_subjects, recordings = correct["subject"].nunique(), len(correct)
    low, high = chance_band(recordings, n_classes)
    lines = [f"intervals: bootstrap over {n_subjects} people and their {recordings} recordings, {DRAWS:,} draws"]
    for source in [c for c in correct.columns if c not in ("subject", "recording", "label")]:
        found = interval(correct, source)
        inside = f"; inside the {100 * BAND:.1f} % band of chance" if inside_chance(correct, source, n_classes) else ""
        lines.append(f"{source:12}    95 % {100 * found.low:6.2f} to {100 * found.high:6.2f}{inside}")
    lines.append(f"{'chance':12}  {100 * BAND:.1f} % {100 * low:6.2f} to {100 * high:6.2f}")
    if unequal(correct["label"].to_numpy(), n_classes):
        low, high = balanced_chance_band(correct["label"].to_numpy(), n_classes)
        lines.append(f"classes are unequal: judged by balanced accuracy, chance {100 * low:.2f} to {100 * high:.2f}")
    if len(modalities) > 1:
        lines.append(
            f"{'oracle':12}{100 * float(oracle(correct, modalities).mean()):8.2f}, right where any modality is"
        )
        if n_subjects < MIN_SUBJECTS:
            lines.append(f"{n_subjects} people are too few for a test over people, which wants {MIN_SUBJECTS}")
        else:
            lines += [str(one) for one in against(correct, "fusion", rivals(correct, modalities))]
    return "\n".join(lines)
