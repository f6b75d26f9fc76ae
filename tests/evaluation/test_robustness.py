"""What is said of a robustness test is what its predictions show: areas, weights that fall, and those that do not."""

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest

from eav_ray.evaluation.robustness import build_robustness_results
from eav_ray.reporting.html import Page
from eav_ray.reporting.sections.robustness import build_robustness_sections, describe_weight_changes, format_robustness

NAMES = ["audio", "eeg"]
FACTS = {"recordings_description": "the test side", "seed": 0}
N_CLASSES, PER_SUBJECT, WINDOWS = 5, 20, 2


def table(n_subjects: int, right: float, weight: float, *, heard: float = 1.0, noise: float = 0.02) -> pd.DataFrame:
    """Predictions of which a share is right, and what EEG weighs.

    Args:
        heard: Share of the recordings of which EEG is there.
    """
    rng = np.random.default_rng(round(1000 * weight))
    rows = []
    for subject in range(n_subjects):
        for recording in range(PER_SUBJECT):
            label = recording % N_CLASSES
            guess = label if recording < round(right * PER_SUBJECT) else (label + 1) % N_CLASSES
            there = recording < round(heard * PER_SUBJECT)
            for window in range(WINDOWS):
                eeg = weight + noise * rng.standard_normal() if there else 0.0
                row: dict[str, Any] = {"subject": f"p{subject}", "recording": str(recording), "window": window}
                row |= {"label": label, "reason": "", "weight.eeg": eeg, "weight.audio": 1 - eeg}
                row |= {"corrected.eeg": eeg, "corrected.audio": 1 - eeg}
                for source in ("fusion", "mean_probability", "product", "audio", "eeg"):
                    known = there or source != "eeg"
                    row |= {f"{source}.logit_{k}": float(k == guess) if known else np.nan for k in range(N_CLASSES)}
                rows.append(row)
    return pd.DataFrame(rows)


def condition(kind: str, step: int, level: float = 0.0) -> dict[str, Any]:
    one = [{"kind": kind, "level": level, "unit": "dB SNR"}] if step else []
    return {"name": f"{kind}.{step}", "kind": kind, "severity": step, "modalities": ["eeg"] * bool(step), "levels": one}


def build_results(n_subjects: int = 8, **kinds: list[pd.DataFrame]) -> dict[str, Any]:
    """A tree of clean recordings, 80 % right with a weight of 0.5, and of kinds of corruption, a table a step."""
    conditions, tables = [condition("clean", 0)], {"clean.0": table(n_subjects, 0.8, 0.5)}
    for kind, steps in kinds.items():
        for n, made in enumerate(steps, start=1):
            conditions.append(condition(f"eeg.{kind}", n, 10.0 * n))
            tables[f"eeg.{kind}.{n}"] = made
    return build_robustness_results(tables, conditions, NAMES, N_CLASSES, FACTS)


def render(tree: dict[str, Any]) -> str:
    return Page("r", build_robustness_sections(tree)).render()


def find_change(tree: dict[str, Any], kind: str = "eeg.pink", weight: str = "corrected") -> dict[str, Any]:
    return next(c for c in tree["weight_changes"] if (c["kind"], c["weight"]) == (kind, weight))


def test_an_area_is_1_where_nothing_is_lost_and_the_mean_accuracy_of_its_steps() -> None:
    tree = build_results(pink=[table(8, 0.8, 0.5)] * 2, muscle=[table(8, 0.6, 0.5), table(8, 0.2, 0.5)])
    pink, muscle = (area["sources"]["fusion"] for area in tree["accuracy_areas"])
    assert pink == {"mean_accuracy": pytest.approx(0.8), "relative_to_clean": pytest.approx(1)}
    assert muscle["mean_accuracy"] == pytest.approx((0.8 / 2 + 0.6 + 0.2 / 2) / 2)
    assert muscle["relative_to_clean"] == pytest.approx(muscle["mean_accuracy"] / 0.8)
    assert [c["sources"]["fusion"]["accuracy"] for c in tree["conditions"][3:]] == pytest.approx([0.6, 0.2])


