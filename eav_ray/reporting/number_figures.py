"""Figures of pages on predicted numbers, each drawn from what the page's results hold."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure

from eav_ray.evaluation.results_tree import ResultsTree
from eav_ray.reporting.figures import add_legend, choose_color, make_axes, make_panels

Point = Sequence[Any]  # subject, true, predicted
TITLES = {"ccc": "CCC", "rmse": "RMSE"}


def plot_points(points: Mapping[str, Sequence[Point]]) -> Figure:
    """A panel a target: each recording's predicted number against the true one, subjects in muted colours.

    Args:
        points: Target -> subject, true and predicted number of each recording; None where there is no prediction.
    """
    figure, panels = make_panels(list(points), 3, (2.9, 2.9))
    for axes, rows in zip(panels, points.values(), strict=True):
        _plot_target(axes, [row for row in rows if row[2] is not None])
    panels[0].set(xlabel="true", ylabel="predicted")
    return figure


def _plot_target(axes: Axes, rows: Sequence[Point]) -> None:
    if rows:
        subjects = sorted({row[0] for row in rows})
        for subject, color in zip(subjects, _choose_muted_colors(len(subjects)), strict=True):
            own = np.array([row[1:] for row in rows if row[0] == subject], float)
            axes.plot(*own.T, "o", ms=3, color=color, alpha=0.6, mew=0)
        values = np.array([row[1:] for row in rows], float)
        low, high = float(values.min()), float(values.max())
        margin = 0.05 * (high - low) or 1.0
        ends = (low - margin, high + margin)
        axes.plot(ends, ends, color="0.5", lw=0.8, zorder=0)
        axes.set(xlim=ends, ylim=ends)
    axes.set_box_aspect(1)  # both axes have the same ends
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def _choose_muted_colors(count: int) -> np.ndarray:
    """Choose colours of equal saturation, so that no subject stands out."""
    hues = (np.arange(count) * 0.61803) % 1  # neighbours far apart
    return hsv_to_rgb(np.stack([hues, np.full(count, 0.45), np.full(count, 0.7)], 1))


def plot_number_subjects(rows: Sequence[ResultsTree], sources: Sequence[str], measure: str) -> Figure:
    """A bar a subject, the best first, with dots for the other sources.

    Args:
        rows: Of one target, from `number_summary.summarize_number_subjects`.
        measure: `ccc` or `rmse`.
    """
    figure, axes = make_axes(7.5, 3.2)
    axes.spines[["top", "right"]].set_visible(False)
    positions, main_source = np.arange(len(rows)), sources[-1]
    heights = {s: [row.get(s, {}).get(measure) for row in rows] for s in sources}
    values = {s: np.array([np.nan if h is None else h for h in own], float) for s, own in heights.items()}
    color = choose_color(main_source)
    axes.bar(positions, values[main_source], 0.75, color=color, alpha=0.55, label=main_source)
    for source in sources[:-1]:
        axes.plot(positions, values[source], "o", ms=3.2, color=choose_color(source), label=source)
    axes.axhline(0, color="0.6", lw=0.8)
    axes.set_xticks(positions, [str(r["subject"]) for r in rows], rotation=90 if len(rows) > 8 else 0, fontsize=7)
    axes.set(ylabel=TITLES[measure], xlim=(-0.6, len(rows) - 0.4))
    add_legend(axes)
    return figure


def plot_number_protocols(rows: Sequence[ResultsTree], sources: Sequence[str]) -> Figure:
    """A panel a target, a line a protocol: the CCC of each source.

    Args:
        rows: From `number_protocols.summarize_number_protocols`.
    """
    protocols = list(dict.fromkeys(row["protocol"] for row in rows))
    targets = list(dict.fromkeys(row["target"] for row in rows))
    figure, panels = make_panels(targets, 2, (3.75, 0.9 + 0.45 * len(protocols)), sharey=True)
    for axes, target in zip(panels, targets, strict=True):
        for row in (r for r in rows if r["target"] == target and r["ccc"] is not None):
            shift = (sources.index(row["source"]) - (len(sources) - 1) / 2) * 0.14
            position = protocols.index(row["protocol"]) + shift
            axes.plot(row["ccc"], position, "o", color=choose_color(row["source"]), ms=5)
        axes.axvline(0, color="0.6", lw=0.8)
        axes.set_yticks(range(len(protocols)), protocols)
        axes.set_ylim(len(protocols) - 0.5, -0.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel("CCC")
    for source in sources:
        panels[0].plot([], [], "s", color=choose_color(source), ms=4, label=source)
    figure.legend(fontsize=7, ncols=len(sources), loc="outside upper left", frameon=False)
    return figure
