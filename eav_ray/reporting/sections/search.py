"""A search as a page: how its scores came about, which keys mattered, and which values went together."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from eav_ray.config import SearchConfig
from eav_ray.reporting.figures import add_legend, make_axes
from eav_ray.reporting.formatting import format_value
from eav_ray.reporting.html import Drawing, Section, Table, build_table
from eav_ray.training.run_spec import SELECTION_METRIC
from eav_ray.words import format_count


@dataclass(frozen=True)
class CandidateScore:
    """The score that candidates are chosen by, as a page shows it."""

    label: str
    scale: float
    unit: str
    digits: int

    @property
    def form(self) -> str:
        """Return the format of a score."""
        return f".{self.digits}f"


ACCURACY_SCORE = CandidateScore("balanced accuracy of recordings, %", 100, " %", 1)


COST_LABELS = {"parameters": "parameters of the model", "gmac": "10⁹ multiplications a window"}


MAX_TABLE_ROWS = 20  # candidates of the table


STATE_STYLES = {"COMPLETE": ("finished", "o"), "PRUNED": ("pruned, on its first folds", "x"), "FAIL": ("failed", "v")}


def build_search_sections(
    candidate_folds: pd.DataFrame, importances: dict[str, float], search: SearchConfig
) -> list[Section]:
    """Build the parts of the page, for a page that shows more. Arguments as for `render_search_page`."""
    score, candidates = choose_candidate_score(candidate_folds), summarize_candidates(candidate_folds)
    finished = candidates[candidates["state"] == "COMPLETE"]
    history = Drawing(_plot_history(candidates, score), _describe_history(candidates, score))
    sections = [
        Section("Best candidates", [_build_candidate_table(finished, score)]),
        Section("Scores, in the order of the search", [history]),
    ]
    if importances:
        caption = ", ".join(f"{key} {share:.0%}" for key, share in sorted(importances.items(), key=lambda kv: -kv[1]))
        note = "Share of the spread of the scores that each key explains (fANOVA)."
        sections.append(Section("Which keys mattered", [note, Drawing(_plot_importances(importances), caption)]))
    if len(finished) > 1:
        caption = "Each line is a finished candidate, through its values and its score; the table above has the best."
        drawing = Drawing(_plot_parallel_coordinates(finished, search, score), caption)
        sections.append(Section("Which values went together", [drawing]))
    if "cost" in finished:
        caption = "Score against cost of each finished candidate; those that no other beats in both are joined."
        sections.append(Section("Score against cost", [Drawing(_plot_costs(finished, search.cost, score), caption)]))
    return sections


def choose_candidate_score(candidate_folds: pd.DataFrame) -> CandidateScore:
    """Choose the score by what candidates were measured by: balanced accuracy, or where numbers are predicted, CCC."""
    if "validation_recording_ccc" in candidate_folds:
        return CandidateScore("mean CCC of recordings", 1, "", 3)
    return ACCURACY_SCORE


def summarize_candidates(candidate_folds: pd.DataFrame) -> pd.DataFrame:
    """One row a candidate, in order: `state`, `score` (as the page shows it, mean over its folds), `folds`, `changes`,
    `cost`.
    """
    score = choose_candidate_score(candidate_folds)
    by_candidate = candidate_folds.groupby("candidate")
    scores = by_candidate[SELECTION_METRIC].agg(score="mean", folds="size", sd="std")
    constants = [name for name in ("state", "changes", "cost") if name in candidate_folds]
    summary = by_candidate[constants].first().join(scores)
    summary["changes"] = summary["changes"].map(json.loads)
    return summary.assign(score=summary["score"] * score.scale, sd=summary["sd"] * score.scale)


def select_pareto_front(finished: pd.DataFrame) -> pd.DataFrame:
    """Candidates that no other beats in both score and cost, the cheapest first."""
    ordered = finished.sort_values(["cost", "score"], ascending=[True, False])
    return ordered[ordered["score"] > ordered["score"].cummax().shift(fill_value=-math.inf)]


def _build_candidate_table(finished: pd.DataFrame, score: CandidateScore) -> Table:
    best = finished.sort_values("score", ascending=False, kind="stable").head(MAX_TABLE_ROWS)
    keys = sorted({key for changes in best["changes"] for key in changes})
    rows = [{"candidate": number, **row.to_dict(), **row["changes"]} for number, row in best.iterrows()]
    heading = "score, %" if score.unit else "score"
    columns = [("candidate", "candidate", ""), (heading, "score", score.form), ("SD over folds", "sd", score.form)]
    columns += [("cost", "cost", ",.6g")] if "cost" in best else []
    return build_table(rows, [*columns, *((key, key, format_value) for key in keys)])


def _describe_history(candidates: pd.DataFrame, score: CandidateScore) -> str:
    finished_scores = candidates[candidates["state"] == "COMPLETE"]["score"]
    if finished_scores.empty:
        return "No candidate has a score."
    best = finished_scores.idxmax()
    low, high = format(finished_scores.min(), score.form), format(finished_scores.max(), score.form)
    score_range = f"from {low} to {high}{score.unit}"
    finished = format_count(len(finished_scores), "finished candidate")
    return f"Scores of {finished}, {score_range}; the best is number {best}."


def _plot_history(candidates: pd.DataFrame, score: CandidateScore) -> Figure:
    figure, axes = make_axes(7.5, 3.2)
    for state, (label, marker) in STATE_STYLES.items():
        in_state = candidates[candidates["state"] == state]
        # One that failed has no score; it stands at the lower edge.
        scores = in_state["score"].fillna(candidates["score"].min() if candidates["score"].notna().any() else 0.0)
        if len(in_state):
            axes.plot(in_state.index.to_numpy(), scores.to_numpy(), marker, ms=4, label=label)
    finished_scores = candidates[candidates["state"] == "COMPLETE"]["score"]
    best_scores = finished_scores.cummax()
    axes.step(
        best_scores.index.to_numpy(), best_scores.to_numpy(), where="post", lw=1, color="0.3", label="best so far"
    )
    axes.set(xlabel="candidate", ylabel=score.label)
    add_legend(axes, fontsize=8)
    return figure


def _plot_importances(importances: dict[str, float]) -> Figure:
    ordered = sorted(importances.items(), key=lambda kv: kv[1])
    figure, axes = make_axes(7.5, 0.7 + 0.35 * len(ordered))
    bars = axes.barh([key for key, _ in ordered], [share * 100 for _, share in ordered], height=0.6)
    axes.bar_label(bars, fmt="%.0f %%", padding=3, fontsize=8)
    axes.set(xlabel="share of the spread of the scores, %", xlim=(0, 112))
    return figure


def _plot_parallel_coordinates(finished: pd.DataFrame, search: SearchConfig, score: CandidateScore) -> Figure:
    """Parallel coordinates: an axis a key, the score as the last; a line a candidate, its colour the score."""
    keys = list(finished["changes"].iloc[0])
    columns = [_compute_axis_positions([c[key] for c in finished["changes"]], search.space[key].log) for key in keys]
    scores = finished["score"].to_numpy()
    columns.append(_compute_axis_positions(list(scores), False))
    figure, axes = make_axes(max(5.0, 1.9 * len(columns)), 3.8)
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
    axes.set_xticks(range(len(columns)), [*keys, score.label.replace(" of ", "\nof ")], fontsize=8)
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


def _plot_costs(finished: pd.DataFrame, cost: str, score: CandidateScore) -> Figure:
    figure, axes = make_axes(7.5, 3.4)
    front = select_pareto_front(finished)
    axes.plot(finished["cost"].to_numpy(), finished["score"].to_numpy(), "o", ms=4, color="0.6")
    axes.plot(front["cost"].to_numpy(), front["score"].to_numpy(), "o-", ms=5)
    axes.set(xlabel=COST_LABELS[cost], ylabel=score.label)
    return figure
