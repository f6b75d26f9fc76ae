"""Predict windows and lay the outputs out as a table."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from eav_ray.data.io.parquet import decode_dataframe, encode_dataframe
from eav_ray.data.shards.window_cache import WindowCache
from eav_ray.models.classifier import ClassifierOutput
from eav_ray.training.collectives import gather_bytes
from eav_ray.training.dataloader import Batch, Source, WindowLabels, make_inference_batches
from eav_ray.training.engines.base import Engine
from eav_ray.training.metrics import WINDOW_COLUMNS
from eav_ray.training.target_scale import TargetScale
from eav_ray.training.window_predictions import PredictedArrays, lay_out_predictions


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
    """Lay the outputs of a model out as a table, as `window_predictions.lay_out_predictions`."""
    return lay_out_predictions(fetch_output(output), ids, present_BM, names, label, scale)


def fetch_output(output: ClassifierOutput) -> PredictedArrays:
    """Bring what a model makes of windows to the memory of the machine."""
    return PredictedArrays(
        _to_numpy(output.logits_BK),
        {m: _to_numpy(logits) for m, logits in output.unimodal_logits.items()},
        _to_numpy(output.weights_BM),
        _to_numpy(output.corrected_BM),
    )


def _to_numpy(x: Tensor) -> np.ndarray:
    return x.float().cpu().numpy()


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
