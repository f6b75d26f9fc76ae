"""Predictions under distortions to numbers: accuracy at each step, areas, modality weights and whether they fall."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from eav_ray.report import statistics
from eav_ray.report.table import correct_per_recording, sources_of
from eav_ray.training.metrics import average_per_recording

FORMAT = 1  # raise when the tree changes
KINDS_OF_WEIGHT = {"raw": "weight", "corrected": "corrected"}  # in the tree, in the predictions
LEFT = 0.5  # share of the recordings that must have kept a modality for its weight to be tested at a step
IDS = ["subject", "recording"]


def tree_of(
    tables: Mapping[str, pd.DataFrame],
    conditions: Sequence[Mapping[str, Any]],
    modalities: Sequence[str],
    n_classes: int,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Every number of a stress test, as JSON.

    Args:
        tables: Predictions of each condition, one row a window (`training.run.to_frame`), with `reason`: why a row is
            no window but a file that could not be used, else empty.
        conditions: The clean one first: `name`, `kind`, `step`, `modalities` (disturbed), `levels`.
        facts: Of the checkpoint and the data, taken over as they are.
    """
    sources = sources_of(modalities)
    clean = tables[conditions[0]["name"]]
    recordings = clean[[*IDS, "label"]].drop_duplicates(IDS)
    counts = recordings["label"].value_counts()
    summaries = [
        {**c, **_condition(tables[c["name"]], c, clean, recordings, sources, modalities, unequal=counts.nunique() > 1)}
        for c in conditions
    ]
    return {
        "format": FORMAT,
        **facts,
        "people": int(recordings["subject"].nunique()),
        "recordings": len(recordings),
        "chance": 1 / n_classes,
        "modalities": list(modalities),
        "sources": sources,
        "conditions": summaries,
        "areas": _areas(summaries, sources),
        "claims": _claims(tables, summaries, modalities),
    }


def _condition(
    table: pd.DataFrame,
    condition: Mapping[str, Any],
    clean: pd.DataFrame,
    recordings: pd.DataFrame,
    sources: list[str],
    modalities: Sequence[str],
    *,
    unequal: bool,
) -> dict[str, Any]:
    windows, was = _windows(table), _windows(clean)
    correct = correct_per_recording(windows, sources).drop(columns="label")
    # A recording, or a modality of it, that cannot be used at all is not right.
    correct = recordings.merge(correct, on=IDS, how="left")
    correct[sources] = correct[sources].fillna(False).astype(bool)
    lost = {m: _lost(was, windows, m) for m in condition["modalities"]}
    reasons = [r for r in table["reason"] if r]
    return {
        "sources": {s: _score(correct, s, unequal=unequal) for s in sources},
        "weights": {m: _mean_weights(windows, m) for m in modalities} if len(modalities) > 1 else {},
        "refused": lost,
        "reason": max(set(reasons), key=reasons.count) if reasons else "",
    }


def _windows(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["reason"] == ""].drop(columns="reason")


def _score(correct: pd.DataFrame, source: str, *, unequal: bool) -> dict[str, float | None]:
    found = statistics.interval(correct, source)
    score = {"accuracy": found.mean, "sd": _number(found.sd), "low": found.low, "high": found.high}
    if unequal:
        score["balanced_accuracy"] = float(correct.groupby("label")[source].mean().mean())
    return score


def _lost(was: pd.DataFrame, windows: pd.DataFrame, modality: str) -> float:
    """Share of the recordings with a modality that have it no more: its preprocessing refused it."""
    before, after = (_with(table, modality)[IDS].drop_duplicates() for table in (was, windows))
    return 1 - len(before.merge(after, on=IDS)) / len(before) if len(before) else 0.0


def _with(windows: pd.DataFrame, modality: str) -> pd.DataFrame:
    return windows[windows[f"{modality}.logit_0"].notna()]


def _mean_weights(windows: pd.DataFrame, modality: str) -> dict[str, float | None]:
    """Where the modality is used: mean over people of the means of their recordings."""
    used = average_per_recording(_with(windows, modality))
    means = used.groupby("subject")[[f"{column}.{modality}" for column in KINDS_OF_WEIGHT.values()]].mean().mean()
    return {kind: _number(means[f"{column}.{modality}"]) for kind, column in KINDS_OF_WEIGHT.items()}


