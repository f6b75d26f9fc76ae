"""Accuracy against what it costs: parameters, multiplications, training time and latency; and what EEG adds to both."""

import html
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from eav_ray.config import get_modality_info, select_worn_modalities
from eav_ray.reporting.html import render_figure, render_section, render_table
from eav_ray.reporting.sections.ablation import format_percent, format_points
from eav_ray.reporting.sections.search import select_pareto_front

COST_AXES = {  # key of a cost: (its axis, what it is divided by)
    "parameters": ("parameters, millions", 1e6),
    "gmac": ("GMAC a window", 1.0),
    "latency_ms": ("latency of one window, ms", 1.0),
    "seconds": ("training of a fold, s", 1.0),
}


def render_cost_sections(results: dict[str, Any]) -> list[str]:
    """Of the page: the table and figure of cost, and what EEG adds. None where nothing has a cost.

    Args:
        results: `results.json` of an ablation.
    """
    matplotlib.use("agg")
    entries = select_costed_variants(results)
    rendered = []
    if entries:
        # One training alone, such as of a size that changes nothing, has nothing to be drawn against.
        figures = [render_figure(_plot_cost(entries), describe_cost(entries))] if len(entries) > 1 else []
        rendered.append(
            render_section(
                "Accuracy against cost",
                f"<p>{html.escape(_describe_measurement(results))}</p>",
                *figures,
                _render_cost_table(entries),
            )
        )
    for m in dict.fromkeys(pair["modality"] for pair in results["worn"]):
        title = get_modality_info(m).title
        note = (
            f"Each set of modalities with {title} against the same without it, paired over people. A masked model "
            f"computes its {title} encoder all the same."
        )
        rendered.append(
            render_section(f"What {title} adds, and what it costs", f"<p>{note}</p>", _render_worn_table(results, m))
        )
    return rendered


