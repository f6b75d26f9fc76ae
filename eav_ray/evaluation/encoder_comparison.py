"""Compare encoders and baselines of one modality, paired over people. Windows, recordings and folds are never the unit.

Each person has one score of each model: the balanced accuracy of their recordings, or where numbers are predicted the
CCC, or the RMSE of a target whose true numbers do not differ within people. Several seeds are averaged within a person
before people are compared.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from eav_ray.data.recordings import TARGET_PREFIX
from eav_ray.evaluation.comparisons import compare_differences, comparison_to_dict
from eav_ray.evaluation.correctness import mark_correct_recordings
from eav_ray.evaluation.number_scores import (
    average_numbers,
    compute_correlation_interval,
    compute_positive_interval,
    find_level,
    score_subjects,
    select_pairs,
)
from eav_ray.evaluation.results_tree import ResultsTree, to_json_value
from eav_ray.evaluation.statistics import Interval, compute_share_interval
from eav_ray.training.metrics import RECORDING_COLUMNS

ENCODER, BASELINE = "encoder", "baseline"
BALANCED_ACCURACY, CCC, RMSE = "balanced_accuracy", "ccc", "rmse"  # measures
SCORE_COLUMNS = ["model", "seed", "subject", "score", "modality", "target", "measure"]


@dataclass(frozen=True)
class ModelPredictions:
    """What one model predicted over all folds.

    Attributes:
        model: Its name in tables.
        kind: `ENCODER` or `BASELINE`.
        source: How its columns begin.
        windows: One row a window.
        seed: Of its trainings; a baseline has none.
    """

    model: str
    kind: str
    source: str
    windows: pd.DataFrame
    seed: int | None = None


def score_models(predictions: Sequence[ModelPredictions], modality: str, targets: Sequence[str]) -> pd.DataFrame:
    """Score every model for each person, on the recordings that all encoders have predicted.

    Args:
        predictions: Of one modality. What a baseline has no prediction of counts as wrong.
        targets: Names of the numbers that are predicted; none where classes are.
    Returns:
        `SCORE_COLUMNS`, a row a model, seed, person and target. A CCC has rows of those people alone whose true numbers
        differ, and the scores of a model that diverged for a person are NaN.
    """
    ids = [_name_recordings(p.windows) for p in predictions if p.kind == ENCODER]
    common = set(ids[0]).intersection(*ids[1:])
    tables = []
    for one in predictions:
        windows = one.windows[_name_recordings(one.windows).isin(common).to_numpy()]
        scored = _score_numbers(windows, one.source, targets) if targets else _score_classes(windows, one.source)
        tables.append(scored.assign(model=one.model, seed=one.seed, modality=modality))
    return pd.concat(tables, ignore_index=True)[SCORE_COLUMNS].astype({"seed": "Int64", "subject": str})


def _name_recordings(windows: pd.DataFrame) -> pd.Series:
    first, second = RECORDING_COLUMNS
    return windows[first].astype(str) + "/" + windows[second].astype(str)


def _score_classes(windows: pd.DataFrame, source: str) -> pd.DataFrame:
    """Compute the mean over a person's classes of the share of recordings that are right."""
    recalls = mark_correct_recordings(windows, [source]).groupby(["subject", "label"])[source].mean()
    scores = recalls.groupby("subject").mean().rename("score").reset_index()
    return scores.assign(target="", measure=BALANCED_ACCURACY)


def _score_numbers(windows: pd.DataFrame, source: str, targets: Sequence[str]) -> pd.DataFrame:
    recordings, tables = average_numbers(windows, [source]), []
    for k, target in enumerate(targets):
        scores = score_subjects(select_pairs(recordings, source, k))
        measure = CCC if find_level(recordings, k) == "within" else RMSE
        own = scores[scores["counts"]] if measure == CCC else scores
        rows = own[measure].rename("score").reset_index()
        tables.append(rows.assign(target=target, measure=measure))
    return pd.concat(tables, ignore_index=True)


