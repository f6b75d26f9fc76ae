"""Windows of video: (frames, height, width, 3) in 0 to 255, stored as JPEG files or raw."""

from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from eav_ray.config import Preprocessing
from eav_ray.data.io import jpeg
from eav_ray.data.modalities.base import Modality, RecordingSignals, WindowDescription, center_courses

FINGERPRINT_SIZE, PIXEL_STEP = 16, 2  # blocks of a side; pixels of which one is looked at, in each direction
BASELINE_SIZE = 8  # blocks of a side that baselines read, or as many as there are pixels
MIN_MOTION = 1.0  # RMS of a block around its mean over time, 0 to 255: with less there is but the codec's noise


class Video(Modality):
    name = "video"
    dtype = np.uint8
    # Mean brightness, 0 to 255; share of frames equal to the one before; share without a face.
    quality_columns = averaged_columns = ("video_luma", "video_repeated", "video_faceless")
    duplicate_similarity = 0.85
    baseline_title = "grey blocks and contrasts"
    baseline_kinds = ("svm", "logistic")

    def compute_shape(self, preprocessing: Preprocessing, n_channels: int) -> tuple[int, ...]:
        video = preprocessing.video
        return (video.fps * preprocessing.window_s, video.size, video.size, 3)

    def describe_window(self, preprocessing: Preprocessing) -> WindowDescription:
        axes = ("frame", "row", "column", "colour")
        return WindowDescription(axes, "red, green and blue, 0 to 255", preprocessing.video.fps)

    def cut(self, signal: np.ndarray | None, number: int, shape: tuple[int, ...]) -> np.ndarray:
        """Cut along the first axis; the last frame is held after the video's end."""
        if signal is None:
            return np.zeros(shape, dtype=np.uint8)
        indices = np.arange(number * shape[0], (number + 1) * shape[0])
        return signal[np.minimum(indices, len(signal) - 1)]

    def measure(self, window: np.ndarray, number: int, signals: RecordingSignals, *, present: bool) -> dict[str, Any]:
        is_repeated = [np.array_equal(a, b) for a, b in pairwise(window)]
        faceless = None
        if signals.faceless is not None and present:
            faceless = float(signals.faceless[number * len(window) :][: len(window)].mean())
        return {
            # A tenth of the pixels in each direction are enough for a mean.
            "video_luma": float(window[:, ::10, ::10].mean()),
            "video_repeated": float(np.mean(is_repeated)) if is_repeated else 0.0,
            "video_faceless": faceless,
        }

    def draw_noise(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return rng.integers(0, 256, shape, dtype=np.uint8)

    def make_field(self, preprocessing: Preprocessing, n_channels: int) -> pa.Field:
        return jpeg.make_video_field(preprocessing.video, preprocessing.window_s)

    def encode(self, window: np.ndarray, preprocessing: Preprocessing) -> Any:
        return jpeg.encode_frames(window, preprocessing.video)

    def decode(self, stored: Any, preprocessing: Preprocessing) -> np.ndarray:
        if preprocessing.video.codec == "raw":
            return np.asarray(stored)
        is_single = isinstance(stored[0], bytes) if len(stored) else False
        decoded = jpeg.decode_frames([stored] if is_single else stored, self.compute_shape(preprocessing, 0))
        return decoded[0] if is_single else decoded

    def compute_baseline_features(self, windows: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
        """Compute how light blocks of the pictures are, and how strong edges across and along, over the frames.

        Of the logarithm of grey, so that light that is twice as strong only adds a number.

        Args:
            windows: (windows, frames, height, width, 3), 0 to 255.
        Returns:
            (windows, 6 * 64) float64: means over frames, then SDs.
        """
        found = [self._average_blocks(frames) for frames in windows]
        return np.array([np.concatenate([x.mean(0), x.std(0)]) for x in found], np.float64)

    def _average_blocks(self, frames: np.ndarray) -> np.ndarray:
        """(frames, height, width, 3) to (frames, 3 * blocks)."""
        grey_THW = np.log(frames.mean(-1, dtype=np.float32) + 10)
        down, across = (np.abs(np.diff(grey_THW, axis=axis, append=0)) for axis in (1, 2))
        down[:, -1], across[:, :, -1] = 0, 0  # there is no pixel beyond the last
        parts = []
        for picture in (grey_THW, down, across):
            for axis in (1, 2):
                n = picture.shape[axis]
                edges = np.arange(min(BASELINE_SIZE, n)) * n // min(BASELINE_SIZE, n)
                lengths = np.diff(np.append(edges, n)).reshape((-1, 1) if axis == 1 else (1, -1))
                picture = np.add.reduceat(picture, edges, axis) / lengths
            parts.append(picture.reshape(len(picture), -1))
        return np.concatenate(parts, 1).astype(np.float64)

    def compute_fingerprint(self, windows: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
        """(windows, frames, height, width, 3) to (windows, frames, 256): how blocks of pixels get lighter and darker.

        What does not move is left out: people who are filmed in one place would all be alike.
        """
        # Of green alone, which is most of the luma, and of every other pixel: a tenth of the time.
        green_BTHW = windows[:, :, ::PIXEL_STEP, ::PIXEL_STEP, 1]
        n_windows, n_frames, height, width = green_BTHW.shape
        step_y, step_x = max(1, height // FINGERPRINT_SIZE), max(1, width // FINGERPRINT_SIZE)
        n_y, n_x = height // step_y, width // step_x
        blocks = green_BTHW[:, :, : n_y * step_y, : n_x * step_x].reshape(n_windows, n_frames, n_y, step_y, n_x, step_x)
        x_BTF = blocks.mean((3, 5), dtype=np.float32).reshape(n_windows, n_frames, n_y * n_x)
        # The last frame is held where a film is shorter than its window.
        is_last_BT = (green_BTHW == green_BTHW[:, -1:]).all((2, 3))
        is_held_BT = np.flip(np.logical_and.accumulate(np.flip(is_last_BT, 1), 1), 1)
        is_held_BT[:, 1:] &= is_held_BT[:, :-1]  # its first showing is the film's own
        is_held_BT[:, 0] = False
        # A fade, and what a camera does for its exposure, are in many films.
        x_BTF = center_courses(x_BTF - x_BTF.mean(-1, keepdims=True), ~is_held_BT)
        motion_B = np.sqrt(np.square(x_BTF).mean((1, 2)))
        return np.where(motion_B[:, None, None] >= MIN_MOTION, x_BTF, 0).astype(np.float32)
