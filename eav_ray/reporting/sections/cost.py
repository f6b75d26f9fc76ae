"""Accuracy against what it costs: parameters, multiplications, training time and latency; and what EEG adds to both."""

from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from eav_ray.config import get_modality_info, select_worn_modalities
from eav_ray.reporting.figures import make_panels
from eav_ray.reporting.formatting import format_bounds, format_mean, format_point_bounds, format_short_points
from eav_ray.reporting.html import Drawing, Section, Table, build_table
from eav_ray.reporting.sections.search import select_pareto_front

COST_AXES = {  # key of a cost: (its axis, what it is divided by)
    "parameters": ("parameters, millions", 1e6),
    "gmac": ("GMAC a window", 1.0),
    "latency_ms": ("latency of one window, ms", 1.0),
    "seconds": ("training of a fold, s", 1.0),
}


def build_cost_sections(results: dict[str, Any]) -> list[Section]:
    """Build the table and figure of cost, and what EEG adds. None where nothing has a cost.

    Args:
        results: `results.json` of an ablation.
    """
    matplotlib.use("agg")
    entries, sections = select_costed_variants(results), []
    if entries:
        # One training alone, such as of a size that changes nothing, has nothing to be drawn against.
        drawings = [Drawing(_plot_cost(entries), describe_cost(entries))] if len(entries) > 1 else []
        parts = [_describe_measurement(results), *drawings, _build_cost_table(entries)]
        sections.append(Section("Accuracy against cost", parts))
    for modality in dict.fromkeys(pair["modality"] for pair in results["worn"]):
        title = get_modality_info(modality).title
        note = (
            f"Each set of modalities with {title} against the same without it, paired over people. A masked model "
            f"computes its {title} encoder all the same."
        )
        pairs = [pair for pair in results["worn"] if pair["modality"] == modality]
        sections.append(Section(f"What {title} adds, and what it costs", [note, _build_worn_table(pairs, title)]))
    return sections


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
    sets_note = " Groups of variants are scored on different recordings: see their tables."
    threads, workers = (f"{h[k]} {k[:-1]}{'s' if h[k] > 1 else ''}" for k in ("threads", "workers"))
    return (
        f"Latency: the model alone, one window, warm, {threads} on {h['device']}, the median and the "
        f"95th percentile of {repeats_text} repeats{format_load_warning(h)}. Training: seconds of all epochs of "
        f"one fold, encoders included, the mean over folds; by {workers}. Filled points see EEG, hollow ones do not; "
        f"the line joins what no other beats in both.{sets_note if len(test_set_sizes) > 1 else ''}"
    )


def _build_cost_table(entries: list[dict[str, Any]]) -> Table:
    columns = [
        ("", "number", ""),
        ("variant", "name", ""),
        ("modalities", "modalities", ", ".join),
        ("accuracy, %", "accuracy", format_mean),
        ("95 %", "accuracy", format_bounds),
        ("parameters", "parameters", ",.0f"),
        ("GMAC a window", "gmac", ".3g"),
        ("training, s", "seconds", ".1f"),
        ("latency, ms", "latency_ms", ".1f"),
        ("95th percentile, ms", "p95_ms", ".1f"),
    ]
    return build_table([v | v["cost"] | {"number": n} for n, v in enumerate(entries, 1)], columns)


def _build_cost_frames(entries: list[dict[str, Any]]) -> dict[str, pd.DataFrame]:
    """Build a table of scores and costs for each cost that at least two entries have."""
    frames = {}
    for key, (_, divisor) in COST_AXES.items():
        rows = [
            (n, v["cost"][key] / divisor, 100 * v["accuracy"]["mean"], v["modalities"])
            for n, v in enumerate(entries, 1)
            if v["cost"].get(key) is not None
        ]
        if len(rows) > 1:
            frames[key] = pd.DataFrame(rows, columns=["number", "cost", "score", "modalities"])
    return frames


def _plot_cost(entries: list[dict[str, Any]]) -> Figure:
    frames = _build_cost_frames(entries)
    figure, panels = make_panels([""] * len(frames), 2, (3.75, 3.0))
    for axes, (key, variants) in zip(panels, frames.items(), strict=True):
        best = select_pareto_front(variants)
        axes.plot(best["cost"].to_numpy(), best["score"].to_numpy(), "-", color="0.7", lw=1.2, zorder=1)
        for point in variants.to_dict("records"):
            fill = "C0" if select_worn_modalities(point["modalities"]) else "white"
            at = (point["cost"], point["score"])
            axes.plot(*at, "o", mfc=fill, mec="C0", ms=5, zorder=2)
            axes.annotate(str(point["number"]), at, (4, 3), textcoords="offset points", fontsize=7)
        if variants["cost"].max() > 10 * variants["cost"].min() > 0:
            axes.set_xscale("log")
        axes.set(xlabel=COST_AXES[key][0], ylabel="accuracy, %")
    return figure


def describe_cost(entries: list[dict[str, Any]]) -> str:
    """Describe in words which variants no other beats in accuracy and in a cost."""
    accuracies = [f"{v['name']} ({format_mean(v['accuracy'])} %)" for v in entries]
    named = "; ".join(f"{n} {accuracy}" for n, accuracy in enumerate(accuracies, 1))
    fronts = [
        f"{COST_AXES[key][0]}: {', '.join(map(str, select_pareto_front(variants)['number']))}"
        for key, variants in _build_cost_frames(entries).items()
    ]
    return f"Accuracy against cost of {named}. Beaten by none in both, the cheapest first: {'; '.join(fronts)}."


def _build_worn_table(pairs: list[dict[str, Any]], title: str) -> Table:
    columns = [
        (f"with {title}", "with", ""),
        ("without", "without", ""),
        ("mode", "mode", ""),
        ("adds, points", "mean", format_short_points),
        ("95 %", "difference", format_point_bounds),
        ("Holm", "holm", ".3g"),
        ("rank-biserial", "effect", "+.2f"),
        ("", "verdict", ""),
        ("parameters", "parameters", "+,.0f"),
        ("GMAC a window", "gmac", "+.3g"),
        ("training, s", "seconds", "+.1f"),
        ("latency, ms", "latency_ms", "+.1f"),
    ]
    return build_table([pair | pair["difference"] | pair["extra_cost"] for pair in pairs], columns)
