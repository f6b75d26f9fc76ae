"""Sections of the results page on trainings, signals, protocols and searches, where numbers are predicted."""

from matplotlib.figure import Figure

from eav_ray.evaluation.number_scores import CONSTANT_SOURCE
from eav_ray.evaluation.results_tree import ResultsTree
from eav_ray.reporting import figures, number_figures
from eav_ray.reporting.formatting import TEST_COLUMNS, format_changes, format_interval
from eav_ray.reporting.html import Column, Drawing, Folded, Note, Part, Section, build_table
from eav_ray.reporting.number_tables import format_correlation, format_error
from eav_ray.reporting.sections.diagnostics import build_curve_section, build_quality_section, list_measures
from eav_ray.reporting.sections.modalities import build_weight_table
from eav_ray.reporting.sections.numbers import find_main_source
from eav_ray.reporting.sections.protocols import PROTOCOLS_NOTE, list_missing_protocols

CURVE_LIMITS = (-0.2, 1.0)  # of CCC


def build_number_weights(results: ResultsTree) -> Section:
    """Build the modality weights over all recordings, and by person."""
    weights, modalities = results["weights"], results["modalities"]
    by_group = {kind: {"by_class": {"all recordings": one["all"]}} for kind, one in weights.items()}
    figure = Drawing(
        figures.plot_modality_weights(by_group, modalities),
        "Mean modality weights: as attended, and after division by each modality's number of tokens.",
    )
    note = Note("A weight says where attention went, not what the answer rests on.")
    return Section("Modality weights", [figure, Folded("By person", build_weight_table(results, "subject")), note])


def build_number_curves(results: ResultsTree) -> Section:
    """Build the curves of each training."""

    def plot(histories: ResultsTree) -> Figure:
        score = figures.ValidationScore(_find_score(histories), "validation, CCC", CURVE_LIMITS)
        return figures.plot_learning_curves(histories, score)

    return build_curve_section(results["histories"], plot)


def _find_score(histories: ResultsTree) -> str:
    """Find the key under which trainings measured the CCC of their validation side; empty where they did not."""
    keys = (key for history in histories.values() for epoch in history for key in epoch)
    return next((key for key in keys if key.endswith("ccc")), "")


def build_number_gap(results: ResultsTree) -> Section:
    """Build the table of errors on the training side and the test side."""
    rows = [
        one | {"gap": None if None in (one["train"], one["test"]) else one["test"] - one["train"]}
        for one in results["generalization_gap"]
    ]
    columns: list[Column] = [
        ("target", "target", ""),
        ("source", "source", ""),
        ("RMSE, trained on", "train", format_error),
        ("RMSE, tested", "test", format_error),
        ("gap", "gap", "+.3g"),
        ("recordings of training", "recordings", ""),
    ]
    note = Note(
        "RMSE over all recordings together that have the source, evenly taken of training: another mean than over "
        "people, as above."
    )
    return Section("Training against test", [build_table(rows, columns), note])


def build_worst_number_subjects(results: ResultsTree) -> Section:
    """Build the table of the people with the lowest scores of each target."""
    main_source = find_main_source(results)
    rows = [
        {**one, **{key: (one.get(main_source) or {}).get(key) for key in ("ccc", "rmse", "bias")}}
        for one in results["worst_subjects"]
    ]
    columns: list[Column] = [
        ("target", "target", ""),
        ("subject", "subject", ""),
        ("recordings", "recordings", ""),
        (f"{main_source}: CCC", "ccc", format_correlation),
        ("RMSE", "rmse", format_error),
        ("bias", "bias", "+.3g"),
        ("measured of their signals", "signal_quality", list_measures),
    ]
    return Section("Worst people", [build_table(rows, columns, left=True)])


def build_number_quality(results: ResultsTree) -> Section:
    """Build the correlations of scores with what preprocessing measured."""
    rows = []
    for one in results["quality"]:
        score = number_figures.TITLES[one["measure"]]
        rows.append(one | {"score": score, "axis": score, "described": f"{one['source']}, {one['target']}"})
    columns: list[Column] = [
        ("target", "target", ""),
        ("measured", "name", ""),
        ("score", "score", ""),
        ("of", "source", ""),
    ]
    hint = "A higher CCC is better, a higher RMSE is worse."
    title = "Signal quality against scores"
    return build_quality_section(title, rows, columns, hint=hint)


def build_number_protocols(results: ResultsTree) -> Section:
    """Build the table of protocols side by side."""
    protocols = results["protocols"]
    rows = protocols["rows"]
    sources = [s for s in dict.fromkeys(row["source"] for row in rows) if s != CONSTANT_SOURCE]
    columns: list[Column] = [
        ("protocol", "protocol", ""),
        ("target", "target", ""),
        ("source", "source", ""),
        ("CCC", "ccc", format_correlation),
        ("Pearson", "pearson", format_correlation),
        ("RMSE", "rmse", format_error),
        ("people", "n_counted", ""),
        ("recordings", "recordings", ""),
    ]
    parts: list[Part] = [
        Note(f"The same experiment under each protocol that was run. {PROTOCOLS_NOTE}"),
        Drawing(number_figures.plot_number_protocols(rows, sources), "CCC of each source under each protocol."),
        build_table(rows, columns),
    ]
    if protocols["inflation"]:
        columns = [
            ("protocol", "protocol", ""),
            ("against", "base", ""),
            ("target", "target", ""),
            ("source", "source", ""),
            ("people", "n_subjects", ""),
            ("CCC", "difference", "+.3f"),
            ("95 % interval", "interval", lambda pair: format_interval(pair, "+.3f")),
            *TEST_COLUMNS,
        ]
        parts.append(build_table(protocols["inflation"], columns, left=True, title="What a protocol adds"))
    parts += list_missing_protocols(protocols)
    return Section("Protocols side by side", parts)


def build_number_search(results: ResultsTree) -> Section:
    """Build the table of searches: what was promised, and what came of it."""
    rows = []
    for one in results["search"]:
        optimism = None if None in (one["inner_score"], one["test"]) else one["inner_score"] - one["test"]
        rows.append(one | {"optimism": optimism, "changes": format_changes(one["changes"])})
    columns: list[Column] = [
        ("study", "study", ""),
        ("candidates", "candidates", ""),
        ("inner folds", "inner_score", format_correlation),
        ("tested", "test", format_correlation),
        ("optimism", "optimism", "+.3f"),
        ("chosen", "changes", ""),
    ]
    explanation = "Mean CCC of the targets. The best of many is too good by luck: believe its test."
    if len(rows) > 1:
        explanation += f" Candidates are shown of the first alone, {rows[0]['study']}."
    return Section("Search", [build_table(rows, columns, left=True), Note(explanation)])
