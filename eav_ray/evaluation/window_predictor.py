"""From one recording to its prediction, whatever computes that of a window. Runs without torch."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from eav_ray.config import ModalityName, Preprocessing
from eav_ray.data.preprocessing.windowing import WindowFormat
from eav_ray.data.shards.tables import encode_window
from eav_ray.data.streaming.upload import UPLOAD_LIMITS, Upload, UploadLimits, make_windows
from eav_ray.evaluation.predicted_numbers import build_number_trees
from eav_ray.evaluation.probabilities import (
    PREDICTED_COLUMN,
    RecordingAverager,
    add_probabilities,
    name_probability_column,
)
from eav_ray.evaluation.results_tree import finite_or_none
from eav_ray.training.metrics import WINDOW_COLUMNS, list_modality_sources

if TYPE_CHECKING:
    from eav_ray.evaluation.subject_measurement import SubjectMeasurement

ID_COLUMNS = (*WINDOW_COLUMNS, "label")
BATCH_WINDOWS = 32


class WindowPredictor(ABC):
    """What predicts windows, and so recordings.

    Attributes:
        classes, targets: The classes, or the numbers, that it predicts.
        inputs: What it takes.
        modalities: Names of the modalities that it was trained on.
    """

    classes: tuple[str, ...]
    targets: tuple[str, ...]
    preprocessing: Preprocessing
    modalities: tuple[ModalityName, ...]
    inputs: WindowFormat

    @abstractmethod
    def __call__(self, batch: dict[str, np.ndarray], measurement: "SubjectMeasurement | None" = None) -> pd.DataFrame:
        """Predict windows: a table as of `window_predictions.lay_out_predictions`.

        Args:
            batch: Of windows as a shard holds them: `ID_COLUMNS`, the modalities and `has_<modality>`.
            measurement: Of their subject, where it normalises within subjects.
        """

    def hide_unmeasured(
        self, windows: Sequence[dict[str, Any]], measurement: "SubjectMeasurement | None"
    ) -> tuple[list[dict[str, Any]], dict[str, str]]:
        """Take from windows what cannot be normalised; returns the windows, and why each modality was taken."""
        return list(windows), {}

    def predict_windows(
        self, windows: Sequence[dict[str, Any]], measurement: "SubjectMeasurement | None" = None
    ) -> pd.DataFrame:
        """Predict windows as `windowing.cut_recording` makes them; frames become what a shard would hold of them.

        Args:
            measurement: Of their subject; where it lacks a modality that is normalised, windows must lack it too
                (`hide_unmeasured`).
        """
        return pd.concat([self(batch, measurement) for batch in self._batch_windows(windows)], ignore_index=True)

    def _batch_windows(self, windows: Sequence[dict[str, Any]]) -> Iterator[dict[str, np.ndarray]]:
        for at in range(0, len(windows), BATCH_WINDOWS):
            stored = [encode_window(row, self.preprocessing) for row in windows[at : at + BATCH_WINDOWS]]
            columns = [*ID_COLUMNS, *self.modalities, *(f"has_{m}" for m in self.modalities)]
            yield {c: stack_column([row[c] for row in stored]) for c in columns}

    def predict_upload(
        self, upload: Upload, limits: UploadLimits = UPLOAD_LIMITS, measurement: "SubjectMeasurement | None" = None
    ) -> dict[str, Any]:
        """Predict one recording, whatever of it can be used.

        Args:
            measurement: Of its subject, for a model that normalises within subjects.
        Returns:
            A tree of JSON, as of `describe_predictions`, with the modalities that were `used`, the reason for each
            that is `not_used`, and `windows`, each with its `start_s`. No windows: nothing can be used, and the tree
            has only these three.
        """
        cut_result, not_used = make_windows(upload, self.inputs, limits)
        windows_used, unmeasured = self.hide_unmeasured(cut_result.windows, measurement)
        not_used = unmeasured | not_used
        used = [m for m in self.modalities if m not in not_used]
        windows_used = [w for w in windows_used if self.list_used_modalities(w)]
        if not windows_used:
            return {"used": used, "not_used": not_used, "windows": []}
        table = self.predict_windows(windows_used, measurement)
        recording_means = RecordingAverager()
        recording_means.add(table)
        (recording,) = self.describe_predictions(recording_means.compute_means())
        windows = [
            {"start_s": row["window"] * self.preprocessing.window_s, "used": self.list_used_modalities(row)} | answer
            for row, answer in zip(windows_used, self.describe_predictions(table), strict=True)
        ]
        return recording | {"used": used, "not_used": not_used, "windows": windows}

    def describe_predictions(self, table: pd.DataFrame) -> list[dict[str, Any]]:
        """Turn each row of a table of predictions into a tree of JSON: of classes, or of numbers."""
        if self.targets:
            return build_number_trees(table, self.targets)
        return build_prediction_trees(table, self.classes)

    def list_used_modalities(self, window: dict[str, Any]) -> list[str]:
        return [m for m in self.modalities if window[f"has_{m}"]]


def join_reasons(not_used: Mapping[str, str]) -> str:
    """Join why modalities are not used, for an error in one line."""
    return "; ".join(f"{m}: {reason}" for m, reason in not_used.items())


def stack_column(values: list[Any]) -> np.ndarray:
    """Stack what rows hold in one column, as Ray Data batches it: a window of frames is a list of files."""
    if isinstance(values[0], np.ndarray):
        return np.stack(values)
    if not isinstance(values[0], list):
        return np.array(values)
    column = np.empty(len(values), object)  # JPEG files of a window
    column[:] = values
    return column


def build_prediction_trees(table: pd.DataFrame, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Each row of a table of logits as a tree of JSON: what is predicted, and what of it each modality says.

    Numbers that are not finite become null, and so does a prediction of them.
    """
    modalities = list_modality_sources(table)

    def build_tree(row: pd.Series) -> dict[str, Any]:
        probabilities = {
            source: {c: finite_or_none(row[name_probability_column(source, c)]) for c in classes}
            for source in ("fusion", *modalities)
        }
        return {
            "predicted": row[PREDICTED_COLUMN] or None,
            "probabilities": probabilities.pop("fusion"),
            "weights": {m: finite_or_none(row[f"weight.{m}"]) for m in modalities},
            "corrected_weights": {m: finite_or_none(row[f"corrected.{m}"]) for m in modalities},
            "by_modality": probabilities,
        }

    return [build_tree(row) for _, row in add_probabilities(table, classes).iterrows()]
