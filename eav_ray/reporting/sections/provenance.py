"""Sections of the results page on the search, the leak audit and how to reproduce the result."""

import json
from collections.abc import Mapping

from eav_ray.evaluation.results_tree import ResultsTree
from eav_ray.reporting.formatting import format_changes, format_percent, format_points
from eav_ray.reporting.html import Command, Note, Section, Table, build_table


def build_search_summary(results: ResultsTree) -> Section:
    rows = []
    for one in results["search"]:
        optimism = None if None in (one["inner_score"], one["test"]) else one["inner_score"] - one["test"]
        rows.append(one | {"optimism": optimism, "changes": format_changes(one["changes"])})
    columns = [
        ("study", "study", ""),
        ("candidates", "candidates", ""),
        ("inner folds", "inner_score", format_percent),
        ("tested", "test", format_percent),
        ("optimism, points", "optimism", format_points),
        ("chosen", "changes", ""),
    ]
    explanation = "Balanced accuracy of recordings, percent. The best of many is too good by luck: believe its test."
    if len(rows) > 1:
        explanation += f" Candidates are shown of the first alone, {rows[0]['study']}."
    return Section("Search", [build_table(rows, columns, left=True), Note(explanation)])


def build_leak_audit(results: ResultsTree) -> Section:
    audit, rows = results["audit"], []
    for name in dict.fromkeys(one["name"] for one in audit["checks"]):
        same_check = [one for one in audit["checks"] if one["name"] == name]
        outcomes = [one["outcome"] for one in same_check]
        parts = [f"{outcomes.count(o)} {o}" for o in ("passed", "failed", "cannot tell") if o in outcomes]
        # What is open comes before what is settled.
        shown = next((one for one in same_check if one["outcome"] != "passed"), same_check[0])
        fold = f" (fold {shown['fold']})" if len(same_check) > 1 else ""
        rows.append([name, ", ".join(parts), shown["detail"] + fold])
    n_open = audit["outcomes"]["cannot tell"]
    note = Note(
        "Derived again from each checkpoint's own split.json, its weights and the content of the windows. A run that "
        f"fails has no page. {describe_outcomes(audit['outcomes'])}"
        f"{', which is not a pass' if n_open else ''}. sha256 of the checkpoints and what was found: {audit['sha256']}."
    )
    return Section("Leak audit", [note, Table(["check", "checkpoints", "detail"], rows, left=True)])


def describe_outcomes(outcomes: Mapping[str, int]) -> str:
    """Say how the checks of an audit ended: "21 checks passed, 0 failed, 3 cannot tell"."""
    return f"{outcomes['passed']} checks passed, {outcomes['failed']} failed, {outcomes['cannot tell']} cannot tell"


def build_skipped_results(results: ResultsTree) -> Section:
    note = Note("What the results store has beside these checkpoints and could not be read is not on this page.")
    return Section("Skipped results", [note, Table(["what"], [[r] for r in results["skipped_results"]], left=True)])


def build_provenance(results: ResultsTree) -> Section:
    command = Command(results["provenance"]["command"])
    return Section("Reproduce", [command, Table(["", ""], list_facts(results), left=True)])


def list_facts(results: ResultsTree) -> list[list[str]]:
    """List names and values of what a result depends on."""
    facts = {name: value for name, value in results["provenance"].items() if name != "command"}
    return [[name, value if isinstance(value, str) else json.dumps(value)] for name, value in facts.items()]
