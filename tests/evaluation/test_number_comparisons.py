"""Comparisons of predicted numbers are paired over subjects, on recordings that both sources have."""

import math

import numpy as np
import pytest
from scipy import stats

from eav_ray.evaluation.number_comparisons import (
    Rivals,
    compare_number_sources,
    compare_numbers,
    compute_gains,
    judge_number_fusion,
)
from eav_ray.evaluation.number_protocols import (
    compare_number_protocols,
    summarize_number_protocols,
    summarize_number_seeds,
)
from eav_ray.evaluation.number_scores import average_numbers, score_subjects, select_pairs
from eav_ray.evaluation.number_summary import correlate_number_quality
from tests.helpers.number_predictions import MODALITIES, NOISE, TARGETS, draw_number_predictions

EQUAL_NOISE = dict.fromkeys(NOISE, 1.0)


def test_gains_are_differences_of_subjects_and_positive_where_ours_is_better() -> None:
    windows = draw_number_predictions(7, 10)
    recordings = average_numbers(windows, ["fusion", "eeg"])
    ours, other = (score_subjects(select_pairs(recordings, s, 1)) for s in ("fusion", "eeg"))
    ccc = compute_gains(recordings, Rivals(1, "arousal", "fusion", "eeg", "ccc"))
    np.testing.assert_allclose(ccc, ours["ccc"] - other["ccc"])
    rmse = compute_gains(recordings, Rivals(1, "arousal", "fusion", "eeg", "rmse"))
    np.testing.assert_allclose(rmse, other["rmse"] - ours["rmse"])
    assert ccc.mean() > 0 and rmse.mean() > 0
    (one,) = compare_numbers(recordings, [Rivals(1, "arousal", "fusion", "eeg", "ccc")])
    assert one.paired.p_value == pytest.approx(stats.wilcoxon(ccc, method="exact").pvalue)
    assert one.paired.difference.mean == pytest.approx(ccc.mean()) and one.paired.n_subjects == 7


def test_a_modality_is_compared_on_its_own_recordings() -> None:
    windows = draw_number_predictions(7, 10)
    absent = windows["recording"].isin(["r0", "r1"])
    windows.loc[absent, ["eeg.value_0", "eeg.value_1"]] = np.nan
    found = compute_gains(average_numbers(windows, ["fusion", "eeg"]), Rivals(0, "valence", "fusion", "eeg", "ccc"))
    kept = average_numbers(windows[~absent], ["fusion", "eeg"])
    np.testing.assert_allclose(found, compute_gains(kept, Rivals(0, "valence", "fusion", "eeg", "ccc")))


def test_a_source_that_diverged_is_compared_with_nothing() -> None:
    windows = draw_number_predictions(10, 20)
    windows.loc[windows["subject"] == "p3", "fusion.value_0"] = np.nan
    claims = judge_number_fusion(windows, MODALITIES, TARGETS)
    assert claims[0].comparisons[0].paired.n_subjects == 0 and not claims[0].helps
    assert "cannot be said of 0 people" in str(claims[0])
    assert claims[1].helps


@pytest.mark.parametrize("scale", [1e-10, 1e7])
def test_the_unit_of_a_target_changes_no_test(scale: float) -> None:
    windows = draw_number_predictions(8, 6, within=False)
    other = windows.assign(**{c: scale * windows[c] for c in windows if c.startswith("target_") or ".value_" in c})
    for mine, theirs in zip(
        compare_number_sources(windows, MODALITIES, TARGETS),
        compare_number_sources(other, MODALITIES, TARGETS),
        strict=True,
    ):
        assert mine.measure == theirs.measure == "rmse"
        for one, scaled in zip(mine.rows, theirs.rows, strict=True):
            assert scaled.paired.p_value == one.paired.p_value and scaled.paired.effect == one.paired.effect
            assert scaled.paired.difference.mean == pytest.approx(scale * one.paired.difference.mean)
            assert scaled.paired.n_subjects_wanted == one.paired.n_subjects_wanted


def test_sources_that_are_equal_but_for_rounding_are_equal() -> None:
    windows = draw_number_predictions(8, 6)
    noise = 1e-15 * np.random.default_rng(0).normal(size=len(windows))
    windows = windows.assign(**{f"fusion.value_{k}": windows[f"mean.value_{k}"] * (1 + noise) for k in range(2)})
    recordings = average_numbers(windows, ["fusion", "mean"])
    for measure in ("ccc", "rmse"):
        (one,) = compare_numbers(recordings, [Rivals(0, "valence", "fusion", "mean", measure)])
        assert one.paired.n_equal == 8 and one.paired.p_value == 1


