"""Predict windows and lay the outputs out as a table."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch

from eav_ray.data.io.parquet import decode_dataframe, encode_dataframe
from eav_ray.data.shards.window_cache import WindowCache
from eav_ray.models.classifier import ClassifierOutput
from eav_ray.training.collectives import gather_bytes
from eav_ray.training.dataloader import Batch, Source, WindowLabels, make_inference_batches
from eav_ray.training.engines.base import Engine
from eav_ray.training.metrics import WINDOW_COLUMNS, combine_by_rules


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
        parts.append(build_predictions(predict(model_batch), ids, present, source.names, labels.label[part]))
    return pd.concat(parts, ignore_index=True)


def build_predictions(
    output: ClassifierOutput, ids: pd.DataFrame, present_BM: np.ndarray, names: list[str], label: np.ndarray
) -> pd.DataFrame:
    """One row a window: ids, label, logits of the fusion, of the rules of fusion (`combine_by_rules`) and of
    each modality, modality weights.

    A modality that a window lacks has NaN logits.
    """
    columns: dict[str, np.ndarray] = {c: ids[c].to_numpy() for c in WINDOW_COLUMNS}
    columns["label"] = label
    unimodal, by_rule = split_unimodal_logits(output, names, present_BM)
    sources = {"fusion": output.logits_BK.float().cpu().numpy()} | by_rule | unimodal
    for source, logits in sources.items():
        columns |= {f"{source}.logit_{k}": logits[:, k] for k in range(logits.shape[1])}
    for position, m in enumerate(names):
        columns[f"weight.{m}"] = output.weights_BM[:, position].float().cpu().numpy()
        columns[f"corrected.{m}"] = output.corrected_BM[:, position].float().cpu().numpy()
    return pd.DataFrame(columns)


def split_unimodal_logits(
    output: ClassifierOutput, names: list[str], present_BM: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return (logits of each modality, NaN where a window lacks it; those of each rule of fusion, of what it has)."""
    logits_BMK = np.stack([output.unimodal_logits[m].float().cpu().numpy() for m in names], 1)
    unimodal = {
        m: np.where(present_BM[:, position, None], logits_BMK[:, position], np.nan) for position, m in enumerate(names)
    }
    return unimodal, combine_by_rules(logits_BMK, present_BM)


def build_empty_predictions(names: list[str], n_outputs: int) -> pd.DataFrame:
    """`build_predictions` of no windows: the same columns."""
    none = torch.zeros(0, n_outputs)
    weights = torch.zeros(0, len(names))
    ids = pd.DataFrame({"subject": [], "recording": [], "window": []})
    return build_predictions(
        ClassifierOutput(none, {m: none for m in names}, weights, weights),
        ids,
        weights.bool().numpy(),
        names,
        np.zeros(0),
    )
