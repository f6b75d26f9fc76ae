"""The page that says what a result is worth: one HTML file, drawn from `results.json` and nothing else."""

from collections.abc import Sequence

import matplotlib

from eav_ray.evaluation.results_tree import ResultsTree
from eav_ray.reporting.formatting import format_interval, format_percent
from eav_ray.reporting.html import Page, Section
from eav_ray.reporting.sections import (
    accuracy,
    baselines,
    diagnostics,
    modalities,
    number_diagnostics,
    numbers,
    protocols,
    provenance,
)
from eav_ray.words import format_count

RESULTS_FORMAT = 2  # of results.json

# Key of results.json -> its section, in the order of the page: sections of other commands come between.
RESULT_SECTIONS = {
    "accuracy": accuracy.build_accuracy,
    "single_class": accuracy.build_single_class,
    "baselines": baselines.build_baselines,
    "protocols": protocols.build_protocols,
    "reference": protocols.build_reference,
    "subjects": accuracy.build_subjects,
    "comparisons": accuracy.build_comparisons,
    "seeds": accuracy.build_seeds,
    "confusion": diagnostics.build_confusion,
    "weights": modalities.build_modality_weights,
    "modality_collapse": modalities.build_modality_collapse,
    "calibration": diagnostics.build_calibration,
    "histories": diagnostics.build_learning_curves,
    "generalization_gap": diagnostics.build_generalization_gap,
    "worst_subjects": diagnostics.build_worst_subjects,
    "quality": diagnostics.build_signal_quality,
    "band_power": diagnostics.build_band_power,
    "search": provenance.build_search_summary,
}
# The same, where numbers are predicted.
NUMBER_SECTIONS = {
    "scores": numbers.build_scores,
    "points": numbers.build_points,
    "baselines": baselines.build_number_baselines,
    "protocols": number_diagnostics.build_number_protocols,
    "subjects": numbers.build_number_subjects,
    "comparisons": numbers.build_number_comparisons,
    "seeds": numbers.build_number_seeds,
    "weights": number_diagnostics.build_number_weights,
    "modality_collapse": modalities.build_modality_collapse,
    "histories": number_diagnostics.build_number_curves,
    "generalization_gap": number_diagnostics.build_number_gap,
    "worst_subjects": number_diagnostics.build_worst_number_subjects,
    "quality": number_diagnostics.build_number_quality,
    "search": number_diagnostics.build_number_search,
}
ORIGIN_SECTIONS = {
    "audit": provenance.build_leak_audit,
    "skipped_results": provenance.build_skipped_results,
    "provenance": provenance.build_provenance,
}


def render_results_page(results: ResultsTree, extra_sections: Sequence[Section] = ()) -> str:
    """Render the whole page.

    Args:
        results: What `pipelines.evaluate` gathers, as it is in `results.json`.
        extra_sections: Sections of what other commands measured: ablation, robustness, cost, a search.
    """
    matplotlib.use("agg")
    result_sections, describe_result = RESULT_SECTIONS, _describe_result
    if results.get("targets"):
        result_sections, describe_result = NUMBER_SECTIONS, numbers.describe_number_result
    own, origin = (
        [section for name, build in builders.items() if results.get(name) and (section := build(results))]
        for builders in (result_sections, ORIGIN_SECTIONS)
    )
    return Page(
        results["title"],
        [*own, *extra_sections, *origin],
        heading=results["title"],
        headline=describe_result(results),
        introduction=results["description"],
        contents=True,
    ).render()


def _describe_result(results: ResultsTree) -> str:
    scores = results["accuracy"]
    main_source, one = list(scores["sources"].items())[-1]
    name, mean, interval = "accuracy", one["mean"], one["interval"]
    if scores["unequal"]:
        name, mean, interval = "balanced accuracy", one["balanced"], one["balanced_interval"]
    bounds = "no interval" if None in interval else f"95 % {format_interval(interval)}"
    within_chance = "; this is inside the band of chance" if one["inside_chance"] else ""
    return (
        f"{main_source}: {name} {format_percent(mean)} % ({bounds}) over "
        f"{format_count(scores['recordings'], 'recording')} of {format_count(scores['n_subjects'], 'person')} "
        f"{results['separation']}; access to them "
        f"{results['access']['level']}; chance {format_percent(scores['chance']['level'])} %{within_chance}."
    )