def _areas(conditions: list[dict[str, Any]], sources: list[str]) -> list[dict[str, Any]]:
    """Under accuracy against the steps, the clean recordings first, all steps equally far apart."""
    found = []
    for kind in dict.fromkeys(c["kind"] for c in conditions[1:]):
        steps = [conditions[0], *(c for c in conditions if c["kind"] == kind)]
        areas = {}
        for s in sources:
            curve = np.array([c["sources"][s]["accuracy"] for c in steps])
            area = float(np.trapezoid(curve) / (len(curve) - 1))
            areas[s] = {"mean_accuracy": area, "of_clean": area / curve[0] if curve[0] > 0 else None}
        found.append({"kind": kind, "modalities": steps[-1]["modalities"], "sources": areas})
    return found


def _claims(
    tables: Mapping[str, pd.DataFrame], conditions: list[dict[str, Any]], modalities: Sequence[str]
) -> list[dict[str, Any]]:
    """Does the weight of the disturbed modality fall? Clean against the strongest step at which it is still used.

    Paired over people, or over recordings where fewer than 6 people are there; Holm's correction over the kinds. Called
    a fall or a rise where the 95 % interval over people and recordings leaves 0 out as well.
    """
    if len(modalities) < 2:
        return []
    clean = tables[conditions[0]["name"]]
    found: list[dict[str, Any]] = []
    for weight, column in KINDS_OF_WEIGHT.items():
        mine = []
        for kind in dict.fromkeys(c["kind"] for c in conditions if len(c["modalities"]) == 1):
            m = next(c["modalities"][0] for c in conditions if c["kind"] == kind)
            there = len(_with(_windows(clean), m))  # nothing can be lost where there is nothing
            steps = [c for c in conditions if there and c["kind"] == kind and 1 - c["refused"][m] >= LEFT]
            if steps:
                mine.append(_claim(clean, tables[steps[-1]["name"]], steps[-1], m, weight, column))
            else:
                mine.append(
                    {"kind": kind, "modality": m, "weight": weight, "p": None, "holm": None, "verdict": "not testable"}
                )
        tested = [c for c in mine if c["p"] is not None]
        for claim, p in zip(tested, statistics.holm([c["p"] for c in tested]), strict=True):
            claim["holm"] = p
            # Recordings of few people are many, and what is special about these people looks sure: the interval, which
            # draws people, must agree.
            sure = p < statistics.ALPHA and (claim["low"] > 0 or claim["high"] < 0)
            claim["verdict"] = ("falls" if claim["difference"] < 0 else "rises") if sure else "not significant"
        found += mine
    return found


def _claim(
    clean: pd.DataFrame, disturbed: pd.DataFrame, step: Mapping[str, Any], m: str, weight: str, column: str
) -> dict[str, Any]:
    pair = [_with(_windows(t), m)[[*IDS, "window", f"{column}.{m}"]] for t in (clean, disturbed)]
    both = pair[0].merge(pair[1], on=[*IDS, "window"], suffixes=("_clean", "_disturbed"))
    means = both.drop(columns="window").groupby(IDS).mean().reset_index()
    means["difference"] = means[f"{column}.{m}_disturbed"] - means[f"{column}.{m}_clean"]
    subject_means = means.groupby("subject").mean(numeric_only=True)
    paired_over_subjects = len(subject_means) >= statistics.MIN_SUBJECTS
    p, effect = statistics.signed_rank((subject_means if paired_over_subjects else means)["difference"].to_numpy())
    apart = statistics.interval(means, "difference")
    return {
        "kind": step["kind"],
        "modality": m,
        "weight": weight,
        "step": step["step"],
        "level": step["levels"][0]["level"],
        "unit": step["levels"][0]["unit"],
        "clean": float(subject_means[f"{column}.{m}_clean"].mean()),
        "disturbed": float(subject_means[f"{column}.{m}_disturbed"].mean()),
        "difference": apart.mean,
        "low": apart.low,
        "high": apart.high,
        "over": "people" if paired_over_subjects else "recordings",
        "n": len(subject_means) if paired_over_subjects else len(means),
        "p": p,
        "effect": effect,
        "holm": None,
        "verdict": "",
    }


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return float(value) if math.isfinite(value) else None
