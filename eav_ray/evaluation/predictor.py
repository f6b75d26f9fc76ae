"""A checkpoint at work on windows that are in memory: the one way by which batches and requests are predicted."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from eav_ray.config import ModalityName
from eav_ray.data.modalities.registry import get_modality
from eav_ray.data.preprocessing.windowing import WindowFormat
from eav_ray.data.shards.tables import encode_window
from eav_ray.data.streaming.upload import UPLOAD_LIMITS, Upload, UploadLimits, make_windows
from eav_ray.errors import DataError
from eav_ray.evaluation.probabilities import (
    PREDICTED_COLUMN,
    RecordingAverager,
    add_probabilities,
    list_modalities,
    name_probability_column,
)
from eav_ray.evaluation.results_tree import finite_or_none
from eav_ray.models.encoders.base import Encoder
from eav_ray.training.checkpoint import OpenedCheckpoint, build_trained_model
from eav_ray.training.checkpoint_files import Checkpoint
from eav_ray.training.metrics import WINDOW_COLUMNS
from eav_ray.training.predictions import build_empty_predictions, build_predictions
from eav_ray.training.subject_statistics import FeatureSums, SubjectMoments, make_subject_inputs, sum_features

ID_COLUMNS = (*WINDOW_COLUMNS, "label")
BATCH_WINDOWS = 32


class Predictor:
    """A loaded model.

    Attributes:
        inputs: What it takes.
        subject_normalised: The modalities that it normalises within subjects.
    """

    def __init__(
        self,
        checkpoint: Checkpoint | OpenedCheckpoint,
        device: torch.device,
        subject_statistics: Mapping[str, SubjectMoments] | None = None,
    ) -> None:
        """
        Args:
            subject_statistics: By modality, what encoders that normalise within subjects go by.
        """
        e = checkpoint.experiment
        self.classes, self.preprocessing = checkpoint.state.classes, e.preprocessing
        self.modalities: tuple[ModalityName, ...] = e.data.modalities
        shapes = checkpoint.state.shapes
        self.inputs = WindowFormat(e.preprocessing, e.data.modalities, shapes.eeg_channels, shapes.eeg_channel_names)
        self._device, self._subject_statistics = device, subject_statistics or {}
        self._model = build_trained_model(checkpoint).to(device).eval()
        self.subject_normalised: tuple[ModalityName, ...] = tuple(self._model.subject_normalised)
        self._unmeasured: tuple[ModalityName, ...] = ()  # by `measure_subject`

    def __call__(self, batch: dict[str, np.ndarray]) -> pd.DataFrame:
        """Predictions, as `predictions.build_predictions` has them.

        Args:
            batch: Of windows as a shard holds them: `ID_COLUMNS`, the modalities and `has_<modality>`. Where there is a
                column `reason`, windows without any modality come last, with theirs.
        """
        modalities = self._model.modalities
        ids = pd.DataFrame({c: batch[c] for c in ID_COLUMNS})
        present = np.stack([batch[f"has_{m}"] for m in modalities], 1)
        keep = np.asarray(present.any(1))
        arrays = {m: get_modality(m).decode(batch[m][keep], self.preprocessing) for m in modalities}
        inputs = {m: torch.from_numpy(np.ascontiguousarray(x)).to(self._device) for m, x in arrays.items()}
        table = build_empty_predictions(modalities, self._model.n_outputs)
        if keep.any():
            has = dict(zip(modalities, present[keep].T, strict=True))
            subjects = ids["subject"].to_numpy()[keep].tolist()
            subject_inputs = make_subject_inputs(self._subject_statistics, subjects, has)
            inputs |= {name: x.to(self._device) for name, x in subject_inputs.items()}
            with torch.no_grad():
                output = self._model(inputs, torch.from_numpy(present[keep]).to(self._device))
            table = build_predictions(
                output, ids.iloc[np.flatnonzero(keep)], present[keep], modalities, ids["label"].to_numpy()[keep]
            )
        if "reason" in batch:
            bad = ids.iloc[np.flatnonzero(~keep)].assign(reason=batch["reason"][~keep])
            table = pd.concat([table.assign(reason=""), bad], ignore_index=True)
        return table

    def sum_subject_features(self, batch: dict[str, np.ndarray]) -> Iterator[tuple[str, str, FeatureSums]]:
        """Sum the features by which windows are normalised: (subject, modality, sums).

        Args:
            batch: As of `__call__`.
        """
        subjects = np.asarray(batch["subject"]).astype(str)
        for m in self.subject_normalised:
            encoder = self._model.encoders[m]
            assert isinstance(encoder, Encoder)
            has = np.asarray(batch[f"has_{m}"], bool)
            for subject in dict.fromkeys(subjects[has].tolist()):
                own = has & (subjects == subject)
                x = get_modality(m).decode(batch[m][own], self.preprocessing)
                yield subject, m, sum_features(encoder, torch.from_numpy(np.ascontiguousarray(x)).to(self._device))

    def predict_windows(self, windows: Sequence[dict[str, Any]]) -> pd.DataFrame:
        """Predict windows as `windowing.cut_recording` makes them; frames become what a shard would hold of them."""
        return pd.concat([self(batch) for batch in self._batch_windows(windows)], ignore_index=True)

    def _batch_windows(self, windows: Sequence[dict[str, Any]]) -> Iterator[dict[str, np.ndarray]]:
        for at in range(0, len(windows), BATCH_WINDOWS):
            stored = [encode_window(row, self.preprocessing) for row in windows[at : at + BATCH_WINDOWS]]
            columns = [*ID_COLUMNS, *self.modalities, *(f"has_{m}" for m in self.modalities)]
            yield {c: stack_column([row[c] for row in stored]) for c in columns}

    def measure_subject(self, uploads: Sequence[Upload], limits: UploadLimits = UPLOAD_LIMITS) -> None:
        """Measure by what the windows of a subject are normalised; what is sent from then on is taken for theirs.

        Args:
            uploads: Recordings of the subject. A modality that none of them has stays unused.
        Raises:
            DataError: None of them has any modality that is normalised.
        """
        sums: dict[str, FeatureSums] = {}
        reasons: dict[str, str] = {}
        subject, batch = "", {}
        for upload in uploads:
            cut_result, not_used = make_windows(upload, self.inputs, limits)
            reasons |= {m: not_used[m] for m in self.subject_normalised if m in not_used}
            for batch in self._batch_windows(cut_result.windows):
                for name, m, part in self.sum_subject_features(batch):
                    subject, sums[m] = name, sums[m] + part if m in sums else part
        if not sums:
            described = "; ".join(f"{m}: {reason}" for m, reason in reasons.items())
            raise DataError(f"none of the recordings can be measured ({described})")
        self._unmeasured = tuple(m for m in self.subject_normalised if m not in sums)
        # Of what is hidden any numbers will do: mean 0 and SD 1.
        hidden = {m: FeatureSums(*np.zeros((3, self._count_features(batch, m)))) for m in self._unmeasured}
        self._subject_statistics = {m: SubjectMoments.from_sums({subject: s}) for m, s in (sums | hidden).items()}

    def _count_features(self, batch: dict[str, np.ndarray], modality: str) -> int:
        encoder = self._model.encoders[modality]
        assert isinstance(encoder, Encoder)
        x = get_modality(modality).decode(batch[modality][:1], self.preprocessing)
        with torch.no_grad():
            features = encoder.compute_features(torch.from_numpy(np.ascontiguousarray(x)).to(self._device))
        return features.values.shape[-1]

    @property
    def is_ready(self) -> bool:
        """Whether windows can be predicted: a model that normalises within subjects must have measured one first."""
        return set(self.subject_normalised) <= set(self._subject_statistics)

    def predict_upload(self, upload: Upload, limits: UploadLimits = UPLOAD_LIMITS) -> dict[str, Any]:
        """Predict one recording, whatever of it can be used.

        Returns:
            A tree of JSON, as of `build_prediction_trees`, with the modalities that were `used`, the reason for each
            that is `not_used`, and `windows`, each with its `start_s`. No windows: nothing can be used, and the tree
            has only these three.
        """
        cut_result, not_used = make_windows(upload, self.inputs, limits)
        for m in self._unmeasured:
            not_used.setdefault(m, "no recording by which the subject was measured has it")
        used = [m for m in self.modalities if m not in not_used]
        windows_used = [w | {f"has_{m}": False for m in self._unmeasured} for w in cut_result.windows]
        windows_used = [w for w in windows_used if self.list_used_modalities(w)]
        if not windows_used:
            return {"used": used, "not_used": not_used, "windows": []}
        table = self.predict_windows(windows_used)
        recording_means = RecordingAverager()
        recording_means.add(table)
        (recording,) = build_prediction_trees(recording_means.compute_means(), self.classes)
        windows = [
            {"start_s": row["window"] * self.preprocessing.window_s, "used": self.list_used_modalities(row)} | answer
            for row, answer in zip(windows_used, build_prediction_trees(table, self.classes), strict=True)
        ]
        return recording | {"used": used, "not_used": not_used, "windows": windows}

    def list_used_modalities(self, window: dict[str, Any]) -> list[str]:
        return [m for m in self.modalities if window[f"has_{m}"]]


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
    modalities = list_modalities(table)

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
