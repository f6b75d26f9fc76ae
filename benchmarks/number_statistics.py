"""Whether intervals of CCC, Pearson and RMSE over people keep what they promise, by simulated studies.

    python -m benchmarks.number_statistics [studies=2000]

Within people, a study has 6, 12 or 42 people with 8 or 30 recordings each, who differ in how well they are predicted,
in how far predictions spread and where they lie. Between people it has one true and one predicted number a person,
normal or skewed. An interval shall hold the true value in 93 to 97 % of the studies. Beside what is used stand
Student's t on the plain scale, a bootstrap (BCa) over people, and, of Pearson between people, Fisher's formula for
normal numbers. About a minute of one core.
"""

import sys

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
STUDIES, MAX_DRAWN_STUDIES, N_DRAWS = 2000, 300, 400
N_TRUTH = 60_000  # people that the true value is taken of
LOW, HIGH = 93.0, 97.0
# Of the correlation of a person's predictions with the truth: its middle, and its SD over people on Fisher's z scale;
# the SD of their bias, in SDs of the target.
QUALITIES = ((0.0, 0.1, 0.2), (0.3, 0.2, 0.3), (0.6, 0.3, 0.3), (0.8, 0.5, 0.2), (0.9, 0.4, 0.1))
RECORDINGS = (8, 30)
# Between people: correlation, and SD of predictions in SDs of the target.
RELATIONS = ((0.0, 0.5), (0.3, 0.5), (0.6, 0.7), (0.9, 0.9))
Studies = np.ndarray  # (studies, people)


def draw_subjects(
    rng: np.random.Generator, shape: tuple[int, int], n_recordings: int, quality: tuple[float, float, float]
) -> tuple[Studies, Studies, Studies]:
    """Draw CCC, Pearson and RMSE of people."""
    middle, sd, bias = quality
    r = np.tanh(np.arctanh(middle) + sd * rng.standard_normal((*shape, 1)))
    true, noise = rng.standard_normal((2, *shape, n_recordings))
    predicted = r * (r * true + np.sqrt(1 - r**2) * noise) + bias * rng.standard_normal((*shape, 1))
    measured = compute_correlations(predicted, true)
    return measured["ccc"], measured["pearson"], np.sqrt(np.square(predicted - true).mean(-1))


def compute_correlations(predicted: np.ndarray, true: np.ndarray) -> dict[str, np.ndarray]:
    """Compute CCC and Pearson over the last axis, of many at a time."""
    gap = predicted.mean(-1) - true.mean(-1)
    covariance = (predicted * true).mean(-1) - predicted.mean(-1) * true.mean(-1)
    variances = predicted.var(-1), true.var(-1)
    return {
        "ccc": 2 * covariance / (variances[0] + variances[1] + gap**2),
        "pearson": covariance / np.sqrt(variances[0] * variances[1]),
    }


def compute_jackknife_intervals(predicted: Studies, true: Studies) -> dict[str, list[tuple[float, float]]]:
    """Compute `compute_jackknife_interval` of many studies at a time; of the first, both must be equal."""
    n = true.shape[1]
    whole = compute_correlations(predicted, true)
    without_one = [compute_correlations(np.delete(predicted, k, 1), np.delete(true, k, 1)) for k in range(n)]
    found = {}
    for name, measure in (("ccc", compute_ccc), ("pearson", compute_pearson)):
        z, others = np.arctanh(whole[name]), np.arctanh([one[name] for one in without_one])
        half_widths = stats.t.ppf(0.975, n - 1) * (n * z - (n - 1) * others).std(0, ddof=1) / np.sqrt(n)
        found[name] = list(zip(np.tanh(z - half_widths), np.tanh(z + half_widths), strict=True))
        one = compute_jackknife_interval(np.stack([predicted[0], true[0]], -1), measure)
        np.testing.assert_allclose((one.low, one.high), found[name][0], rtol=1e-6)
    return found


def draw_means(
    rng: np.random.Generator, shape: tuple[int, int], relation: tuple[float, float], *, skewed: bool
) -> tuple[Studies, Studies]:
    """Draw one predicted and one true number a person."""
    true, noise = (rng.gamma(1.5, 1, (2, *shape)) - 1.5) / np.sqrt(1.5) if skewed else rng.standard_normal((2, *shape))
    correlation, spread = relation
    return spread * (correlation * true + np.sqrt(1 - correlation**2) * noise) + 0.2, true


def compute_bca_interval(predicted: np.ndarray, true: np.ndarray, name: str) -> tuple[float, float]:
    """Compute the interval of a bootstrap over people, bias-corrected and accelerated (Efron 1987)."""
    n, rng = len(true), np.random.default_rng(0)
    draws = rng.integers(0, n, (N_DRAWS, n))
    drawn = compute_correlations(predicted[draws], true[draws])[name]
    drawn, whole = drawn[np.isfinite(drawn)], compute_correlations(predicted, true)[name]
    below = np.clip((drawn < whole).mean(), 1 / N_DRAWS, 1 - 1 / N_DRAWS)
    kept = np.array([np.delete(np.arange(n), k) for k in range(n)])
    without_one = compute_correlations(predicted[kept], true[kept])[name]
    gaps = without_one.mean() - without_one
    acceleration = (gaps**3).sum() / (6 * np.square(gaps).sum() ** 1.5)
    z = stats.norm.ppf(below) + stats.norm.ppf([0.025, 0.975])
    low, high = np.quantile(drawn, stats.norm.cdf(stats.norm.ppf(below) + z / (1 - acceleration * z)))
    return float(low), float(high)


def compute_fisher_intervals(predicted: Studies, true: Studies) -> list[tuple[float, float]]:
    """Compute the intervals of Pearson's correlation of normal numbers."""
    centers, half_width = (
        np.arctanh(compute_correlations(predicted, true)["pearson"]),
        1.96 / np.sqrt(true.shape[1] - 3),
    )
    return list(zip(np.tanh(centers - half_width), np.tanh(centers + half_width), strict=True))


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
            many = draw_means(rng, (1, 500_000), relation, skewed=skewed)
            truths = {name: float(found[0]) for name, found in compute_correlations(*many).items()}
            for n in SUBJECT_COUNTS:
                predicted, true = draw_means(rng, (n_studies, n), relation, skewed=skewed)
                found = compute_jackknife_intervals(predicted, true)
                row = ["skewed" if skewed else "normal", f"{truths['ccc']:.2f}", f"{truths['pearson']:.2f}", str(n)]
                for name, intervals in found.items():
                    used.append(compute_coverage(intervals, truths[name]))
                    drawn = [
                        compute_bca_interval(p, t, name)
                        for p, t in zip(predicted[:MAX_DRAWN_STUDIES], true[:MAX_DRAWN_STUDIES], strict=True)
                    ]
                    row += [f"{used[-1]:.1f}", f"{compute_coverage(drawn, truths[name]):.1f}"]
                fisher = compute_fisher_intervals(predicted, true)
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
