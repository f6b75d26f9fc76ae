"""Figures of pages, each drawn from the numbers that the page's results hold."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mne
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eav_ray.config import MODALITIES, get_modality_info
from eav_ray.data.modalities.band_power import FREQUENCY_BANDS
from eav_ray.electrodes import locate_channels
from eav_ray.evaluation.results_tree import ResultsTree
from eav_ray.training.run_spec import SELECTION_METRIC

# Of what combines modalities, of the palette of the modalities' own colors.
COMBINED_COLORS = {
    "mean_probability": "#666666",
    "product": "#999999",
    "mean": "#666666",
    "stacking": "#333333",
    "fusion": "#d55e00",
}
OTHER_COLOR = "#cc79a7"


def choose_color(source: str) -> str:
    if source in MODALITIES:
        return get_modality_info(source).color
    return COMBINED_COLORS.get(source, OTHER_COLOR)


def make_axes(width: float, height: float) -> tuple[Figure, Axes]:
    """Make a figure of one panel; its size is in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def make_panels(
    titles: Sequence[str],
    max_columns: int,
    panel: tuple[float, float],
    *,
    margins: tuple[float, float] = (0, 0),
    min_width: float = 0,
    sharey: bool = False,
) -> tuple[Figure, list[Axes]]:
    """Make a figure of a panel a title, row by row.

    Args:
        panel, margins, min_width: Inches: width and height of a panel, what is added to all of them, the least width.
    """
    columns = min(max_columns, len(titles))
    rows = math.ceil(len(titles) / columns)
    size = (max(min_width, panel[0] * columns + margins[0]), panel[1] * rows + margins[1])
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, columns, sharey=sharey, squeeze=False).ravel().tolist()
    for unused in panels[len(titles) :]:
        unused.set_visible(False)
    for axes, title in zip(panels, titles, strict=False):
        axes.set_title(title, fontsize=9)
    return figure, panels[: len(titles)]


def add_legend(axes: Axes, *, fontsize: float = 7, ncols: int = 4) -> None:
    """Add a legend above the panel."""
    axes.legend(fontsize=fontsize, ncols=ncols, loc="lower left", bbox_to_anchor=(0, 1), frameon=False)


