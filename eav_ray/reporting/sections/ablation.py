"""What each part of an experiment is worth: its variants beside it, on the same recordings, paired over people."""

import html
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from eav_ray.config import get_modality_info
from eav_ray.evaluation.ablation_variants import (
    ABLATION_PARTS,
    format_subset_name,
)
from eav_ray.reporting.html import render_figure, render_section, render_table

GROUP_TITLES = {
    "subsets": "Modality subsets",
    "kinds": "Kinds of fusion",
    "dropout": "Modality dropout",
    "positions": "Time marks of tokens",
    "sizes": "Sizes",
}


MODE_COLORS = {"retrained": "C0", "masked": "C1"}


def format_percent(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{100 * value:.{digits}f}"


def format_points(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:+.1f}"


def format_p_value(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def format_ablation(results: dict[str, Any]) -> str:
    """For the terminal: a table a group."""
    lines = []
    for group in [g for g in ABLATION_PARTS if g in results["groups"]]:
        size = results["groups"][group]
        name_width = max(len(v["name"]) for v in _select_group(results, group)) + 2
        lines += [
            "",
            f"{GROUP_TITLES[group]}: {size['recordings']} recordings of {size['n_subjects']} people "
            "that all could score",
        ]
        lines.append(
            f"{'':{name_width}}{'accuracy, %':>12}{'95 %':>14}{'against':>9}{'Holm':>8}"
            f"{'M params':>10}{'GMAC':>8}{'train s':>9}{'ms':>7}  verdict"
        )
        for v in _select_group(results, group):
            a, d, c = v["accuracy"], v["comparison"], v["cost"]
            spread = f"{format_percent(a['low'])} to {format_percent(a['high'])}"
            cells = f"{format_percent(a['mean']):>12}{spread:>14}{format_points(d['mean']) if d else '':>9}"
            cells += f"{format_p_value(d['holm']) if d else '':>8}{format_cost_cells(c)}  {d['verdict'] if d else ''}"
            lines.append(f"{v['name']:{name_width}}{cells}".rstrip())
    for pair in results["worn"]:
        d, extra_cost = pair["difference"], pair["extra_cost"]
        cost_note = ""
        if extra_cost:
            parts = [f"{extra_cost['parameters'] / 1e6:+.3g} M parameters", f"{extra_cost['gmac']:+.3g} GMAC"]
            parts += [f"{extra_cost['latency_ms']:+.1f} ms"] if "latency_ms" in extra_cost else []
            cost_note = "; costs " + ", ".join(parts)
        lines += [""] if pair is results["worn"][0] else []
        spread = f"{format_points(d['low'])} to {format_points(d['high'])}"
        label = f"{pair['with']} against {pair['without']} ({pair['mode']})"
        title = get_modality_info(pair["modality"]).title
        lines.append(f"{title}: {label}: {format_points(d['mean'])} points (95 % {spread}), {d['verdict']}{cost_note}")
    lines += [f"not compared, of want of recordings that all could score: {n}" for n in results["missing"]]
    return "\n".join(lines)


def format_cost_cells(cost: dict[str, Any]) -> str:
    if not cost:
        return f"{'':34}"
    seconds = "-" if cost.get("seconds") is None else f"{cost['seconds']:.0f}"
    return f"{cost['parameters'] / 1e6:>10.3g}{cost['gmac']:>8.3g}{seconds:>9}{cost['latency_ms']:>7.1f}"


def _select_group(results: dict[str, Any], group: str) -> list[dict[str, Any]]:
    return [v for v in results["variants"] if v["group"] == group]


def render_ablation_sections(results: dict[str, Any]) -> list[str]:
    """Of the page, one for all subsets and parts.

    Args:
        results: `results.json` of an ablation.
    """
    matplotlib.use("agg")
    rendered = []
    if "subsets" in results["groups"]:
        note = (
            "Each subset trained alone, and the model of all modalities with the others masked when it is tested: what "
            "is lost without a modality, and how well the whole stands its absence."
        )
        rendered.append(
            _render_group(results, "subsets", note, render_figure(_plot_subsets(results), _describe_subsets(results)))
        )
    rest = [g for g in ("kinds", "dropout", "positions", "sizes") if g in results["groups"]]
    notes = {
        "kinds": "single_token is what the reference's released code runs: attention over one token, whose weight is "
        "1 whatever the sample, so that it is a linear map.",
        "dropout": "With modalities hidden, each is against the experiment of which the same are hidden.",
        "positions": "What the fusion is told of when something was said; encoders know of time by themselves.",
        "sizes": "Widths and depths of encoders and fusion together, all from fresh weights.",
    }
    return rendered + [
        _render_group(
            results, group, notes[group], render_figure(_plot_forest(results, group), _describe_forest(results, group))
        )
        for group in rest
    ]


def _render_group(results: dict[str, Any], group: str, note: str, figure: str) -> str:
    size = results["groups"][group]
    test_set_note = (
        f"{size['recordings']} test recordings of {size['n_subjects']} people, which all of these could score."
    )
    return render_section(
        f"Ablation: {GROUP_TITLES[group].lower()}",
        f"<p>{html.escape(note)} {test_set_note}</p>",
        figure,
        _render_group_table(results, group),
    )


def _render_group_table(results: dict[str, Any], group: str) -> str:
    head = ["", "mode", "accuracy, %", "SD over people", "95 %", "balanced, %"]
    head += ["difference, points", "95 % of it", "against", "p", "Holm", "rank-biserial", ""]
    lines = []
    for v in _select_group(results, group):
        a, d = v["accuracy"], v["comparison"]
        row = [v["name"], v["mode"], format_percent(a["mean"]), format_percent(a["sd"])]
        row += [f"{format_percent(a['low'])} to {format_percent(a['high'])}", format_percent(v["balanced_accuracy"])]
        if d:
            row += [format_points(d["mean"]), f"{format_points(d['low'])} to {format_points(d['high'])}", d["other"]]
            row += [format_p_value(d["p_value"]), format_p_value(d["holm"]), f"{d['effect']:+.2f}", d["verdict"]]
        lines.append(row + [""] * (len(head) - len(row)))
    return render_table(head, lines)


def _plot_subsets(results: dict[str, Any]) -> Figure:
    """Accuracy of each subset, trained alone and masked; the line is the whole."""
    entries = _select_group(results, "subsets")
    all_modalities, rest = entries[0], entries[1:]
    rows = list(dict.fromkeys(tuple(v["modalities"]) for v in rest))
    figure = Figure(figsize=(7.5, 1.0 + 0.42 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for v in rest:
        masked = v["mode"] == "masked"
        at = rows.index(tuple(v["modalities"])) + (0.15 if masked else -0.15)
        _plot_interval(axes, v["accuracy"], at, MODE_COLORS[v["mode"]], "s" if masked else "o")
    axes.axvline(100 * all_modalities["accuracy"]["mean"], color="0.3", lw=1)
    axes.plot([], [], "o", color=MODE_COLORS["retrained"], label="trained alone")
    axes.plot([], [], "s", color=MODE_COLORS["masked"], label="of the whole, others masked")
    axes.plot([], [], color="0.3", lw=1, label="whole")
    axes.set_yticks(range(len(rows)), [format_subset_name(r) for r in rows])
    axes.invert_yaxis()
    axes.set(xlabel="accuracy of recordings, %; 95 % intervals over people and recordings")
    axes.legend(fontsize=8, ncols=3, loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
    return figure


def _plot_interval(axes: Any, interval: dict[str, Any], at: float, color: str, marker: str) -> None:
    axes.plot([100 * interval["low"], 100 * interval["high"]], [at, at], color=color, lw=1.4)
    axes.plot([100 * interval["mean"]], [at], marker, color=color, ms=5)


def _describe_subsets(results: dict[str, Any]) -> str:
    all_modalities, *rest = _select_group(results, "subsets")
    parts = [f"{v['name']} {format_percent(v['accuracy']['mean'])} %" for v in rest]
    return (
        f"Accuracy of each modality subset. All together {format_percent(all_modalities['accuracy']['mean'])} %; "
        f"{'; '.join(parts)}."
    )


def _plot_forest(results: dict[str, Any], group: str) -> Figure:
    """Difference of each variant to what it is compared with."""
    entries = [v for v in _select_group(results, group) if v["comparison"]]
    figure = Figure(figsize=(7.5, 0.9 + 0.3 * len(entries)), layout="constrained")
    axes = figure.subplots()
    for at, v in enumerate(entries):
        d = v["comparison"]
        _plot_interval(
            axes, d, at, MODE_COLORS[v["mode"]] if d["significant"] else "0.55", "s" if v["mode"] == "masked" else "o"
        )
    axes.axvline(0, color="0.3", lw=1)
    axes.set_yticks(range(len(entries)), [v["name"] for v in entries], fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="difference, points; grey: not significant", ylim=(len(entries) - 0.4, -0.6))
    return figure


def _describe_forest(results: dict[str, Any], group: str) -> str:
    parts = [
        f"{v['name']} {format_points(v['comparison']['mean'])} points against {v['comparison']['other']}, "
        f"{v['comparison']['verdict']}"
        for v in _select_group(results, group)
        if v["comparison"]
    ]
    return f"{GROUP_TITLES[group]}: {'; '.join(parts)}."
