"""Windows of features that others have computed: (steps, features), NaN where nothing is known."""

from typing import Any

import numpy as np

from eav_ray.config import Preprocessing
from eav_ray.data.modalities.base import Modality, RecordingSignals, WindowDescription


class Features(Modality):
    """Every modality that is not recorded; its name is that under `preprocessing.features`."""

    dtype = np.float32
    averaged_columns = ()
    baseline_kinds = ("svm", "logistic")

    def __init__(self, name: str) -> None:
        self.name = name  # pyright: ignore[reportAttributeAccessIssue] - of the object, as there are many
        self.baseline_title = f"given features ({name})"  # pyright: ignore[reportAttributeAccessIssue]
        self.quality_columns = (f"{name}_missing",)  # pyright: ignore[reportAttributeAccessIssue]

    def compute_shape(self, preprocessing: Preprocessing, n_channels: int) -> tuple[int, ...]:
        section = preprocessing.features[self.name]
        return (section.steps, section.n_features)

    def describe_window(self, preprocessing: Preprocessing) -> WindowDescription:
        steps_per_s = preprocessing.features[self.name].steps / preprocessing.window_s
        return WindowDescription(("step", "feature"), "as given; NaN where a number is not known", steps_per_s)

    def cut(self, signal: np.ndarray | None, number: int, shape: tuple[int, ...]) -> np.ndarray:
        """Cut along the first axis; what is not there is NaN."""
        out = np.full(shape, np.nan, self.dtype)
        if signal is not None:
            piece = signal[number * shape[0] : (number + 1) * shape[0]]
            out[: len(piece)] = piece
        return out

    def measure(self, window: np.ndarray, number: int, signals: RecordingSignals, *, present: bool) -> dict[str, Any]:
        return {self.quality_columns[0]: float(np.isnan(window).mean()) if present else None}

    def is_known(self, window: np.ndarray) -> bool:
        return bool(np.isfinite(window).any())

    def draw_noise(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    def compute_baseline_features(self, windows: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
        """Take the features as they are; of several steps their mean and SD over those that are known."""
        values = windows.astype(np.float64)
        if windows.shape[1] == 1:
            return values[:, 0]
        known = np.isfinite(values)
        count = known.sum(1)

        def average(x: np.ndarray) -> np.ndarray:
            total = np.where(known, x, 0).sum(1)
            return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)

        mean = average(values)
        return np.concatenate([mean, np.sqrt(average(np.square(values - mean[:, None])))], 1)


def average_into_steps(
    times_s: np.ndarray, values: np.ndarray, window_s: float, steps: int, duration_s: float
) -> np.ndarray:
    """Average rows over time into equal parts of windows.

    Args:
        times_s: (rows,), seconds since the recording began.
        values: (rows, features); NaN does not count.
        duration_s: Of the recording, whose last window may be begun.
    Returns:
        (windows * steps, features) float32; NaN where a part has no row.
    """
    n_parts = max(1, int(np.ceil(duration_s / window_s - 1e-9))) * steps
    part = np.floor(times_s * steps / window_s).astype(int)
    inside = (part >= 0) & (part < n_parts)
    known = np.isfinite(values) & inside[:, None]
    total, count = (np.zeros((n_parts, values.shape[1])) for _ in range(2))
    np.add.at(total, part[inside], np.where(known, values, 0)[inside].astype(np.float64))
    np.add.at(count, part[inside], known[inside])
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0).astype(np.float32)
