"""Encoders beside each other: what each is worth on people, against a reference, what it costs, and the baselines."""

import matplotlib
from matplotlib.figure import Figure

from eav_ray.config import get_modality_info
from eav_ray.evaluation.encoder_comparison import BALANCED_ACCURACY, BASELINE, CCC, RMSE
from eav_ray.evaluation.results_tree import ResultsTree
from eav_ray.reporting.figures import choose_color, make_axes
from eav_ray.reporting.formatting import (
    TEST_COLUMNS,
    apply_format,
    format_interval,
    format_short_percent,
    format_short_points,
)
from eav_ray.reporting.html import Column, Drawing, Note, Part, Section, build_table
from eav_ray.reporting.number_tables import format_correlation, format_error
from eav_ray.reporting.sections.cost import format_load_warning
from eav_ray.reporting.tables import format_table
from eav_ray.words import format_count, format_recordings

MEASURE_TITLES = {BALANCED_ACCURACY: "balanced accuracy, %", CCC: "CCC", RMSE: "RMSE"}
SCORE_FORMATS = {BALANCED_ACCURACY: format_short_percent, CCC: format_correlation, RMSE: format_error}
GAIN_FORMATS = {BALANCED_ACCURACY: format_short_points, CCC: "+.3f", RMSE: "+.3g"}
SIZE_COLUMNS: list[Column] = [
    ("M params", "parameters", lambda count: f"{count / 1e6:.3g}"),
    ("GMAC", "gmac", ".3g"),
    ("train s", "seconds", ".1f"),
    ("ms", "latency_ms", ".1f"),
]


def format_encoders(results: ResultsTree) -> str:
    """Format a table a modality, and of numbers a table a target, for the terminal."""
    lines = []
    for block in results["blocks"]:
        for target, rows in _group_by_target(block).items():
            columns: list[Column] = [
                ("", "model", ""),
                (MEASURE_TITLES[rows[0]["measure"]], "score", ""),
                ("95 %", "bounds", ""),
                (f"better than {block['reference']}", "gain", ""),
                ("95 % of it", "gain_bounds", ""),
                ("p", "p", ".3g"),
                ("Holm", "holm", ".3g"),
                *SIZE_COLUMNS,
                ("verdict", "verdict", ""),
            ]
            table = build_table(_format_rows(rows, block), columns, missing="")
            lines += ["", _describe_block(block, target), format_table(table, ends_with_prose=True)]
        lines += [f"licence: {line}" for line in block["licences"]]
        lines += block["notes"]
    return "\n".join(lines)


def build_encoder_sections(results: ResultsTree) -> list[Section]:
    """Build a section a modality.

    Args:
        results: `encoders.json` of a comparison.
    """
    matplotlib.use("agg")
    sections = []
    for block in results["blocks"]:
        title = get_modality_info(block["modality"]).title
        parts: list[Part] = [_explain(results, block)]
        for target, rows in _group_by_target(block).items():
            measure = rows[0]["measure"]
            columns: list[Column] = [
                ("", "model", ""),
                (MEASURE_TITLES[measure], "score", ""),
                ("SD over people", "sd", SCORE_FORMATS[measure]),
                ("95 %", "bounds", ""),
                ("SD over seeds", "seed_sd", SCORE_FORMATS[measure]),
                ("people", "n_subjects", ""),
                (f"better than {block['reference']}", "gain", ""),
                ("95 % of it", "gain_bounds", ""),
                *TEST_COLUMNS,
            ]
            parts.append(Drawing(_plot_scores(rows, block), _describe_scores(block, target, rows)))
            parts.append(build_table(_format_rows(rows, block), columns, title=target, left=True))
        encoders = [row | row["cost"] for row in block["rows"] if row["cost"]]
        costs: list[Column] = [
            ("", "model", ""),
            ("parameters", "parameters", ",.0f"),
            ("GMAC a window", "gmac", ".3g"),
            ("training of a fold, s", "seconds", ".1f"),
            ("latency, ms", "latency_ms", ".1f"),
            ("95th percentile, ms", "p95_ms", ".1f"),
        ]
        unique = {row["model"]: row for row in encoders}
        parts.append(build_table(unique.values(), costs, title="What they cost"))
        parts += [Note(line) for line in (*block["licences"], *block["notes"])]
        sections.append(Section(f"Encoders of {title}", parts))
    return sections


