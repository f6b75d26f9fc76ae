"""Predict windows and lay the outputs out as a table."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch

from eav_ray.data.io.parquet import decode_dataframe, encode_dataframe
from eav_ray.data.recordings import TARGET_PREFIX
from eav_ray.data.shards.window_cache import WindowCache
from eav_ray.models.classifier import ClassifierOutput
from eav_ray.training.collectives import gather_bytes
from eav_ray.training.dataloader import Batch, Source, WindowLabels, make_inference_batches
from eav_ray.training.engines.base import Engine
from eav_ray.training.metrics import (
    LOGIT_PREFIX,
    MEAN_SOURCE,
    VALUE_PREFIX,
    WINDOW_COLUMNS,
    average_values,
    combine_by_rules,
)
from eav_ray.training.target_scale import TargetScale


def predict_rows(
    engine: Engine, source: Source, labels: WindowLabels, rows: np.ndarray, windows: WindowCache, batch_size: int
) -> pd.DataFrame:
    """Predictions of all rows, on every rank: each computes its share, every row once, whatever their number."""
    own_rows = rows[engine.rank :: engine.world_size]
    # Equally many forward passes on every rank: in ZeRO 3 each of them gathers parameters from all.
    n_missing = -(-len(rows) // engine.world_size) - len(own_rows)
    padded = np.concatenate([own_rows, rows[:n_missing]])
    own = b""
    if len(padded):
        own_table = compute_predictions(engine.predict, source, labels, padded, windows, batch_size)
        own = encode_dataframe(own_table.iloc[: len(own_rows)])
    whole = [decode_dataframe(data, "predictions of a rank") for data in gather_bytes(own) if data]
    return pd.concat(whole, ignore_index=True).sort_values(WINDOW_COLUMNS, ignore_index=True)


def compute_predictions(
    predict: Callable[[Batch], ClassifierOutput],
    source: Source,
    labels: WindowLabels,
    rows: np.ndarray,
    windows: WindowCache,
    batch_size: int,
) -> pd.DataFrame:
    """`build_predictions` of some rows, at least one, in their order.

    Args:
        batch_size: Windows that are computed at once.
    """
    parts = []
    for part, model_batch in make_inference_batches(source, labels, rows, batch_size):
        ids, present = windows.ids.iloc[part], source.get_presence(part)
        label = labels.label[part]
        parts.append(build_predictions(predict(model_batch), ids, present, source.names, label, labels.scale))
    return pd.concat(parts, ignore_index=True)


def build_predictions(
    output: ClassifierOutput,
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
        sources, prefix = {"fusion": output.logits_BK.float().cpu().numpy()} | by_rule | unimodal, LOGIT_PREFIX
    else:
        columns |= {f"{TARGET_PREFIX}{k}": label[:, k] for k in range(len(scale.names))}
        sources, prefix = _restore_values(output, names, present_BM, scale), VALUE_PREFIX
    for source, outputs in sources.items():
        columns |= {f"{source}.{prefix}{k}": outputs[:, k] for k in range(outputs.shape[1])}
    for position, m in enumerate(names):
        columns[f"weight.{m}"] = output.weights_BM[:, position].float().cpu().numpy()
        columns[f"corrected.{m}"] = output.corrected_BM[:, position].float().cpu().numpy()
    return pd.DataFrame(columns)


def _restore_values(
    output: ClassifierOutput, names: list[str], present_BM: np.ndarray, scale: TargetScale
) -> dict[str, np.ndarray]:
    """Return the numbers that each source predicts, in the units of the targets."""
    values_BMK = np.stack([scale.restore(output.unimodal_logits[m].float().cpu().numpy()) for m in names], 1)
    unimodal = {m: np.where(present_BM[:, i, None], values_BMK[:, i], np.nan) for i, m in enumerate(names)}
    fused = scale.restore(output.logits_BK.float().cpu().numpy())
    return {"fusion": fused, MEAN_SOURCE: average_values(values_BMK, present_BM)} | unimodal


def split_unimodal_logits(
    output: ClassifierOutput, names: list[str], present_BM: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return (logits of each modality, NaN where a window lacks it; those of each rule of fusion, of what it has)."""
    logits_BMK = np.stack([output.unimodal_logits[m].float().cpu().numpy() for m in names], 1)
    unimodal = {
        m: np.where(present_BM[:, position, None], logits_BMK[:, position], np.nan) for position, m in enumerate(names)
    }
    return unimodal, combine_by_rules(logits_BMK, present_BM)


def build_empty_predictions(names: list[str], n_outputs: int, scale: TargetScale | None = None) -> pd.DataFrame:
    """`build_predictions` of no windows: the same columns."""
    none = torch.zeros(0, n_outputs)
    weights = torch.zeros(0, len(names))
    ids = pd.DataFrame({"subject": [], "recording": [], "window": []})
    return build_predictions(
        ClassifierOutput(none, {m: none for m in names}, weights, weights),
        ids,
        weights.bool().numpy(),
        names,
        np.zeros((0, n_outputs) if scale else 0),
        scale,
    )
