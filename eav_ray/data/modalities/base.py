"""What a modality has to say about its windows, so that everything else can treat all modalities alike."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from eav_ray.config import Preprocessing
from eav_ray.data.recordings import Problem, Span


@dataclass(frozen=True)
class RecordingSignals:
    """One recording, read: what there is of each modality, at the stored rates.

    Attributes:
        missing_s: Spans in which a modality is missing, by its name.
    """

    arrays: Mapping[str, np.ndarray]
    durations_s: Mapping[str, float]
    problems: tuple[Problem, ...] = ()
    quality: Mapping[str, Any] = field(default_factory=dict)
    faceless: np.ndarray | None = None  # (frames,) bool; None where faces were not looked for
    missing_s: Mapping[str, tuple[Span, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class WindowDescription:
    """What the numbers of a decoded window are, for programs that know nothing of this one.

    Attributes:
        axes: Names of the axes, in order.
        unit: Of the numbers.
        hz: Samples, frames or steps per second.
    """

    axes: tuple[str, ...]
    unit: str
    hz: float


class Modality(ABC):
    """The windows of one modality.

    Attributes:
        dtype: Of a decoded window.
        quality_columns: What is measured of every window, float32, a column of the shards each.
        averaged_columns: Those of which a recording has the mean over its windows in the table of qualities.
        duplicate_similarity: Two recordings whose fingerprints correlate by at least this, at the best shift, are taken
            for one. It lies between what was measured of copies and of all other pairs (docs/log.md, 2026-11-27).
        baseline_title: What classical baselines (`eav_ray.evaluation.baselines`) read, as tables name it; empty where
            there is nothing that they could.
        baseline_kinds: The classifiers that there are for it.
        baseline_revision: Raised when what `compute_baseline_features` computes changes.
    """

    name: ClassVar[str]
    dtype: ClassVar[type[np.generic]]
    quality_columns: ClassVar[tuple[str, ...]]
    averaged_columns: ClassVar[tuple[str, ...]]
    duplicate_similarity: ClassVar[float] = 1.0
    baseline_title: ClassVar[str] = ""
    baseline_kinds: ClassVar[tuple[str, ...]] = ()
    baseline_revision: ClassVar[int] = 1

    @abstractmethod
    def compute_shape(self, preprocessing: Preprocessing, n_channels: int) -> tuple[int, ...]:
        """Compute the shape of one window.

        Args:
            n_channels: Of a modality with named channels; the others have none.
        """

    @abstractmethod
    def describe_window(self, preprocessing: Preprocessing) -> WindowDescription:
        """Describe what the numbers of a window are."""

    def cut(self, signal: np.ndarray | None, number: int, shape: tuple[int, ...]) -> np.ndarray:
        """Cut a window out of a recording's signal, along the last axis.

        What it lacks is padded, here with zeros, and without a signal it is zero.
        """
        out = np.zeros(shape, dtype=self.dtype)
        if signal is not None:
            piece = signal[..., number * shape[-1] : (number + 1) * shape[-1]]
            out[..., : piece.shape[-1]] = piece
        return out

    @abstractmethod
    def measure(self, window: np.ndarray, number: int, signals: RecordingSignals, *, present: bool) -> dict[str, Any]:
        """Measure how good a window is, by `quality_columns`; None where a thing was not looked for."""

    def is_known(self, window: np.ndarray) -> bool:
        """Whether a window holds anything; one that holds nothing lacks the modality."""
        return True

    @abstractmethod
    def draw_noise(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Draw windows of noise of this dtype, as loud as recordings are."""

    def compute_baseline_features(self, windows: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
        """Compute what classical baselines read of windows: (windows, features) float64, NaN where nothing is known.

        A modality without a `baseline_title` has no features.
        """
        return np.empty((len(windows), 0))

    def make_field(self, preprocessing: Preprocessing, n_channels: int) -> pa.Field:
        """Make the column of a shard that holds the windows."""
        shape = self.compute_shape(preprocessing, n_channels)
        return pa.field(self.name, pa.fixed_shape_tensor(pa.from_numpy_dtype(self.dtype), shape))

    def encode(self, window: np.ndarray, preprocessing: Preprocessing) -> Any:
        """Encode a window as a shard holds it."""
        return window

    def decode(self, stored: Any, preprocessing: Preprocessing) -> np.ndarray:
        """Decode one window, or several, as `encode` made them."""
        return np.asarray(stored)

    def compute_fingerprint(self, windows: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
        """Describe windows by what stays when a recording is encoded anew, gets louder or begins a little later.

        Args:
            windows: (windows, *shape of one), decoded.
        Returns:
            (windows, steps, features) float32: courses over time, each with mean 0, and 0 where the signal is padded. A
            window that has nothing to be told apart by is all zero, as is everything of a modality without fingerprint.
        """
        return np.zeros((len(windows), 1, 1), dtype=np.float32)


def center_courses(x_BTF: np.ndarray, is_signal_BT: np.ndarray) -> np.ndarray:
    """Take the mean over time from each course, and set what is padded to zero: (windows, steps, features) float32.

    Args:
        is_signal_BT: (windows, steps) False where a window is padded.
    """
    weight_BT1 = is_signal_BT[..., None].astype(np.float32)
    mean_B1F = (x_BTF * weight_BT1).sum(1, keepdims=True) / np.maximum(weight_BT1.sum(1, keepdims=True), 1)
    return ((x_BTF - mean_B1F) * weight_BT1).astype(np.float32)
