"""The numbers of the page are those of trusted references, and what could be chance is called so."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy.special import log_softmax, softmax
from sklearn.metrics import balanced_accuracy_score, brier_score_loss, confusion_matrix, log_loss

from eav_ray.evaluation import protocol_comparison, results_tree, statistics, summary
from eav_ray.evaluation.comparisons import compare_pairs
from eav_ray.evaluation.correctness import mark_correct_recordings
from eav_ray.evaluation.probability_calibration import compute_reliability, fit_temperature, summarize_calibration
from eav_ray.evaluation.statistics import compute_balanced_interval
from eav_ray.reporting import tables as reporting_tables
from eav_ray.training.metrics import average_per_recording, predict_classes
from tests.helpers.predictions import CLASSES, MODALITIES, draw_predictions


@pytest.mark.parametrize("unequal", [False, True])
def test_accuracy_is_that_of_recordings_and_the_mean_over_people(unequal: bool) -> None:
    table = draw_predictions(unequal=unequal)
    found = summary.summarize_accuracy(table, MODALITIES, 3)
    assert (found["n_subjects"], found["recordings"], found["windows"], found["unequal"]) == (8, 96, 192, unequal)
    recordings = average_per_recording(table)
    for source, one in found["sources"].items():
        guess, label = predict_classes(recordings, source), recordings["label"]
        assert one["balanced"] == pytest.approx(balanced_accuracy_score(label, guess))
        assert one["mean"] == pytest.approx((guess == label).groupby(recordings["subject"]).mean().mean())
        assert one["recording"] == pytest.approx(one["mean"])
        assert one["n_without_prediction"] == 0
        assert one["interval"][0] <= one["mean"] <= one["interval"][1]
        assert one["balanced_interval"][0] <= one["balanced"] <= one["balanced_interval"][1]
        right = predict_classes(table, source) == table["label"].to_numpy()
        assert one["window"] == pytest.approx(pd.Series(right).groupby(table["subject"].to_numpy()).mean().mean())
    frames = table.groupby("subject")["video.frames_correct"].mean().mean()
    assert found["sources"]["video"]["frame"] == pytest.approx(frames)
    assert math.isnan(found["sources"]["audio"]["frame"])
    assert found["oracle"] > found["sources"]["video"]["mean"]


def test_an_interval_of_balanced_accuracy_holds_the_truth_where_classes_are_unequal() -> None:
    inside = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        parts = []
        for subject in range(12):
            label = (rng.random(30) < 0.2).astype(int)
            right = rng.random(30) < np.where(label, 0.4, 0.9) + rng.normal(0, 0.05)
            parts.append(pd.DataFrame({"subject": f"p{subject}", "label": label, "eeg": right}))
        found = compute_balanced_interval(pd.concat(parts, ignore_index=True), "eeg")
        inside += found.low <= 0.65 <= found.high
    assert inside >= 52


def test_guessing_is_called_guessing() -> None:
    rng = np.random.default_rng(3)
    table = draw_predictions()
    columns = [c for c in table if "logit_" in c]
    table[columns] = rng.normal(size=(len(table), len(columns)))
    found = summary.summarize_accuracy(table, MODALITIES, 3)
    assert all(one["inside_chance"] for one in found["sources"].values())
    compared = summary.compare_sources(table, MODALITIES)
    assert {c["verdict"] for c in compared["fusion"]} == {"not significant"}
    assert not any(
        one["inside_chance"]
        for one in summary.summarize_accuracy(draw_predictions(), MODALITIES, 3)["sources"].values()
    )
    few = summary.compare_sources(draw_predictions(subjects=4), MODALITIES)
    assert {c["verdict"] for c in few["fusion"]} == {"of 4 people no difference could be significant"}


def test_rescued_and_lost_are_shares_of_what_the_best_single_modality_gets_wrong_and_right() -> None:
    table = draw_predictions()
    found = summary.compare_sources(table, MODALITIES)["rescue"]
    correct = mark_correct_recordings(table, [*MODALITIES, *found["sources"]])
    assert list(found["sources"]) == ["mean_probability", "product", "fusion"]
    best = correct[found["best_single"]]
    assert best.mean() == max(correct[m].mean() for m in MODALITIES)
    assert (found["n_wrong"], found["n_right"]) == ((~best).sum(), best.sum())
    for source, one in found["sources"].items():
        assert one["rescued_share"] == pytest.approx(correct.loc[~best, source].mean())
        assert one["lost_share"] == pytest.approx(1 - correct.loc[best, source].mean())
    assert summary.compare_sources(table, ["eeg"])["rescue"] is None


def test_the_claim_of_the_page_asks_for_the_better_rule_too() -> None:
    """A fusion that is the product rule beats every modality and does not help."""
    table = draw_predictions(subjects=12, gain=1.0)
    for k in range(len(CLASSES)):
        table[f"fusion.logit_{k}"] = table[f"product.logit_{k}"]
        table[f"mean_probability.logit_{k}"] = table[f"eeg.logit_{k}"]
    compared = summary.compare_sources(table, MODALITIES)
    assert compared["claim"]["better_rule"] == "product" and not compared["claim"]["helps"]
    weakest = next(c for c in compared["fusion"] if c["other"] == "eeg")
    assert weakest["difference"] > 0 and weakest["verdict"].startswith("significant")


@pytest.mark.parametrize("skill", [0.0, 1.0])
def test_naming_the_largest_class_is_called_guessing(skill: float) -> None:
    table = draw_predictions(subjects=9, recordings=12, unequal=True)
    for k in range(3):
        table[f"eeg.logit_{k}"] = float(k == 0) + 2 * skill * (table["label"] == k)
    found = summary.summarize_accuracy(table, MODALITIES, 3)["sources"]["eeg"]
    assert found["mean"] > 0.7 and found["balanced"] == pytest.approx(1 if skill else 1 / 3)
    assert found["inside_chance"] is not bool(skill)
    reported = reporting_tables.format_statistics(mark_correct_recordings(table, ["eeg"]), ["eeg"], 3)
    assert ("inside the 99.9 % band" in reported) is not bool(skill) and "classes are unequal" in reported


def test_the_band_of_balanced_accuracy_is_the_binomial_one_where_classes_are_equal() -> None:
    def compute_band(label: np.ndarray, n_subjects: int, n_classes: int) -> tuple[float, float]:
        table = pd.DataFrame({"subject": np.arange(len(label)) // (len(label) // n_subjects), "label": label})
        return statistics.compute_balanced_chance_band(table, n_classes)

    for n_subjects in (1, 4):
        equal = compute_band(np.arange(200) % 5, n_subjects, 5)
        assert equal == pytest.approx(statistics.compute_chance_band(200, 5), abs=0.006)
    wider = compute_band(np.repeat([0, 1], [190, 10]), 1, 2)
    assert wider[1] - wider[0] > 1.5 * (
        statistics.compute_chance_band(200, 2)[1] - statistics.compute_chance_band(200, 2)[0]
    )


def test_the_gap_is_that_of_recordings_in_which_a_source_has_something_to_say() -> None:
    trained, columns = draw_predictions(), [f"audio.logit_{k}" for k in range(3)]
    sure = trained.copy()
    sure[columns] = np.eye(3)[sure["label"]]
    silent = sure.copy()
    silent.loc[silent["recording"] < "r5", columns] = np.nan
    assert summary.compute_generalization_gap(trained, silent, MODALITIES)["audio"]["train"] == 1


def test_all_pairs_of_modalities_share_one_correction() -> None:
    table = summary.compare_sources(draw_predictions(), MODALITIES)["modalities"]
    assert {(c["ours"], c["other"]) for c in table} == {("video", "audio"), ("video", "eeg"), ("audio", "eeg")}
    assert max(c["holm"] for c in table) <= 1 and all(c["holm"] >= c["p"] for c in table)
    assert min(c["holm"] for c in table) == pytest.approx(min(1.0, 3 * min(c["p"] for c in table)))
    correct = pd.DataFrame({"subject": [f"p{n // 2}" for n in range(16)], "a": [1.0] * 16, "b": [0.0] * 16})
    (pair,) = compare_pairs(correct, [("a", "b")])
    assert pair.holm_p_value == pair.p_value and pair.effect == 1


def test_confusion_is_sklearns() -> None:
    table = draw_predictions()
    table.loc[table["recording"] == "r0", [f"audio.logit_{k}" for k in range(3)]] = np.nan
    recordings = average_per_recording(table)
    found = summary.count_confusions(table, MODALITIES, 3)
    for source, counts in found.items():
        guess = predict_classes(recordings, source)
        known = guess >= 0
        expected = confusion_matrix(recordings["label"][known], guess[known], labels=range(3))
        assert np.array(counts)[:, :3].tolist() == expected.tolist()
        assert sum(row[3] for row in counts) == (~known).sum() == (8 if source == "audio" else 0)


def test_weights_are_told_by_class_and_person_and_classes_that_differ_are_found() -> None:
    found = summary.summarize_modality_weights(draw_predictions(), MODALITIES, CLASSES)
    for kind in ("weight", "corrected"):
        for row in (*found[kind]["by_class"].values(), *found[kind]["by_subject"].values()):
            assert sum(row.values()) == pytest.approx(1)
        assert found[kind]["by_class"]["glad"]["eeg"] > found[kind]["by_class"]["sad"]["eeg"]
    assert found["classes_differ"]["eeg"]["p"] < 0.01 and found["classes_differ"]["eeg"]["n_subjects"] == 8
    assert summary.summarize_modality_weights(draw_predictions(), ["eeg"], CLASSES) == {}


def test_reliability_is_what_it_is_by_hand_and_by_sklearn() -> None:
    rng = np.random.default_rng(1)
    logits, label = rng.normal(size=(400, 3)), rng.integers(0, 3, 400)
    found = compute_reliability(logits, label)
    p = softmax(logits, axis=1)
    assert found["nll"] == pytest.approx(log_loss(label, p))
    assert found["brier"] == pytest.approx(sum(brier_score_loss((label == k).astype(int), p[:, k]) for k in range(3)))
    confidence, right = p.max(1), p.argmax(1) == label
    edges = [(confidence >= b / 10) & (confidence < (b + 1) / 10) for b in range(10)]
    by_hand = sum(e.sum() * abs(confidence[e].mean() - right[e].mean()) for e in edges if e.any()) / 400
    assert found["ece"] == pytest.approx(by_hand)
    sure = compute_reliability(np.array([[50.0, 0, 0]] * 10), np.array([0] * 7 + [1] * 3))
    assert sure["ece"] == pytest.approx(0.3) and sure["bins"][0]["count"] == 10  # type: ignore[index]
    empty = compute_reliability(np.full((3, 3), np.nan), np.zeros(3, int))
    assert empty["count"] == 0 and empty["ece"] is None


def test_a_temperature_undoes_the_scale_of_logits_that_were_calibrated() -> None:
    rng = np.random.default_rng(2)
    logits = 2 * rng.normal(size=(4000, 3))
    label = np.array([rng.choice(3, p=p) for p in softmax(logits, axis=1)])
    for scale in (0.25, 1.0, 4.0):
        assert fit_temperature(scale * logits, label) == pytest.approx(scale, rel=0.1)
    t = fit_temperature(3 * logits, label)
    for other in (0.8 * t, 1.25 * t):
        assert compute_reliability(3 * logits, label, other)["nll"] > compute_reliability(3 * logits, label, t)["nll"]  # type: ignore[operator]


def test_a_source_that_no_validation_row_has_stays_as_it_is() -> None:
    table, held = draw_predictions(subjects=3), draw_predictions(subjects=3, seed=5)
    held.loc[held["fold"] == 1, [f"eeg.logit_{k}" for k in range(3)]] = np.nan
    found = summarize_calibration(table, ["eeg"], held)["eeg"]
    assert isinstance(found, dict) and set(found["temperatures"]) == {"0", "2"} and found["scaled"]["count"] == 36


def test_each_fold_is_scaled_by_its_own_validation_rows_and_answers_stay() -> None:
    table, held = (draw_predictions(subjects=4, recordings=60, seed=seed, gain=-1.2) for seed in (0, 9))
    columns = [c for c in table if c.startswith("fusion.logit_")]
    for one in (table, held):
        one.loc[one["fold"] == 2, columns] *= 10  # a model that is far too sure
    found = summarize_calibration(table, ["fusion"], held)["fusion"]
    assert isinstance(found, dict)
    assert found["temperatures"]["2"] > 4 * found["temperatures"]["1"]
    assert found["scaled"]["ece"] < found["raw"]["ece"] and found["scaled"]["nll"] < found["raw"]["nll"]
    assert "scaled" not in summarize_calibration(table, ["fusion"], None)["fusion"]  # type: ignore[operator]
    reported = average_per_recording(table)
    logits = reported[columns].to_numpy()
    assert (log_softmax(logits / 3, axis=1).argmax(1) == predict_classes(reported, "fusion")).all()


def test_quality_that_goes_with_accuracy_is_told_from_quality_that_does_not() -> None:
    table = draw_predictions(subjects=12, recordings=30)
    subjects = [f"p{n}" for n in range(12)]
    right = summary.summarize_subjects(table, MODALITIES)
    share = {row["subject"]: row["eeg"] for row in right}
    rows = [
        {"subject": p, "recording": f"r{n}", "eeg_bad_channels": -share[p], "audio_db": 1.0}
        for p in subjects
        for n in range(30)
    ]
    found = {
        (one["quality_measure"], one["source"]): one
        for one in summary.correlate_signal_quality(table, pd.DataFrame(rows), MODALITIES)
    }
    assert found["eeg_bad_channels", "eeg"]["rho"] == pytest.approx(-1)
    assert found["eeg_bad_channels", "eeg"]["holm"] < 0.01
    assert found["audio_db", "audio"]["rho"] is None  # the same for everybody
    assert ("audio_db", "eeg") not in found


def test_protocols_are_paired_over_people_and_seeds_are_the_noise_floor() -> None:
    tables = {"within": draw_predictions(gain=1.0), "loso": draw_predictions(seed=1)}
    rows = protocol_comparison.summarize_protocols(tables, MODALITIES)
    assert [row["protocol"] for row in rows] == ["within", "loso"]
    (one,) = protocol_comparison.compare_protocols(tables, MODALITIES, "loso")
    means = [row["sources"]["fusion"]["recording"] for row in rows]
    assert one["difference"] == pytest.approx(means[0] - means[1]) and one["n_subjects"] == 8
    found = protocol_comparison.summarize_seeds({0: draw_predictions(), 1: draw_predictions(seed=1)}, MODALITIES)
    means = list(found["sources"]["eeg"]["means"].values())
    assert found["seeds"] == [0, 1] and found["sources"]["eeg"]["sd"] == pytest.approx(np.std(means, ddof=1))


def test_the_published_rows_are_those_of_the_paper() -> None:
    table = protocol_comparison.read_published_accuracy()
    assert len(table) == 42 and list(table.index[[0, 41]]) == ["subject1", "subject42"]
    means = {"video": 67.22, "audio": 58.17, "eeg": 53.51, "multimodal": 70.86}
    for column, mean in means.items():
        assert 100 * table[column].mean() == pytest.approx(mean, abs=0.005)
    ours = draw_predictions(subjects=6)
    ours["subject"] = "subject" + (ours["subject"].str[1:].astype(int) + 1).astype(str)
    rows = protocol_comparison.compare_with_published(
        protocol_comparison.compute_published_unit_accuracy(ours, MODALITIES), MODALITIES
    )
    assert [row["ours"] for row in rows] == ["audio", "eeg", "video", "fusion"]
    fusion = rows[-1]
    assert fusion["mean"] == pytest.approx(ours["fusion.frames_correct"].mean())  # frames, where video is seen
    assert fusion["published"] == pytest.approx(table["multimodal"][:6].mean()) and fusion["n_subjects"] == 6


def test_what_is_written_is_json_without_numbers_that_are_none() -> None:
    tree = results_tree.to_json_value({"a": math.nan, "b": [np.float32(1.5), np.int64(2)], "c": (True, None, "x")})
    assert json.loads(json.dumps(tree, allow_nan=False)) == {"a": None, "b": [1.5, 2], "c": [True, None, "x"]}
