"""A model card (Mitchell et al. 2019, doi:10.1145/3287560.3287596) from the numbers of `results.json`."""

from typing import Any

from eav_ray.evaluation.results_tree import ResultsTree
from eav_ray.reporting.html import render_template
from eav_ray.reporting.number_tables import list_score_rows
from eav_ray.reporting.sections.numbers import describe_number_result, find_main_source
from eav_ray.reporting.sections.provenance import describe_outcomes, list_facts


def render_final_model_card(results: ResultsTree) -> str:
    """Render the card of a model of all subjects in Markdown: it has an expected result in place of a tested one."""
    return render_template("final_model_card.md.jinja", **results, facts=list_facts(results))


def render_model_card(results: ResultsTree) -> str:
    """Render the card in Markdown."""
    audit_outcome = describe_outcomes(results["audit"]["outcomes"])
    values = collect_card_values(results)
    return render_template("model_card.md.jinja", **values, facts=list_facts(results), audit_outcome=audit_outcome)


def collect_card_values(results: ResultsTree) -> dict[str, Any]:
    """Collect what the templates of cards show of `results.json`."""
    values = {"worst_subjects": None, "modality_collapse": None, "single_class": None, "targets": None, **results}
    return values | (_collect_number_values if results.get("targets") else _collect_class_values)(results)


def _collect_class_values(results: ResultsTree) -> dict[str, Any]:
    main_source = list(results["accuracy"]["sources"])[-1]
    calibration = (results.get("calibration") or {}).get(main_source, {})
    return {"main_source": main_source, "ece": calibration.get("raw", {}).get("ece")}


def _collect_number_values(results: ResultsTree) -> dict[str, Any]:
    targets = results["scores"]["targets"]
    main_source = find_main_source(results)
    rows = [
        {"target": name, "level": target["level"], **row}
        for name, target in targets.items()
        for row in list_score_rows(target)
    ]
    headline = describe_number_result(results)
    return {"main_source": main_source, "ece": None, "score_rows": rows, "headline": headline}
