"""Sections of the results page on the search, the leak audit and how to reproduce the result."""

import html
import json

from eav_ray.evaluation.results_tree import ResultsTree
from eav_ray.reporting.formatting import format_percent, format_points, format_value
from eav_ray.reporting.html import render_note, render_section, render_table


def render_search_summary(results: ResultsTree) -> str:
    lines = []
    for one in results["search"]:
        changes = ", ".join(f"{k}={format_value(v)}" for k, v in (one["changes"] or {}).items())
        optimism = None if None in (one["inner_score"], one["test"]) else one["inner_score"] - one["test"]
        lines.append(
            [
                one["study"],
                str(one["candidates"]),
                format_percent(one["inner_score"]),
                format_percent(one["test"]),
                format_points(optimism),
                changes,
            ]
        )
    head = ["study", "candidates", "inner folds", "tested", "optimism, points", "chosen"]
    explanation = "Balanced accuracy of recordings, percent. The best of many is too good by luck: believe its test."
    if len(lines) > 1:
        explanation += f" Candidates are shown of the first alone, {results['search'][0]['study']}."
    return render_section("Search", render_table(head, lines, "left"), render_note(explanation))


def render_leak_audit(results: ResultsTree) -> str:
    audit, lines = results["audit"], []
    for name in dict.fromkeys(one["name"] for one in audit["checks"]):
        same_check = [one for one in audit["checks"] if one["name"] == name]
        performed = [one for one in same_check if one["passed"] is not None]
        passed = (
            f"{sum(one['passed'] for one in performed)} of {len(same_check)} passed" if performed else "not looked at"
        )
        lines.append(
            [
                name,
                passed,
                same_check[0]["detail"] + (f" (fold {same_check[0]['fold']})" if len(same_check) > 1 else ""),
            ]
        )
    explanation = (
        "Derived again from each checkpoint's own split.json, its weights and the content of the windows. A run that "
        f"fails has no page. sha256 of the summary: {audit['sha256']}."
    )
    return render_section(
        "Leak audit", render_note(explanation), render_table(["check", "checkpoints", "detail"], lines, "left")
    )


def render_skipped_results(results: ResultsTree) -> list[str]:
    lines = results.get("skipped_results") or []
    explanation = "What the results store has beside these checkpoints and could not be read is not on this page."
    return (
        [
            render_section(
                "Skipped results", render_note(explanation), render_table(["what"], [[line] for line in lines], "left")
            )
        ]
        if lines
        else []
    )


def render_provenance(results: ResultsTree) -> str:
    lines = [
        [k, v if isinstance(v, str) else json.dumps(v)] for k, v in results["provenance"].items() if k != "command"
    ]
    command = f"<pre>{html.escape(results['provenance']['command'])}</pre>"
    return render_section("Reproduce", command, render_table(["", ""], lines, "left"))
