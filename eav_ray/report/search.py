"""A search as a page: how its scores came about, which keys mattered, and which values went together."""

import html
import json
import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from eav_ray.config import SearchConfig
from eav_ray.report.page import document, figure_svg, section, table
from eav_ray.report.table import short
from eav_ray.training.plan import SELECTION_METRIC

NAME = "balanced accuracy of recordings, %"
COSTS = {"parameters": "parameters of the model", "gmac": "10⁹ multiplications a window"}
TOP = 20  # candidates of the table
STATES = {"COMPLETE": ("finished", "o"), "PRUNED": ("pruned, on its first folds", "x"), "FAIL": ("failed", "v")}


def page(study: str, trials: pd.DataFrame, importances: dict[str, float], search: SearchConfig) -> str:
    """One page that needs no other file.

    Args:
        trials: `trials.parquet`.
        importances: Key of the space -> its share of the spread of the scores (`Owner.importances`).
    """
    matplotlib.use("agg")
    found = candidates(trials)
    counts = ", ".join(
        f"{sum(found['state'] == s)} {label}" for s, (label, _) in STATES.items() if s in set(found["state"])
    )
    head = (
        f"<h1>Search {html.escape(study)}</h1>"
        f"<p>{len(found)} candidates: {counts}. A score is the mean over inner folds of the training people; nobody "
        "who is tested has a part in it. The best of many is too good by luck: what it is worth says its test.</p>"
    )
    return document(f"Search {study}", [head, *sections(trials, importances, search)])


def sections(trials: pd.DataFrame, importances: dict[str, float], search: SearchConfig) -> list[str]:
    """The parts of the page, for a page that shows more. Arguments as for `page`."""
    found = candidates(trials)
    whole = found[found["state"] == "COMPLETE"]
    parts = [
        section("Best candidates", _table(whole)),
        section("Scores, in the order of the search", figure_svg(_history(found), _describe_history(found))),
    ]
    if importances:
        caption = ", ".join(f"{key} {share:.0%}" for key, share in sorted(importances.items(), key=lambda kv: -kv[1]))
        note = "<p>Share of the spread of the scores that each key explains (fANOVA).</p>"
        parts.append(section("Which keys mattered", note, figure_svg(_importances(importances), caption)))
    if len(whole) > 1:
        caption = "Each line is a finished candidate, through its values and its score; the table above has the best."
        parts.append(section("Which values went together", figure_svg(_parallel(whole, search), caption)))
    if "cost" in whole:
        caption = "Score against cost of each finished candidate; those that no other beats in both are joined."
        parts.append(section("Score against cost", figure_svg(_costs(whole, search.cost), caption)))
    return parts


def candidates(trials: pd.DataFrame) -> pd.DataFrame:
    """One row a candidate, in order: `state`, `score` (percent, mean over its folds), `folds`, `changes`, `cost`."""
    columns: dict[str, Any] = {"state": ("state", "first"), "changes": ("changes", "first")}
    columns |= {
        "score": (SELECTION_METRIC, "mean"),
        "folds": (SELECTION_METRIC, "size"),
        "sd": (SELECTION_METRIC, "std"),
    }
    if "cost" in trials:
        columns["cost"] = ("cost", "first")
    found = trials.groupby("candidate").agg(**columns)
    found["changes"] = found["changes"].map(json.loads)
    return found.assign(score=found["score"] * 100, sd=found["sd"] * 100)


def front(whole: pd.DataFrame) -> pd.DataFrame:
    """Candidates that no other beats in both score and cost, the cheapest first."""
    ordered = whole.sort_values(["cost", "score"], ascending=[True, False])
    return ordered[ordered["score"] > ordered["score"].cummax().shift(fill_value=-math.inf)]


def _table(whole: pd.DataFrame) -> str:
    best = whole.sort_values("score", ascending=False, kind="stable").head(TOP)
    keys = sorted({key for changes in best["changes"] for key in changes})
    priced = ["cost"] if "cost" in best else []
    lines = []
    for number, row in best.iterrows():
        price = [f"{row['cost']:,.6g}" for _ in priced]
        spread = f"{row['sd']:.1f}" if row["sd"] == row["sd"] else "-"
        lines.append([str(number), f"{row['score']:.1f}", spread, *price, *(short(row["changes"][k]) for k in keys)])
    return table(["candidate", "score, %", "SD over folds", *priced, *keys], lines)


