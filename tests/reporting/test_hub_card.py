"""The card of an exported model says what was tested, or expected, and nothing else."""

from typing import Any

import pytest
import yaml

from eav_ray.evaluation import results_tree, summary
from eav_ray.evaluation.expected_result import format_expected_result, summarize_expected_result
from eav_ray.evaluation.results_tree import ResultsTree
from eav_ray.pipelines.inference.export import describe_model
from eav_ray.reporting.hub_card import render_hub_card
from tests.helpers.predictions import CLASSES, MODALITIES, draw_predictions
from tests.helpers.serving import make_checkpoint

DESCRIPTION = describe_model(make_checkpoint(), "0" * 64, has_onnx=True)


def render(
    expected: dict[str, Any] | None = None,
    results: ResultsTree | None = None,
    weights: dict[str, dict[str, Any]] | None = None,
) -> tuple[dict[str, Any], str]:
    line = format_expected_result(expected or {})
    text = render_hub_card(DESCRIPTION, "9 recordings of 3 subjects", weights or {}, expected, line, results)
    return yaml.safe_load(text.split("---\n")[1]), text


def describe_weights(licence: str, *, is_non_commercial: bool = False) -> dict[str, Any]:
    return {"name": f"lab/{licence}", "revision": "0" * 40, "licence": licence, "is_non_commercial": is_non_commercial}


def test_tested_results_are_shown_to_people_and_to_the_hub() -> None:
    table = draw_predictions(8)
    rows = summary.summarize_subjects(table, MODALITIES)
    accuracy = summary.summarize_accuracy(table, MODALITIES, 3)
    tree: ResultsTree = results_tree.to_json_value(
        {
            "accuracy": accuracy,
            "comparisons": summary.compare_sources(table, MODALITIES),
            "separation": "that were never trained on",
            "subjects": rows,
            "worst_subjects": summary.summarize_worst_subjects(rows, table, None, CLASSES),
        }
    )
    head, text = render(results=tree)
    (model,) = head["model-index"]
    found = {m["type"]: m["value"] for m in model["results"][0]["metrics"]}
    best = tree["accuracy"]["sources"][list(tree["accuracy"]["sources"])[-1]]
    assert found["accuracy"] == pytest.approx(best["mean"], abs=1e-4) and set(head["metrics"]) == set(found)
    assert model["results"][0]["dataset"]["name"] == "eav"
    assert f"{100 * best['mean']:.2f}" in text and "that were never trained on" in text and "Not tested" not in text


def test_a_final_model_shows_what_is_expected_of_it() -> None:
    table = draw_predictions(8).assign(fold=0)
    expected = summarize_expected_result(table, MODALITIES, 3, source="protocols/a", description="loso")
    head, text = render(expected)
    names = [m["name"] for m in head["model-index"][0]["results"][0]["metrics"]]
    assert names and all("expected on people never seen" in name for name in names)
    assert "No recording is left that could test this model" in text and "8 subjects" in text


@pytest.mark.parametrize(
    ("licences", "head"),
    [
        (["apache-2.0"], {"license": "apache-2.0"}),
        (["mit", "mit"], {"license": "mit"}),
        (["mit", "apache-2.0"], {"license": "other", "license_name": "apache-2.0 and mit"}),
        (["other own-terms"], {"license": "other", "license_name": "own-terms"}),
        (["mit", ""], {"license": "unknown"}),
        ([], {"license": "unknown"}),
    ],
)
def test_the_hub_is_told_the_licence_of_what_it_started_from(licences: list[str], head: dict[str, str]) -> None:
    weights = {f"m{k}": describe_weights(licence) for k, licence in enumerate(licences)}
    found, text = render(weights=weights)
    assert {key: value for key, value in found.items() if key.startswith("license")} == head
    assert all(f"licence {licence}" in text for licence in filter(None, licences))


def test_weights_that_are_not_for_commercial_use_are_named_as_such() -> None:
    found, text = render(weights={"audio": describe_weights("cc-by-nc-4.0", is_non_commercial=True)})
    assert "non-commercial" in found["tags"] and "NOT FOR COMMERCIAL USE" in text
    assert "onnx" in found["tags"] and "onnx/graph.json" in text
