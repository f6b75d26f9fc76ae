"""A page of predicted numbers says all that results.json holds of them, and opens in a browser without a fault."""

import copy
import json
import re
from xml.etree import ElementTree

import pytest

from eav_ray.evaluation import results_tree
from eav_ray.evaluation.number_protocols import (
    compare_number_protocols,
    summarize_number_protocols,
    summarize_number_seeds,
)
from eav_ray.evaluation.number_scores import add_constant_source
from eav_ray.evaluation.number_summary import (
    compare_numbers_on_page,
    compute_number_gap,
    correlate_number_quality,
    list_number_points,
    summarize_number_subjects,
    summarize_number_weights,
    summarize_numbers,
    summarize_worst_number_subjects,
)
from eav_ray.evaluation.results_tree import ResultsTree
from eav_ray.reporting.model_card import render_model_card
from eav_ray.reporting.results_page import RESULTS_FORMAT, render_results_page
from tests.helpers.browser import find_faults, measure_smallest_text, open_page
from tests.helpers.number_predictions import (
    MODALITIES,
    TARGETS,
    draw_number_predictions,
    list_target_ids,
    list_training_sides,
)


def build_tree(modalities: list[str] = MODALITIES, subjects: int = 8, *, within: bool = True) -> ResultsTree:
    """All parts, of synthetic predictions."""
    table = draw_number_predictions(subjects, within=within)
    table = add_constant_source(table, list_target_ids(table), list_training_sides(table))
    other = draw_number_predictions(subjects, seed=4, within=within)
    measured = table[["subject", "recording"]].drop_duplicates()
    measured = measured.assign(eeg_bad_channels=measured["subject"].str[1:].astype(float), audio_db=-20.0)
    names = modalities if len(modalities) == 1 else [*modalities, "fusion"]
    history = [
        {"epoch": n, "train_loss": 2.0 / n, "seconds": 3.0, "windows": 90, "recording_ccc": 0.1 * n} for n in (1, 2, 3)
    ]
    subject_rows = summarize_number_subjects(table, modalities, TARGETS)
    protocols = {"within": other, "loso": table}
    tree: ResultsTree = {
        "format": RESULTS_FORMAT,
        "title": "t<1>",
        "description": "about & more",
        "separation": "that were never trained on",
        "access": {"level": "source_only", "description": "source_only: nothing"},
        "protocol": "loso",
        "modalities": modalities,
        "classes": [],
        "targets": list(TARGETS),
        "model": {"Fusion": "gated"},
        "data": {"Data set": "recordings_table"},
        "scores": summarize_numbers(table, modalities, TARGETS),
        "subjects": subject_rows,
        "points": list_number_points(table, modalities, TARGETS),
        "comparisons": compare_numbers_on_page(table, modalities, TARGETS),
        "weights": summarize_number_weights(table, modalities),
        "modality_collapse": [{"fold": 0, "check": "single attention key", "value": 1.0, "text": "sees <one> key"}],
        "histories": {"0": dict.fromkeys(names, history), "1": dict.fromkeys(names, history)},
        "generalization_gap": compute_number_gap(table, other, modalities, TARGETS),
        "quality": correlate_number_quality(table, measured, modalities, TARGETS),
        "worst_subjects": summarize_worst_number_subjects(subject_rows, measured),
        "band_power": None,
        "baselines": None,
        "protocols": {
            "rows": summarize_number_protocols(protocols, modalities, TARGETS),
            "inflation": compare_number_protocols(protocols, modalities, TARGETS, "loso"),
            "missing": ["paper"],
        },
        "seeds": summarize_number_seeds({0: table, 1: other}, modalities, TARGETS),
        "reference": None,
        "search": [{"study": "s-1", "candidates": 8, "inner_score": 0.9, "test": 0.8, "changes": {"fusion.heads": 4}}],
        "audit": {
            "checks": [{"fold": 0, "name": "model selection", "outcome": "passed", "detail": "a<b>"}],
            "outcomes": {"passed": 1, "failed": 0, "cannot tell": 0},
            "sha256": "0" * 64,
        },
        "provenance": {"command": "eav evaluate a<b", "seed": "0", "versions": {"torch": "2"}},
    }
    return json.loads(json.dumps(results_tree.to_json_value(tree), allow_nan=False))


@pytest.fixture(scope="module")
def tree() -> ResultsTree:
    return build_tree()


@pytest.fixture(scope="module")
def shown(tree: ResultsTree) -> str:
    return render_results_page(tree)