def compare_models(
    scores: pd.DataFrame, kinds: Mapping[str, str], reference: str, spreads: Mapping[str, float] | None = None
) -> list[ResultsTree]:
    """Summarize every model over people, and compare it with the reference, with Holm's correction for all of these.

    Args:
        scores: From `score_models`.
        kinds: Of the models, in the order of the table.
        reference: The model that all others are compared with; where it has no scores, nothing is compared.
        spreads: SD of the true numbers of each target (`measure_spreads`), by which an RMSE is divided for the test.
    Returns:
        An entry a target and model: `model`, `kind`, `target`, `measure`, `seeds`, `n_subjects`, `mean`, `sd`,
        `interval`, `seed_sd` (of the means of several seeds) and `comparison`, whose difference is that by which the
        model is better: of an RMSE the reference less the model.
    """
    entries: list[ResultsTree] = []
    differences: list[tuple[str, str, np.ndarray]] = []
    compared: list[tuple[ResultsTree, float]] = []  # and what its differences were divided by
    for target, of_target in scores.groupby("target", sort=False):
        measure = str(of_target["measure"].iloc[0])
        by_subject = _average_seeds(of_target)
        common = by_subject[[m for m in kinds if m in by_subject]]
        scale = (spreads or {}).get(str(target), 1.0) if measure == RMSE else 1.0
        for model in common.columns:
            own = of_target[of_target["model"] == model]
            entry: ResultsTree = {"model": model, "kind": kinds[model], "target": target, "measure": measure}
            entry |= _summarize(common[model].dropna(), own, measure)
            entry["comparison"] = None
            entries.append(entry)
            if model != reference and reference in common:
                differences.append((model, reference, _subtract(common, model, reference, measure) / scale))
                compared.append((entry, scale))
    for (entry, scale), test in zip(compared, compare_differences(differences), strict=True):
        tree = comparison_to_dict(test)
        entry["comparison"] = tree | {
            "difference": tree["difference"] * scale,
            "interval": [bound * scale for bound in tree["interval"]],
        }
    return [to_json_value(entry) for entry in entries]


def _average_seeds(scores: pd.DataFrame) -> pd.DataFrame:
    """Average seeds within people: rows people, columns models; NaN where a seed diverged."""
    means = scores.groupby(["subject", "model"])["score"].agg(lambda own: own.mean(skipna=False))
    return means.unstack("model")


def _subtract(by_subject: pd.DataFrame, model: str, reference: str, measure: str) -> np.ndarray:
    """By how much a model is better, one number a person of both; nothing where one of the two diverged."""
    both = by_subject[[model, reference]]
    gains = (both[model] - both[reference]).to_numpy(float) * (-1 if measure == RMSE else 1)
    return gains if np.isfinite(gains).all() else np.empty(0)


def _summarize(values: pd.Series, scores: pd.DataFrame, measure: str) -> ResultsTree:
    compute = {BALANCED_ACCURACY: compute_share_interval, CCC: compute_correlation_interval}.get(
        measure, compute_positive_interval
    )
    numbers = values.to_numpy(float)
    diverged = not len(numbers) or bool(scores["score"].isna().any())
    one = Interval(*[math.nan] * 4) if diverged else compute(numbers)
    seeds = sorted(scores["seed"].dropna().unique().tolist())
    by_seed = scores.groupby("seed")["score"].mean()
    return {
        "seeds": seeds,
        "n_subjects": len(numbers),
        "mean": one.mean,
        "sd": one.sd,
        "interval": [one.low, one.high],
        "seed_sd": float(by_seed.std(ddof=1)) if len(seeds) > 1 else None,
    }


def measure_spreads(windows: pd.DataFrame, targets: Sequence[str]) -> dict[str, float]:
    """Measure the SD of the true numbers of each target; 1 where they do not differ."""
    recordings = windows.drop_duplicates(RECORDING_COLUMNS)
    found = {}
    for k, target in enumerate(targets):
        true = recordings[f"{TARGET_PREFIX}{k}"].to_numpy(float)
        spread = float(np.nanstd(true)) if np.isfinite(true).any() else 0.0
        found[target] = spread if spread > 0 else 1.0
    return found


def list_score_rows(scores: pd.DataFrame) -> list[dict[str, Any]]:
    """List scores as JSON holds them."""
    rows = scores.astype({"seed": object}).where(scores.notna(), None).to_dict("records")
    return [to_json_value({str(key): value for key, value in row.items()}) for row in rows]
