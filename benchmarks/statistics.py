"""Whether intervals and tests over people keep what they promise, by simulated studies whose truth is known.

    python -m benchmarks.statistics [studies=5000]

A study has 6, 9, 12, 16 or 42 people with 36 recordings each in five classes. An interval shall hold the true mean in
93 to 97 % of the studies; a test shall find a difference that is not there in at most 5 % of them (6 % with the scatter
of the simulation). What the package did before stands beside: a bootstrap in two stages, of people and of their
recordings, and McNemar's test over all recordings together. About three minutes of one core.
"""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from benchmarks.common import Goal, finish_benchmark, parse_arguments
from eav_ray.evaluation.comparisons import ALPHA, MIN_SUBJECTS, POWER, count_subjects_wanted, signed_rank
from eav_ray.evaluation.statistics import (
    Interval,
    compute_balanced_interval,
    compute_difference_interval,
    compute_share_interval,
)

SUBJECT_COUNTS, RECORDINGS, CLASSES = (6, 9, 12, 16, 42), 36, 5
STUDIES = 5000
N_DRAWS, MAX_DRAWN_STUDIES = 400, 200  # of a bootstrap, and studies that have one
LOW, HIGH, MAX_ERROR = 93.0, 97.0, 6.0

# Mean accuracy and its SD over people.
ACCURACIES = ((0.4, 0.08), (0.4, 0.16), (0.6, 0.05), (0.6, 0.16), (0.75, 0.08), (0.75, 0.16), (0.9, 0.05), (0.9, 0.1))
# Share of recordings that one source alone has right when both are as good, and the SD over people of the advantage.
DIFFERENCES = ((0.15, 0.0), (0.15, 0.05), (0.15, 0.1), (0.04, 0.0), (0.02, 0.0))
ADVANTAGES = (0.06, 0.1)  # mean, of the power

Studies = np.ndarray  # (studies, people)


def draw_accuracies(rng: np.random.Generator, n_studies: int, n_subjects: int, mean: float, sd: float) -> Studies:
    """Draw the share of right recordings of people whose chance to be right has a beta distribution."""
    concentration = mean * (1 - mean) / sd**2 - 1
    rates = rng.beta(mean * concentration, (1 - mean) * concentration, (n_studies, n_subjects))
    return rng.binomial(RECORDINGS, rates) / RECORDINGS


def draw_discordant(
    rng: np.random.Generator, n_studies: int, n_subjects: int, share: float, sd: float, advantage: float
) -> tuple[Studies, Studies]:
    """Draw how many recordings of each person one source alone has right, and the other alone."""
    shift = (advantage + sd * rng.standard_normal((n_studies, n_subjects))) / 2
    ours, other = (np.clip(share + s, 0, 0.5) for s in (shift, -shift))
    only_ours = rng.binomial(RECORDINGS, ours)
    return only_ours, rng.binomial(RECORDINGS - only_ours, other / (1 - ours))


def draw_tables(rng: np.random.Generator, n_studies: int, n_subjects: int) -> list[pd.DataFrame]:
    """Draw whether each recording is right, with recalls of 0.8 to 0.4 and classes that some people lack."""
    label = rng.choice(CLASSES, (n_studies, n_subjects, RECORDINGS), p=[0.4, 0.25, 0.2, 0.1, 0.05])
    recall = np.linspace(0.8, 0.4, CLASSES)[label] + rng.uniform(-0.15, 0.15, (n_studies, n_subjects, 1))
    right = rng.random(label.shape) < recall
    subject = np.repeat(np.arange(n_subjects), RECORDINGS)
    return [
        pd.DataFrame({"subject": subject, "label": k.ravel(), "source": r.ravel()})
        for k, r in zip(label, right, strict=True)
    ]


def compute_plain_interval(values: np.ndarray) -> tuple[float, float]:
    found = compute_difference_interval(values)
    return found.low, found.high


def compute_bca_interval(values: np.ndarray) -> tuple[float, float]:
    if np.ptp(values) == 0:
        return np.nan, np.nan
    found = stats.bootstrap((values,), np.mean, n_resamples=N_DRAWS, method="BCa", rng=np.random.default_rng(0))
    return found.confidence_interval.low, found.confidence_interval.high


def compute_two_stage_interval(values: np.ndarray) -> tuple[float, float]:
    """Draw people, and of each their recordings."""
    rng = np.random.default_rng(0)
    drawn = values[rng.integers(0, len(values), (N_DRAWS, len(values)))]
    low, high = np.quantile(rng.binomial(RECORDINGS, drawn).mean(1) / RECORDINGS, [0.025, 0.975])
    return low, high


