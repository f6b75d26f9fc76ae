"""Scores of numbers are what their formulas say, over subjects; who counts depends on the truth alone."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from eav_ray.config import order_modalities
from eav_ray.evaluation.number_scores import (
    CONSTANT_SOURCE,
    add_constant_source,
    average_correlation,
    average_numbers,
    average_rmse,
    compute_calibration,
    compute_correlation_interval,
    compute_positive_interval,
    find_level,
    list_number_sources,
    score_between_subjects,
    score_subjects,
    select_pairs,
)
from eav_ray.evaluation.number_summary import compute_number_gap, summarize_number_subjects, summarize_numbers
from eav_ray.training.number_scores import compute_ccc, compute_pearson, compute_rmse
from tests.helpers.number_predictions import (
    MODALITIES,
    TARGETS,
    draw_number_predictions,
    list_target_ids,
    list_training_sides,
)


def make_pairs(rows: list[tuple[str, float, float]]) -> pd.DataFrame:
    """Subject, predicted, true."""
    return pd.DataFrame(rows, columns=["subject", "predicted", "true"])


def make_windows(true: dict[str, list[float]], predicted: dict[str, list[float]]) -> pd.DataFrame:
    """One source, one target, one window a recording."""
    rows = [
        {"subject": s, "recording": f"r{n}", "window": 0, "fold": 0, "target_0": t, "fusion.value_0": p}
        for s in true
        for n, (t, p) in enumerate(zip(true[s], predicted[s], strict=True))
    ]
    return pd.DataFrame(rows)


def test_measures_are_those_of_the_formulas_and_of_scipy() -> None:
    true, predicted = np.array([1.0, 2.0, 3.0, 6.0]), np.array([2.0, 2.0, 4.0, 5.0])
    # By hand: means 3 and 3.25, variances 3.5 and 1.6875, covariance 2.25.
    assert compute_ccc(predicted, true) == pytest.approx(2 * 2.25 / (3.5 + 1.6875 + 0.25**2))
    assert compute_pearson(predicted, true) == pytest.approx(stats.pearsonr(predicted, true).statistic)
    assert compute_rmse(predicted, true) == pytest.approx(math.sqrt(3 / 4))
    assert (compute_ccc(true, true), compute_rmse(true, true)) == (1.0, 0.0)
    assert compute_ccc(-true, true) < 0


def test_a_constant_prediction_has_a_score_of_0_and_a_constant_truth_none() -> None:
    true, constant = np.array([1.0, 2.0, 4.0]), np.full(3, 2.5)
    assert (compute_ccc(constant, true), compute_pearson(constant, true)) == (0.0, 0.0)
    for measure in (compute_ccc, compute_pearson):
        assert math.isnan(measure(true, constant)) and math.isnan(measure(true[:2], true[:2]))


def test_a_subject_counts_from_3_recordings_with_differing_targets_on() -> None:
    rows = [("a", x, y) for x, y in ((1, 1), (2, 2), (2, 4))] + [("b", 1, 1), ("b", 2, 2)]
    rows += [("c", x, 5.0) for x in (1, 2, 3)]
    scores = score_subjects(make_pairs(rows))
    assert scores["counts"].tolist() == [True, False, False]
    assert scores["recordings"].tolist() == [3, 2, 3]
    assert scores["ccc"].notna().tolist() == [True, False, False]
    assert scores["rmse"].tolist() == pytest.approx([math.sqrt(4 / 3), 0, math.sqrt((16 + 9 + 4) / 3)])
    assert scores["bias"].tolist() == pytest.approx([-2 / 3, 0, -3])
    mean = average_correlation(scores, "ccc")
    assert mean.mean == scores["ccc"]["a"] and math.isnan(mean.low)
    assert average_rmse(scores).mean == pytest.approx(scores["rmse"].mean())


def test_a_source_that_diverged_for_a_subject_has_no_mean_and_does_not_lose_them() -> None:
    windows = draw_number_predictions(6, 5)
    windows.loc[(windows["subject"] == "p2") & (windows["window"] == 0), ["fusion.value_0", "audio.value_0"]] = np.nan
    summary = summarize_numbers(windows, MODALITIES, TARGETS)["targets"]["valence"]["sources"]
    assert math.isnan(summary["fusion"]["within"]["ccc"]["mean"]) and math.isnan(summary["fusion"]["rmse"]["mean"])
    assert summary["fusion"]["within"]["n_subjects"] == 6 and summary["fusion"]["n_without_prediction"] == 5
    # A modality that a window lacks speaks by the others.
    assert summary["audio"]["n_without_prediction"] == 0 and math.isfinite(summary["audio"]["within"]["ccc"]["mean"])
    windows.loc[windows["subject"] == "p2", "audio.value_0"] = np.nan
    summary = summarize_numbers(windows, MODALITIES, TARGETS)["targets"]["valence"]["sources"]
    assert summary["audio"]["n_without_prediction"] == 5 and summary["audio"]["within"]["n_subjects"] == 5
    assert (
        summarize_numbers(windows, MODALITIES, TARGETS)["targets"]["arousal"]["sources"]["fusion"]["rmse"]["mean"] > 0
    )


def test_an_infinite_prediction_is_none() -> None:
    windows = draw_number_predictions(4, 4)
    windows.loc[0, "fusion.value_1"] = np.inf
    table = average_numbers(windows, ["fusion", "audio"])
    assert table["fusion.value_1"].isna().sum() == 1 and table["audio.value_1"].notna().all()


def test_a_perfect_source_has_a_ccc_of_1_and_no_error() -> None:
    windows = draw_number_predictions(noise=dict.fromkeys(("audio", "eeg", "video", "mean", "fusion"), 0.0))
    for target in summarize_numbers(windows, MODALITIES, TARGETS)["targets"].values():
        assert target["level"] == "within"
        for one in target["sources"].values():
            for level in ("within", "between"):
                assert one[level]["ccc"]["mean"] == pytest.approx(1) == one[level]["pearson"]["mean"]
            assert one["rmse"]["mean"] == pytest.approx(0, abs=1e-12)
            assert one["calibration"]["slope"] == pytest.approx(1)
            assert one["calibration"]["bias"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("within", [True, False])
def test_the_order_of_rows_and_the_names_of_subjects_change_nothing(within: bool) -> None:
    windows = draw_number_predictions(7, 6, within=within)
    found = summarize_numbers(windows, MODALITIES, TARGETS)
    shuffled = windows.sample(frac=1, random_state=3)
    assert summarize_numbers(shuffled, MODALITIES, TARGETS)["targets"] == _approximate(found["targets"])
    named = windows.assign(subject=windows["subject"].map(lambda s: f"x{9 - int(s[1:])}"))
    assert summarize_numbers(named, MODALITIES, TARGETS)["targets"] == _approximate(found["targets"])


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 100.0), (1e-9, 0.0), (1e6, -3.0), (2.5, 7.0)])
@pytest.mark.parametrize("within", [True, False])
def test_another_unit_scales_errors_and_leaves_correlations(scale: float, shift: float, within: bool) -> None:
    windows = draw_number_predictions(7, 6, within=within)
    columns = [c for c in windows if c.startswith("target_") or ".value_" in c]
    other = windows.assign(**{c: scale * windows[c] + shift for c in columns})
    pair = [summarize_numbers(w, MODALITIES, TARGETS)["targets"] for w in (windows, other)]
    for target in TARGETS:
        assert pair[0][target]["level"] == pair[1][target]["level"] == ("within" if within else "between")
        for source in (*MODALITIES, "mean", "fusion"):
            mine, theirs = (one[target]["sources"][source] for one in pair)
            assert theirs["within"] == _approximate(mine["within"])
            assert theirs["between"] == _approximate(mine["between"])
            for key in ("mean", "sd"):
                assert theirs["rmse"][key] == pytest.approx(scale * mine["rmse"][key], rel=1e-5)
            assert theirs["rmse"]["interval"] == pytest.approx(scale * np.array(mine["rmse"]["interval"]), rel=1e-5)
            assert theirs["calibration"]["slope"] == pytest.approx(mine["calibration"]["slope"], rel=1e-5)


def _approximate(tree: object) -> object:
    if isinstance(tree, dict):
        return {key: _approximate(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_approximate(value) for value in tree]
    return pytest.approx(tree, rel=1e-6, abs=1e-9, nan_ok=True) if isinstance(tree, float) else tree


def test_the_level_is_between_subjects_where_nobodys_targets_differ() -> None:
    windows = draw_number_predictions(9, 4, within=False)
    recordings = average_numbers(windows, ["fusion"])
    assert find_level(recordings, 0) == "between"
    found = score_between_subjects(select_pairs(recordings, "fusion", 0))
    means = recordings.groupby("subject")[["fusion.value_0", "target_0"]].mean().to_numpy().T
    assert found["ccc"].mean == pytest.approx(compute_ccc(*means))
    assert found["pearson"].mean == pytest.approx(stats.pearsonr(*means).statistic)
    for one in found.values():
        assert -1 < one.low < one.mean < one.high < 1 and math.isnan(one.sd)
    one_each = windows[windows["recording"] == "r0"]
    assert summarize_numbers(one_each, MODALITIES, TARGETS)["targets"]["valence"]["level"] == "between"


def test_the_jackknife_is_that_of_the_formula() -> None:
    rng = np.random.default_rng(0)
    means = rng.normal(size=(8, 1)) + rng.normal(0, 0.6, (8, 2))
    found = score_between_subjects(make_pairs([(f"s{n}", *row) for n, row in enumerate(means)]))["pearson"]
    z = np.arctanh(stats.pearsonr(*means.T).statistic)
    without = np.array([np.arctanh(stats.pearsonr(*np.delete(means, k, 0).T).statistic) for k in range(8)])
    error = np.sqrt(7 / 8 * np.square(without - without.mean()).sum())
    expected = np.tanh(z + stats.t.ppf([0.025, 0.975], 7) * error)
    assert (found.low, found.high) == pytest.approx(tuple(expected))


def test_between_subjects_two_are_too_few_and_three_have_no_interval() -> None:
    pairs = make_pairs([("a", 1, 1), ("b", 2, 3), ("c", 4, 3.5)])
    assert all(math.isnan(one.mean) for one in score_between_subjects(pairs[:2]).values())
    three = score_between_subjects(pairs)["ccc"]
    assert 0 < three.mean < 1 and math.isnan(three.low)


def test_means_of_equal_scores_do_not_differ_by_rounding() -> None:
    rows = [{"subject": f"s{n}", "target_0": 0.1} for n in range(4) for _ in range(n + 1)]
    recordings = pd.DataFrame(rows)
    assert find_level(recordings, 0) == "between"
    pairs = recordings.rename(columns={"target_0": "true"}).assign(predicted=np.arange(10.0))
    assert math.isnan(score_between_subjects(pairs)["ccc"].mean)


def test_intervals_are_on_their_scales() -> None:
    values = np.array([0.2, 0.5, 0.4, 0.7])
    found = compute_correlation_interval(values)
    half = stats.t.ppf(0.975, 3) * values.std(ddof=1) / 2
    assert np.arctanh([found.low, found.high]) == pytest.approx(
        np.arctanh(values.mean()) + half / (1 - values.mean() ** 2) * np.array([-1, 1])
    )
    positive = compute_positive_interval(values)
    assert np.log([positive.low, positive.high]) == pytest.approx(
        np.log(values.mean()) + half / values.mean() * np.array([-1, 1])
    )
    for one in (compute_correlation_interval(np.ones(4)), compute_positive_interval(np.zeros(4))):
        assert math.isnan(one.low) and math.isnan(one.high)
    assert math.isnan(compute_correlation_interval(values[:1]).low)


def test_a_constant_prediction_is_the_mean_of_what_each_fold_was_trained_on() -> None:
    windows = draw_number_predictions(4, 5)
    found = add_constant_source(windows, list_target_ids(windows), list_training_sides(windows))
    by_recording = windows[windows["window"] == 0]
    for fold in range(4):
        expected = by_recording[by_recording["fold"] != fold]["target_1"].mean()
        assert found[found["fold"] == fold][f"{CONSTANT_SOURCE}.value_1"].to_numpy() == pytest.approx(expected)
    sources = list_number_sources(MODALITIES, found)
    assert sources == [CONSTANT_SOURCE, *order_modalities(MODALITIES), "mean", "fusion"]
    assert list_number_sources(["audio"]) == ["audio"]
    constant = summarize_numbers(found, MODALITIES, TARGETS)["targets"]["valence"]["sources"][CONSTANT_SOURCE]
    assert constant["within"]["ccc"]["mean"] == 0 == constant["within"]["pearson"]["mean"]
    assert constant["rmse"]["mean"] > 0.5
    # Whoever has a high mean is missing from the mean that predicts it.
    assert constant["between"]["pearson"]["mean"] == pytest.approx(-1) and -0.9 < constant["between"]["ccc"]["mean"] < 0


def test_recordings_without_a_target_do_not_count() -> None:
    windows = draw_number_predictions(5, 6)
    windows.loc[windows["recording"] == "r1", "target_0"] = np.nan
    known = windows[windows["recording"] != "r1"]
    found, expected = (summarize_numbers(w, MODALITIES, TARGETS) for w in (windows, known))
    assert found["recordings"] == 30 and found["targets"]["valence"]["n_known"] == 25
    assert found["targets"]["valence"]["sources"] == _approximate(expected["targets"]["valence"]["sources"])
    assert found["targets"]["arousal"]["n_known"] == 30


def test_predictions_without_any_target_have_no_scores_and_break_nothing() -> None:
    windows = draw_number_predictions(4, 4).assign(target_0=np.nan)
    one = summarize_numbers(windows, MODALITIES, TARGETS)["targets"]["valence"]
    assert one["n_known"] == 0 and one["spread"] is None and one["level"] == "between"
    assert math.isnan(one["sources"]["fusion"]["rmse"]["mean"])


def test_calibration_is_the_line_of_least_squares() -> None:
    windows = draw_number_predictions(5, 9)
    pairs = select_pairs(average_numbers(windows, ["fusion"]), "fusion", 0)
    found = compute_calibration(pairs)
    assert found["slope"] == pytest.approx(stats.linregress(pairs["predicted"], pairs["true"]).slope)
    assert found["bias"] == pytest.approx((pairs["predicted"] - pairs["true"]).mean())
    assert math.isnan(compute_calibration(pairs.assign(predicted=2.0))["slope"])


def test_subjects_are_listed_from_the_best_to_the_worst() -> None:
    windows = draw_number_predictions(6, 8)
    for level, order in (("within", "ccc"), ("between", "rmse")):
        table = windows if level == "within" else draw_number_predictions(6, 8, within=False)
        rows = summarize_number_subjects(table, MODALITIES, TARGETS)["valence"]
        scores = [row["fusion"][order] for row in rows]
        assert scores == sorted(scores, reverse=level == "within") and len(rows) == 6


def test_the_gap_is_the_error_over_recordings() -> None:
    windows, other = draw_number_predictions(4, 6), draw_number_predictions(4, 6, seed=1)
    rows = compute_number_gap(windows, other, MODALITIES, TARGETS)
    row = next(r for r in rows if (r["target"], r["source"]) == ("arousal", "eeg"))
    for side, table in (("test", windows), ("train", other)):
        means = table.groupby(["subject", "recording"])[["eeg.value_1", "target_1"]].mean()
        assert row[side] == pytest.approx(float(np.sqrt(np.square(means["eeg.value_1"] - means["target_1"]).mean())))
    assert row["recordings"] == 24 and len(rows) == 2 * 5


def test_one_modality_is_its_own_main_source() -> None:
    windows = make_windows({"a": [1, 2, 3], "b": [2, 5, 6]}, {"a": [1, 2, 2], "b": [3, 4, 6]})
    windows = windows.assign(**{"audio.value_0": windows["fusion.value_0"]})
    found = summarize_numbers(windows, ["audio"], ["x"])["targets"]["x"]
    assert list(found["sources"]) == ["audio"] and found["sources"]["audio"]["within"]["n_subjects"] == 2
