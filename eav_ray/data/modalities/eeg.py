"""Windows of EEG: (channels, samples) in microvolts."""

from typing import Any

import numpy as np

from eav_ray.config import Preprocessing
from eav_ray.data.modalities.band_power import compute_band_power
from eav_ray.data.modalities.base import Modality, RecordingSignals, WindowDescription, center_courses

FINGERPRINT_MAX_HZ = 8  # slower than what a shift of some milliseconds turns over
FINGERPRINT_STEPS_PER_S = 25
MAX_FINGERPRINT_CHANNELS = 32


class EEG(Modality):
    name = "eeg"
    dtype = np.float32
    quality_columns = ("eeg_bad_channels",)
    averaged_columns = ()  # a recording's bad channels are known by name
    duplicate_similarity = 0.8
    baseline_title = "band powers"
    baseline_kinds = ("svm", "logistic", "riemann")

    def compute_shape(self, preprocessing: Preprocessing, n_channels: int) -> tuple[int, ...]:
        return (n_channels, preprocessing.eeg.hz * preprocessing.window_s)

    def describe_window(self, preprocessing: Preprocessing) -> WindowDescription:
        unit = (
            "microvolt" if preprocessing.eeg.align == "none" else f"microvolt, then aligned: {preprocessing.eeg.align}"
        )
        return WindowDescription(("channel", "sample"), unit, preprocessing.eeg.hz)

    def measure(self, window: np.ndarray, number: int, signals: RecordingSignals, *, present: bool) -> dict[str, Any]:
        return {"eeg_bad_channels": len(signals.quality.get("eeg_bad_channel_reasons", ())) if present else 0}

    def draw_noise(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    def compute_fingerprint(self, windows: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
        """(windows, channels, samples) to (windows, steps, channels): what is slower than 8 Hz, 25 steps a second.

        Each channel is divided by its SD, so that none outweighs the others; of many channels each n-th is taken.
        """
        import scipy.signal  # half a second, in every process that cuts windows

        hz = preprocessing.eeg.hz
        x_BCT = windows[:, :: -(-windows.shape[1] // MAX_FINGERPRINT_CHANNELS)].astype(np.float32)
        is_signal_BT = np.asarray(x_BCT.any(1))
        # Symmetric, so that a course stays in its place.
        taps = np.asarray(scipy.signal.firwin(2 * hz // FINGERPRINT_MAX_HZ + 1, FINGERPRINT_MAX_HZ, fs=hz))
        slow_BCT = np.asarray(scipy.signal.oaconvolve(x_BCT, taps.astype(np.float32)[None, None], mode="same", axes=-1))
        steps = np.round(np.arange(0, x_BCT.shape[-1], hz / FINGERPRINT_STEPS_PER_S)).astype(int)
        steps = steps[steps < x_BCT.shape[-1]]
        x_BTC = center_courses(slow_BCT[..., steps].transpose(0, 2, 1), is_signal_BT[:, steps])
        sd_B1C = np.sqrt(np.square(x_BTC).mean(1, keepdims=True))
        return x_BTC / np.where(sd_B1C == 0, 1, sd_B1C)

    def compute_baseline_features(self, windows: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
        """Compute the log power of each channel in each band, decibel; NaN of a flat channel."""
        return compute_band_power(windows.astype(np.float64), preprocessing.eeg.hz).reshape(len(windows), -1)
