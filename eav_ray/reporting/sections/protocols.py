"""Sections of the results page on protocols and published results."""

from eav_ray.evaluation.results_tree import ResultsTree
from eav_ray.reporting import figures
from eav_ray.reporting.formatting import PUBLISHED_LABEL, format_p_value, format_percent, format_points
from eav_ray.reporting.html import render_figure, render_note, render_section, render_table


def render_protocols(results: ResultsTree) -> str:
    protocols = results["protocols"]
    rows = [
        [row["protocol"], str(row["n_subjects"]), str(row["recordings"]), source]
        + [format_percent(one[unit]) for unit in ("frame", "window", "recording")]
        + [format_percent(one["sd"])]
        for row in protocols["rows"]
        for source, one in row["sources"].items()
    ]
    head = ["protocol", "people", "recordings", "source", "per frame", "per window", "per recording", "SD over people"]
    parts = [
        render_note(
            "The same experiment under each protocol that was run, percent, mean over people. paper and within test "
            "people of whom other recordings were trained on; subject_kfold and loso test strangers. What a protocol "
            "adds is no better model: it is another question."
        ),
        render_figure(
            figures.plot_protocols(protocols["rows"]),
            "Accuracy of each source under each protocol, by unit of scoring.",
        ),
        render_table(head, rows),
    ]
    if protocols["inflation"]:
        lines = [
            [f"{one['protocol']}, per {one['unit']}", one["base"], one["source"], str(one["n_subjects"])]
            + [format_points(one["difference"])]
            + [format_p_value(one["p"]), format_p_value(one["holm"]), f"{one['effect']:+.2f}", one["verdict"]]
            for one in protocols["inflation"]
        ]
        head = ["protocol", "against", "source", "people", "points", "Wilcoxon p", "Holm", "rank-biserial", "verdict"]
        parts += ["<h3>What a protocol adds</h3>", render_table(head, lines, "left")]
    if protocols["missing"]:
        parts.append(
            render_note(
                f"Not run yet: {', '.join(protocols['missing'])}; `eav protocol` with split.protocol runs them."
            )
        )
    return render_section("Protocols side by side", *parts)


def render_reference(results: ResultsTree) -> str:
    lines = [
        [
            one["ours"],
            str(one["n_subjects"]),
            format_percent(one["mean"]),
            format_percent(one["published"]),
            format_points(one["difference"]),
        ]
        + [format_p_value(one["p"]), format_p_value(one["holm"]), f"{one['effect']:+.2f}", one["verdict"]]
        for one in results["reference"]["rows"]
    ]
    head = ["source", "people", "ours", PUBLISHED_LABEL, "points", "Wilcoxon p", "Holm", "rank-biserial", "verdict"]
    explanation = f"Published: {results['reference']['source']}. Paired over people. {results['reference']['note']}"
    return render_section(
        "Against the published reference", render_table(head, lines, "left"), render_note(explanation)
    )
