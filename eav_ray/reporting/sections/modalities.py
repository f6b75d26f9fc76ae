"""Sections of the results page on modality weights and modality collapse."""

from eav_ray.evaluation.results_tree import ResultsTree
from eav_ray.reporting import figures
from eav_ray.reporting.formatting import format_decimal, format_p_value
from eav_ray.reporting.html import render_figure, render_note, render_section, render_table


def render_modality_weights(results: ResultsTree) -> str:
    weights, modalities = results["weights"], results["modalities"]
    parts = [
        render_figure(
            figures.plot_modality_weights(weights, modalities),
            "Mean modality weights by class: as attended, and after division by each modality's number of tokens.",
        )
    ]
    head = ["class", *modalities, *(f"{m}, per token" for m in modalities)]
    by_class = weights["weight"]["by_class"]
    lines = [
        [
            k,
            *(format_decimal(row[m]) for m in modalities),
            *(format_decimal(weights["corrected"]["by_class"][k][m]) for m in modalities),
        ]
        for k, row in by_class.items()
    ]
    parts.append(render_table(head, lines))
    head[0] = "subject"
    by_subject = weights["weight"]["by_subject"]
    lines = [
        [
            k,
            *(format_decimal(row[m]) for m in modalities),
            *(format_decimal(weights["corrected"]["by_subject"][k][m]) for m in modalities),
        ]
        for k, row in by_subject.items()
    ]
    parts.append(f"<details><summary>By person</summary>{render_table(head, lines)}</details>")
    tests = [
        f"{m}: p = {format_p_value(one['p'])}, {one['n_subjects']} people"
        for m, one in weights["classes_differ"].items()
    ]
    if tests:
        parts.append(
            render_note(f"Do weights differ between classes? Friedman's test over people: {'; '.join(tests)}.")
        )
    parts.append(
        render_note("A weight says where attention went, not what the answer rests on: see ablation and robustness.")
    )
    return render_section("Modality weights", *parts)


def render_modality_collapse(results: ResultsTree) -> str:
    lines = [[str(one["fold"]), one["check"], one["text"]] for one in results["modality_collapse"]]
    explanation = render_note(
        "What the check of each trained fusion found: a modality that is not used, or has all the weight."
    )
    return render_section("Modality collapse", render_table(["fold", "check", "finding"], lines, "left"), explanation)
