"""Intervals hold what they promise, tests are scipy's, and what could be chance is called so."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import f1_score

from eav_ray.evaluation.statistics import (
    collect_fusion_baselines,
    compare_paired,
    compute_bootstrap_interval,
    compute_chance_band,
    compute_oracle_correct,
    holm,
    macro_f1,
    signed_rank,
)
from eav_ray.reporting.tables import format_statistics


def subjects(rates: dict[str, list[float]], recordings: int = 40, seed: int = 0) -> pd.DataFrame:
    """Sources that are right with a rate of their own for each person."""
    rng, parts = np.random.default_rng(seed), []
    for subject in range(len(next(iter(rates.values())))):
        ids = {"subject": f"p{subject}", "recording": np.arange(recordings), "label": np.arange(recordings) % 5}
        parts.append(pd.DataFrame(ids | {s: rng.random(recordings) < each[subject] for s, each in rates.items()}))
    return pd.concat(parts, ignore_index=True)


def test_an_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Of people who differ; an interval over recordings alone would hold it half as often."""
    inside, pooled = 0, 0
    for seed in range(120):
        rates = np.random.default_rng([1, seed]).beta(6, 4, 20)
        table = subjects({"eeg": list(rates)}, seed=seed)
        found = compute_bootstrap_interval(table, "eeg", seed=seed)
        inside += found.low <= 0.6 <= found.high
        share = table["eeg"].mean()
        pooled += abs(share - 0.6) < 1.96 * math.sqrt(share * (1 - share) / len(table))
        assert found.low < found.mean < found.high
    assert 0.88 <= inside / 120 <= 1.0 and pooled / 120 < 0.75


def test_one_person_has_an_interval_over_recordings_and_no_spread() -> None:
    found = compute_bootstrap_interval(subjects({"eeg": [0.5]}), "eeg")
    assert math.isnan(found.sd) and found.low < found.mean < found.high
    again = compute_bootstrap_interval(subjects({"eeg": [0.5]}), "eeg")
    assert (again.mean, again.low, again.high) == (found.mean, found.low, found.high)
    always = compute_bootstrap_interval(subjects({"eeg": [1.0, 1.0]}), "eeg")
    assert (always.low, always.high) == (1.0, 1.0)


def test_the_band_of_chance_is_binomial_over_recordings() -> None:
    low, high = compute_chance_band(200, 5)
    assert stats.binom.cdf(round(high * 200), 200, 0.2) - stats.binom.cdf(round(low * 200) - 1, 200, 0.2) >= 0.999
    assert 0.1 < low < 0.2 < high < 0.3
    narrow = compute_chance_band(8000, 5)
    assert narrow[0] > low and narrow[1] < high


def test_a_comparison_is_scipys_signed_rank_test() -> None:
    rng = np.random.default_rng(2)
    for _ in range(20):
        gained = rng.normal(0.3, 1, 15).round(1)
        p, effect = signed_rank(gained)
        reported = gained[gained != 0]
        assert p == pytest.approx(stats.wilcoxon(reported).pvalue)
        ranks = stats.rankdata(abs(reported))
        assert effect == pytest.approx((ranks[reported > 0].sum() - ranks[reported < 0].sum()) / ranks.sum())
    assert signed_rank(np.array([0.1, 0.2, 0.3])) == (pytest.approx(0.25), 1.0)
    assert signed_rank(np.zeros(4)) == (1.0, 0.0)


def test_holm_is_bonferroni_step_by_step() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9]) == [0.9] and holm([]) == []
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])


def test_what_could_be_chance_is_called_not_significant() -> None:
    level = subjects({"fusion": [0.6] * 20, "eeg": [0.6] * 20, "audio": [0.3] * 20, "product": [0.6] * 20})
    by_name = {
        one.other: one for one in compare_paired(level, "fusion", collect_fusion_baselines(level, ["audio", "eeg"]))
    }
    assert by_name["audio"].significant and not by_name["eeg"].significant
    assert "not significant" in str(by_name["eeg"]) and "not significant" not in str(by_name["audio"])
    assert by_name["audio"].holm_p_value >= by_name["audio"].p_value and by_name["audio"].effect > 0.9
    few = compare_paired(subjects({"fusion": [0.9] * 4, "eeg": [0.2] * 4}), "fusion", {"eeg": level["eeg"][:160]})
    assert "of 4 people no difference could be significant" in str(few[0])


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
    assert "8 people and their 320 recordings" in lines[0]
    assert "inside the 99.9 % band of chance" in next(line for line in lines if line.startswith("audio"))
    assert "inside" not in next(line for line in lines if line.startswith("fusion "))
    assert sum("paired over 8 people" in line for line in lines) == 4
    assert len(format_statistics(table[["subject", "recording", "label", "eeg"]], ["eeg"], 5).splitlines()) == 3
