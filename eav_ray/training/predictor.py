"""A checkpoint at work on windows that are in memory: the one way by which batches and requests are predicted."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from eav_ray.config import Modality
from eav_ray.data import eav, eegmat
from eav_ray.data.shard import decode_video, encode_window
from eav_ray.training import checkpoint as ckpt
from eav_ray.training.probabilities import PREDICTED, modalities_of, probability, with_probabilities
from eav_ray.training.run import empty_frame, to_frame

MONTAGES = {"eav": eav.EAV_CHANNELS, "eegmat": eegmat.EEGMAT_CHANNELS}
IDS = ("subject", "recording", "window", "label")
BATCH = 32


class Predictor:
    """A loaded model.

    Attributes:
        montage: Names of the EEG channels that it was trained on, where the data set has them; else empty.
    """

    def __init__(self, checkpoint: ckpt.Checkpoint, device: torch.device) -> None:
        e = checkpoint.experiment
        self.classes, self.preprocessing = checkpoint.classes, e.preprocessing
        self.modalities: tuple[Modality, ...] = e.data.modalities
        self.eeg_channels = checkpoint.shapes.eeg_channels
        known = MONTAGES.get(e.data.dataset, ())
        self.montage: tuple[str, ...] = known if len(known) == self.eeg_channels else ()
        self._device = device
        self._model = ckpt.load_model(checkpoint).to(device).eval()

    def __call__(self, batch: dict[str, np.ndarray]) -> pd.DataFrame:
        """Predictions, as `run.to_frame` has them.

        Args:
            batch: Of windows as a shard holds them: `IDS`, the modalities and `has_<modality>`. Where there is a
                column `reason`, windows without any modality come last, with theirs.
        """
        names = self._model.names
        ids = pd.DataFrame({c: batch[c] for c in IDS})
        present = np.stack([batch[f"has_{m}"] for m in names], 1)
        keep = np.asarray(present.any(1))
        inputs = {m: torch.from_numpy(self._decoded(m, batch[m][keep])).to(self._device) for m in names}
        table = empty_frame(names, self._model.n_outputs)
        if keep.any():
            with torch.no_grad():
                output = self._model(inputs, torch.from_numpy(present[keep]).to(self._device))
            table = to_frame(
                output, ids.iloc[np.flatnonzero(keep)], present[keep], names, ids["label"].to_numpy()[keep]
            )
        if "reason" in batch:
            bad = ids.iloc[np.flatnonzero(~keep)].assign(reason=batch["reason"][~keep])
            table = pd.concat([table.assign(reason=""), bad], ignore_index=True)
        return table

    def _decoded(self, modality: str, values: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(decode_video(values, self.preprocessing) if modality == "video" else values)

    def of_rows(self, rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
        """As of a batch, for windows as `windows.cut` makes them: frames go through what a shard would hold of them."""
        tables = []
        for at in range(0, len(rows), BATCH):
            stored = [encode_window(row, self.preprocessing) for row in rows[at : at + BATCH]]
            columns = [*IDS, *self.modalities, *(f"has_{m}" for m in self.modalities)]
            tables.append(self({c: _column([row[c] for row in stored]) for c in columns}))
        return pd.concat(tables, ignore_index=True)


def _column(values: list[Any]) -> np.ndarray:
    if isinstance(values[0], np.ndarray):
        return np.stack(values)
    if not isinstance(values[0], list):
        return np.array(values)
    column = np.empty(len(values), object)  # JPEG files of a window
    column[:] = values
    return column


def answers(table: pd.DataFrame, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Each row of a table of logits as a tree of JSON: what is predicted, and what of it each modality says.

    Numbers that are not finite become null, and so does a prediction of them.
    """
    whole = with_probabilities(table, classes)
    found = []
    for _, row in whole.iterrows():
        names = modalities_of(table)
        found.append(
            {
                "predicted": row[PREDICTED] or None,
                "probabilities": {c: _finite(row[probability("fusion", c)]) for c in classes},
                "weights": {m: _finite(row[f"weight.{m}"]) for m in names},
                "corrected_weights": {m: _finite(row[f"corrected.{m}"]) for m in names},
                "by_modality": {m: {c: _finite(row[probability(m, c)]) for c in classes} for m in names},
            }
        )
    return found


def _finite(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
