"""Bound the decoding of one file: its time, and how long and how large what it holds may be."""

import time
from pathlib import Path

import av

from eav_ray.errors import DataError

MIN_AUDIO_HZ, MAX_AUDIO_HZ = 1_000, 768_000
MAX_FRAME_PIXELS = 4096  # of a picture, in each direction


def limit_frames(decoder: av.VideoCodecContext) -> None:
    """Let a decoder refuse every frame of more pixels before it takes memory for it. To be called before the first."""
    decoder.options = {"max_pixels": str(MAX_FRAME_PIXELS**2)}


def require_frame_size(width: int, height: int, source: str) -> None:
    """Raise DataError for a picture that is too large to be decoded."""
    most = MAX_FRAME_PIXELS
    if max(width, height) > most:
        raise DataError(f"{source} has {width} x {height} pixels; at most {most} x {most} are taken: make it smaller")


class DecodingLimits:
    """The limits of one file; its time runs from here on."""

    def __init__(self, path: str | Path, timeout_s: float, max_duration_s: float) -> None:
        self.path, self.timeout_s, self._max_duration_s = path, timeout_s, max_duration_s
        self._deadline = time.monotonic() + timeout_s

    def check(self, decoded_s: float) -> None:
        """Check what has been decoded so far.

        Raises:
            DataError: It lasts too long, or takes too long.
        """
        if decoded_s > self._max_duration_s:
            raise DataError(f"{self.path} is longer than {self._max_duration_s:g} s; cut it into recordings")
        self.check_time()

    def check_time(self) -> None:
        """Raise DataError where the time is over."""
        if time.monotonic() > self._deadline:
            raise DataError(
                f"{self.path} takes over {self.timeout_s:g} s to decode; replace it, or raise "
                "preprocessing.file_timeout_s"
            )