def compute_mcnemar_p_values(only_ours: Studies, only_other: Studies) -> np.ndarray:
    """Test all recordings of a study together, exactly."""
    k, n = only_ours.sum(1), (only_ours + only_other).sum(1)
    return np.minimum(1, 2 * np.minimum(stats.binom.cdf(k, n, 0.5), stats.binom.sf(k - 1, n, 0.5)))


def compute_coverage(found: list[Interval] | list[tuple[float, float]], truth: float) -> float:
    """Compute the share of intervals that hold the truth, percent; of the studies that have one."""
    ends = np.array([(one.low, one.high) if isinstance(one, Interval) else one for one in found])
    ends = ends[~np.isnan(ends[:, 0])]
    return 100 * float(np.mean((ends[:, 0] <= truth) & (truth <= ends[:, 1])))


def compute_rejections(p_values: np.ndarray) -> float:
    return 100 * float(np.mean(p_values < ALPHA))


def format_table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def measure_coverage(n_studies: int) -> tuple[list[str], list[Goal]]:
    """Measure intervals of accuracies, of balanced accuracy and of differences."""
    n_beside = min(n_studies, MAX_DRAWN_STUDIES)
    rivals: dict[str, Callable[[np.ndarray], tuple[float, float]]] = {
        "t, plain scale": compute_plain_interval,
        "BCa": compute_bca_interval,
        "two stages": compute_two_stage_interval,
    }
    rows, mine, two_stage = [], [], []
    for mean, sd in ACCURACIES:
        for n in SUBJECT_COUNTS:
            studies = draw_accuracies(np.random.default_rng([n, round(1000 * mean)]), n_studies, n, mean, sd)
            mine.append(compute_coverage([compute_share_interval(one) for one in studies], mean))
            others = [
                compute_coverage([rival(one) for one in studies[: n_studies if "t," in name else n_beside]], mean)
                for name, rival in rivals.items()
            ]
            two_stage.append(others[-1])
            rows.append(
                [f"{100 * mean:.0f}", f"{100 * sd:.0f}", str(n), f"{mine[-1]:.1f}", *(f"{c:.1f}" for c in others)]
            )
    lines = [
        f"Accuracy: people with {RECORDINGS} recordings each, {n_studies:,} studies a row ({n_beside} of a "
        "bootstrap). How "
        "many percent of the 95 % intervals hold the true mean; studies whose people are all equal have none.",
        "",
        *format_table(["mean", "SD over people", "people", "t, log odds (used)", *rivals], rows),
    ]
    difference_rows, of_differences = [], []
    for share, sd in DIFFERENCES:
        for n in SUBJECT_COUNTS:
            rng = np.random.default_rng([n, round(1000 * sd), round(1000 * share)])
            only_ours, only_other = draw_discordant(rng, n_studies, n, share, sd, 0.0)
            found = [compute_difference_interval(one) for one in (only_ours - only_other) / RECORDINGS]
            equal = 100 * float(np.mean(only_ours == only_other))
            coverage = compute_coverage(found, 0.0)
            of_differences.append(coverage)
            difference_rows.append([f"{200 * share:.0f}", f"{100 * sd:.0f}", str(n), f"{equal:.0f}", f"{coverage:.1f}"])
    lines += [
        "",
        f"Differences of two sources on the same recordings, t over people, {n_studies:,} studies a row.",
        "",
        *format_table(
            [
                "recordings that one alone has right, %",
                "SD of the advantage",
                "people",
                "equal people, %",
                "coverage, %",
            ],
            difference_rows,
        ),
    ]
    balanced_rows, of_balanced, n_balanced = [], [], n_studies // 4
    for n in SUBJECT_COUNTS:
        tables = draw_tables(np.random.default_rng(n), n_balanced, n)
        of_balanced.append(compute_coverage([compute_balanced_interval(t, "source") for t in tables], 0.6))
        balanced_rows.append([str(n), f"{of_balanced[-1]:.1f}"])
    lines += [
        "",
        f"Balanced accuracy of unequal classes (5 to 40 %), of which some people lack some, {n_balanced:,} "
        "studies a row.",
        "",
        *format_table(["people", "coverage, %"], balanced_rows),
    ]
    goals = []
    for name, found in (("accuracy", mine), ("a difference", of_differences), ("balanced accuracy", of_balanced)):
        goals.append(Goal(f"lowest coverage of the interval of {name}", min(found), LOW, " %"))
        goals.append(Goal(f"highest coverage of the interval of {name}", max(found), HIGH, " %", at_least=False))
    lines += [
        "",
        f"The bootstrap in two stages holds the truth in {min(two_stage):.0f} to {max(two_stage):.0f} %: it is "
        "too long "
        "where people differ less than their recordings scatter.",
    ]
    return lines, goals