SECTIONS = [
    "Scores",
    "Predicted against true",
    "Protocols side by side",
    "People",
    "Comparisons",
    "Seeds: the noise floor",
    "Modality weights",
    "Modality collapse",
    "Learning curves",
    "Training against test",
    "Worst people",
    "Signal quality against scores",
    "Search",
    "Leak audit",
    "Reproduce",
]


def list_headings(page: str) -> list[str]:
    return re.findall(r"<h2 id=\"[^\"]+\">(.*?)</h2>", page)


def test_a_page_has_every_part_that_there_are_numbers_for_and_no_other(tree: ResultsTree, shown: str) -> None:
    assert list_headings(shown) == SECTIONS
    bare = copy.deepcopy(tree)
    kept = ("scores", "points", "subjects", "comparisons", "audit", "provenance")
    named = ("format", "title", "description", "separation", "access", "modalities", "targets", "classes")
    bare = {name: value if name in (*kept, *named) else None for name, value in bare.items()}
    heads = list_headings(render_results_page(bare))
    assert heads == ["Scores", "Predicted against true", "People", "Comparisons", "Leak audit", "Reproduce"]
    assert "accuracy" not in shown.lower() and "t&lt;1&gt;" in shown and "<1>" not in shown


def test_the_headline_says_each_target_beside_a_constant(tree: ResultsTree, shown: str) -> None:
    main = tree["scores"]["targets"]["arousal"]["sources"]["fusion"]
    constant = tree["scores"]["targets"]["arousal"]["sources"]["constant"]
    assert (
        f"within people (8), RMSE {main['rmse']['mean']:.4g} against {constant['rmse']['mean']:.4g} of a constant"
    ) in shown
    assert f"arousal: CCC {main['within']['ccc']['mean']:.3f} (95 % " in shown


def test_the_note_says_slope_and_bias(tree: ResultsTree, shown: str) -> None:
    calibration = tree["scores"]["targets"]["valence"]["sources"]["fusion"]["calibration"]
    assert (
        f"valence: slope of true on predicted numbers {calibration['slope']:.2f}, bias {calibration['bias']:+.3g}"
        in (shown)
    )
    assert len(tree["points"]["valence"]) == 8 * 12


@pytest.mark.parametrize("within", [True, False])
@pytest.mark.parametrize("modalities", [MODALITIES, ["eeg"]], ids=["all", "one"])
@pytest.mark.parametrize("subjects", [1, 3, 8])
def test_pages_and_cards_of_any_size_are_whole(within: bool, modalities: list[str], subjects: int) -> None:
    tree = build_tree(modalities, subjects, within=within)
    page, card = render_results_page(tree), render_model_card(tree)
    for svg in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        ElementTree.fromstring(svg)
    assert "Comparisons" not in list_headings(page) or len(modalities) > 1
    assert "Numbers: valence, arousal." in card and ("between" if not within else "within") in card
    shown = re.sub(r"<(svg|script).*?</\1>", "", page, flags=re.DOTALL) + card
    assert not re.search(r"\b(nan|None|inf)\b", shown)
    if not within and subjects == 8:
        assert "between people: nobody has 3 recordings with differing targets" in page


def test_a_model_that_diverged_has_a_page(tree: ResultsTree) -> None:
    table = draw_number_predictions(6)
    table.loc[table["subject"] == "p1", ["fusion.value_0", "fusion.value_1"]] = float("nan")
    broken = copy.deepcopy(tree) | results_tree.to_json_value(
        {
            "scores": summarize_numbers(table, MODALITIES, TARGETS),
            "subjects": summarize_number_subjects(table, MODALITIES, TARGETS),
            "points": list_number_points(table, MODALITIES, TARGETS),
            "comparisons": compare_numbers_on_page(table, MODALITIES, TARGETS),
            "worst_subjects": summarize_worst_number_subjects(
                summarize_number_subjects(table, MODALITIES, TARGETS), None
            ),
        }
    )
    page = render_results_page(broken)
    assert "12 of fusion" in page and "valence: CCC – (no interval)" in page
    assert "–" in render_model_card(broken)


def test_many_recordings_are_pixels() -> None:
    tree = build_tree(["eeg"])
    tree["points"] = {"valence": [["p0", 0.001 * n, 0.002 * n] for n in range(2_500)]}
    assert "data:image/png" in render_results_page(tree)


@pytest.mark.parametrize("width", [1200, 375], ids=["desk", "phone"])
def test_the_page_opens_without_a_fault(shown: str, width: int) -> None:
    with open_page(shown, width, 800) as opened:
        assert find_faults(opened) == []
        assert measure_smallest_text(opened) >= 8
