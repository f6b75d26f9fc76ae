"""Intervals over people hold what they promise, and what guessing reaches is called so."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import balanced_accuracy_score, f1_score

from eav_ray.evaluation.comparisons import collect_fusion_baselines
from eav_ray.evaluation.statistics import (
    compute_accuracy_interval,
    compute_balanced_interval,
    compute_chance_band,
    compute_difference_interval,
    compute_oracle_correct,
    compute_share_interval,
    macro_f1,
)
from eav_ray.reporting.tables import format_statistics

RECORDINGS, DRAWS = 36, 1500  # of a person; simulated studies


def subjects(rates: dict[str, list[float]], recordings: int = 40, seed: int = 0) -> pd.DataFrame:
    """Sources that are right with a rate of their own for each person."""
    rng, parts = np.random.default_rng(seed), []
    for subject in range(len(next(iter(rates.values())))):
        ids = {"subject": f"p{subject}", "recording": np.arange(recordings), "label": np.arange(recordings) % 5}
        parts.append(pd.DataFrame(ids | {s: rng.random(recordings) < each[subject] for s, each in rates.items()}))
    return pd.concat(parts, ignore_index=True)


def draw_accuracies(n_subjects: int, mean: float, concentration: float) -> np.ndarray:
    """Each person's accuracy in simulated studies, (studies, people): people differ by a beta distribution."""
    rng = np.random.default_rng([n_subjects, round(100 * mean)])
    rates = rng.beta(mean * concentration, (1 - mean) * concentration, (DRAWS, n_subjects))
    return rng.binomial(RECORDINGS, rates) / RECORDINGS


@pytest.mark.parametrize(("mean", "concentration"), [(0.6, 100), (0.9, 20)])
@pytest.mark.parametrize("n_subjects", [6, 16])
def test_an_interval_holds_the_truth_as_often_as_it_says(n_subjects: int, mean: float, concentration: float) -> None:
    """And not more often."""
    found = [compute_share_interval(one) for one in draw_accuracies(n_subjects, mean, concentration)]
    inside = np.mean([one.low <= mean <= one.high for one in found])
    assert 0.93 <= inside <= 0.97
    assert all(0 <= one.low < one.mean < one.high <= 1 for one in found if one.sd > 0)


def test_a_bootstrap_in_two_stages_would_not_pass() -> None:
    rng, inside = np.random.default_rng(0), []
    for one in draw_accuracies(16, 0.6, 100)[:500]:
        drawn = rng.integers(0, 16, (500, 16))
        low, high = np.quantile((rng.binomial(RECORDINGS, one[drawn]) / RECORDINGS).mean(1), [0.025, 0.975])
        inside.append(low <= 0.6 <= high)
    assert np.mean(inside) > 0.97


@pytest.mark.parametrize("n_subjects", [6, 16])
def test_an_interval_of_differences_holds_the_truth_though_many_are_equal(n_subjects: int) -> None:
    rng = np.random.default_rng(n_subjects)
    gains = rng.binomial(RECORDINGS, 0.06, (DRAWS, n_subjects)) - rng.binomial(RECORDINGS, 0.03, (DRAWS, n_subjects))
    found = [compute_difference_interval(one / RECORDINGS) for one in gains]
    assert 0.93 <= np.mean([one.low <= 0.03 <= one.high for one in found]) <= 0.97


def test_an_interval_is_students_t_over_people_and_knows_no_recordings() -> None:
    values = np.array([0.5, 0.6, 0.7, 0.4, 0.55])
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    found = compute_difference_interval(values)
    assert (found.low, found.high) == (pytest.approx(expected.low), pytest.approx(expected.high))
    few, many = (subjects({"eeg": [0.5] * 4}, recordings=10), subjects({"eeg": [0.5] * 4}, recordings=10))
    many = pd.concat([few, few.assign(recording=few["recording"] + 10)])
    assert compute_accuracy_interval(many, "eeg") == compute_accuracy_interval(few, "eeg")


def test_of_one_person_or_of_equal_people_there_is_no_interval() -> None:
    found = compute_accuracy_interval(subjects({"eeg": [0.5]}), "eeg")
    assert math.isnan(found.sd) and math.isnan(found.low) and math.isnan(found.high) and 0 < found.mean < 1
    always = compute_accuracy_interval(subjects({"eeg": [1.0, 1.0]}), "eeg")
    assert always.mean == 1 and math.isnan(always.low) and math.isnan(always.high)
    equal = compute_difference_interval(np.full(5, 0.1))
    assert equal.mean == pytest.approx(0.1) and math.isnan(equal.low)
    alone = compute_balanced_interval(subjects({"eeg": [0.5]}), "eeg")
    assert 0 < alone.mean < 1 and math.isnan(alone.low)


