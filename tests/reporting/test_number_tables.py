"""The terminal says of numbers what they are worth, and nothing of classes."""

import re

import numpy as np
import pytest

from eav_ray.config import order_modalities
from eav_ray.evaluation.number_summary import summarize_numbers
from eav_ray.reporting.number_tables import compute_test_score, format_number_scores
from eav_ray.reporting.score_reports import NumberReport
from eav_ray.reporting.tables import MAX_FOLD_LINES
from tests.helpers.number_predictions import (
    MODALITIES,
    TARGETS,
    draw_number_predictions,
    list_target_ids,
    list_training_sides,
)


def make_report(windows) -> NumberReport:
    return NumberReport(TARGETS, list_target_ids(windows), list_training_sides(windows))


def test_a_protocol_has_a_table_a_target_and_says_whether_the_fusion_helps() -> None:
    windows = draw_number_predictions(8)
    text = make_report(windows).format_protocol(windows, MODALITIES, {n: [] for n in range(8)})
    lines = text.splitlines()
    assert lines[0] == (
        "valence, within people: CCC, Pearson and RMSE over the recordings of each person, then means over people; 8 "
        "of 8 people have 3 recordings or more with differing targets"
    )
    assert lines[1].split() == ["CCC", "SD", "95", "%", "Pearson", "SD", "95", "%", "RMSE", "SD", "95", "%", "people"]
    assert [line.split()[0] for line in lines[2:8]] == ["constant", *order_modalities(MODALITIES), "mean", "fusion"]
    assert re.fullmatch(r"constant  0\.000  0\.000 .* 8", lines[2])
    summary = summarize_numbers(windows, MODALITIES, TARGETS)["targets"]["valence"]["sources"]["fusion"]
    assert f"{summary['within']['ccc']['mean']:.3f}" in lines[7] and f"{summary['rmse']['mean']:.4g}" in lines[7]
    assert any(line.startswith("arousal: the fusion helps: CCC +") for line in lines)
    assert text.count("paired over 8 people: CCC") == 8
    assert "fusion, by fold" in lines and "%" not in text.replace("95 %", "") and "accuracy" not in text


def test_many_folds_have_no_lines_and_collapse_is_counted() -> None:
    windows = draw_number_predictions(MAX_FOLD_LINES + 1, 4)
    findings = {n: [{"check": "one modality", "text": ""}] if n else [] for n in range(MAX_FOLD_LINES + 1)}
    text = make_report(windows).format_protocol(windows, MODALITIES, findings)
    assert "by fold" not in text and text.endswith("one modality (12 of 13)")


def test_between_people_is_said() -> None:
    windows = draw_number_predictions(8, 4, within=False)
    text = make_report(windows).format_protocol(windows, MODALITIES, {})
    assert "valence, between people: nobody has 3 recordings with differing targets" in text
    assert "paired over 8 people: RMSE -" in text
    header = text.splitlines()[1].split()
    assert header.count("SD") == 1 and header.count("95") == 3


def test_a_checkpoint_of_one_modality_is_compared_with_nothing() -> None:
    windows = draw_number_predictions(4).drop(columns="fold")
    report = NumberReport(TARGETS, list_target_ids(windows.assign(fold=0)), {3: ("p0/r0", "p0/r1")})
    lines = "\n".join(report.format_checkpoint(windows, ["audio"])).splitlines()
    assert not any("against" in line for line in lines) and sum(line.startswith("audio") for line in lines) == 2
    assert report.list_recordings(windows, ["audio"])["audio.value_0"].notna().all()


def test_what_is_missing_and_what_a_constant_does_is_said() -> None:
    windows = draw_number_predictions(8, noise={"audio": 1.0, "eeg": 200.0, "video": 1.0, "mean": 1.0, "fusion": 1.0})
    windows.loc[windows["recording"] == "r0", ["audio.value_0"]] = np.nan
    text = "\n".join(format_number_scores(summarize_numbers(windows, MODALITIES, TARGETS)))
    assert "the interval holds the CCC of a constant prediction, 0: eeg" in text
    assert "recordings with a target and without a prediction: 8 of audio;" in text


def test_a_search_is_held_against_the_mean_ccc_of_targets() -> None:
    windows = draw_number_predictions(6)
    searches = {n: {"inner_score": 0.9, "changes": {"fusion.heads": 4}} for n in range(2)}
    lines = make_report(windows).format_searches(windows, MODALITIES, searches).splitlines()
    tested = [compute_test_score(windows[windows["fold"] == n], MODALITIES) for n in range(2)]
    assert (
        f"chosen by 0.900 on inner folds, tested {np.mean(tested):.3f}; its optimism is {0.9 - np.mean(tested):+.3f}"
        in (lines[0])
    )
    assert lines[2].split()[:4] == ["0", "0.900", f"{tested[0]:.3f}", f"{0.9 - tested[0]:+.3f}"]
    scores = summarize_numbers(windows[windows["fold"] == 0], MODALITIES, TARGETS)["targets"]
    means = [scores[t]["sources"]["fusion"]["within"]["ccc"]["mean"] for t in TARGETS]
    assert tested[0] == pytest.approx(np.mean(means))