def test_accuracy_has_an_interval_where_people_differ_and_none_where_they_do_not() -> None:
    assert build_results()["conditions"][0]["sources"]["fusion"]["low"] is None
    good, bad = table(8, 0.9, 0.5), table(8, 0.7, 0.5)
    differ = pd.concat([good[good["subject"] < "p4"], bad[bad["subject"] >= "p4"]])
    tree = build_robustness_results({"clean.0": differ}, [condition("clean", 0)], NAMES, N_CLASSES, FACTS)
    score = tree["conditions"][0]["sources"]["fusion"]
    assert score["accuracy"] == pytest.approx(0.8) and 0.65 < score["low"] < 0.75 < 0.85 < score["high"] < 0.95


def test_a_weight_that_falls_is_said_to_fall_over_subjects() -> None:
    tree = build_results(pink=[table(8, 0.7, 0.45), table(8, 0.6, 0.3)])
    found = find_change(tree)
    assert found["verdict"] == "falls" and (found["n_worse"], found["n_subjects"], found["severity"]) == (8, 8, 2)
    assert found["difference"] == pytest.approx(-0.2, abs=0.02)
    assert found["interval"][0] < found["difference"] < found["interval"][1] < -0.1
    assert found["p"] == pytest.approx(2 / 2**8) and found["effect"] == -1
    assert "falls in 1 of 1 kinds" in describe_weight_changes(tree) and "over 8 people" in describe_weight_changes(tree)


