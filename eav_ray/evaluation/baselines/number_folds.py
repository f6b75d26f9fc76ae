"""Baselines that predict numbers: on one fold, each target for itself, and how they are scored."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from eav_ray.data.recordings import TARGET_PREFIX
from eav_ray.evaluation.baselines.classifiers import FoldRows
from eav_ray.evaluation.baselines.inputs import FUSED, Source
from eav_ray.evaluation.baselines.regressors import NUMBER_KINDS, NumberChoice, fit_and_predict_number
from eav_ray.evaluation.number_comparisons import Rivals, compare_numbers
from eav_ray.evaluation.number_scores import (
    CONSTANT_SOURCE,
    average_correlation,
    average_numbers,
    average_rmse,
    find_level,
    list_number_sources,
    score_between_subjects,
    score_subjects,
    select_pairs,
)
from eav_ray.evaluation.results_tree import ResultsTree, to_json_value
from eav_ray.training.metrics import (
    MEAN_SOURCE,
    RECORDING_COLUMNS,
    VALUE_PREFIX,
    average_values,
    list_output_sources,
    list_truth_columns,
)

UNCHOSEN_ORDER = ("ridge", "svr", "riemann_ridge")  # of a modality in the mean where nothing could be chosen
SelectRows = Callable[[Source, np.ndarray], FoldRows]  # a source and the true numbers of all windows -> its rows


def predict_numbers(
    sources: Sequence[Source],
    recording: pd.Series,
    targets_VK: np.ndarray,
    in_training: np.ndarray,
    test: np.ndarray,
    select_rows: SelectRows,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Predict the test windows of a fold by every regression, their mean over modalities, and a constant.

    In the mean each modality is represented by the kind that its inner folds found best, target by target. The constant
    is the mean of the target over the recordings of the training side.

    Args:
        recording: (windows,) a name of the recording of each.
        targets_VK: True numbers of all windows.
        in_training: (windows,) whether a fold is trained on it.
        test: Positions of the test windows.
    Returns:
        Columns of predictions, and what was chosen by source.
    """
    columns: dict[str, np.ndarray] = {}
    chosen: dict[str, Any] = {}
    for k, truth_V in enumerate(targets_VK.T):
        columns[f"{TARGET_PREFIX}{k}"] = truth_V[test]
        first = ~recording.duplicated().to_numpy() & in_training & np.isfinite(truth_V)
        constant = truth_V[first].mean() if first.any() else np.nan
        columns[f"{CONSTANT_SOURCE}.{VALUE_PREFIX}{k}"] = np.full(len(test), constant)
        choices: dict[str, NumberChoice] = {}
        for source in sources:
            rows, value_V = select_rows(source, truth_V), np.full(len(test), np.nan)
            found = fit_and_predict_number(NUMBER_KINDS[source.kind], rows.train, rows.inner, rows.test_x)
            if found is not None:
                value_V[rows.has], choices[source.name] = found
            columns[f"{source.name}.{VALUE_PREFIX}{k}"] = value_V
        for name, choice in choices.items():
            ccc, rmse = choice.score or (None, None)
            inner = {"inner_ccc": None if ccc == -np.inf else ccc, "inner_rmse": None if rmse is None else -rmse}
            chosen.setdefault(name, []).append({"target": k, "parameters": dict(choice.parameters), **inner})
        modalities = list(dict.fromkeys(s.modality for s in sources))
        if len(modalities) > 1:
            represented = {m: _choose_kind([s for s in sources if s.modality == m], choices) for m in modalities}
            values_BM = np.stack([columns[f"{s.name}.{VALUE_PREFIX}{k}"] for s in represented.values()], 1)
            mean_B1 = average_values(values_BM[..., None], np.isfinite(values_BM))
            columns[f"{FUSED}.{MEAN_SOURCE}.{VALUE_PREFIX}{k}"] = mean_B1[:, 0]
            chosen.setdefault(FUSED, []).append({"target": k, **{m: s.kind for m, s in represented.items()}})
    return columns, chosen


def _choose_kind(sources: Sequence[Source], choices: Mapping[str, NumberChoice]) -> Source:
    """Choose the kind that stands for a modality in the mean: the best on inner folds, of equal ones the first."""
    in_order = sorted(sources, key=lambda s: UNCHOSEN_ORDER.index(s.kind))
    worst = (-np.inf, -np.inf)
    return max(in_order, key=lambda s: (choices[s.name].score or worst) if s.name in choices else worst)


def list_number_titles(sources: Sequence[Source]) -> dict[str, str]:
    """Name the sources of predictions as tables do, the constant first and the mean last."""
    titles = {CONSTANT_SOURCE: "constant: mean of the training targets"} | {s.name: s.title for s in sources}
    if len({s.modality for s in sources}) > 1:
        titles[f"{FUSED}.{MEAN_SOURCE}"] = "baselines fused, mean"
    return titles


def summarize_number_baselines(
    windows: pd.DataFrame, titles: Mapping[str, str], targets: Sequence[str]
) -> list[ResultsTree]:
    """Compute CCC, Pearson and RMSE of each target and source, with intervals over people.

    Args:
        windows: Predictions of all folds.
        titles: Of the sources (`list_number_titles`).
    """
    recordings = average_numbers(windows, list(titles))
    rows = []
    for k, target in enumerate(targets):
        within = find_level(recordings, k) == "within"
        for source, title in titles.items():
            pairs = select_pairs(recordings, source, k)
            scores = score_subjects(pairs)
            found = {
                name: average_correlation(scores, name) if within else score_between_subjects(pairs)[name]
                for name in ("ccc", "pearson")
            }
            found["rmse"] = average_rmse(scores)
            row: ResultsTree = {"target": target, "source": source, "title": title, "recordings": len(pairs)}
            row["n_counted"] = int(scores["counts"].sum()) if within else len(scores)
            for name, one in found.items():
                row |= {name: one.mean, f"{name}_sd": one.sd, f"{name}_interval": [one.low, one.high]}
            rows.append(to_json_value(row))
    return rows


def compare_with_baselines(
    predictions: pd.DataFrame, modalities: Sequence[str], tables: Sequence[pd.DataFrame], targets: Sequence[str]
) -> list[ResultsTree]:
    """Compare the main source of predictions with every baseline, paired over people, with Holm's correction for all.

    By CCC of the targets that have one within subjects, and by RMSE of the others.

    Args:
        tables: Predictions of baselines on the same recordings; of a baseline that several have, the first counts.
    """
    main_source = list_number_sources(modalities)[-1]
    recordings = average_numbers(predictions, [main_source])
    rivals = []
    levels = [find_level(recordings, k) for k in range(len(targets))]
    for table in tables:
        known = list_output_sources(recordings)
        sources = [source for source in list_output_sources(table) if source not in known]
        found = average_numbers(table, sources).drop(columns=list_truth_columns(table))
        recordings = recordings.merge(found, on=RECORDING_COLUMNS, how="left")
        rivals += [
            Rivals(k, targets[k], main_source, source, "ccc" if level == "within" else "rmse")
            for k, level in enumerate(levels)
            for source in sources
        ]
    return [one.to_dict() | {"measure": one.measure} for one in compare_numbers(recordings, rivals)]