def measure_tests(n_studies: int) -> tuple[list[str], list[Goal]]:
    """Measure how often a difference is found that is not there, and one that is."""
    rows, errors, mcnemar_errors = [], [], []
    for share, sd in DIFFERENCES[:3]:
        for n in SUBJECT_COUNTS:
            cells = [f"{100 * sd:.0f}", str(n)]
            for advantage in (0.0, *ADVANTAGES):
                rng = np.random.default_rng([n, round(1000 * sd), round(1000 * advantage), 7])
                only_ours, only_other = draw_discordant(rng, n_studies, n, share, sd, advantage)
                differences = only_ours - only_other
                wilcoxon = compute_rejections(np.array([signed_rank(one / RECORDINGS)[0] for one in differences]))
                mcnemar = compute_rejections(compute_mcnemar_p_values(only_ours, only_other))
                t_p_values: Any = stats.ttest_1samp(differences, 0, axis=1)[1]
                t_test = compute_rejections(t_p_values)
                cells += [f"{wilcoxon:.1f}", f"{t_test:.1f}", f"{mcnemar:.1f}"]
                if not advantage:
                    errors.append(wilcoxon)
                    mcnemar_errors.append(mcnemar)
            rows.append(cells)
    head = ["SD of the advantage", "people"]
    for advantage in (0.0, *ADVANTAGES):
        head += [f"{100 * advantage:+.0f} points: {test}" for test in ("Wilcoxon", "t", "McNemar")]
    lines = [
        "",
        f"How many percent of {n_studies:,} studies have p < {ALPHA:g}: exact signed-rank test over people (used), t "
        "test over people, exact McNemar test over all recordings together. At +0 points this is the error of "
        "the first "
        "kind, else the power. With 6 people the signed-rank test has p < 0.05 only where all are on one side.",
        "",
        *format_table(head, rows),
        "",
        f"McNemar errs in {min(mcnemar_errors):.0f} to {max(mcnemar_errors):.0f} %: it takes people whom one source "
        "suits better for evidence about all people.",
    ]
    powers, power_rows = [], []
    for mean, sd in ((0.04, 0.1), (0.06, 0.1), (0.08, 0.1), (0.12, 0.12)):
        wanted = count_subjects_wanted(mean, sd)
        assert wanted is not None
        differences = np.random.default_rng(wanted).normal(mean, sd, (n_studies, wanted))
        powers.append(compute_rejections(np.array([signed_rank(one)[0] for one in differences])))
        power_rows.append([f"{100 * mean:.0f}", f"{100 * sd:.0f}", str(wanted), f"{powers[-1]:.1f}"])
    lines += [
        "",
        f"People wanted for a power of {100 * POWER:.0f} %, at least {MIN_SUBJECTS}, and the power of as many:",
        "",
        *format_table(["difference, points", "SD over people", "people wanted", "power, %"], power_rows),
    ]
    return lines, [
        Goal("highest error of the first kind of the test over people", max(errors), MAX_ERROR, " %", at_least=False),
        Goal("lowest power of as many people as are wanted", min(powers), 100 * POWER - 3, " %"),
        Goal("highest power of as many people as are wanted", max(powers), 100 * POWER + 6, " %", at_least=False),
    ]


def main() -> int:
    _, words = parse_arguments(__doc__, ("studies",))
    n_studies = int(words.get("studies", STUDIES))
    coverage_lines, coverage_goals = measure_coverage(n_studies)
    test_lines, test_goals = measure_tests(n_studies)
    n_beside = min(n_studies, MAX_DRAWN_STUDIES)
    scatter = 100 * 1.96 * np.sqrt(0.95 * 0.05 / n_studies)
    lines = [
        *coverage_lines,
        *test_lines,
        "",
        f"A figure of {n_studies:,} studies at 95 % (or 5 %) is uncertain by {scatter:.1f} points to each side (95 %), "
        f"of {n_beside} by {scatter * np.sqrt(n_studies / n_beside):.1f}. One seed.",
    ]
    return finish_benchmark(
        "statistics", "Intervals and tests over people, simulated", "\n".join(lines), [*coverage_goals, *test_goals]
    )


if __name__ == "__main__":
    sys.exit(main())
