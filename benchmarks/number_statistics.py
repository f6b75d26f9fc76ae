"""Whether intervals of CCC, Pearson and RMSE over people keep what they promise, by simulated studies.

    python -m benchmarks.number_statistics [studies=2000]

Within people, a study has 6, 12 or 42 people with 8 or 30 recordings each, who differ in how well they are predicted,
in how far predictions spread and where they lie. Between people it has one true and one predicted number a person,
normal or skewed. An interval shall hold the true value in 93 to 97 % of the studies. Beside what is used stand
Student's t on the plain scale, a bootstrap (BCa) over people, and, of Pearson between people, Fisher's formula for
normal numbers. About three minutes of one core.
"""

import sys
from collections.abc import Callable

import numpy as np
from scipy import stats

from benchmarks.common import Goal, finish_benchmark, parse_arguments
from benchmarks.statistics import compute_coverage, format_table
from eav_ray.evaluation.number_scores import (
    compute_correlation_interval,
    compute_jackknife_interval,
    compute_positive_interval,
)
from eav_ray.evaluation.statistics import compute_difference_interval
from eav_ray.training.number_scores import compute_ccc, compute_pearson

SUBJECT_COUNTS = (6, 12, 42)
STUDIES, MAX_DRAWN_STUDIES, N_DRAWS = 2000, 60, 400
N_TRUTH = 100_000  # people that the true value is taken of
LOW, HIGH = 93.0, 97.0
# Of the correlation of a person's predictions with the truth: its middle, and its SD over people on Fisher's z scale;
# the SD of their bias, in SDs of the target.
QUALITIES = ((0.0, 0.1, 0.2), (0.3, 0.2, 0.3), (0.6, 0.3, 0.3), (0.8, 0.5, 0.2), (0.9, 0.4, 0.1))
RECORDINGS = (8, 30)
# Between people: correlation, and SD of predictions in SDs of the target.
RELATIONS = ((0.0, 0.5), (0.3, 0.5), (0.6, 0.7), (0.9, 0.9))
Studies = np.ndarray  # (studies, people)
Measure = Callable[[np.ndarray, np.ndarray], float]


def draw_subjects(
    rng: np.random.Generator, shape: tuple[int, int], n_recordings: int, quality: tuple[float, float, float]
) -> tuple[Studies, Studies, Studies]:
    """Draw CCC, Pearson and RMSE of people."""
    middle, sd, bias = quality
    r = np.tanh(np.arctanh(middle) + sd * rng.standard_normal((*shape, 1)))
    true, noise = rng.standard_normal((2, *shape, n_recordings))
    predicted = r * (r * true + np.sqrt(1 - r**2) * noise) + bias * rng.standard_normal((*shape, 1))
    covariance = (_center(predicted) * _center(true)).mean(-1)
    spread = predicted.var(-1) + true.var(-1) + (predicted.mean(-1) - true.mean(-1)) ** 2
    pearson = covariance / np.sqrt(predicted.var(-1) * true.var(-1))
    return 2 * covariance / spread, pearson, np.sqrt(np.square(predicted - true).mean(-1))


def _center(x: np.ndarray) -> np.ndarray:
    return x - x.mean(-1, keepdims=True)


def draw_means(
    rng: np.random.Generator, shape: tuple[int, int], relation: tuple[float, float], *, skewed: bool
) -> tuple[Studies, Studies]:
    """Draw one predicted and one true number a person."""
    true, noise = (rng.gamma(1.5, 1, (2, *shape)) - 1.5) / np.sqrt(1.5) if skewed else rng.standard_normal((2, *shape))
    correlation, spread = relation
    return spread * (correlation * true + np.sqrt(1 - correlation**2) * noise) + 0.2, true


def compute_bca_interval(predicted: np.ndarray, true: np.ndarray, measure: Measure) -> tuple[float, float]:
    """Compute the interval of a bootstrap over people, bias-corrected and accelerated (Efron 1987)."""
    n, rng = len(true), np.random.default_rng(0)
    draws = rng.integers(0, n, (N_DRAWS, n))
    drawn = np.array([measure(predicted[one], true[one]) for one in draws])
    drawn, whole = drawn[np.isfinite(drawn)], measure(predicted, true)
    below = np.clip((drawn < whole).mean(), 1 / N_DRAWS, 1 - 1 / N_DRAWS)
    without_one = np.array([measure(np.delete(predicted, k), np.delete(true, k)) for k in range(n)])
    gaps = without_one.mean() - without_one
    acceleration = (gaps**3).sum() / (6 * np.square(gaps).sum() ** 1.5)
    z = stats.norm.ppf(below) + stats.norm.ppf([0.025, 0.975])
    low, high = np.quantile(drawn, stats.norm.cdf(stats.norm.ppf(below) + z / (1 - acceleration * z)))
    return float(low), float(high)


