"""Lay the outputs of a model out as a table, one row a window. Runs without torch."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from eav_ray.data.recordings import TARGET_PREFIX
from eav_ray.training.metrics import (
    LOGIT_PREFIX,
    MEAN_SOURCE,
    VALUE_PREFIX,
    WINDOW_COLUMNS,
    average_values,
    combine_by_rules,
)
from eav_ray.training.target_scale import TargetScale


class PredictedArrays(NamedTuple):
    """What a model makes of windows, float32."""

    logits_BK: np.ndarray
    unimodal_logits: Mapping[str, np.ndarray]  # (windows, outputs) of each modality
    weights_BM: np.ndarray
    corrected_BM: np.ndarray


def lay_out_predictions(
    output: PredictedArrays,
    ids: pd.DataFrame,
    present_BM: np.ndarray,
    names: list[str],
    label: np.ndarray,
    scale: TargetScale | None = None,
) -> pd.DataFrame:
    """One row a window: ids, label, logits of the fusion, of the rules of fusion (`combine_by_rules`) and of
    each modality, modality weights.

    Where numbers are predicted, it has these in place of logits, and the mean of the modalities' as the rule of fusion.
    What a modality that a window lacks would say is NaN.

    Args:
        label: Classes; or (windows, targets), in their units.
        scale: Of the numbers that are predicted.
    """
    columns: dict[str, np.ndarray] = {c: ids[c].to_numpy() for c in WINDOW_COLUMNS}
    if scale is None:
        columns["label"] = label
        unimodal, by_rule = split_unimodal_logits(output, names, present_BM)
        sources, prefix = {"fusion": output.logits_BK} | by_rule | unimodal, LOGIT_PREFIX
    else:
        columns |= {f"{TARGET_PREFIX}{k}": label[:, k] for k in range(len(scale.names))}
        sources, prefix = _restore_values(output, names, present_BM, scale), VALUE_PREFIX
    for source, outputs in sources.items():
        columns |= {f"{source}.{prefix}{k}": outputs[:, k] for k in range(outputs.shape[1])}
    for position, m in enumerate(names):
        columns[f"weight.{m}"] = output.weights_BM[:, position]
        columns[f"corrected.{m}"] = output.corrected_BM[:, position]
    return pd.DataFrame(columns)


def _restore_values(
    output: PredictedArrays, names: list[str], present_BM: np.ndarray, scale: TargetScale
) -> dict[str, np.ndarray]:
    """Return the numbers that each source predicts, in the units of the targets."""
    values_BMK = np.stack([scale.restore(output.unimodal_logits[m]) for m in names], 1)
    unimodal = {m: np.where(present_BM[:, i, None], values_BMK[:, i], np.nan) for i, m in enumerate(names)}
    fused = scale.restore(output.logits_BK)
    return {"fusion": fused, MEAN_SOURCE: average_values(values_BMK, present_BM)} | unimodal


def split_unimodal_logits(
    output: PredictedArrays, names: list[str], present_BM: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return (logits of each modality, NaN where a window lacks it; those of each rule of fusion, of what it has)."""
    logits_BMK = np.stack([output.unimodal_logits[m] for m in names], 1)
    unimodal = {
        m: np.where(present_BM[:, position, None], logits_BMK[:, position], np.nan) for position, m in enumerate(names)
    }
    return unimodal, combine_by_rules(logits_BMK, present_BM)
