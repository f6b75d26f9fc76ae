"""Windows of audio: mono samples in [-1, 1]."""

from typing import Any

import numpy as np

from eav_ray.config import Preprocessing
from eav_ray.data.modalities.base import Modality, RecordingSignals

FULL_SCALE = 0.999
NOISE_LEVEL = 0.1


class Audio(Modality):
    name = "audio"
    dtype = np.float32
    quality_columns = averaged_columns = ("audio_db", "audio_clipped")  # RMS, dB of full scale; share at full scale

    def compute_shape(self, preprocessing: Preprocessing, n_channels: int) -> tuple[int, ...]:
        return (preprocessing.audio.hz * preprocessing.window_s,)

    def measure(self, window: np.ndarray, number: int, signals: RecordingSignals, *, present: bool) -> dict[str, Any]:
        rms = float(np.sqrt(np.mean(np.square(window, dtype=np.float64))))
        clipped = float((np.abs(window) >= FULL_SCALE).mean())
        return {"audio_db": 20 * np.log10(max(rms, 1e-6)), "audio_clipped": clipped}

    def draw_noise(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return (NOISE_LEVEL * rng.standard_normal(shape)).astype(np.float32)
