"""Variants are compared on recordings that all could score, paired over people; what could be chance is called so."""

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest

from eav_ray.config import Experiment, override
from eav_ray.evaluation import ablation
from eav_ray.evaluation.ablation_variants import BASE_VARIANT, AblationVariant, build_ablation_variants
from eav_ray.evaluation.comparisons import compare_paired, holm
from eav_ray.evaluation.statistics import compute_accuracy_interval
from eav_ray.reporting.html import Page
from eav_ray.reporting.sections import ablation as sections_ablation
from eav_ray.reporting.sections import cost

E = override(Experiment(), {"data.modalities": ["audio", "eeg"]})
PARTS = ("subsets", "dropout", "sizes")
HARDWARE = {"device": "a machine", "threads": 1, "workers": 2, "gpus": 0, "cores": 2, "load": 0.5}


def made() -> list[AblationVariant]:
    return build_ablation_variants(E, PARTS, ["half"])[0]


def predictions(
    rates: dict[str, float], subjects: int, *, recordings: int = 20, otherwise: float = 0.6
) -> pd.DataFrame:
    """Of each variant, right with its rate; two windows a recording, which agree."""
    parts = []
    for number, variant in enumerate(made()):
        rng = np.random.default_rng([7, number])
        right = rng.random((subjects, recordings)) < rates.get(variant.name, otherwise)
        for subject in range(subjects):
            label = np.arange(recordings) % 2
            guess = np.where(right[subject], label, 1 - label)
            ids = {"subject": f"p{subject}", "recording": [f"{r:02d}" for r in range(recordings)], "label": label}
            logits = {f"fusion.logit_{k}": (guess == k).astype(float) for k in (0, 1)}
            parts += [pd.DataFrame(ids | logits | {"window": w, "variant": variant.name}) for w in (0, 1)]
    return pd.concat(parts, ignore_index=True)


def priced(**more: float) -> dict[str, dict[str, Any]]:
    names = [v.name for v in made()]
    each = {n: {"parameters": 1e6 * (k + 1), "gmac": 0.1 * (k + 1), "seconds": None} for k, n in enumerate(names)}
    return {
        n: c | {"latency_ms": 1.0 + k, "p95_ms": 2.0 + k, "repeats": 5 + k % 2, "run": n}
        for k, (n, c) in enumerate(each.items())
    }


def tree(table: pd.DataFrame) -> dict[str, Any]:
    found = ablation.compare_variants(table, made(), E, priced())
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    return found | {"hardware": HARDWARE}


def render(found: dict[str, Any]) -> str:
    sections = [*sections_ablation.build_ablation_sections(found), *cost.build_cost_sections(found)]
    return Page("a", sections).render()


def entry(found: dict[str, Any], name: str, group: str = "subsets") -> dict[str, Any]:
    (one,) = [v for v in found["variants"] if v["name"] == name and v["group"] == group]
    return one


def test_accuracies_and_differences_are_those_of_the_statistics_of_recordings_and_people() -> None:
    table = predictions({BASE_VARIANT: 0.9, "eeg": 0.3}, subjects=8)
    found = tree(table)
    one = table[table["window"] == 0].assign(right=lambda t: t["fusion.logit_1"] == t["label"])
    wide = one.pivot(index=["subject", "recording"], columns="variant", values="right").reset_index()
    expected = compute_accuracy_interval(wide, "eeg")
    eeg = entry(found, "eeg")
    assert (eeg["accuracy"]["mean"], eeg["accuracy"]["low"]) == (expected.mean, expected.low)
    assert eeg["balanced_accuracy"] == pytest.approx(wide["eeg"].groupby(np.arange(len(wide)) % 20 % 2).mean().mean())
    (paired,) = compare_paired(wide, "eeg", {BASE_VARIANT: wide[BASE_VARIANT]})
    assert eeg["comparison"]["mean"] == paired.difference.mean < -0.4 and eeg["comparison"]["effect"] == paired.effect
    assert eeg["comparison"]["significant"] and eeg["comparison"]["verdict"].startswith("significant")
    assert entry(found, BASE_VARIANT)["comparison"] is None