def select_costed_variants(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Subsets and sizes that were trained, each once: one that is masked costs what the whole does. Where there are
    neither, all that was trained."""
    by_name: dict[str, dict[str, Any]] = {}
    groups = [g for g in ("subsets", "sizes") if g in results["groups"]] or list(results["groups"])
    for v in results["variants"]:
        if v["group"] in groups and v["mode"] != "masked" and v["cost"]:
            by_name.setdefault(v["name"], v)
    # Two names of one training, a subset and a size without EEG, are one point.
    by_run: dict[str, dict[str, Any]] = {}
    for v in by_name.values():
        by_run.setdefault(v["cost"]["run"], v)
    return list(by_run.values())


def format_load_warning(hardware: dict[str, Any]) -> str:
    """Where more processes wanted the machine than it has cores: a warning, to be put after what was measured."""
    if hardware["load"] <= hardware["cores"]:
        return ""
    return f"; {hardware['load']:.0f} processes shared its {hardware['cores']} cores: alone they would be shorter"


def _describe_measurement(results: dict[str, Any]) -> str:
    h = results["hardware"]
    repeats = sorted({v["cost"]["repeats"] for v in select_costed_variants(results)})
    repeats_text = " to ".join(str(n) for n in dict.fromkeys((repeats[0], repeats[-1])))
    test_set_sizes = {(g["n_subjects"], g["recordings"]) for g in results["groups"].values()}
    different_sets_note = (
        "" if len(test_set_sizes) == 1 else " Groups of variants are scored on different recordings: see their tables."
    )
    threads, workers = (f"{h[k]} {k[:-1]}{'s' if h[k] > 1 else ''}" for k in ("threads", "workers"))
    return (
        f"Latency: the model alone, one window, warm, {threads} on {h['device']}, the median and the "
        f"95th percentile of {repeats_text} repeats{format_load_warning(h)}. Training: seconds of all epochs of "
        f"one fold, encoders included, the mean over folds; by {workers}. Filled points see EEG, hollow ones do not; "
        f"the line joins what no other beats in both.{different_sets_note}"
    )


def _render_cost_table(entries: list[dict[str, Any]]) -> str:
    head = ["", "variant", "modalities", "accuracy, %", "95 %", "parameters", "GMAC a window", "training, s"]
    head += ["latency, ms", "95th percentile, ms"]
    lines = []
    for number, v in enumerate(entries, 1):
        a, c = v["accuracy"], v["cost"]
        row = [str(number), v["name"], ", ".join(v["modalities"]), format_percent(a["mean"])]
        row += [
            f"{format_percent(a['low'])} to {format_percent(a['high'])}",
            f"{c['parameters']:,.0f}",
            f"{c['gmac']:.3g}",
        ]
        row += ["-" if c["seconds"] is None else f"{c['seconds']:.1f}", f"{c['latency_ms']:.1f}", f"{c['p95_ms']:.1f}"]
        lines.append(row)
    return render_table(head, lines)


def _build_frame(entries: list[dict[str, Any]], key: str) -> pd.DataFrame:
    rows = [
        {"number": n, "cost": v["cost"][key] / COST_AXES[key][1], "score": 100 * v["accuracy"]["mean"], "entry": v}
        for n, v in enumerate(entries, 1)
        if v["cost"].get(key) is not None
    ]
    return pd.DataFrame(rows, columns=["number", "cost", "score", "entry"])


def _plot_cost(entries: list[dict[str, Any]]) -> Figure:
    keys = [key for key in COST_AXES if len(_build_frame(entries, key)) > 1]
    figure = Figure(figsize=(7.5, 3.0 * ((len(keys) + 1) // 2)), layout="constrained")
    grid = figure.subplots((len(keys) + 1) // 2, 2, squeeze=False).ravel()
    for axes, key in zip(grid, keys, strict=False):
        variants = _build_frame(entries, key)
        best = select_pareto_front(variants)
        axes.plot(best["cost"].to_numpy(), best["score"].to_numpy(), "-", color="0.7", lw=1.2, zorder=1)
        for row in variants.itertuples():
            entry: Any = row.entry
            fill = "C0" if select_worn_modalities(entry["modalities"]) else "white"
            axes.plot([row.cost], [row.score], "o", mfc=fill, mec="C0", ms=5, zorder=2)
            axes.annotate(str(row.number), (row.cost, row.score), (4, 3), textcoords="offset points", fontsize=7)
        if variants["cost"].max() > 10 * variants["cost"].min() > 0:
            axes.set_xscale("log")
        axes.set(xlabel=COST_AXES[key][0], ylabel="accuracy, %")
    for axes in grid[len(keys) :]:
        axes.set_visible(False)
    return figure


def describe_cost(entries: list[dict[str, Any]]) -> str:
    """Describe in words which variants no other beats in accuracy and in a cost."""
    named = "; ".join(f"{n} {v['name']} ({format_percent(v['accuracy']['mean'])} %)" for n, v in enumerate(entries, 1))
    fronts = []
    for key, (name, _) in COST_AXES.items():
        variants = _build_frame(entries, key)
        if len(variants) > 1:
            fronts.append(f"{name}: {', '.join(map(str, select_pareto_front(variants)['number']))}")
    return f"Accuracy against cost of {named}. Beaten by none in both, the cheapest first: {'; '.join(fronts)}."


def _render_worn_table(results: dict[str, Any], modality: str) -> str:
    head = [
        f"with {get_modality_info(modality).title}",
        "without",
        "mode",
        "adds, points",
        "95 %",
        "Holm",
        "rank-biserial",
        "",
    ]
    head += ["parameters", "GMAC a window", "training, s", "latency, ms"]
    lines = []
    for pair in (one for one in results["worn"] if one["modality"] == modality):
        d, x = pair["difference"], pair["extra_cost"]
        row = [pair["with"], pair["without"], pair["mode"], format_points(d["mean"])]
        row += [
            f"{format_points(d['low'])} to {format_points(d['high'])}",
            f"{d['holm']:.3g}",
            f"{d['effect']:+.2f}",
            d["verdict"],
        ]
        formats = {"parameters": "+,.0f", "gmac": "+.3g", "seconds": "+.1f", "latency_ms": "+.1f"}
        row += [format(x[key], form) if key in x else "-" for key, form in formats.items()]
        lines.append(row)
    return render_table(head, lines)
