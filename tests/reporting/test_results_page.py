"""The page says all that results.json holds, needs no other file, and opens in a browser without a fault."""

import copy
import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from eav_ray.data.datasets.eav import EAV_CHANNELS
from eav_ray.data.modalities.band_power import FREQUENCY_BANDS
from eav_ray.evaluation import probability_calibration, protocol_comparison, results_tree, stacking, summary
from eav_ray.evaluation.baselines.folds import summarize_baselines
from eav_ray.evaluation.results_tree import ResultsTree
from eav_ray.reporting import figures
from eav_ray.reporting.model_card import render_model_card
from eav_ray.reporting.results_page import RESULTS_FORMAT, render_results_page
from tests.helpers.browser import find_faults, measure_smallest_text, open_page
from tests.helpers.predictions import CLASSES, MODALITIES, draw_predictions


def build_tree(modalities: list[str] = MODALITIES, subjects: int = 8) -> ResultsTree:
    """All parts, of synthetic predictions."""
    table, other = draw_predictions(subjects), draw_predictions(subjects, seed=4)
    measured = (
        table[["subject", "recording"]]
        .drop_duplicates()
        .assign(eeg_bad_channels=lambda t: t["subject"].str[1:].astype(float), audio_db=-20.0)
    )
    rng = np.random.default_rng(0)
    names = ["fusion"] if len(modalities) == 1 else MODALITIES
    history = [{"epoch": n, "train_loss": 2.0 / n, "seconds": 3.0, "windows": 90} for n in range(1, 5)]
    checks = [{"fold": n, "name": "model selection", "outcome": "passed", "detail": "a<b>"} for n in range(2)]
    checks += [
        {"fold": n, "name": "origin", "outcome": ("passed", "cannot tell")[n], "detail": f"d{n}"} for n in range(2)
    ]
    rows = summary.summarize_subjects(table, modalities)
    tree: ResultsTree = {
        "format": RESULTS_FORMAT,
        "title": "t<1>",
        "description": "about & more",
        "separation": "that were never trained on",
        "access": {"level": "unlabelled_block", "description": "unlabelled_block: all recordings, without labels"},
        "protocol": "loso",
        "modalities": modalities,
        "classes": list(CLASSES),
        "model": {"Fusion": "gated"},
        "data": {"Data set": "eav"},
        "accuracy": summary.summarize_accuracy(table, modalities, 3),
        "chance_of_subject": {"level": 1 / 3, "low": 0.1, "high": 0.6},
        "subjects": rows,
        "comparisons": summary.compare_sources(table, modalities),
        "confusion": summary.count_confusions(table, modalities, 3),
        "weights": summary.summarize_modality_weights(table, modalities, CLASSES),
        "single_class": [{"fold": 1, "text": "eeg names <calm> for 760 of 767 windows; weigh the classes"}],
        "modality_collapse": [{"fold": 0, "check": "single attention key", "value": 1.0, "text": "sees <one> key"}],
        "histories": {"0": dict.fromkeys(names, history), "1": dict.fromkeys(names, history)},
        "generalization_gap": summary.compute_generalization_gap(table, other, modalities),
        "quality": summary.correlate_signal_quality(table, measured, modalities),
        "worst_subjects": summary.summarize_worst_subjects(rows, table, measured, CLASSES),
        "band_power": {
            "channels": list(EAV_CHANNELS),
            "values": {k: {b: rng.normal(size=30).tolist() for b in FREQUENCY_BANDS} for k in CLASSES},
        },
        "calibration": probability_calibration.summarize_calibration(table, list(modalities), other),
        "calibration_note": "Fitted on others.",
        "baselines": {
            "access": "unlabelled_block",
            "rows": summarize_baselines(
                table, {"audio": "SVM on MFCC + log-mel", "eeg": "Riemannian tangent space on EEG"}
            ),
        },
        "protocols": {
            "rows": protocol_comparison.summarize_protocols({"within": other, "loso": table}, modalities),
            "inflation": protocol_comparison.compare_protocols({"within": other, "loso": table}, modalities, "loso"),
            "missing": ["paper"],
        },
        "seeds": protocol_comparison.summarize_seeds({0: table, 1: other}, modalities),
        "reference": None,
        "search": [{"study": "s-1", "candidates": 8, "inner_score": 0.9, "test": 0.85, "changes": {"fusion.heads": 4}}],
        "audit": {
            "checks": checks,
            "outcomes": {"passed": 3, "failed": 0, "cannot tell": 1},
            "sha256": "0" * 64,
        },
        "provenance": {"command": "eav evaluate a<b", "seed": "0", "versions": {"torch": "2"}},
    }
    return results_tree.to_json_value(tree)


@pytest.fixture(scope="module")
def tree() -> ResultsTree:
    return json.loads(json.dumps(build_tree(), allow_nan=False))


