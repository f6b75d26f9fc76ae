"""A search as a page: how its scores came about, which keys mattered, and which values went together."""

import json
import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from eav_ray.config import SearchConfig
from eav_ray.reporting.formatting import format_value
from eav_ray.reporting.html import render_figure, render_section, render_table
from eav_ray.training.run_spec import SELECTION_METRIC

SCORE_LABEL = "balanced accuracy of recordings, %"


COST_LABELS = {"parameters": "parameters of the model", "gmac": "10⁹ multiplications a window"}


MAX_TABLE_ROWS = 20  # candidates of the table


STATE_STYLES = {"COMPLETE": ("finished", "o"), "PRUNED": ("pruned, on its first folds", "x"), "FAIL": ("failed", "v")}


def render_search_sections(
    candidate_folds: pd.DataFrame, importances: dict[str, float], search: SearchConfig
) -> list[str]:
    """The parts of the page, for a page that shows more. Arguments as for `page`."""
    candidates = summarize_candidates(candidate_folds)
    finished = candidates[candidates["state"] == "COMPLETE"]
    parts = [
        render_section("Best candidates", _render_candidate_table(finished)),
        render_section(
            "Scores, in the order of the search",
            render_figure(_plot_history(candidates), _describe_history(candidates)),
        ),
    ]
    if importances:
        caption = ", ".join(f"{key} {share:.0%}" for key, share in sorted(importances.items(), key=lambda kv: -kv[1]))
        note = "<p>Share of the spread of the scores that each key explains (fANOVA).</p>"
        parts.append(
            render_section("Which keys mattered", note, render_figure(_plot_importances(importances), caption))
        )
    if len(finished) > 1:
        caption = "Each line is a finished candidate, through its values and its score; the table above has the best."
        parts.append(
            render_section(
                "Which values went together", render_figure(_plot_parallel_coordinates(finished, search), caption)
            )
        )
    if "cost" in finished:
        caption = "Score against cost of each finished candidate; those that no other beats in both are joined."
        parts.append(render_section("Score against cost", render_figure(_plot_costs(finished, search.cost), caption)))
    return parts


def summarize_candidates(candidate_folds: pd.DataFrame) -> pd.DataFrame:
    """One row a candidate, in order: `state`, `score` (percent, mean over its folds), `folds`, `changes`, `cost`."""
    columns: dict[str, Any] = {"state": ("state", "first"), "changes": ("changes", "first")}
    columns |= {
        "score": (SELECTION_METRIC, "mean"),
        "folds": (SELECTION_METRIC, "size"),
        "sd": (SELECTION_METRIC, "std"),
    }
    if "cost" in candidate_folds:
        columns["cost"] = ("cost", "first")
    summary = candidate_folds.groupby("candidate").agg(**columns)
    summary["changes"] = summary["changes"].map(json.loads)
    return summary.assign(score=summary["score"] * 100, sd=summary["sd"] * 100)


def select_pareto_front(finished: pd.DataFrame) -> pd.DataFrame:
    """Candidates that no other beats in both score and cost, the cheapest first."""
    ordered = finished.sort_values(["cost", "score"], ascending=[True, False])
    return ordered[ordered["score"] > ordered["score"].cummax().shift(fill_value=-math.inf)]


def _render_candidate_table(finished: pd.DataFrame) -> str:
    best = finished.sort_values("score", ascending=False, kind="stable").head(MAX_TABLE_ROWS)
    keys = sorted({key for changes in best["changes"] for key in changes})
    cost_columns = ["cost"] if "cost" in best else []
    lines = []
    for number, row in best.iterrows():
        cost_cells = [f"{row['cost']:,.6g}" for _ in cost_columns]
        spread = f"{row['sd']:.1f}" if row["sd"] == row["sd"] else "-"
        lines.append(
            [str(number), f"{row['score']:.1f}", spread, *cost_cells, *(format_value(row["changes"][k]) for k in keys)]
        )
    return render_table(["candidate", "score, %", "SD over folds", *cost_columns, *keys], lines)


def _describe_history(candidates: pd.DataFrame) -> str:
    finished_scores = candidates[candidates["state"] == "COMPLETE"]["score"]
    if finished_scores.empty:
        return "No candidate has a score."
    best = finished_scores.idxmax()
    score_range = f"from {finished_scores.min():.1f} to {finished_scores.max():.1f} %"
    return f"Scores of {len(finished_scores)} finished candidates, {score_range}; the best is number {best}."


