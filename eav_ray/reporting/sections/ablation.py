"""What each part of an experiment is worth: its variants beside it, on the same recordings, paired over people."""

from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eav_ray.config import get_modality_info
from eav_ray.evaluation.ablation_variants import ABLATION_PARTS, format_subset_name
from eav_ray.evaluation.comparisons import format_subjects_wanted
from eav_ray.reporting.figures import add_legend, make_axes
from eav_ray.reporting.formatting import (
    format_bounds,
    format_mean,
    format_point_bounds,
    format_short_percent,
    format_short_points,
)
from eav_ray.reporting.html import Column, Drawing, Section, build_table
from eav_ray.reporting.tables import format_table
from eav_ray.words import format_recordings

GROUP_TITLES = {
    "subsets": "Modality subsets",
    "kinds": "Kinds of fusion",
    "dropout": "Modality dropout",
    "positions": "Time marks of tokens",
    "sizes": "Sizes",
}
GROUP_NOTES = {
    "subsets": "Each subset trained alone, and the model of all modalities with the others masked when it is tested: "
    "what is lost without a modality, and how well the whole stands its absence.",
    "kinds": "single_token is what the reference's released code runs: attention over one token, whose weight is 1 "
    "whatever the sample, so that it is a linear map.",
    "dropout": "With modalities hidden, each is against the experiment of which the same are hidden.",
    "positions": "What the fusion is told of when something was said; encoders know of time by themselves.",
    "sizes": "Widths and depths of encoders and fusion together, all from fresh weights.",
}
MODE_COLORS, MODE_MARKERS = {"retrained": "C0", "masked": "C1"}, {"retrained": "o", "masked": "s"}
GROUP_COLUMNS: list[Column] = [
    ("", "name", ""),
    ("mode", "mode", ""),
    ("accuracy, %", "accuracy", format_mean),
    ("SD over people", "accuracy", lambda accuracy: format_short_percent(accuracy["sd"])),
    ("95 %", "accuracy", format_bounds),
    ("balanced, %", "balanced_accuracy", format_short_percent),
    ("difference, points", "mean", format_short_points),
    ("95 % of it", "comparison", format_point_bounds),
    ("against", "other", ""),
    ("better", "n_better", ""),
    ("worse", "n_worse", ""),
    ("equal", "n_equal", ""),
    ("p", "p_value", ".3g"),
    ("Holm", "holm", ".3g"),
    ("rank-biserial", "effect", "+.2f"),
    ("people wanted", "n_subjects_wanted", format_subjects_wanted),
    ("", "verdict", ""),
]
TERMINAL_COLUMNS: list[Column] = [
    ("", "name", ""),
    ("accuracy, %", "accuracy", format_mean),
    ("95 %", "accuracy", format_bounds),
    ("against", "mean", format_short_points),
    ("Holm", "holm", ".3g"),
    ("M params", "parameters", lambda count: f"{count / 1e6:.3g}"),
    ("GMAC", "gmac", ".3g"),
    ("train s", "seconds", ".0f"),
    ("ms", "latency_ms", ".1f"),
    ("verdict", "verdict", ""),
]


def format_ablation(results: dict[str, Any]) -> str:
    """Format a table a group for the terminal."""
    lines = []
    for group in [g for g in ABLATION_PARTS if g in results["groups"]]:
        size, variants = results["groups"][group], _select_group(results, group)
        rows = [v | (v["comparison"] or {}) | v["cost"] for v in variants]
        tested = f"{format_recordings(size['recordings'], size['n_subjects'])} that all could score"
        table = format_table(build_table(rows, TERMINAL_COLUMNS, missing=""), ends_with_prose=True)
        lines += ["", f"{GROUP_TITLES[group]}: {tested}", table]
    lines += [""] if results["worn"] else []
    for pair in results["worn"]:
        d, extra_cost = pair["difference"], pair["extra_cost"]
        cost_note = ""
        if extra_cost:
            cost_note = f"; costs {extra_cost['parameters'] / 1e6:+.3g} M parameters, {extra_cost['gmac']:+.3g} GMAC"
            cost_note += f", {extra_cost['latency_ms']:+.1f} ms" if "latency_ms" in extra_cost else ""
        lines.append(
            f"{get_modality_info(pair['modality']).title}: {pair['with']} against {pair['without']} ({pair['mode']}): "
            f"{format_short_points(d['mean'])} points (95 % {format_point_bounds(d)}), {d['verdict']}{cost_note}"
        )
    lines += [f"not compared, of want of recordings that all could score: {n}" for n in results["missing"]]
    return "\n".join(lines)


