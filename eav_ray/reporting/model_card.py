"""A model card (Mitchell et al. 2019, doi:10.1145/3287560.3287596) from the numbers of `results.json`."""

from eav_ray.evaluation.results_tree import ResultsTree
from eav_ray.reporting.html import render_template
from eav_ray.reporting.sections.provenance import describe_outcomes, list_facts


def render_final_model_card(results: ResultsTree) -> str:
    """Render the card of a model of all subjects in Markdown: it has an expected result in place of a tested one."""
    return render_template("final_model_card.md.jinja", **results, facts=list_facts(results))


def render_model_card(results: ResultsTree) -> str:
    """Render the card in Markdown."""
    main_source = list(results["accuracy"]["sources"])[-1]
    calibration = (results.get("calibration") or {}).get(main_source, {})
    values = {
        "worst_subjects": None,
        "modality_collapse": None,
        "single_class": None,
        **results,
        "main_source": main_source,
    }
    ece = calibration.get("raw", {}).get("ece")
    audit_outcome = describe_outcomes(results["audit"]["outcomes"])
    return render_template(
        "model_card.md.jinja", **values, ece=ece, facts=list_facts(results), audit_outcome=audit_outcome
    )