def _plot_history(candidates: pd.DataFrame) -> Figure:
    figure = Figure(figsize=(7.5, 3.2), layout="constrained")
    axes = figure.subplots()
    for state, (label, marker) in STATE_STYLES.items():
        in_state = candidates[candidates["state"] == state]
        # One that failed has no score; it stands at the lower edge.
        scores = in_state["score"].fillna(candidates["score"].min() if candidates["score"].notna().any() else 0.0)
        if len(in_state):
            axes.plot(in_state.index.to_numpy(), scores.to_numpy(), marker, ms=4, label=label)
    finished_scores = candidates[candidates["state"] == "COMPLETE"]["score"]
    axes.step(
        finished_scores.index.to_numpy(),
        finished_scores.cummax().to_numpy(),
        where="post",
        lw=1,
        color="0.3",
        label="best so far",
    )
    axes.set(xlabel="candidate", ylabel=SCORE_LABEL)
    axes.legend(fontsize=8, ncols=4, loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
    return figure


def _plot_importances(importances: dict[str, float]) -> Figure:
    ordered = sorted(importances.items(), key=lambda kv: kv[1])
    figure = Figure(figsize=(7.5, 0.7 + 0.35 * len(ordered)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh([key for key, _ in ordered], [share * 100 for _, share in ordered], height=0.6)
    axes.bar_label(bars, fmt="%.0f %%", padding=3, fontsize=8)
    axes.set(xlabel="share of the spread of the scores, %", xlim=(0, 112))
    return figure


def _plot_parallel_coordinates(finished: pd.DataFrame, search: SearchConfig) -> Figure:
    """Parallel coordinates: an axis a key, the score as the last; a line a candidate, its colour the score."""
    keys = list(finished["changes"].iloc[0])
    columns = [_compute_axis_positions([c[key] for c in finished["changes"]], search.space[key].log) for key in keys]
    scores = finished["score"].to_numpy()
    columns.append(_compute_axis_positions(list(scores), False))
    figure = Figure(figsize=(max(5.0, 1.9 * len(columns)), 3.8), layout="constrained")
    axes = figure.subplots()
    low, high = float(scores.min()), float(scores.max())
    colormap = matplotlib.colormaps["viridis"]
    for n in np.argsort(scores):  # the best lie on top
        share = (scores[n] - low) / (high - low) if high > low else 1.0
        axes.plot(
            range(len(columns)), [p[n] for p, _ in columns], color=colormap(share), lw=0.8 + 1.2 * share, alpha=0.75
        )
    for axis, (_, ticks) in enumerate(columns):
        axes.axvline(axis, color="0.6", lw=0.8)
        for at, label in ticks:
            axes.text(axis + 0.03, at, label, fontsize=7, va="center", bbox={"fc": "white", "ec": "none", "pad": 0.5})
    axes.set_xticks(range(len(columns)), [*keys, SCORE_LABEL.replace(" of ", "\nof ")], fontsize=8)
    axes.set(yticks=[], xlim=(-0.1, len(columns) - 0.6), ylim=(-0.06, 1.06))
    axes.spines[:].set_visible(False)
    return figure


def _compute_axis_positions(values: Sequence[Any], log: bool) -> tuple[list[float], list[tuple[float, str]]]:
    """Where values lie on an axis from 0 to 1, and what is written beside it."""
    distinct = sorted(set(values), key=lambda v: (isinstance(v, str), v))
    if len(distinct) <= 6 or any(isinstance(v, str) for v in distinct):
        at = {v: n / max(1, len(distinct) - 1) for n, v in enumerate(distinct)}
        return [at[v] for v in values], [(at[v], format_value(v)) for v in distinct]
    scaled = [math.log10(v) if log else float(v) for v in values]
    low, high = min(scaled), max(scaled)
    ends = [(share, low + share * (high - low)) for share in (0, 1 / 3, 2 / 3, 1)]
    ticks = [(share, format_value(float(10**end if log else end))) for share, end in ends]
    return [(v - low) / (high - low) for v in scaled], ticks


def _plot_costs(finished: pd.DataFrame, cost: str) -> Figure:
    figure = Figure(figsize=(7.5, 3.4), layout="constrained")
    axes = figure.subplots()
    front = select_pareto_front(finished)
    axes.plot(finished["cost"].to_numpy(), finished["score"].to_numpy(), "o", ms=4, color="0.6")
    axes.plot(front["cost"].to_numpy(), front["score"].to_numpy(), "o-", ms=5)
    axes.set(xlabel=COST_LABELS[cost], ylabel=SCORE_LABEL)
    return figure
