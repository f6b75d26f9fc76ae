"""Bound the decoding of one file: the time that it takes, and how long what it holds may last."""

import time
from pathlib import Path

from eav_ray.errors import DataError

MIN_AUDIO_HZ, MAX_AUDIO_HZ = 1_000, 768_000


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