def test_holm_corrects_for_the_comparisons_of_a_group_and_for_no_others() -> None:
    found = tree(predictions({BASE_VARIANT: 0.75}, subjects=7))
    for group in PARTS:
        compared = [v["comparison"] for v in found["variants"] if v["group"] == group and v["comparison"]]
        assert [c["holm"] for c in compared] == holm([c["p_value"] for c in compared])
    counts = {g: sum(v["group"] == g for v in found["variants"]) for g in PARTS}
    assert counts == {"subsets": 5, "dropout": 4, "sizes": 4}


def test_with_modalities_hidden_a_model_is_compared_with_the_same_hidden_of_the_other() -> None:
    found = tree(
        predictions({"audio (others masked)": 0.2, "no modality dropout, audio (others masked)": 0.9}, subjects=7)
    )
    one = entry(found, "no modality dropout, audio (others masked)", "dropout")["comparison"]
    assert one["other"] == "audio (others masked)" and one["mean"] > 0.5


def test_a_group_is_compared_on_the_recordings_that_all_of_it_could_score() -> None:
    table = predictions({}, subjects=7)
    lacks = (table["variant"] == "eeg") & ((table["subject"] == "p0") | (table["recording"] == "03"))
    found = tree(table[~lacks])
    assert found["groups"]["subsets"] == {"n_subjects": 6, "recordings": 6 * 19}
    assert found["groups"]["sizes"] == {"n_subjects": 7, "recordings": 7 * 20}
    # The experiment itself is there for the same recordings as the rest of its group.
    whole = table[(table["variant"] == BASE_VARIANT) & (table["subject"] != "p0") & (table["recording"] != "03")]
    share = (whole["fusion.logit_1"] == whole["label"]).mean()
    assert entry(found, BASE_VARIANT)["accuracy"]["mean"] == pytest.approx(share)


def test_a_variant_without_predictions_is_named_and_the_rest_compared() -> None:
    table = predictions({}, subjects=7)
    found = tree(table[table["variant"] != "eeg"])
    assert found["missing"] == ["eeg"] and not any(v["name"] == "eeg" for v in found["variants"])
    assert not any(side == "eeg" for pair in found["worn"] for side in (pair["with"], pair["without"]))


@pytest.mark.parametrize("subjects", [2, 5])
def test_of_few_people_nothing_is_called_significant(subjects: int) -> None:
    found = tree(predictions({BASE_VARIANT: 1.0, "eeg": 0.0}, subjects=subjects))
    eeg = entry(found, "eeg")["comparison"]
    assert not eeg["significant"] and eeg["verdict"] == f"of {subjects} people no difference could be significant"
    assert (eeg["n_better"], eeg["n_worse"], eeg["n_equal"], eeg["p_value"]) == (0, subjects, 0, None)
    assert "no difference could be significant" in sections_ablation.format_ablation(found)


def test_of_one_person_there_is_a_page_without_intervals() -> None:
    found = tree(predictions({BASE_VARIANT: 0.9, "eeg": 0.3}, subjects=1))
    assert entry(found, "eeg")["accuracy"]["low"] is None and entry(found, "eeg")["comparison"]["low"] is None
    assert "of 1 person no difference could be significant" in render(found)


def test_of_seven_people_so_many_comparisons_could_not_be_significant() -> None:
    """Seven who all gain have p = 1 / 64: enough for 3 comparisons, and too little for 4."""
    rates = {BASE_VARIANT: 1.0, "eeg": 0.0}
    subsets = [v["comparison"] for v in tree(predictions(rates, subjects=7))["variants"] if v["group"] == "subsets"]
    assert {c["verdict"] for c in subsets if c} == {
        "of 7 people no difference could be significant among 4 comparisons"
    }
    assert entry(tree(predictions(rates, subjects=8)), "eeg")["comparison"]["significant"]


