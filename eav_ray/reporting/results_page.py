"""The page that says what a result is worth: one HTML file, drawn from `results.json` and nothing else."""

import html
from collections.abc import Sequence

import matplotlib

from eav_ray.evaluation.results_tree import ResultsTree
from eav_ray.reporting.formatting import format_interval, format_percent
from eav_ray.reporting.html import render_document
from eav_ray.reporting.sections.accuracy import render_accuracy, render_comparisons, render_seeds, render_subjects
from eav_ray.reporting.sections.diagnostics import (
    render_band_power,
    render_calibration,
    render_confusion,
    render_generalization_gap,
    render_learning_curves,
    render_signal_quality,
    render_worst_subjects,
)
from eav_ray.reporting.sections.modalities import render_modality_collapse, render_modality_weights
from eav_ray.reporting.sections.protocols import render_protocols, render_reference
from eav_ray.reporting.sections.provenance import (
    render_leak_audit,
    render_provenance,
    render_search_summary,
    render_skipped_results,
)

RESULTS_FORMAT = 1  # of results.json


def render_results_page(results: ResultsTree, extra_sections: Sequence[str] = ()) -> str:
    """The whole page.

    Args:
        results: What `pipelines.evaluate` gathers, as it is in `results.json`.
        extra_sections: Sections of what other commands measured: ablation, robustness, cost, a search.
    """
    matplotlib.use("agg")
    parts = [_render_headline(results), render_accuracy(results)]
    for name, render in (
        ("protocols", render_protocols),
        ("reference", render_reference),
        ("subjects", render_subjects),
        ("comparisons", render_comparisons),
        ("seeds", render_seeds),
        ("confusion", render_confusion),
        ("weights", render_modality_weights),
        ("modality_collapse", render_modality_collapse),
        ("calibration", render_calibration),
        ("histories", render_learning_curves),
        ("generalization_gap", render_generalization_gap),
        ("worst_subjects", render_worst_subjects),
        ("quality", render_signal_quality),
        ("band_power", render_band_power),
        ("search", render_search_summary),
    ):
        if results.get(name):
            parts.append(render(results))
    parts += [*extra_sections, render_leak_audit(results), *render_skipped_results(results), render_provenance(results)]
    return render_document(results["title"], parts, contents=True)


def _render_headline(results: ResultsTree) -> str:
    accuracy = results["accuracy"]
    main_source = list(accuracy["sources"])[-1]
    one = accuracy["sources"][main_source]
    kind = "balanced" if accuracy["unequal"] else "mean"
    low_high = one["balanced_interval" if accuracy["unequal"] else "interval"]
    name = "balanced accuracy" if accuracy["unequal"] else "accuracy"
    chance = accuracy["chance"]
    headline = (
        f"{main_source}: {name} {format_percent(one[kind])} % (95 % {format_interval(low_high)}) over "
        f"{accuracy['recordings']} recordings of {accuracy['n_subjects']} people {results['separation']}; chance "
        f"{format_percent(chance['level'])} %"
    )
    if one["inside_chance"]:
        headline += "; this is inside the band of chance"
    return (
        f"<h1>{html.escape(results['title'])}</h1><p><strong>{html.escape(headline)}.</strong></p>"
        f"<p>{html.escape(results['description'])}</p>"
    )
