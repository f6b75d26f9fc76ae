"""Predict recordings by the ONNX files of an exported folder. Runs without torch, but where a graph starts at features.

Windows are made by the code that made them for training.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from eav_ray.config import build_experiment
from eav_ray.data.modalities.registry import get_modality
from eav_ray.data.preprocessing.windowing import WindowFormat
from eav_ray.errors import ConfigError
from eav_ray.evaluation.onnx_model import OnnxModel
from eav_ray.evaluation.window_predictor import WindowPredictor
from eav_ray.training.metrics import WINDOW_COLUMNS
from eav_ray.training.target_scale import TargetScale
from eav_ray.training.window_predictions import lay_out_predictions

if TYPE_CHECKING:
    from eav_ray.evaluation.subject_measurement import SubjectMeasurement
    from eav_ray.models.classifier import Classifier


class OnnxWindowPredictor(WindowPredictor):
    """An exported model at work by onnxruntime."""

    def __init__(self, folder: str | Path, *, n_threads: int = 0) -> None:
        """
        Args:
            folder, n_threads: As of `OnnxModel`.
        Raises:
            ConfigError: The model normalises within subjects.
        """
        self._folder, self._model = str(folder), OnnxModel(folder, n_threads=n_threads)
        experiment = build_experiment(self._model.read_json("experiment.json"), source=f"{folder}/experiment.json")
        state = self._model.read_json("state.json")
        if normalised := experiment.list_normalised_modalities():
            raise ConfigError(
                f"{folder} normalises {', '.join(normalised)} within people, whom only eav_ray.Predictor measures; use "
                "it, or give mean and SD to OnnxModel"
            )
        scale = state.get("targets")
        self._scale = TargetScale(*(tuple(scale[key]) for key in ("names", "mean", "sd"))) if scale else None
        self.targets = self._scale.names if self._scale else ()
        self.classes, self.modalities = tuple(state["classes"]), tuple(self._model.modalities)
        self.preprocessing = experiment.preprocessing
        channels = int(state["eeg_channels"]), tuple(state["eeg_channel_names"])
        self.inputs = WindowFormat(self.preprocessing, self.modalities, *channels)
        self._classifier: Classifier | None = None

    def __call__(self, batch: dict[str, np.ndarray], measurement: "SubjectMeasurement | None" = None) -> pd.DataFrame:
        present = np.stack([np.asarray(batch[f"has_{m}"], bool) for m in self.modalities], 1)
        inputs: dict[str, np.ndarray] = {}
        for m in (name for column, name in enumerate(self.modalities) if present[:, column].any()):
            windows = np.ascontiguousarray(get_modality(m).decode(batch[m], self.preprocessing))
            if self._model.graph["encoders"][m]["starts_at"] == "windows":
                inputs[m] = windows
            else:
                inputs |= self._compute_features(m, windows)
        output = self._model.run(inputs, present)
        n_windows = len(present)
        label = np.full((n_windows, len(self.targets)), np.nan) if self.targets else np.asarray(batch["label"])
        ids = pd.DataFrame({c: batch[c] for c in WINDOW_COLUMNS})
        return lay_out_predictions(output, ids, present, list(self.modalities), label, self._scale)

    def _compute_features(self, modality: str, windows: np.ndarray) -> dict[str, np.ndarray]:
        """Compute the features of windows by the encoder in torch, of the checkpoint that the folder is."""
        import torch

        from eav_ray.models.onnx_graphs import list_encoder_inputs
        from eav_ray.training.checkpoint import build_trained_model, open_finished_checkpoint

        if self._classifier is None:
            self._classifier = build_trained_model(open_finished_checkpoint(self._folder)).eval()
        names, inputs = list_encoder_inputs(self._classifier, modality, torch.from_numpy(windows))
        return {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
