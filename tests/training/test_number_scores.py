"""Predicted numbers are scored within subjects, and where that says nothing, between them."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from eav_ray.training.metrics import compute_scores
from eav_ray.training.number_scores import compute_ccc, compute_pearson, compute_rmse, score_numbers

SEEDS = st.integers(0, 2**32 - 1)


def draw(seed: int, n: int = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    true = rng.normal(3, 2, n)
    return 0.6 * true + rng.normal(0, 1, n), true


def test_a_case_worked_by_hand() -> None:
    # Means 2 and 3, variances 2/3 and 8/3, covariance 4/3: 2 * 4/3 / (2/3 + 8/3 + 1) = 8/13.
    predicted, true = np.array([1.0, 2, 3]), np.array([1.0, 3, 5])
    assert compute_ccc(predicted, true) == pytest.approx(8 / 13)
    assert compute_pearson(predicted, true) == pytest.approx(1)
    assert compute_rmse(predicted, true) == pytest.approx(np.sqrt(5 / 3))


@given(SEEDS)
def test_measures_agree_with_a_reference_and_with_what_they_are(seed: int) -> None:
    predicted, true = draw(seed)
    r = stats.pearsonr(predicted, true).statistic
    assert compute_pearson(predicted, true) == pytest.approx(r)
    # Lin's coefficient is the correlation times how far the two lie from the line of equals.
    shift = (predicted.mean() - true.mean()) ** 2 / (predicted.std() * true.std())
    scale = predicted.std() / true.std()
    assert compute_ccc(predicted, true) == pytest.approx(r * 2 / (scale + 1 / scale + shift))
    assert compute_ccc(true, true) == pytest.approx(1) and compute_rmse(true, true) == 0
    # In other units all but the error is the same.
    a, b = predicted * 7 - 4, true * 7 - 4
    assert compute_ccc(a, b) == pytest.approx(compute_ccc(predicted, true))
    assert compute_rmse(a, b) == pytest.approx(7 * compute_rmse(predicted, true))


def test_a_prediction_that_never_changes_counts_as_nothing_and_not_as_missing() -> None:
    true = np.array([1.0, 2, 3])
    assert compute_ccc(np.full(3, 2.0), true) == 0 and compute_pearson(np.full(3, 2.0), true) == 0
    assert np.isnan(compute_ccc(true, np.full(3, 2.0)))  # nothing to predict
    assert np.isnan(compute_ccc(true[:2], true[:2]))  # of two it is always 1 or -1
    assert np.isnan(compute_ccc(np.array([1, np.nan, 3]), true))


def test_subjects_count_alike_and_who_counts_depends_on_the_truth_alone() -> None:
    one, two = draw(1, 20), draw(2, 5)
    constant = np.array([1.0, 2, 3]), np.full(3, 4.0)
    values = np.concatenate([one[0], two[0], constant[0]])[:, None]
    true = np.concatenate([one[1], two[1], constant[1]])[:, None]
    subject = np.repeat(["a", "b", "c"], [20, 5, 3])
    found = score_numbers(values, true, subject)
    assert found["ccc"] == pytest.approx((compute_ccc(*one) + compute_ccc(*two)) / 2)
    assert found["rmse"] == pytest.approx(np.mean([compute_rmse(*pair) for pair in (one, two, constant)]))
    diverged = values.copy()
    diverged[21] = np.nan
    assert np.isnan(score_numbers(diverged, true, subject)["ccc"])


def test_one_value_a_subject_is_scored_between_subjects() -> None:
    predicted, true = draw(3, 9)
    subject = np.repeat(np.arange(9), 2)
    spread = np.tile([-0.1, 0.1], 9)  # of the two recordings, which leaves their mean as it is
    found = score_numbers((np.repeat(predicted, 2) + spread)[:, None], np.repeat(true, 2)[:, None], subject)
    assert found["ccc"] == pytest.approx(compute_ccc(predicted, true))
    of_one_each = score_numbers(predicted[:, None], true[:, None], np.arange(9))
    assert of_one_each["pearson"] == pytest.approx(compute_pearson(predicted, true))


def make_table(seed: int = 0) -> pd.DataFrame:
    """Two subjects, six recordings of two windows, two targets."""
    rng = np.random.default_rng(seed)
    ids = [(s, f"{r}", w) for s in "ab" for r in range(6) for w in range(2)]
    table = pd.DataFrame(ids, columns=["subject", "recording", "window"])
    for k in range(2):
        table[f"target_{k}"] = np.repeat(rng.normal(size=12), 2)
        table[f"fusion.value_{k}"] = table[f"target_{k}"] + rng.normal(size=24)
    return table


def test_a_recording_has_the_mean_of_its_windows() -> None:
    table = make_table()
    found = compute_scores(table)
    means = table.groupby(["subject", "recording"]).mean().reset_index()
    expected = [
        compute_ccc(own[f"fusion.value_{k}"].to_numpy(), own[f"target_{k}"].to_numpy())
        for k in range(2)
        for _, own in means.groupby("subject")
    ]
    assert found["recording_ccc"] == found["score"] == pytest.approx(np.mean(expected))
    assert found["window_ccc"] != found["recording_ccc"]
    shuffled = compute_scores(table.sample(frac=1, random_state=1))
    assert shuffled == pytest.approx(found)