def test_tables_hold_every_pair_and_are_corrected_each_for_itself() -> None:
    tables = compare_number_sources(draw_number_predictions(8), MODALITIES, TARGETS)
    assert [(t.title, t.measure, len(t.rows)) for t in tables] == [
        ("The fusion against the rest", "ccc", 8),
        ("The fusion against the rest", "rmse", 8),
        ("Modalities against each other", "ccc", 6),
        ("Modalities against each other", "rmse", 6),
    ]
    assert all(row.paired.n_comparisons == len(table.rows) for table in tables for row in table.rows)
    between = compare_number_sources(draw_number_predictions(8, within=False), MODALITIES, TARGETS)
    assert [t.measure for t in between] == ["rmse", "rmse"]
    assert compare_number_sources(draw_number_predictions(8), ["audio"], TARGETS) == []


def test_a_fusion_helps_where_it_beats_the_best_modality_and_the_mean() -> None:
    claims = judge_number_fusion(draw_number_predictions(10, 20), MODALITIES, TARGETS)
    assert [(c.target, c.best_single, c.helps) for c in claims] == [
        ("valence", "video", True),
        ("arousal", "video", True),
    ]
    assert "arousal: the fusion helps: CCC +" in str(claims[1]) and "against mean" in str(claims[1])
    like_mean = draw_number_predictions(10, 20, noise={**NOISE, "mean": 0.3})
    assert not any(c.helps for c in judge_number_fusion(like_mean, MODALITIES, TARGETS))
    few = judge_number_fusion(draw_number_predictions(5, 20), MODALITIES, TARGETS)
    assert "cannot be said of 5 people" in str(few[0])
    assert judge_number_fusion(draw_number_predictions(10), ["audio"], TARGETS) == []


def test_a_fusion_that_is_no_better_is_seldom_said_to_help() -> None:
    n_helping = 0
    for seed in range(40):
        windows = draw_number_predictions(8, 8, seed=seed, noise=EQUAL_NOISE)
        n_helping += sum(c.helps for c in judge_number_fusion(windows, MODALITIES, TARGETS))
    assert n_helping <= 4


def test_between_subjects_a_fusion_is_judged_by_rmse() -> None:
    claims = judge_number_fusion(draw_number_predictions(9, 6, within=False), MODALITIES, TARGETS)
    assert all(c.comparisons[0].measure == "rmse" for c in claims)
    assert "valence: the fusion helps: RMSE -" in str(claims[0])


def test_signals_are_held_against_the_score_of_the_level() -> None:
    windows = draw_number_predictions(8)
    quality = windows[["subject", "recording"]].drop_duplicates()
    quality = quality.assign(audio_db=quality["subject"].str[1:].astype(float))
    found = correlate_number_quality(windows, quality, MODALITIES, TARGETS)
    assert [(one["target"], one["source"], one["measure"]) for one in found] == [
        (target, source, "ccc") for target in TARGETS for source in ("audio", "fusion")
    ]
    scores = score_subjects(select_pairs(average_numbers(windows, ["audio"]), "audio", 0))["ccc"]
    assert found[0]["rho"] == pytest.approx(stats.spearmanr(range(8), scores).statistic)
    between = draw_number_predictions(8, within=False)
    assert {one["measure"] for one in correlate_number_quality(between, quality, MODALITIES, TARGETS)} == {"rmse"}


def test_protocols_and_seeds_stand_beside_each_other() -> None:
    loso, within = draw_number_predictions(8), draw_number_predictions(8, seed=2, noise={**NOISE, "fusion": 0.1})
    tables = {"within": within, "loso": loso}
    rows = summarize_number_protocols(tables, MODALITIES, TARGETS)
    assert len(rows) == 2 * 2 * 5 and {row["level"] for row in rows} == {"within"}
    added = compare_number_protocols(tables, MODALITIES, TARGETS, "loso")
    assert [(one["protocol"], one["target"]) for one in added] == [("within", t) for t in TARGETS]
    assert all(one["difference"] > 0 and one["n_subjects"] == 8 for one in added)
    seeds = summarize_number_seeds({0: loso, 1: within}, MODALITIES, TARGETS)
    row = next(r for r in seeds["rows"] if (r["target"], r["source"], r["measure"]) == ("valence", "fusion", "ccc"))
    means = [r["ccc"] for r in rows if (r["target"], r["source"]) == ("valence", "fusion")]
    assert sorted(row["means"].values()) == sorted(means)
    assert row["sd"] == pytest.approx(np.std(means, ddof=1)) and math.isfinite(row["sd"])
