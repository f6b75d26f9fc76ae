"""Predictions under corruptions to numbers: accuracy at each step, areas, modality weights and whether they fall."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from eav_ray.evaluation import statistics
from eav_ray.evaluation.comparisons import compare_differences, comparison_to_dict
from eav_ray.evaluation.correctness import list_sources, mark_correct_recordings
from eav_ray.evaluation.results_tree import finite_or_none, to_json_value
from eav_ray.training.metrics import RECORDING_COLUMNS, average_per_recording

ROBUSTNESS_FORMAT = 2  # raise when the tree changes


WEIGHT_COLUMNS = {"raw": "weight", "corrected": "corrected"}  # in the tree, in the predictions


NOT_TESTABLE = "not testable"  # verdict on a weight that nothing was left of


MIN_USABLE_SHARE = 0.5  # share of the recordings that must have kept a modality for its weight to be tested at a step


def build_robustness_results(
    tables: Mapping[str, pd.DataFrame],
    conditions: Sequence[Mapping[str, Any]],
    modalities: Sequence[str],
    n_classes: int,
    metadata: Mapping[str, Any],
) -> dict[str, Any]:
    """Every number of a robustness test, as JSON.

    Args:
        tables: Predictions of each condition, one row a window (`training.predictions.build_predictions`), with
            `reason`: why a row is no window but a file that could not be used, else empty.
        conditions: The clean one first: `name`, `kind`, `severity`, `modalities` (corrupted), `levels`.
        metadata: Of the checkpoint and the data, taken over as they are.
    """
    sources = list_sources(modalities)
    clean = tables[conditions[0]["name"]]
    recordings = clean[[*RECORDING_COLUMNS, "label"]].drop_duplicates(RECORDING_COLUMNS)
    counts = recordings["label"].value_counts()
    unequal = counts.nunique() > 1
    summaries = [
        {**c, **_summarize_condition(tables[c["name"]], c, clean, recordings, modalities, unequal=unequal)}
        for c in conditions
    ]
    return {
        "format": ROBUSTNESS_FORMAT,
        **metadata,
        "n_subjects": int(recordings["subject"].nunique()),
        "recordings": len(recordings),
        "chance": 1 / n_classes,
        "modalities": list(modalities),
        "sources": sources,
        "conditions": summaries,
        "accuracy_areas": _compute_areas(summaries, sources),
        "weight_changes": _test_weight_changes(tables, summaries, modalities),
    }


def _summarize_condition(
    table: pd.DataFrame,
    condition: Mapping[str, Any],
    clean: pd.DataFrame,
    recordings: pd.DataFrame,
    modalities: Sequence[str],
    *,
    unequal: bool,
) -> dict[str, Any]:
    sources = list_sources(modalities)
    windows, clean_windows = _select_windows(table), _select_windows(clean)
    correct = mark_correct_recordings(windows, sources).drop(columns="label")
    # A recording, or a modality of it, that cannot be used at all is not right.
    correct = recordings.merge(correct, on=RECORDING_COLUMNS, how="left")
    correct[sources] = correct[sources].fillna(False).astype(bool)
    refused_shares = {m: _compute_refused_share(clean_windows, windows, m) for m in condition["modalities"]}
    reasons = [r for r in table["reason"] if r]
    return {
        "sources": {s: _compute_score(correct, s, unequal=unequal) for s in sources},
        "weights": {m: _compute_mean_weights(windows, m) for m in modalities} if len(modalities) > 1 else {},
        "refused_share": refused_shares,
        "reason": max(set(reasons), key=reasons.count) if reasons else "",
    }


def _select_windows(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["reason"] == ""].drop(columns="reason")


def _compute_score(correct: pd.DataFrame, source: str, *, unequal: bool) -> dict[str, float | None]:
    bounds = statistics.compute_accuracy_interval(correct, source)
    score = {
        "accuracy": bounds.mean,
        "sd": finite_or_none(bounds.sd),
        "low": finite_or_none(bounds.low),
        "high": finite_or_none(bounds.high),
    }
    if unequal:
        score["balanced_accuracy"] = statistics.compute_balanced_accuracy(correct, source)
    return score


def _compute_refused_share(clean_windows: pd.DataFrame, windows: pd.DataFrame, modality: str) -> float:
    """Share of the recordings with a modality that have it no more: its preprocessing refused it."""
    before, after = (
        _select_with_modality(table, modality)[RECORDING_COLUMNS].drop_duplicates()
        for table in (clean_windows, windows)
    )
    return 1 - len(before.merge(after, on=RECORDING_COLUMNS)) / len(before) if len(before) else 0.0


def _select_with_modality(windows: pd.DataFrame, modality: str) -> pd.DataFrame:
    return windows[windows[f"{modality}.logit_0"].notna()]


def _compute_mean_weights(windows: pd.DataFrame, modality: str) -> dict[str, float | None]:
    """Where the modality is used: mean over people of the means of their recordings."""
    used = average_per_recording(_select_with_modality(windows, modality))
    means = used.groupby("subject")[[f"{column}.{modality}" for column in WEIGHT_COLUMNS.values()]].mean().mean()
    return {kind: finite_or_none(means[f"{column}.{modality}"]) for kind, column in WEIGHT_COLUMNS.items()}


def _compute_areas(conditions: list[dict[str, Any]], sources: list[str]) -> list[dict[str, Any]]:
    """Under accuracy against the steps, the clean recordings first, all steps equally far apart."""
    rows = []
    for kind in dict.fromkeys(c["kind"] for c in conditions[1:]):
        steps = [conditions[0], *(c for c in conditions if c["kind"] == kind)]
        areas = {}
        for s in sources:
            curve = np.array([c["sources"][s]["accuracy"] for c in steps])
            area = float(np.trapezoid(curve) / (len(curve) - 1))
            areas[s] = {"mean_accuracy": area, "relative_to_clean": area / curve[0] if curve[0] > 0 else None}
        rows.append({"kind": kind, "modalities": steps[-1]["modalities"], "sources": areas})
    return rows


def _test_weight_changes(
    tables: Mapping[str, pd.DataFrame], conditions: list[dict[str, Any]], modalities: Sequence[str]
) -> list[dict[str, Any]]:
    """Does the weight of the corrupted modality fall? Clean against the strongest step at which it is still used.

    Paired over people, Holm's correction over the kinds.
    """
    if len(modalities) < 2:
        return []
    clean = tables[conditions[0]["name"]]
    changes: list[dict[str, Any]] = []
    for weight, column in WEIGHT_COLUMNS.items():
        measured, differences = [], []
        for kind in dict.fromkeys(c["kind"] for c in conditions if len(c["modalities"]) == 1):
            m = next(c["modalities"][0] for c in conditions if c["kind"] == kind)
            steps = [c for c in conditions if c["kind"] == kind and 1 - c["refused_share"][m] >= MIN_USABLE_SHARE]
            change = {"kind": kind, "modality": m, "weight": weight, "p": None, "holm": None, "verdict": NOT_TESTABLE}
            changes.append(change)
            # Nothing can be lost where there is nothing.
            if steps and len(_select_with_modality(_select_windows(clean), m)):
                weights = _average_weights_per_subject(clean, tables[steps[-1]["name"]], f"{column}.{m}")
                level = steps[-1]["levels"][0]
                change |= {"severity": steps[-1]["severity"], "level": level["level"], "unit": level["unit"]}
                change |= {side: float(mean) for side, mean in weights.mean().items()}
                measured.append(change)
                differences.append((kind, m, (weights["corrupted"] - weights["clean"]).to_numpy()))
        for change, test in zip(measured, compare_differences(differences), strict=True):
            change |= to_json_value(comparison_to_dict(test))
            if test.significant:
                change["verdict"] = "falls" if test.difference.mean < 0 else "rises"
    return changes


def _average_weights_per_subject(clean: pd.DataFrame, corrupted: pd.DataFrame, column: str) -> pd.DataFrame:
    """The mean over each person's recordings, of windows that both have: rows people, columns `clean`, `corrupted`."""
    m = column.split(".")[1]
    pair = [
        _select_with_modality(_select_windows(t), m)[[*RECORDING_COLUMNS, "window", column]] for t in (clean, corrupted)
    ]
    both = pair[0].merge(pair[1], on=[*RECORDING_COLUMNS, "window"], suffixes=(".clean", ".corrupted"))
    means = both.drop(columns="window").groupby(RECORDING_COLUMNS).mean().groupby("subject").mean()
    return means.set_axis(["clean", "corrupted"], axis=1)
