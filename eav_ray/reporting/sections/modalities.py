"""Sections of the results page on modality weights and modality collapse."""

from eav_ray.evaluation.results_tree import ResultsTree
from eav_ray.reporting import figures
from eav_ray.reporting.formatting import apply_format
from eav_ray.reporting.html import Drawing, Folded, Note, Section, Table, build_table
from eav_ray.words import format_count


def build_modality_weights(results: ResultsTree) -> Section:
    weights, modalities = results["weights"], results["modalities"]
    figure = Drawing(
        figures.plot_modality_weights(weights, modalities),
        "Mean modality weights by class: as attended, and after division by each modality's number of tokens.",
    )
    notes = [Note("A weight says where attention went, not what the answer rests on: see ablation and robustness.")]
    tests = [
        f"{m}: p = {apply_format(one['p'], '.3g')}, {format_count(one['n_subjects'], 'person')}"
        for m, one in weights["classes_differ"].items()
    ]
    if tests:
        tested = f"Do weights differ between classes? Friedman's test over people: {'; '.join(tests)}."
        notes.insert(0, Note(tested))
    by_subject = Folded("By person", build_weight_table(results, "subject"))
    return Section("Modality weights", [figure, build_weight_table(results, "class"), by_subject, *notes])


def build_weight_table(results: ResultsTree, unit: str) -> Table:
    """Build the table of weights by `class` or by `subject`."""
    corrected = results["weights"]["corrected"][f"by_{unit}"]
    rows = [
        {"name": name, **row} | {f"{m}, per token": corrected[name][m] for m in results["modalities"]}
        for name, row in results["weights"]["weight"][f"by_{unit}"].items()
    ]
    names = [*results["modalities"], *(f"{m}, per token" for m in results["modalities"])]
    return build_table(rows, [(unit, "name", ""), *((name, name, ".3f") for name in names)])


def build_modality_collapse(results: ResultsTree) -> Section:
    columns = [("fold", "fold", ""), ("check", "check", ""), ("finding", "text", "")]
    note = Note("What the check of each trained fusion found: a modality that is not used, or has all the weight.")
    return Section("Modality collapse", [build_table(results["modality_collapse"], columns, left=True), note])