def _select_group(results: dict[str, Any], group: str) -> list[dict[str, Any]]:
    return [v for v in results["variants"] if v["group"] == group]


def build_ablation_sections(results: dict[str, Any]) -> list[Section]:
    """Build a section for all subsets, and one for each part.

    Args:
        results: `results.json` of an ablation.
    """
    matplotlib.use("agg")
    sections = []
    for group in [g for g in GROUP_TITLES if g in results["groups"]]:
        size, variants = results["groups"][group], _select_group(results, group)
        tested = format_recordings(size["recordings"], size["n_subjects"], "test recording")
        explanation = f"{GROUP_NOTES[group]} {tested}, which all of these could score."
        if group == "subsets":
            drawing = Drawing(_plot_subsets(variants), _describe_subsets(variants))
        else:
            compared = [v for v in variants if v["comparison"]]
            drawing = Drawing(_plot_forest(compared), _describe_forest(GROUP_TITLES[group], compared))
        table = build_table([v | (v["comparison"] or {}) for v in variants], GROUP_COLUMNS, missing="")
        sections.append(Section(f"Ablation: {GROUP_TITLES[group].lower()}", [explanation, drawing, table]))
    return sections


def _plot_subsets(variants: list[dict[str, Any]]) -> Figure:
    """Plot the accuracy of each subset, trained alone and masked; the line is the whole."""
    all_modalities, *rest = variants
    rows = list(dict.fromkeys(tuple(v["modalities"]) for v in rest))
    figure, axes = make_axes(7.5, 1.0 + 0.42 * len(rows))
    for v in rest:
        offset = 0.15 if v["mode"] == "masked" else -0.15
        at = rows.index(tuple(v["modalities"])) + offset
        _plot_interval(axes, v["accuracy"], at, MODE_COLORS[v["mode"]], MODE_MARKERS[v["mode"]])
    axes.axvline(100 * all_modalities["accuracy"]["mean"], color="0.3", lw=1)
    for mode, label in (("retrained", "trained alone"), ("masked", "of the whole, others masked")):
        axes.plot([], [], MODE_MARKERS[mode], color=MODE_COLORS[mode], label=label)
    axes.plot([], [], color="0.3", lw=1, label="whole")
    axes.set_yticks(range(len(rows)), [format_subset_name(r) for r in rows])
    axes.invert_yaxis()
    axes.set(xlabel="accuracy of recordings, %; 95 % intervals over people")
    add_legend(axes, fontsize=8, ncols=3)
    return figure


def _plot_interval(axes: Axes, interval: dict[str, Any], at: float, color: str, marker: str) -> None:
    if interval["low"] is not None:
        axes.plot([100 * interval["low"], 100 * interval["high"]], [at, at], color=color, lw=1.4)
    axes.plot([100 * interval["mean"]], [at], marker, color=color, ms=5)


def _describe_subsets(variants: list[dict[str, Any]]) -> str:
    whole, *rest = variants
    parts = [f"{v['name']} {format_mean(v['accuracy'])} %" for v in rest]
    return f"Accuracy of each modality subset. All together {format_mean(whole['accuracy'])} %; {'; '.join(parts)}."


def _plot_forest(compared: list[dict[str, Any]]) -> Figure:
    """Plot the difference of each variant to what it is compared with."""
    figure, axes = make_axes(7.5, 0.9 + 0.3 * len(compared))
    for at, v in enumerate(compared):
        color = MODE_COLORS[v["mode"]] if v["comparison"]["significant"] else "0.55"
        _plot_interval(axes, v["comparison"], at, color, MODE_MARKERS[v["mode"]])
    axes.axvline(0, color="0.3", lw=1)
    axes.set_yticks(range(len(compared)), [v["name"] for v in compared], fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="difference, points; grey: no significant one", ylim=(len(compared) - 0.4, -0.6))
    return figure


def _describe_forest(title: str, compared: list[dict[str, Any]]) -> str:
    parts = [
        f"{v['name']} {format_short_points(d['mean'])} points against {d['other']}, {d['verdict']}"
        for v in compared
        for d in [v["comparison"]]
    ]
    return f"{title}: {'; '.join(parts)}."