def describe_comparison(results: ResultsTree) -> str:
    """Describe what was compared on what, in one line."""
    seeds = format_count(len(results["seeds"]), "seed")
    return f"{results['protocol']}, {seeds}; access {results['access']}"


def describe_latency(results: ResultsTree) -> str:
    """Describe where latency was measured."""
    hardware = results["hardware"]
    text = f"latency: one window, {format_count(hardware['threads'], 'thread')} of {hardware['device']}"
    return text + format_load_warning(hardware)


def _group_by_target(block: ResultsTree) -> dict[str, list[ResultsTree]]:
    targets = dict.fromkeys(row["target"] for row in block["rows"])
    return {target: [row for row in block["rows"] if row["target"] == target] for target in targets}


def _describe_block(block: ResultsTree, target: str) -> str:
    title = get_modality_info(block["modality"]).title + (f", {target}" if target else "")
    counts = format_recordings(block["recordings"], block["n_subjects"])
    return f"{title}: {counts}, {format_count(block['folds'], 'fold')}"


def _explain(results: ResultsTree, block: ResultsTree) -> str:
    seeds = results["seeds"]
    averaged = f" Scores are averaged over {len(seeds)} seeds within each person first." if len(seeds) > 1 else ""
    return (
        f"{_describe_block(block, '')} of {results['protocol']} (access {results['access']}), the same for all. A "
        f"score is the mean over people, with an interval over people.{averaged} Differences to "
        f"{block['reference']} are paired over people, by Wilcoxon's signed ranks, and corrected by Holm for all rows "
        "of the modality. Baselines are classifiers on features that nothing was trained for. Training: seconds of "
        f"all epochs of a fold, the mean over folds, by {format_count(results['hardware']['workers'], 'worker')}; "
        f"{describe_latency(results)}."
    )


def _format_rows(rows: list[ResultsTree], block: ResultsTree) -> list[ResultsTree]:
    """Format numbers as the measure wants them; the last row is chance, where it is known."""
    formatted = []
    for row in rows:
        score, gain = SCORE_FORMATS[row["measure"]], GAIN_FORMATS[row["measure"]]
        entry = row | row["cost"] | {"score": apply_format(row["mean"], score)}
        entry["bounds"] = format_interval(row["interval"], score)
        if comparison := row["comparison"]:
            difference = comparison["difference"]
            entry |= comparison | {"gain": apply_format(difference, gain)}
            entry["gain_bounds"] = format_interval(comparison["interval"], gain)
        formatted.append(entry)
    measure = rows[0]["measure"]
    if (chance := block["chance"].get(measure)) is not None:
        formatted.append({"model": "chance", "score": apply_format(chance, SCORE_FORMATS[measure])})
    return formatted


def _plot_scores(rows: list[ResultsTree], block: ResultsTree) -> Figure:
    """Plot the score of each model with its interval over people; baselines are grey, and chance is the line."""
    measure = rows[0]["measure"]
    figure, axes = make_axes(7.5, 0.9 + 0.3 * len(rows))
    axes.spines[["top", "right"]].set_visible(False)
    scale = 100 if measure == BALANCED_ACCURACY else 1
    for at, row in enumerate(rows):
        color = "0.55" if row["kind"] == BASELINE else choose_color(block["modality"])
        if row["mean"] is None:
            continue
        if None not in row["interval"]:
            axes.plot([scale * bound for bound in row["interval"]], [at, at], color=color, lw=1.4)
        axes.plot([scale * row["mean"]], [at], "o", color=color, ms=5)
    if (chance := block["chance"].get(measure)) is not None:
        axes.axvline(scale * chance, color="0.3", lw=1, ls="--")
    axes.set_yticks(range(len(rows)), [row["model"] for row in rows], fontsize=8)
    axes.set(xlabel=f"{MEASURE_TITLES[measure]}; 95 % intervals over people", ylim=(len(rows) - 0.4, -0.6))
    return figure


def _describe_scores(block: ResultsTree, target: str, rows: list[ResultsTree]) -> str:
    measure = rows[0]["measure"]
    parts = [f"{row['model']} {apply_format(row['mean'], SCORE_FORMATS[measure])}" for row in rows]
    return f"{_describe_block(block, target)}. {MEASURE_TITLES[measure]}: {'; '.join(parts)}."