def test_balanced_accuracy_is_that_of_each_person_where_everybody_has_every_class() -> None:
    table = subjects({"eeg": [0.3, 0.5, 0.7, 0.9]})
    of_each = [balanced_accuracy(mine) for _, mine in table.groupby("subject")]
    found, expected = compute_balanced_interval(table, "eeg"), compute_share_interval(np.array(of_each))
    assert (found.mean, found.sd) == (pytest.approx(np.mean(of_each)), pytest.approx(np.std(of_each, ddof=1)))
    assert (found.low, found.high) == (pytest.approx(expected.low), pytest.approx(expected.high))


def balanced_accuracy(table: pd.DataFrame) -> float:
    return balanced_accuracy_score(table["label"], np.where(table["eeg"], table["label"], (table["label"] + 1) % 5))


def test_who_lacks_a_class_says_nothing_of_it() -> None:
    """A source that always names the largest class is right in all that some people have, and wins nothing by it."""
    table = pd.DataFrame({"subject": list("aabbc"), "label": [0, 1, 0, 1, 0]})
    table["eeg"] = table["label"] == 0
    assert compute_balanced_interval(table, "eeg").mean == 0.5


def test_the_band_of_chance_is_binomial_over_recordings() -> None:
    low, high = compute_chance_band(200, 5)
    assert stats.binom.cdf(round(high * 200), 200, 0.2) - stats.binom.cdf(round(low * 200) - 1, 200, 0.2) >= 0.999
    assert 0.1 < low < 0.2 < high < 0.3
    narrow = compute_chance_band(8000, 5)
    assert narrow[0] > low and narrow[1] < high


def test_the_best_single_of_each_person_and_the_oracle_bound_each_other() -> None:
    table = subjects({"fusion": [0.5] * 6, "eeg": [0.2, 0.8] * 3, "audio": [0.8, 0.2] * 3})
    best, any_of = (
        collect_fusion_baselines(table, ["audio", "eeg"])["best single modality per subject"],
        compute_oracle_correct(table, ["audio", "eeg"]),
    )
    for subject, mine in table.groupby("subject"):
        expected = max(mine["audio"].mean(), mine["eeg"].mean())
        assert best[mine.index].mean() == pytest.approx(expected), subject
    assert (any_of | ~best).all() and any_of.mean() > best.mean() > table["audio"].mean()


def test_macro_f1_is_sklearns() -> None:
    rng = np.random.default_rng(4)
    truth, guess = rng.integers(0, 4, 300), rng.integers(0, 4, 300)
    assert macro_f1(truth, guess) == pytest.approx(f1_score(truth, guess, average="macro"))
    assert macro_f1(np.array([0, 0, 1]), np.array([0, 0, 0])) == pytest.approx((0.8 + 0) / 2)


def test_the_lines_name_chance_and_leave_nothing_out() -> None:
    table = subjects({"audio": [0.2] * 8, "eeg": [0.5] * 8, "product": [0.5] * 8, "fusion": [0.7] * 8})
    lines = format_statistics(table, ["audio", "eeg"], 5).splitlines()
    assert "over 8 people" in lines[0]
    assert "inside the 99.9 % band of chance" in next(line for line in lines if line.startswith("audio"))
    assert "inside" not in next(line for line in lines if line.startswith("fusion "))
    assert sum("paired over 8 people" in line for line in lines) == 4
    assert len(format_statistics(table[["subject", "recording", "label", "eeg"]], ["eeg"], 5).splitlines()) == 3


def test_of_few_people_the_lines_count_and_of_one_they_say_that_there_is_no_interval() -> None:
    table = subjects({"audio": [0.2] * 3, "eeg": [0.5] * 3, "product": [0.5] * 3, "fusion": [0.9] * 3})
    few = format_statistics(table, ["audio", "eeg"], 5)
    assert "3 people are too few for a test" in few and "3 better, 0 worse, 0 equal" in few and "p =" not in few
    alone = format_statistics(table[table["subject"] == "p0"], ["audio", "eeg"], 5)
    assert "no intervals: 40 recordings of one person" in alone and "no interval)" in alone
