"""Sections of the results page on protocols and published results."""

from eav_ray.evaluation.results_tree import ResultsTree
from eav_ray.reporting import figures
from eav_ray.reporting.formatting import PUBLISHED_LABEL, TEST_COLUMNS, format_interval, format_percent, format_points
from eav_ray.reporting.html import Drawing, Note, Part, Section, build_table
from eav_ray.reporting.sections.accuracy import UNIT_COLUMNS

PROTOCOLS_NOTE = (
    "paper and within test people of whom other recordings were trained on; subject_kfold and loso test strangers. "
    "What a protocol adds is no better model: it is another question."
)


def build_protocols(results: ResultsTree) -> Section:
    protocols = results["protocols"]
    rows = [row | {"source": s, **one} for row in protocols["rows"] for s, one in row["sources"].items()]
    columns = [
        ("protocol", "protocol", ""),
        ("people", "n_subjects", ""),
        ("recordings", "recordings", ""),
        ("source", "source", ""),
        *UNIT_COLUMNS,
        ("SD over people", "sd", format_percent),
    ]
    figure = figures.plot_protocols(protocols["rows"])
    parts: list[Part] = [
        Note(f"The same experiment under each protocol that was run, percent, mean over people. {PROTOCOLS_NOTE}"),
        Drawing(figure, "Accuracy of each source under each protocol, by unit of scoring."),
        build_table(rows, columns),
    ]
    if protocols["inflation"]:
        rows = [one | {"asked": f"{one['protocol']}, per {one['unit']}"} for one in protocols["inflation"]]
        columns = [
            ("protocol", "asked", ""),
            ("against", "base", ""),
            ("source", "source", ""),
            ("people", "n_subjects", ""),
            ("points", "difference", format_points),
            ("95 % interval", "interval", lambda pair: format_interval(pair, format_points)),
            *TEST_COLUMNS,
        ]
        parts.append(build_table(rows, columns, left=True, title="What a protocol adds"))
    parts += list_missing_protocols(protocols)
    return Section("Protocols side by side", parts)


def list_missing_protocols(protocols: ResultsTree) -> list[Part]:
    """List the protocols that were not run, in a note; nothing where all were."""
    missing = ", ".join(protocols["missing"])
    return [Note(f"Not run yet: {missing}; `eav protocol` with split.protocol runs them.")] if missing else []


def build_reference(results: ResultsTree) -> Section:
    reference = results["reference"]
    columns = [
        ("source", "ours", ""),
        ("people", "n_subjects", ""),
        ("ours", "mean", format_percent),
        (PUBLISHED_LABEL, "published", format_percent),
        ("points", "difference", format_points),
        ("95 % interval", "interval", lambda pair: format_interval(pair, format_points)),
        *TEST_COLUMNS,
    ]
    note = Note(f"Published: {reference['source']}. Paired over people. {reference['note']}")
    return Section("Against the published reference", [build_table(reference["rows"], columns, left=True), note])
