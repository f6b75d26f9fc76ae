"""Windows of EEG: (channels, samples) in microvolts."""

from typing import Any

import numpy as np

from eav_ray.config import Preprocessing
from eav_ray.data.modalities.base import Modality, RecordingSignals


class EEG(Modality):
    name = "eeg"
    dtype = np.float32
    quality_columns = ("eeg_bad_channels",)
    averaged_columns = ()  # a recording's bad channels are known by name

    def compute_shape(self, preprocessing: Preprocessing, n_channels: int) -> tuple[int, ...]:
        return (n_channels, preprocessing.eeg.hz * preprocessing.window_s)

    def measure(self, window: np.ndarray, number: int, signals: RecordingSignals, *, present: bool) -> dict[str, Any]:
        return {"eeg_bad_channels": len(signals.quality.get("eeg_bad_channel_reasons", ())) if present else 0}

    def draw_noise(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)