@pytest.fixture(scope="module")
def shown(tree: ResultsTree) -> str:
    return render_results_page(tree)


SECTIONS = [
    "Accuracy",
    "One class for nearly all",
    "Baselines",
    "Protocols side by side",
    "People",
    "Comparisons",
    "Seeds: the noise floor",
    "Confusion",
    "Modality weights",
    "Modality collapse",
    "Calibration",
    "Learning curves",
    "Training against test",
    "Worst people",
    "Signal quality against accuracy",
    "Band power",
    "Search",
    "Leak audit",
    "Reproduce",
]


def test_a_page_has_every_part_that_there_are_numbers_for_and_no_other(tree: ResultsTree, shown: str) -> None:
    assert re.findall(r"<h2 id=\"[^\"]+\">(.*?)</h2>", shown) == SECTIONS
    bare = copy.deepcopy(tree)
    for name in (
        "single_class",
        "baselines",
        "protocols",
        "seeds",
        "modality_collapse",
        "histories",
        "generalization_gap",
        "worst_subjects",
        "quality",
        "band_power",
        "weights",
        "search",
    ):
        bare[name] = None
    heads = re.findall(r"<h2 id=\"[^\"]+\">(.*?)</h2>", render_results_page(bare))
    assert heads == ["Accuracy", "People", "Comparisons", "Confusion", "Calibration", "Leak audit", "Reproduce"]
    links = re.findall(r'<a href="#([^"]+)">', shown)
    assert len(links) == len(SECTIONS) and all(f'<h2 id="{link}">' in shown for link in links)


def test_a_model_of_one_class_is_named_on_page_and_card(tree: ResultsTree, shown: str) -> None:
    line = "eeg names {}calm{} for 760 of 767 windows; weigh the classes"
    assert line.format("&lt;", "&gt;") in shown and f"- {line.format('<', '>')}" in render_model_card(tree)


def test_what_data_say_is_text_and_nothing_is_fetched(shown: str) -> None:
    assert "t&lt;1&gt;" in shown and "<1>" not in shown and "a&lt;b" in shown and "sees &lt;one&gt; key" in shown
    links = re.findall(r'(?:href|src)="([^"]*)"', shown)
    assert all(link.startswith(("#", "data:")) for link in links)
    assert "published" not in shown.lower()  # only real EAV is held against published numbers


def test_figures_are_drawings_that_are_also_told_in_words(shown: str) -> None:
    figures = re.findall(r'<figure role="img" aria-label="([^"]+)">(<svg.*?</svg>)', shown, re.DOTALL)
    assert len(figures) >= 8 and len(figures) == shown.count("<svg")
    for reported, drawn in figures:
        assert len(reported) > 20
        ElementTree.fromstring(drawn)


def test_the_page_changes_with_the_numbers_and_with_nothing_else(tree: ResultsTree, shown: str) -> None:
    assert render_results_page(tree) == shown
    other = copy.deepcopy(tree)
    other["accuracy"]["sources"]["eeg"]["mean"] = 0.12345
    assert "12.35" in render_results_page(other) or "12.34" in render_results_page(other)


def test_one_modality_and_few_people_have_a_page_too() -> None:
    alone = render_results_page(build_tree(["eeg"]))
    assert "Modality weights" not in alone and "Comparisons" not in alone and "mean_probability" not in alone
    few = render_results_page(build_tree(subjects=4))
    assert "of 4 people no difference could be significant" in few and "too few people" in few


def test_real_eav_is_held_against_the_published_rows(tree: ResultsTree) -> None:
    with_reference = copy.deepcopy(tree)
    for n, row in enumerate(with_reference["subjects"]):
        row["reference"] = {"multimodal": 0.5 + n / 100}
    ours = draw_predictions()
    ours["subject"] = "subject" + (ours["subject"].str[1:].astype(int) + 1).astype(str)
    rows = protocol_comparison.compare_with_published(
        protocol_comparison.compute_published_unit_accuracy(ours, MODALITIES), MODALITIES
    )
    with_reference["reference"] = {"source": protocol_comparison.PUBLISHED_SOURCE, "note": "n", "rows": rows}
    shown = render_results_page(results_tree.to_json_value(with_reference))
    assert (
        "Against the published reference" in shown and "arXiv 2411.00822" in shown and "published multimodal" in shown
    )


def test_one_modality_is_held_against_the_published_number_of_the_same() -> None:
    tree = build_tree(["eeg"]) | dict.fromkeys(("protocols", "histories", "quality", "band_power"))
    for row in tree["subjects"]:
        row["reference"] = {"eeg": 0.5351, "multimodal": 0.7086}
    shown = render_results_page(tree)
    assert "published eeg" in shown and "53.51" in shown and "70.86" not in shown