def _describe_history(found: pd.DataFrame) -> str:
    whole = found[found["state"] == "COMPLETE"]["score"]
    if whole.empty:
        return "No candidate has a score."
    best = whole.idxmax()
    reach = f"from {whole.min():.1f} to {whole.max():.1f} %"
    return f"Scores of {len(whole)} finished candidates, {reach}; the best is number {best}."


def _history(found: pd.DataFrame) -> Figure:
    figure = Figure(figsize=(7.5, 3.2), layout="constrained")
    axes = figure.subplots()
    for state, (label, marker) in STATES.items():
        mine = found[found["state"] == state]
        # One that failed has no score; it stands at the lower edge.
        scores = mine["score"].fillna(found["score"].min() if found["score"].notna().any() else 0.0)
        if len(mine):
            axes.plot(mine.index.to_numpy(), scores.to_numpy(), marker, ms=4, label=label)
    whole = found[found["state"] == "COMPLETE"]["score"]
    axes.step(whole.index.to_numpy(), whole.cummax().to_numpy(), where="post", lw=1, color="0.3", label="best so far")
    axes.set(xlabel="candidate", ylabel=NAME)
    axes.legend(fontsize=8, ncols=4, loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
    return figure


def _importances(importances: dict[str, float]) -> Figure:
    ordered = sorted(importances.items(), key=lambda kv: kv[1])
    figure = Figure(figsize=(7.5, 0.7 + 0.35 * len(ordered)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh([key for key, _ in ordered], [share * 100 for _, share in ordered], height=0.6)
    axes.bar_label(bars, fmt="%.0f %%", padding=3, fontsize=8)
    axes.set(xlabel="share of the spread of the scores, %", xlim=(0, 112))
    return figure


def _parallel(whole: pd.DataFrame, search: SearchConfig) -> Figure:
    """Parallel coordinates: an axis a key, the score as the last; a line a candidate, its colour the score."""
    keys = list(whole["changes"].iloc[0])
    columns = [_positions([c[key] for c in whole["changes"]], search.space[key].log) for key in keys]
    scores = whole["score"].to_numpy()
    columns.append(_positions(list(scores), False))
    figure = Figure(figsize=(max(5.0, 1.9 * len(columns)), 3.8), layout="constrained")
    axes = figure.subplots()
    low, high = float(scores.min()), float(scores.max())
    colours = matplotlib.colormaps["viridis"]
    for n in np.argsort(scores):  # the best lie on top
        share = (scores[n] - low) / (high - low) if high > low else 1.0
        axes.plot(
            range(len(columns)), [p[n] for p, _ in columns], color=colours(share), lw=0.8 + 1.2 * share, alpha=0.75
        )
    for axis, (_, ticks) in enumerate(columns):
        axes.axvline(axis, color="0.6", lw=0.8)
        for at, label in ticks:
            axes.text(axis + 0.03, at, label, fontsize=7, va="center", bbox={"fc": "white", "ec": "none", "pad": 0.5})
    axes.set_xticks(range(len(columns)), [*keys, NAME.replace(" of ", "\nof ")], fontsize=8)
    axes.set(yticks=[], xlim=(-0.1, len(columns) - 0.6), ylim=(-0.06, 1.06))
    axes.spines[:].set_visible(False)
    return figure


def _positions(values: Sequence[Any], log: bool) -> tuple[list[float], list[tuple[float, str]]]:
    """Where values lie on an axis from 0 to 1, and what is written beside it."""
    distinct = sorted(set(values), key=lambda v: (isinstance(v, str), v))
    if len(distinct) <= 6 or any(isinstance(v, str) for v in distinct):
        at = {v: n / max(1, len(distinct) - 1) for n, v in enumerate(distinct)}
        return [at[v] for v in values], [(at[v], short(v)) for v in distinct]
    scaled = [math.log10(v) if log else float(v) for v in values]
    low, high = min(scaled), max(scaled)
    ends = [(share, low + share * (high - low)) for share in (0, 1 / 3, 2 / 3, 1)]
    ticks = [(share, short(float(10**end if log else end))) for share, end in ends]
    return [(v - low) / (high - low) for v in scaled], ticks


def _costs(whole: pd.DataFrame, cost: str) -> Figure:
    figure = Figure(figsize=(7.5, 3.4), layout="constrained")
    axes = figure.subplots()
    best = front(whole)
    axes.plot(whole["cost"].to_numpy(), whole["score"].to_numpy(), "o", ms=4, color="0.6")
    axes.plot(best["cost"].to_numpy(), best["score"].to_numpy(), "o-", ms=5)
    axes.set(xlabel=COSTS[cost], ylabel=NAME)
    return figure