def _open_frame(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def plot_subjects(
    rows: Sequence[ResultsTree], sources: Sequence[str], chance: Mapping[str, float], *, published: bool
) -> Figure:
    """A bar a person, the best first, with dots for the other sources, and the band of chance of one person.

    Args:
        rows: From `summary.summarize_subjects`.
        chance: `level`, and of one person `low` and `high`.
        published: Whether the rows have a reference, which then is a line across each bar.
    """
    figure, axes = make_axes(7.5, 3.6)
    _open_frame(axes)
    positions, main_source = np.arange(len(rows)), sources[-1]
    axes.axhspan(100 * chance["low"], 100 * chance["high"], color="0.92", label="chance, one subject")
    axes.axhline(100 * chance["level"], color="0.6", lw=0.8)
    color = choose_color(main_source)
    axes.bar(positions, [100 * r[main_source] for r in rows], 0.75, color=color, alpha=0.55, label=main_source)
    for source in sources[:-1]:
        axes.plot(positions, [100 * r[source] for r in rows], "o", ms=3.2, color=choose_color(source), label=source)
    if published:
        column = choose_published_column(sources)
        compared = [i for i, r in enumerate(rows) if "reference" in r]
        heights = [100 * rows[i]["reference"][column] for i in compared]
        axes.hlines(heights, [i - 0.45 for i in compared], [i + 0.45 for i in compared], color="k", lw=1.4)
        axes.plot([], [], "k-", lw=1.4, label=f"published, {column}")
    subject_labels = [str(r["subject"]) for r in rows]
    axes.set_xticks(positions, subject_labels, rotation=90 if len(rows) > 8 else 0, fontsize=7)
    axes.set(ylabel="accuracy per recording, %", ylim=(0, 102), xlim=(-0.6, len(rows) - 0.4))
    add_legend(axes)
    return figure


def choose_published_column(sources: Sequence[str]) -> str:
    """Which of the published numbers the last of these sources, which the bars show, is held against."""
    return sources[0] if len(sources) == 1 else "multimodal"


def plot_confusion(confusions: Mapping[str, Any], classes: Sequence[str]) -> Figure:
    """A matrix a source, share of each true class in percent."""
    sources, n = list(confusions), len(classes)
    size = max(2.75, 0.6 + 0.33 * n)  # inches: the numbers of many classes keep apart
    figure, panels = make_panels(sources, 3, (size, size), margins=(0.6, 0.3))
    for axes, source in zip(panels, sources, strict=True):
        counts = np.array(confusions[source], float)
        percent = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
        axes.imshow(percent[:, :n], cmap="Blues", vmin=0, vmax=100)
        for i in range(n):
            for j in range(n):
                ink = "white" if percent[i, j] > 60 else "black"
                axes.text(j, i, f"{percent[i, j]:.0f}", ha="center", va="center", fontsize=7, color=ink)
        axes.set_xticks(range(n), classes, rotation=45, ha="right", fontsize=7)
        axes.set_yticks(range(n), classes, fontsize=7)
    return figure


def plot_modality_weights(weights_by_kind: Mapping[str, Any], modalities: Sequence[str]) -> Figure:
    """Modality weights by class: as they are, and divided by the modalities' numbers of tokens."""
    figure, panels = make_panels(["as attended", "per token"], 2, (3.75, 2.9), sharey=True)
    for axes, kind in zip(panels, ("weight", "corrected"), strict=True):
        table = weights_by_kind[kind]["by_class"]
        bar_width = 0.8 / len(modalities)
        for n, m in enumerate(modalities):
            positions = np.arange(len(table)) + (n - (len(modalities) - 1) / 2) * bar_width
            # A model that diverged has no weights.
            heights = [math.nan if row[m] is None else row[m] for row in table.values()]
            axes.bar(positions, heights, bar_width * 0.92, color=choose_color(m), label=m)
        axes.axhline(1 / len(modalities), color="0.5", lw=0.8)
        axes.set_xticks(range(len(table)), list(table), rotation=30, ha="right", fontsize=7)
        _open_frame(axes)
    panels[0].set_ylabel("weight")
    panels[0].legend(fontsize=7, ncols=3, frameon=False, loc="upper left")
    panels[0].set_ylim(0, min(1.0, panels[0].get_ylim()[1] * 1.2))
    return figure


def plot_reliability(calibrations: Mapping[str, Any]) -> Figure:
    """Confidence against accuracy, a panel a source; the dot's area is its number of recordings."""
    figure, panels = make_panels(list(calibrations), len(calibrations), (1.9, 2.5), min_width=3.2, sharey=True)
    for axes, (source, one) in zip(panels, calibrations.items(), strict=True):
        axes.plot([0, 1], [0, 1], color="0.6", lw=0.8)
        for kind, color, marker in (("raw", choose_color(source), "o-"), ("scaled", "k", "x--")):
            if kind not in one or not one[kind]["bins"]:
                continue
            bins, total = one[kind]["bins"], one[kind]["count"]
            x, y = [b["confidence"] for b in bins], [b["accuracy"] for b in bins]
            axes.plot(x, y, marker[1:], color=color, lw=0.9, label=None)
            sizes = [10 + 150 * b["count"] / total for b in bins]
            axes.scatter(x, y, s=sizes, color=color, marker=marker[0], alpha=0.7, label=kind)
        axes.set(xlim=(0, 1), ylim=(-0.02, 1.02), xticks=(0, 0.5, 1))
        _open_frame(axes)
    panels[0].set(ylabel="accuracy", xlabel="confidence")
    return figure


@dataclass(frozen=True)
class ValidationScore:
    """The score of the validation side, as curves show it."""

    key: str  # in the history of a training
    label: str
    limits: tuple[float, float]
    scale: float = 1.0


ACCURACY_CURVE = ValidationScore(SELECTION_METRIC, "validation, %", (0, 100), 100)


def plot_learning_curves(
    histories: Mapping[str, Sequence[Mapping[str, Any]]], score: ValidationScore = ACCURACY_CURVE
) -> Figure:
    """Training loss by epoch, a panel a part of the model, with the validation score where it was measured."""
    figure, panels = make_panels(list(histories), len(histories), (1.9, 2.5), min_width=3.2)
    for axes, (part, history) in zip(panels, histories.items(), strict=True):
        epochs = [h["epoch"] for h in history]
        axes.plot(epochs, [h["train_loss"] for h in history], ".-", color=choose_color(part), lw=1)
        axes.set_ylim(bottom=0)
        axes.spines["top"].set_visible(False)
        validation_points = [(h["epoch"], h[score.key]) for h in history if h.get(score.key) is not None]
        if validation_points:
            right_axis = axes.twinx()
            values = [score.scale * v for _, v in validation_points]
            right_axis.plot([e for e, _ in validation_points], values, "k.--", lw=0.8)
            right_axis.set(ylim=score.limits)
            right_axis.set_ylabel(score.label, fontsize=7)
    panels[0].set(ylabel="training loss", xlabel="epoch")
    return figure


def plot_protocols(rows: Sequence[ResultsTree]) -> Figure:
    """A line a protocol: each source per frame, window and recording."""
    figure, axes = make_axes(7.5, 0.9 + 0.55 * len(rows))
    _open_frame(axes)
    unit_markers = {"frame": "|", "window": "x", "recording": "o"}
    sources = list(rows[0]["sources"])
    for n, row in enumerate(rows):
        for k, source in enumerate(sources):
            y = n + (k - (len(sources) - 1) / 2) * 0.14
            for unit, mark in unit_markers.items():
                value = row["sources"][source][unit]
                if value is not None and math.isfinite(value):
                    axes.plot(100 * value, y, mark, color=choose_color(source), ms=5)
    for source in sources:
        axes.plot([], [], "s", color=choose_color(source), ms=4, label=source)
    for unit, mark in unit_markers.items():
        axes.plot([], [], mark, color="0.3", ms=5, label=f"per {unit}")
    axes.set_yticks(range(len(rows)), [r["protocol"] for r in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set(xlabel="accuracy, %")
    add_legend(axes)
    return figure


def plot_signal_quality(correlation: Mapping[str, Any], label: str, scale: float = 1.0) -> Figure:
    """A dot a person: what was measured of the signals, and the score of a source.

    Args:
        label: What the score is.
        scale: Of the score, in what is drawn.
    """
    figure, axes = make_axes(3.6, 2.6)
    _open_frame(axes)
    measured, scores = zip(*(point[1:] for point in correlation["points"]), strict=True)
    source = correlation["source"]
    axes.plot(measured, [scale * score for score in scores], "o", ms=4, color=choose_color(source))
    axes.set(xlabel=correlation["quality_measure"].replace("_", " "), ylabel=f"{source}, {label}")
    return figure


def draw_scalp_map(axes: Axes, values: np.ndarray, info: mne.Info, **style: Any) -> Any:
    """Draw a map of the head, without contours; `style` is of `mne.viz.plot_topomap`."""
    image, _ = mne.viz.plot_topomap(values, info, axes=axes, show=False, contours=0, **style)
    return image


def plot_scalp_maps(bands: Mapping[str, Mapping[str, Sequence[float]]], channels: Sequence[str]) -> Figure | None:
    """Maps of the head: a column a band, a row a class; dB above or below the person's mean over classes.

    Args:
        bands: Class -> band -> a value a channel.
    Returns:
        None where the places of the channels are not known.
    """
    if (located := locate_channels(channels)) is None:
        return None
    known_channels, info = located
    classes, names = list(bands), list(FREQUENCY_BANDS)
    figure = Figure(figsize=(1.35 * len(names) + 1.2, 1.3 * len(classes) + 0.3), layout="constrained")
    grid = figure.subplots(len(classes), len(names), squeeze=False)
    limit = max(abs(v) for of_class in bands.values() for values in of_class.values() for v in values) or 1.0
    image: Any = None
    for i, k in enumerate(classes):
        for j, band in enumerate(names):
            values = np.array([bands[k][band][c] for c in known_channels])
            image = draw_scalp_map(grid[i, j], values, info, cmap="RdBu_r", vlim=(-limit, limit), sensors=False, res=32)
            if not i:
                low, high = FREQUENCY_BANDS[band]
                grid[i, j].set_title(f"{band}\n{low}-{high} Hz", fontsize=7)
        grid[i, 0].set_ylabel(k, fontsize=8)
    figure.colorbar(image, ax=grid, label="dB", shrink=0.6)
    return figure
