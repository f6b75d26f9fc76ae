"""A checkpoint at work on windows that are in memory: the one way by which batches and requests are predicted."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch

from eav_ray.config import ModalityName
from eav_ray.data.modalities.registry import get_modality, make_empty_window
from eav_ray.data.preprocessing.windowing import WindowFormat
from eav_ray.data.recordings import TARGET_PREFIX
from eav_ray.data.streaming.upload import UPLOAD_LIMITS, Upload, UploadLimits, make_windows
from eav_ray.evaluation.subject_measurement import MIN_WINDOWS, SubjectMeasurement
from eav_ray.evaluation.window_predictor import WindowPredictor
from eav_ray.models.encoders.base import Encoder
from eav_ray.training.checkpoint import OpenedCheckpoint, build_trained_model
from eav_ray.training.checkpoint_files import Checkpoint
from eav_ray.training.metrics import WINDOW_COLUMNS
from eav_ray.training.predictions import build_empty_predictions, build_predictions
from eav_ray.training.subject_statistics import FeatureSums, SubjectMoments, make_subject_inputs, sum_features


class Predictor(WindowPredictor):
    """A loaded model, in torch.

    Attributes:
        classes, targets: The classes, or the numbers, that it predicts.
        inputs: What it takes.
        access: What it may know of a subject.
        feature_names: The modalities that are given features.
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
            subject_statistics: By modality, what encoders that normalise within subjects go by; without them each call
                wants a measurement.
        """
        e = checkpoint.experiment
        self.classes, self.preprocessing = checkpoint.state.classes, e.preprocessing
        self._scale = checkpoint.state.scale
        self.targets: tuple[str, ...] = self._scale.names if self._scale else ()
        self.modalities: tuple[ModalityName, ...] = e.data.modalities
        self.access, self.feature_names = e.split, [m for m in e.data.modalities if m in e.preprocessing.features]
        shapes = checkpoint.state.shapes
        self.inputs = WindowFormat(e.preprocessing, e.data.modalities, shapes.eeg_channels, shapes.eeg_channel_names)
        self._device, self._subject_statistics = device, subject_statistics or {}
        self._model = build_trained_model(checkpoint).to(device).eval()
        self.subject_normalised: tuple[ModalityName, ...] = tuple(self._model.subject_normalised)

    def __call__(self, batch: dict[str, np.ndarray], measurement: SubjectMeasurement | None = None) -> pd.DataFrame:
        """Predictions, as `predictions.build_predictions` has them.

        Args:
            batch: Of windows as a shard holds them: `ID_COLUMNS`, the modalities and `has_<modality>`. Where there is a
                column `reason`, windows without any modality come last, with theirs.
            measurement: Of the subject, whose all of them are; by default what the predictor was made with.
        """
        modalities = self._model.modalities
        ids, label = pd.DataFrame({c: batch[c] for c in WINDOW_COLUMNS}), self._get_label(batch)
        present = np.stack([batch[f"has_{m}"] for m in modalities], 1)
        keep = np.asarray(present.any(1))
        arrays = {m: get_modality(m).decode(batch[m][keep], self.preprocessing) for m in modalities}
        inputs = {m: torch.from_numpy(np.ascontiguousarray(x)).to(self._device) for m, x in arrays.items()}
        table = build_empty_predictions(modalities, self._model.n_outputs, self._scale)
        if keep.any():
            has = dict(zip(modalities, present[keep].T, strict=True))
            subjects = ids["subject"].to_numpy()[keep].tolist()
            statistics = dict(self._subject_statistics)
            if measurement is not None:
                statistics = measurement.compute_moments(subjects[0], self.n_normalised_features)
            for m in self.subject_normalised:  # what no window has was measured in nobody
                if m not in statistics and not has[m].any():
                    n_features = {m: self.n_normalised_features[m]}
                    statistics |= SubjectMeasurement().compute_moments(subjects[0], n_features)
            subject_inputs = make_subject_inputs(statistics, subjects, has)
            inputs |= {name: x.to(self._device) for name, x in subject_inputs.items()}
            with torch.no_grad():
                output = self._model(inputs, torch.from_numpy(present[keep]).to(self._device))
            known_ids = ids.iloc[np.flatnonzero(keep)]
            table = build_predictions(output, known_ids, present[keep], modalities, label[keep], self._scale)
        if "reason" in batch:
            bad = ids.iloc[np.flatnonzero(~keep)].assign(reason=batch["reason"][~keep])
            if not self.targets:
                bad["label"] = label[~keep]
            table = pd.concat([table.assign(reason=""), bad], ignore_index=True)
        return table

    def _get_label(self, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return what is true of windows: classes, or (windows, targets), NaN where nobody knows."""
        if not self.targets:
            return np.asarray(batch["label"])
        unknown = np.full(len(batch["window"]), np.nan)
        columns = [batch.get(f"{TARGET_PREFIX}{k}", unknown) for k in range(len(self.targets))]
        return np.stack([np.asarray(x, np.float64) for x in columns], 1)

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

    @cached_property
    def n_normalised_features(self) -> dict[str, int]:
        """How many features of each modality are normalised within subjects."""
        return {m: self._count_features(m) for m in self.subject_normalised}

    def _count_features(self, modality: str) -> int:
        encoder = self._model.encoders[modality]
        assert isinstance(encoder, Encoder)
        # Noise, as some encoders take logarithms of what they see.
        shape = make_empty_window(modality, self.preprocessing, self.inputs.eeg_channels).shape
        x = get_modality(modality).draw_noise(np.random.default_rng(0), shape)
        with torch.no_grad():
            return encoder.compute_features(torch.from_numpy(x[None]).to(self._device)).values.shape[-1]

    def measure_windows(self, windows: Sequence[dict[str, Any]]) -> SubjectMeasurement:
        """Measure by what windows of one subject, as `windowing.cut_recording` makes them, are normalised."""
        total = SubjectMeasurement()
        for batch in self._batch_windows(windows):
            sums = {m: part for _, m, part in self.sum_subject_features(batch)}
            total += SubjectMeasurement(sums, {m: int(np.sum(batch[f"has_{m}"])) for m in sums})
        return total

    def measure_upload(
        self, upload: Upload, limits: UploadLimits = UPLOAD_LIMITS
    ) -> tuple[SubjectMeasurement, dict[str, str]]:
        """Measure a subject by one recording.

        Returns:
            What was measured, nothing perhaps; and for each modality that is normalised and was not, why.
        """
        cut_result, not_used = make_windows(upload, self.inputs, limits)
        found = replace(self.measure_windows(cut_result.windows), n_recordings=1)
        return found, {m: not_used[m] for m in self.subject_normalised if m in not_used}

    def hide_unmeasured(
        self,
        windows: Sequence[dict[str, Any]],
        measurement: SubjectMeasurement | None,
        n_wanted: Mapping[str, int] | None = None,
    ) -> tuple[list[dict[str, Any]], dict[str, str]]:
        """Take from windows what cannot be normalised.

        Args:
            n_wanted: In how many windows a modality must have been measured; `MIN_WINDOWS` by default.
        Returns:
            The windows, and for each modality that was taken from them, why.
        """
        measurement = measurement or SubjectMeasurement()
        wanted = dict.fromkeys(self.subject_normalised, MIN_WINDOWS) | dict(n_wanted or {})
        hidden = [m for m in self.subject_normalised if not measurement.has(m, wanted[m])]
        reasons: dict[str, str] = {}
        for m in hidden:
            n_windows = measurement.n_windows.get(m, 0)
            reasons[m] = f"the subject was measured in {n_windows} of {wanted[m]} windows with {m} that it takes"
            if n_windows >= wanted[m]:
                reasons[m] = f"the {n_windows} windows with {m} by which the subject was measured are all alike"
        return [w | {f"has_{m}": False for m in hidden} for w in windows], reasons

    def predict_upload(
        self, upload: Upload, limits: UploadLimits = UPLOAD_LIMITS, measurement: SubjectMeasurement | None = None
    ) -> dict[str, Any]:
        """Predict one recording, as `WindowPredictor` does; nobody was measured where there is no measurement."""
        return super().predict_upload(upload, limits, measurement or SubjectMeasurement())
