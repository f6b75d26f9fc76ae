"""Tests over people are scipy's, err as rarely as they say, and say what they could not have found."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from eav_ray.evaluation.comparisons import (
    ALPHA,
    MIN_SUBJECTS,
    POWER,
    WILCOXON_EFFICIENCY,
    collect_fusion_baselines,
    compare_differences,
    compare_paired,
    compare_pairs,
    compute_smallest_p_value,
    count_subjects_wanted,
    holm,
    signed_rank,
)
from eav_ray.evaluation.fusion_claim import judge_fusion

RECORDINGS = 36


def subjects(rates: dict[str, list[float]], recordings: int = 40, seed: int = 0) -> pd.DataFrame:
    """Sources that are right with a rate of their own for each person."""
    rng, parts = np.random.default_rng(seed), []
    for subject in range(len(next(iter(rates.values())))):
        ids = {"subject": f"p{subject}", "recording": np.arange(recordings), "label": np.arange(recordings) % 5}
        parts.append(pd.DataFrame(ids | {s: rng.random(recordings) < each[subject] for s, each in rates.items()}))
    return pd.concat(parts, ignore_index=True)


@pytest.mark.parametrize("n_subjects", [7, 12, 42])
def test_a_comparison_is_scipys_exact_signed_rank_test(n_subjects: int) -> None:
    rng = np.random.default_rng(2)
    for _ in range(20):
        gained = rng.normal(0.3, 1, n_subjects)
        p, effect = signed_rank(gained)
        assert p == pytest.approx(stats.wilcoxon(gained, method="exact").pvalue)
        ranks = stats.rankdata(abs(gained))
        assert effect == pytest.approx((ranks[gained > 0].sum() - ranks[gained < 0].sum()) / ranks.sum())
    assert signed_rank(np.array([0.1, 0.2, 0.3])) == (pytest.approx(0.25), 1.0)
    assert signed_rank(np.zeros(4)) == (1.0, 0.0)


def test_it_is_exact_where_differences_are_equal_too() -> None:
    rng = np.random.default_rng(3)
    for _ in range(5):
        gained = rng.integers(-3, 5, 9) / RECORDINGS
        kept = gained[gained != 0]
        every = stats.wilcoxon((kept * RECORDINGS).round(), method=stats.PermutationMethod(n_resamples=2**9))
        assert signed_rank(gained)[0] == pytest.approx(every.pvalue)


def test_with_very_many_people_it_is_the_normal_approximation() -> None:
    gained = np.random.default_rng(4).normal(0.2, 1, 200)
    assert signed_rank(gained)[0] == pytest.approx(stats.wilcoxon(gained).pvalue)


@pytest.mark.parametrize("n_subjects", [6, 12])
def test_sources_that_are_as_good_are_seldom_called_different(n_subjects: int) -> None:
    """People differ in which source suits them; a test over recordings takes them for evidence about all people."""
    rng = np.random.default_rng(n_subjects)
    shift = rng.normal(0, 0.05, (1500, n_subjects))
    only_ours, only_other = (rng.binomial(RECORDINGS, np.clip(0.15 + d, 0, 1)) for d in (shift, -shift))
    found = np.mean([signed_rank(one)[0] < ALPHA for one in only_ours - only_other])
    assert found < 0.065
    pooled = only_ours.sum(1), only_ours.sum(1) + only_other.sum(1)
    mcnemar = 2 * np.minimum(stats.binom.cdf(*pooled, 0.5), stats.binom.sf(pooled[0] - 1, pooled[1], 0.5))
    assert np.mean(mcnemar < ALPHA) > 0.1  # the exact test of all recordings together


def test_holm_is_bonferroni_step_by_step_and_counts_what_was_tested() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9]) == [0.9] and holm([]) == []
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([0.01, math.nan, 0.03]) == pytest.approx([0.02, math.nan, 0.03], nan_ok=True)


def test_what_could_be_chance_is_called_not_significant() -> None:
    level = subjects({"fusion": [0.6] * 20, "eeg": [0.6] * 20, "audio": [0.3] * 20, "product": [0.6] * 20})
    by_name = {
        one.other: one for one in compare_paired(level, "fusion", collect_fusion_baselines(level, ["audio", "eeg"]))
    }
    assert by_name["audio"].significant and not by_name["eeg"].significant
    assert "not significant" in str(by_name["eeg"]) and "not significant" not in str(by_name["audio"])
    assert by_name["audio"].holm_p_value >= by_name["audio"].p_value and by_name["audio"].effect > 0.9
    assert by_name["audio"].n_comparisons == 4


@pytest.mark.parametrize("n_subjects", [1, 2, 5])
def test_few_people_are_counted_and_not_tested(n_subjects: int) -> None:
    rates = {"fusion": [0.9] * n_subjects, "eeg": [0.1] * n_subjects}
    (one,) = compare_pairs(subjects(rates), [("fusion", "eeg")])
    assert (one.n_better, one.n_worse, one.n_equal) == (n_subjects, 0, 0)
    assert math.isnan(one.p_value) and math.isnan(one.holm_p_value) and not one.significant
    counted = "1 person" if n_subjects == 1 else f"{n_subjects} people"
    assert one.verdict == f"of {counted} no difference could be significant" and f"paired over {counted}:" in str(one)
    assert "p =" not in str(one) and f"{n_subjects} better, 0 worse, 0 equal" in str(one)
    assert math.isnan(one.difference.low) == (n_subjects == 1)


@pytest.mark.parametrize(("n_subjects", "n_comparisons"), [(6, 1), (6, 2), (7, 3), (7, 4), (10, 25), (10, 26)])
def test_not_significant_is_said_only_where_significance_could_be_had(n_subjects: int, n_comparisons: int) -> None:
    rng = np.random.default_rng(5)
    noise = [("a", f"b{k}", np.r_[0.1, -0.1, rng.normal(0, 1, n_subjects - 2)]) for k in range(n_comparisons)]
    clear = [("a", f"b{k}", np.arange(1.0, n_subjects + 1)) for k in range(n_comparisons)]
    could = compare_differences(clear)[0].significant
    assert could == (n_comparisons * stats.wilcoxon(np.arange(1.0, n_subjects + 1)).pvalue < ALPHA)
    verdicts = {one.verdict for one in compare_differences(noise) if not one.significant}
    unattainable = f"of {n_subjects} people no difference could be significant among {n_comparisons} comparisons"
    assert verdicts == {"not significant" if could else unattainable}


def test_comparisons_of_few_people_do_not_count_among_the_others() -> None:
    clear = np.arange(1.0, 7)
    tested, *others = compare_differences([("a", "b", clear), ("a", "c", clear[:3]), ("a", "d", clear[:0])])
    assert tested.significant and tested.n_comparisons == 1
    assert [one.verdict for one in others] == [f"of {n} people no difference could be significant" for n in (3, 0)]


def test_the_smallest_p_value_is_that_of_people_who_all_gain() -> None:
    for n in range(MIN_SUBJECTS, 12):
        assert compute_smallest_p_value(n) == pytest.approx(signed_rank(np.arange(1.0, n + 1))[0])
    assert compute_smallest_p_value(MIN_SUBJECTS) < ALPHA <= signed_rank(np.arange(1.0, MIN_SUBJECTS))[0]
    assert math.isnan(compute_smallest_p_value(MIN_SUBJECTS - 1))


@pytest.mark.parametrize("effect", [0.2, 0.35, 0.5, 0.8, 1.0])
def test_as_many_people_as_are_wanted_give_the_power(effect: float) -> None:
    wanted = count_subjects_wanted(effect, 1.0)
    assert wanted is not None and wanted == count_subjects_wanted(-2 * effect, 2.0)

    def compute_power(n: float) -> float:  # of the t test, by the noncentral t distribution
        edge = stats.t.isf(ALPHA / 2, n - 1)
        return float(stats.nct.sf(edge, n - 1, effect * math.sqrt(n)))

    assert compute_power(wanted * WILCOXON_EFFICIENCY) >= POWER - 0.005
    assert compute_power((wanted - 2) * WILCOXON_EFFICIENCY) < POWER


def test_no_number_of_people_is_wanted_where_there_is_no_difference_or_no_spread() -> None:
    assert count_subjects_wanted(0.0, 1.0) is None and count_subjects_wanted(0.1, math.nan) is None
    assert count_subjects_wanted(10.0, 1.0) == MIN_SUBJECTS
    (tiny,) = compare_differences([("a", "b", np.r_[np.full(10, 1.0), np.full(10, -0.999)])])
    assert "wants over 10,000 people" in str(tiny)


def test_the_fusion_is_compared_with_the_modality_that_is_the_best_over_people() -> None:
    rates = {"fusion": [0.8] * 8, "eeg": [0.3] * 8, "audio": [0.6] * 8}
    table = subjects(rates | {"product": [0.5] * 8, "mean_probability": [0.4] * 8})
    found, rule = judge_fusion(table, ["audio", "eeg"]).comparisons
    assert (found.ours, found.other, found.n_subjects, rule.other) == ("fusion", "audio", 8, "product")
    means = table.groupby("subject")[["fusion", "audio"]].mean()
    assert found.difference.mean == pytest.approx((means["fusion"] - means["audio"]).mean())
    twice = pd.concat([table, table.assign(recording=table["recording"] + 40)])
    assert judge_fusion(twice, ["audio", "eeg"]).comparisons == [found, rule]  # the same twice is no more evidence
