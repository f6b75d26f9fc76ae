"""The model card of an exported model: what the Hugging Face hub reads of it, and what people do."""

from collections.abc import Mapping
from typing import Any

from eav_ray.config import get_modality_info
from eav_ray.evaluation.results_tree import ResultsTree
from eav_ray.reporting.html import render_template
from eav_ray.reporting.model_card import collect_card_values
from eav_ray.storage.published_weights import list_starting_weights

TASK = "Emotion recognition"


def render_hub_card(
    description: Mapping[str, Any],
    trained_on: str,
    starting_weights: Mapping[str, Mapping[str, Any]],
    expected: Mapping[str, Any] | None,
    expected_line: str,
    results: ResultsTree | None,
) -> str:
    """Render the card in Markdown, with a head in YAML.

    Args:
        description: The exported `config.json`.
        trained_on: How many recordings and subjects, in words.
        starting_weights: Published weights that encoders started from (`describe_starting_weights`).
        expected: The expected result of a final model, and `expected_line` the same in one line.
        results: `results.json` of `eav evaluate`, where the checkpoint was tested.
    """
    files = {m: get_modality_info(m).example_file for m in description["modalities"]}
    values: dict[str, Any] = {
        "front_matter": _render_front_matter(description, starting_weights, expected, results),
        "encoders": {m: _name_network(one["encoder"]) for m, one in description["modalities"].items()},
        "example_files": ", ".join(f'{m}="{file}"' for m, file in files.items() if file),
        "targets": [],
        "tested": results is not None,
        "expected": expected,
        "expected_line": expected_line,
        "trained_on": trained_on,
        "starting_weights": list_starting_weights(starting_weights),
        **(collect_card_values(results) if results else {}),
    }
    own = {key: description[key] for key in ("name", "window_s", "classes", "access", "normalised", "dataset", "onnx")}
    values |= own | {
        "modalities": list(description["modalities"]),
        "targets": [target["name"] for target in description["targets"]],
        "fusion": description["fusion"]["kind"] if description["fusion"] else "none",
    }
    return render_template("hub_card.md.jinja", **values)


def _name_network(section: Mapping[str, Any]) -> str:
    name = section.get("name") or section.get("architecture") or ""
    return f"{section['kind']} {name}".strip()


def _render_front_matter(
    description: Mapping[str, Any],
    starting_weights: Mapping[str, Mapping[str, Any]],
    expected: Mapping[str, Any] | None,
    results: ResultsTree | None,
) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    metrics = [
        EvalResult(
            task_type="other",
            task_name=TASK,
            dataset_type=description["dataset"],
            dataset_name=description["dataset"],
            metric_type=name,
            metric_value=round(value, 4),
            metric_name=title,
        )
        for name, title, value in _list_metrics(expected, results)
    ]
    non_commercial = any(one["is_non_commercial"] for one in starting_weights.values())
    data = ModelCardData(
        **_choose_licence(starting_weights),
        library_name="eav-ray",
        tags=[
            "emotion-recognition",
            *(["multimodal"] if len(description["modalities"]) > 1 else []),
            *description["modalities"],
            *(["onnx"] if description["onnx"] else []),
            *(["non-commercial"] if non_commercial else []),
        ],
        base_model=[one["name"] for one in starting_weights.values() if one["revision"]] or None,
        metrics=[metric.metric_type for metric in metrics] or None,
        model_name=description["name"] if metrics else None,
        eval_results=metrics or None,
    )
    return data.to_yaml()


def _choose_licence(starting_weights: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Choose what the hub shows as licence: that of the weights, where they have one and the same."""
    licences = sorted({one["licence"] for one in starting_weights.values()})
    if not licences or not all(licences):
        return {"license": "unknown"}
    if len(licences) > 1:
        return {"license": "other", "license_name": " and ".join(licences)}
    licence, _, name = licences[0].partition(" ")
    return {"license": licence, **({"license_name": name} if name else {})}


def _list_metrics(expected: Mapping[str, Any] | None, results: ResultsTree | None) -> list[tuple[str, str, float]]:
    """List (metric, title, value) of what was tested, or of what is expected; nothing that was only validated."""
    if results is not None and not results.get("targets"):
        one = results["accuracy"]["sources"][list(results["accuracy"]["sources"])[-1]]
        found = [
            ("accuracy", "Mean accuracy over people", one["mean"]),
            ("balanced_accuracy", "Balanced accuracy", one["balanced"]),
            ("f1", "Macro F1", one["macro_f1"]),
        ]
    elif results is None and expected and "chance" in expected:
        one = expected["scores"][expected["main_source"]]
        where = "expected on people never seen"
        found = [
            ("accuracy", f"Mean accuracy over people, {where}", one["mean"]),
            ("balanced_accuracy", f"Balanced accuracy, {where}", one["balanced"]),
        ]
    else:
        found = []
    return [metric for metric in found if metric[2] is not None]