def compute_fisher_interval(predicted: np.ndarray, true: np.ndarray) -> tuple[float, float]:
    center, half_width = np.arctanh(compute_pearson(predicted, true)), 1.96 / np.sqrt(len(true) - 3)
    return float(np.tanh(center - half_width)), float(np.tanh(center + half_width))


def measure_within(n_studies: int) -> tuple[list[str], list[float]]:
    rows, used = [], []
    for quality in QUALITIES:
        for n_recordings in RECORDINGS:
            # In parts, as so many recordings want memory.
            rng = np.random.default_rng([round(100 * quality[0]), n_recordings])
            parts = [draw_subjects(rng, (1, N_TRUTH // 20), n_recordings, quality) for _ in range(20)]
            truths = [float(np.mean(values)) for values in zip(*parts, strict=True)]
            for n in SUBJECT_COUNTS:
                measured = draw_subjects(rng, (n_studies, n), n_recordings, quality)
                intervals = (compute_correlation_interval, compute_correlation_interval, compute_positive_interval)
                own = [
                    compute_coverage([interval(one) for one in studies], truth)
                    for interval, studies, truth in zip(intervals, measured, truths, strict=True)
                ]
                plain = [
                    compute_coverage([compute_difference_interval(one) for one in studies], truth)
                    for studies, truth in zip(measured, truths, strict=True)
                ]
                used += own
                pairs = [f"{x:.1f} ({y:.1f})" for x, y in zip(own, plain, strict=True)]
                rows.append([f"{truths[0]:.2f}", f"{truths[2]:.2f}", str(n_recordings), str(n), *pairs])
    head = ["CCC", "RMSE", "recordings", "people", "CCC, %", "Pearson, %", "RMSE, %"]
    lines = [
        f"Within people, {n_studies:,} studies a row: how many percent of the 95 % intervals hold the true mean, by "
        "Student's t on Fisher's z scale, of RMSE on the scale of logarithms; in brackets on the plain scale.",
        "",
        *format_table(head, rows),
    ]
    return lines, used


def measure_between(n_studies: int) -> tuple[list[str], list[float]]:
    rows, used = [], []
    for skewed in (False, True):
        for relation in RELATIONS:
            rng = np.random.default_rng([round(100 * relation[0]), skewed])
            many = draw_means(rng, (1, 2_000_000), relation, skewed=skewed)
            truths = {"ccc": compute_ccc(many[0][0], many[1][0]), "pearson": compute_pearson(many[0][0], many[1][0])}
            for n in SUBJECT_COUNTS:
                predicted, true = draw_means(rng, (n_studies, n), relation, skewed=skewed)
                means = np.stack([predicted, true], -1)
                row = ["skewed" if skewed else "normal", f"{truths['ccc']:.2f}", f"{truths['pearson']:.2f}", str(n)]
                for name, measure in (("ccc", compute_ccc), ("pearson", compute_pearson)):
                    found = [compute_jackknife_interval(one, measure) for one in means]
                    used.append(compute_coverage(found, truths[name]))
                    drawn = [
                        compute_bca_interval(p, t, measure)
                        for p, t in zip(predicted[:MAX_DRAWN_STUDIES], true[:MAX_DRAWN_STUDIES], strict=True)
                    ]
                    row += [f"{used[-1]:.1f}", f"{compute_coverage(drawn, truths[name]):.1f}"]
                fisher = [compute_fisher_interval(p, t) for p, t in zip(predicted, true, strict=True)]
                rows.append([*row, f"{compute_coverage(fisher, truths['pearson']):.1f}"])
    head = ["numbers", "CCC", "Pearson", "people", "CCC, jackknife, %", "CCC, BCa, %"]
    head += ["Pearson, jackknife, %", "Pearson, BCa, %", "Pearson, Fisher, %"]
    lines = [
        "",
        f"Between people, {n_studies:,} studies a row ({MAX_DRAWN_STUDIES} of BCa): the jackknife over people on "
        "Fisher's z scale, which is used, and two others.",
        "",
        *format_table(head, rows),
    ]
    return lines, used


def main() -> int:
    _, words = parse_arguments(__doc__, ("studies",))
    n_studies = int(words.get("studies", STUDIES))
    within_lines, within = measure_within(n_studies)
    between_lines, between = measure_between(n_studies)
    scatter = 100 * 1.96 * np.sqrt(0.95 * 0.05 / n_studies)
    note = (
        f"A figure of {n_studies:,} studies at 95 % is uncertain by {scatter:.1f} points to each side (95 %). One seed."
    )
    goals = [
        Goal(f"{name} coverage {level} people", value, threshold, " %", at_least=name == "lowest")
        for level, values in (("within", within), ("between", between))
        for name, value, threshold in (("lowest", min(values), LOW), ("highest", max(values), HIGH))
    ]
    body = "\n".join([*within_lines, *between_lines, "", note])
    return finish_benchmark("number_statistics", "Intervals for predicted numbers, simulated", body, goals)


if __name__ == "__main__":
    sys.exit(main())