def test_what_eeg_adds_is_each_set_with_it_against_the_same_without() -> None:
    found = tree(predictions({BASE_VARIANT: 0.95, "audio": 0.4}, subjects=7))
    pairs = {(p["with"], p["without"], p["mode"]): p for p in found["worn"]}
    assert len(found["worn"]) == 1 + 1 + 2
    one = pairs[BASE_VARIANT, "audio", "retrained"]
    assert one["difference"]["mean"] > 0.4 and one["difference"]["significant"]
    costs = priced()
    for key in ("parameters", "gmac", "latency_ms"):
        assert one["extra_cost"][key] == costs[BASE_VARIANT][key] - costs["audio"][key]
    assert "seconds" not in one["extra_cost"]  # nobody timed them
    assert (BASE_VARIANT, "audio (others masked)", "masked") in pairs and (
        "half",
        "half without eeg",
        "retrained",
    ) in pairs
    assert not pairs[BASE_VARIANT, "audio (others masked)", "masked"]["extra_cost"]


def test_the_page_says_what_the_numbers_say_and_is_the_same_each_time() -> None:
    found = tree(predictions({BASE_VARIANT: 0.9, "eeg": 0.3}, subjects=7))
    whole = render(found)
    assert render(found) == whole and whole.count("<h2 ") == 3 + 2
    for v in found["variants"]:
        assert v["name"] in whole and f"{100 * v['accuracy']['mean']:.1f}" in whole
    assert "not significant" in whole and "significant (Holm" in whole
    assert whole.count('<figure role="img" aria-label="') == 4
    assert "140 test recordings of 7 people, which all of these could score" in whole
    reported = sections_ablation.format_ablation(found)
    kept = json.loads(json.dumps(found, sort_keys=True))  # as the results store has it
    assert sections_ablation.format_ablation(kept) == reported and render(kept) == whole
    assert (
        all(v["name"] in reported for v in found["variants"]) and "not significant" in reported and "EEG:" in reported
    )


def test_what_no_other_beats_in_accuracy_and_cost_is_the_front() -> None:
    found = tree(predictions({"audio": 0.95, BASE_VARIANT: 0.9}, subjects=10, otherwise=0.3))
    entries = cost.select_costed_variants(found)
    assert all(v["mode"] != "masked" and v["group"] in ("subsets", "sizes") for v in entries)
    assert len({v["name"] for v in entries}) == len(entries)
    (front,) = [part for part in cost.describe_cost(entries).split("; ") if part.startswith("GMAC")]
    numbers = {v["name"]: n for n, v in enumerate(entries, 1)}
    assert front == f"GMAC a window: {numbers[BASE_VARIANT]}, {numbers['audio']}"  # the cheapest first


def test_latencies_of_a_busy_machine_come_with_a_warning() -> None:
    found = tree(predictions({}, subjects=6))
    calm, crowded = (
        Page("a", cost.build_cost_sections(found | {"hardware": HARDWARE | {"load": load}})).render()
        for load in (1.0, 9.0)
    )
    assert "9 processes shared its 2 cores" in crowded and "processes shared" not in calm


def test_two_names_of_one_training_are_one_point() -> None:
    costs = priced()
    costs["unchanged without eeg"]["run"] = costs["audio"]["run"]
    found = ablation.compare_variants(predictions({}, subjects=6), made(), E, costs)
    names = [v["name"] for v in cost.select_costed_variants(found)]
    assert "audio" in names and "unchanged without eeg" not in names
    one = {name: each | {"run": "one"} for name, each in costs.items()}
    found = ablation.compare_variants(predictions({}, subjects=6), made(), E, one) | {"hardware": HARDWARE}
    page = Page("a", cost.build_cost_sections(found)).render()
    assert len(cost.select_costed_variants(found)) == 1 and "Accuracy against cost" in page and "<svg" not in page