def test_a_model_that_diverged_has_a_page() -> None:
    tree = build_tree()
    table = draw_predictions()
    numbers = [c for c in table if "logit_" in c or c.startswith(("weight.", "corrected."))]
    table[numbers] = np.nan
    rows = summary.summarize_subjects(table, MODALITIES)
    tree |= {
        "accuracy": summary.summarize_accuracy(table, MODALITIES, 3),
        "subjects": rows,
        "comparisons": summary.compare_sources(table, MODALITIES),
        "weights": summary.summarize_modality_weights(table, MODALITIES, CLASSES),
        "generalization_gap": summary.compute_generalization_gap(table, table, MODALITIES),
        "worst_subjects": summary.summarize_worst_subjects(rows, table, None, CLASSES),
        "calibration": probability_calibration.summarize_calibration(table, MODALITIES, table),
        "skipped_results": ["ablations/a/results.json is not JSON"],
        **dict.fromkeys(("protocols", "seeds", "histories", "quality", "band_power", "confusion")),
    }
    tree = results_tree.to_json_value(tree)
    shown = render_results_page(tree)
    assert "Modality weights" in shown and "Skipped results" in shown and not re.search(r"\bnan\b", shown)
    assert "Expected calibration error" not in render_model_card(tree)


def test_stacking_is_on_the_page_and_the_line_on_it_where_there_is_none(tree: ResultsTree) -> None:
    table = stacking.add_stacking(draw_predictions(), draw_predictions(seed=4), MODALITIES, len(CLASSES))
    assert table is not None
    rows = summary.summarize_subjects(table, MODALITIES)
    parts = {
        "accuracy": summary.summarize_accuracy(table, MODALITIES, 3),
        "subjects": rows,
        "comparisons": summary.compare_sources(table, MODALITIES),
        "confusion": summary.count_confusions(table, MODALITIES, 3),
        "worst_subjects": summary.summarize_worst_subjects(rows, table, None, CLASSES),
        "stacking_note": stacking.describe_stacking(None, added=False, out_of_fold=False),
    }
    shown = render_results_page(results_tree.to_json_value(tree | parts))
    assert shown.count("<td>stacking</td>") >= 2 and "No stacking: this split has no validation rows" in shown


def test_rescued_recordings_and_the_claim_are_on_the_page(tree: ResultsTree, shown: str) -> None:
    comparisons, rescue = tree["comparisons"], tree["comparisons"]["rescue"]
    assert comparisons["claim"]["text"][1:] in shown and comparisons["claim"]["text"] in render_model_card(tree)
    assert f"Recordings that {rescue['best_single']} gets wrong" in shown
    assert f"{100 * rescue['sources']['product']['rescued_share']:.2f}" in shown


def test_many_classes_keep_apart(tree: ResultsTree) -> None:
    few, many = (
        figures.plot_confusion({"eeg": np.eye(n, n + 1).tolist()}, [f"c{k}" for k in range(n)]) for n in (5, 12)
    )
    assert few.get_figwidth() < 4 < many.get_figwidth()


def test_the_card_says_what_a_user_must_know(tree: ResultsTree) -> None:
    text = render_model_card(tree)
    for part in ("## Model", "## Meant for", "## Data", "## Results", "## Limits", "## Reproduce", "sees <one> key"):
        assert part in text
    assert "| fusion | " in text and "Leak audit: 3 checks passed, 0 failed, 1 cannot tell, sha256 " + "0" * 64 in text


def test_what_the_audit_cannot_tell_is_seen_and_is_no_pass(shown: str) -> None:
    (row,) = re.findall(r"<td>origin</td>.*?</tr>", shown, re.DOTALL)
    assert "1 passed, 1 cannot tell" in row and "d1 (fold 1)" in row
    assert "3 checks passed, 0 failed, 1 cannot tell, which is not a pass" in shown


@pytest.mark.parametrize("width", [1200, 375])
def test_it_opens_in_a_browser_without_a_fault_and_is_readable_on_a_phone(shown: str, width: int) -> None:
    with open_page(shown, width, 800) as opened:
        assert find_faults(opened) == []
        assert measure_smallest_text(opened) >= 7.5
        before = opened.evaluate("document.querySelector('#people ~ .wide table').rows[1].cells[0].textContent")
        opened.click("#people ~ .wide table th:nth-child(3) button")
        cells = "[...document.querySelector('#people ~ .wide table').tBodies[0].rows].map(r => +r.cells[2].textContent)"
        values = opened.evaluate(cells)
        assert values == sorted(values) and len(values) == 8 and before


def test_baselines_stand_apart_from_the_sources(tree: ResultsTree, shown: str) -> None:
    accuracy, baselines = re.findall(r"<h2 id=\"(?:accuracy|baselines)\".*?(?=<h2)", shown, re.DOTALL)
    assert "SVM on MFCC + log-mel" in baselines and "SVM" not in accuracy
    (row, _) = tree["baselines"]["rows"]
    assert f"{100 * row['recording_balanced_accuracy']:.2f}" in baselines and "unlabelled_block" in baselines