def test_a_weight_that_does_not_fall_is_said_not_to() -> None:
    still, up = table(8, 0.8, 0.5).copy(), table(8, 0.5, 0.7)
    for subject in range(8):  # half of the people up, half of them down
        of_subject = still["subject"] == f"p{subject}"
        still.loc[of_subject, "corrected.eeg"] += (-1) ** subject * (0.01 + 0.001 * (subject // 2))
    tree = build_results(pink=[still], muscle=[up])
    assert find_change(tree)["verdict"] == "not significant" and find_change(tree, "eeg.muscle")["verdict"] == "rises"
    reported = describe_weight_changes(tree)
    assert "falls in 0 of 2 kinds" in reported and "does not fall significantly in eeg.pink" in reported
    assert "RISES in eeg.muscle" in reported and reported in format_robustness(tree)
    assert "not significant" in format_robustness(tree) and "not significant" in render(tree)


def test_the_more_kinds_are_tested_the_more_each_must_show() -> None:
    tree = build_results(**{name: [table(8, 0.6, 0.3)] for name in ("pink", "muscle", "gaussian")})
    assert find_change(tree)["holm"] == pytest.approx(3 * find_change(tree)["p"])


def test_of_few_people_it_is_counted_and_no_fall_is_claimed() -> None:
    """However sure it is over recordings: these people are three."""
    tree = build_results(3, pink=[table(3, 0.6, 0.3)], muscle=[table(3, 0.6, 0.6)])
    found = find_change(tree)
    assert (found["n_subjects"], found["n_worse"], found["p"], found["holm"]) == (3, 3, None, None)
    assert found["verdict"] == "of 3 people no difference could be significant"
    reported = describe_weight_changes(tree)
    assert "falls in 0 of 2 kinds" in reported and "eeg.pink (lower in 3 of 3 people)" in reported
    assert "eeg.muscle (lower in 0 of 3 people)" in reported
    assert found["verdict"] in format_robustness(tree) and found["verdict"] in render(tree)


def test_so_many_kinds_that_no_fall_could_be_significant_are_not_called_still() -> None:
    """Eight people who all fall have p = 1 / 128: enough for 6 kinds, and too little for 7."""
    few, many = (build_results(**{f"kind{k}": [table(8, 0.6, 0.3)] for k in range(n)}) for n in (6, 7))
    assert find_change(few, "eeg.kind0")["verdict"] == "falls"
    verdict = "of 8 people no difference could be significant among 7 comparisons"
    assert find_change(many, "eeg.kind0")["verdict"] == verdict and verdict in describe_weight_changes(many)


def test_a_modality_that_is_masked_says_nothing_of_its_weight() -> None:
    """Its weight is 0 because it was taken out, not because the fusion weighed it."""
    tree = build_results(pink=[table(8, 0.8, 0.5, heard=0.75), table(8, 0.8, 0.0, heard=0.0)])
    found = find_change(tree)
    assert found["severity"] == 1 and abs(found["difference"]) < 0.02
    assert [c["refused_share"].get("eeg", 0) for c in tree["conditions"]] == pytest.approx([0, 0.25, 1])
    assert tree["conditions"][2]["sources"]["eeg"]["accuracy"] == 0
    assert tree["conditions"][2]["weights"]["eeg"]["raw"] is None
    assert "100 % of eeg refused" in format_robustness(tree)
    gone = build_results(pink=[table(8, 0.8, 0.0, heard=0.0)])
    assert find_change(gone)["verdict"] == "not testable" and "not testable in eeg.pink" in describe_weight_changes(
        gone
    )
    json.dumps(gone, allow_nan=False)
    assert "not testable" in render(gone)


def test_a_recording_that_cannot_be_predicted_is_wrong() -> None:
    made = table(8, 1.0, 0.5)
    lost = made["recording"] == "0"
    logits = [c for c in made.columns if "logit" in c]
    made.loc[lost, [*logits, "weight.eeg", "corrected.eeg"]] = np.nan
    made.loc[lost, "reason"] = "EEG breaks off"
    tree = build_results(pink=[made])
    assert tree["recordings"] == 8 * PER_SUBJECT and tree["conditions"][1]["reason"] == "EEG breaks off"
    assert tree["conditions"][1]["sources"]["fusion"]["accuracy"] == pytest.approx(1 - 1 / PER_SUBJECT)


def test_nothing_is_said_of_the_weight_of_what_is_nowhere() -> None:
    silent = table(8, 0.8, 0.5, heard=0.0)
    conditions = [condition("clean", 0), condition("eeg.pink", 1)]
    tree = build_robustness_results({"clean.0": silent, "eeg.pink.1": silent}, conditions, NAMES, N_CLASSES, FACTS)
    json.dumps(tree, allow_nan=False)
    assert find_change(tree)["verdict"] == "not testable" and "not testable in eeg.pink" in describe_weight_changes(
        tree
    )
    assert "not testable" in format_robustness(tree) and "not testable" in render(tree)


def test_a_fusion_without_weights_is_said_to_have_none() -> None:
    same = table(8, 0.8, 0.5, noise=0)
    conditions = [condition("clean", 0), condition("eeg.pink", 1)]
    tree = build_robustness_results({"clean.0": same, "eeg.pink.1": same}, conditions, NAMES, N_CLASSES, FACTS)
    assert find_change(tree)["p"] == 1 and "do not depend on the input" in describe_weight_changes(tree)


def test_balanced_accuracy_is_given_where_classes_are_unequal() -> None:
    assert "balanced_accuracy" not in build_results()["conditions"][0]["sources"]["fusion"]
    made = table(8, 0.8, 0.5)
    # Of class 0 only those that are right, of class 4 only those that are not.
    few = made[~((made["label"] == 0) & (made["recording"].astype(int) >= 10))]
    tree = build_robustness_results({"clean.0": few}, [condition("clean", 0)], NAMES, N_CLASSES, FACTS)
    score = tree["conditions"][0]["sources"]["fusion"]
    assert score["balanced_accuracy"] == pytest.approx((1 + 4 * 0.75) / 5)


def test_the_sections_show_every_kind_to_who_sees_and_who_does_not() -> None:
    tree = build_results(pink=[table(8, 0.7, 0.4), table(8, 0.6, 0.3)], muscle=[table(8, 0.7, 0.5), table(8, 0.5, 0.5)])
    page = render(json.loads(json.dumps(tree)))
    figures = page.split("<figure ")[1:]
    assert len(figures) == 2 and all('role="img" aria-label="' in f for f in figures)
    curves = figures[0].split('aria-label="')[1].split('"')[0]
    assert "eeg.pink at 20 dB SNR: eeg 60.0, mean_probability 60.0, product 60.0, fusion 60.0" in curves
    assert page.count("eeg.muscle") > 4 and "Areas under the curves" in page and "falls" in page
    assert page.count("<script") == 1 and "src=" not in page and 'href="http' not in page
