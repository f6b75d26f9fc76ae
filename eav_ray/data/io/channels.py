"""What averaging the channels of a sound does to it, and stretches in which nothing was recorded."""

import numpy as np

from eav_ray.data.recordings import Span, measure_overlap

SILENT_LEVEL = 1e-4  # -80 dB of full scale, three steps of 16 bits: any microphone's own noise is above
MIN_CORRELATED = 0.05  # of the power that channels would have together if they had nothing in common
BLOCK_S, MIN_SILENT_BLOCKS = 0.1, 20  # shorter pauses are what a noise gate or a codec makes of them
CONSTANT = 1e-7  # -140 dB: below the last of 24 bits


class ChannelLevels:
    """The levels of the channels of one sound and of their mean, gathered piece by piece; of one channel, nothing."""

    def __init__(self) -> None:
        self._n_samples = 0
        self._sums = self._squares = self._lowest = self._highest = np.zeros(0)  # of the channels, and of their mean

    def add(self, x_CT: np.ndarray, mean_T: np.ndarray) -> None:
        """Take in a piece; one with another number of channels than the first is passed over."""
        if len(x_CT) == 1 or not len(mean_T):
            return
        rows = (*x_CT, mean_T)
        if not self._n_samples:
            self._sums, self._squares = np.zeros(len(rows)), np.zeros(len(rows))
            self._lowest, self._highest = np.full(len(rows), np.inf), np.full(len(rows), -np.inf)
        if len(rows) != len(self._sums):
            return
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused by who reads it
            self._sums += [row.sum(dtype=np.float64) for row in rows]
            self._squares += [np.square(row, dtype=np.float64).sum() for row in rows]
            self._lowest = np.minimum(self._lowest, [row.min() for row in rows])
            self._highest = np.maximum(self._highest, [row.max() for row in rows])
        self._n_samples += len(mean_T)

    def do_cancel(self) -> bool:
        """Tell whether the channels are in opposite phase, so that their mean holds next to nothing."""
        if not self._n_samples or not (self._highest - self._lowest > 2 * SILENT_LEVEL).any():
            return False
        with np.errstate(over="ignore", invalid="ignore"):
            powers = self._squares / self._n_samples - np.square(self._sums / self._n_samples)
        n_channels = len(powers) - 1
        return bool(powers[-1] < MIN_CORRELATED * powers[:-1].mean() / n_channels)

    def describe(self) -> tuple[str, ...]:
        """Say how many channels are silent beside others, which makes the mean softer."""
        n_channels = len(self._sums) - 1
        is_silent = self._highest[:-1] - self._lowest[:-1] < 2 * SILENT_LEVEL
        n_silent = int(is_silent.sum())
        if not 0 < n_silent < n_channels:
            return ()
        softer_db = 20 * np.log10(n_channels / (n_channels - n_silent))
        verb = "is" if n_silent == 1 else "are"
        return (
            f"{n_silent} of its {n_channels} channels {verb} silent, which makes the mean {softer_db:.0f} dB softer",
        )


def find_silent_spans(x_T: np.ndarray, hz: int, missing_s: tuple[Span, ...]) -> tuple[Span, ...]:
    """Find stretches of two seconds and more in which no sample differs from the next, as where a recorder stopped.

    Args:
        missing_s: What is known to be missing already, which is not found again.
    """
    n_block = max(1, round(BLOCK_S * hz))
    n_blocks = len(x_T) // n_block
    blocks = x_T[: n_blocks * n_block].reshape(n_blocks, n_block)
    is_still = np.concatenate([[False], blocks.max(axis=1) - blocks.min(axis=1) <= CONSTANT, [False]])
    starts, ends = (np.flatnonzero(np.diff(is_still.astype(np.int8)) == step) for step in (1, -1))
    found: list[Span] = []
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        first_s, last_s = start * n_block / hz, (len(x_T) if end == n_blocks else end * n_block) / hz
        if end - start >= MIN_SILENT_BLOCKS and measure_overlap(missing_s, first_s, last_s) < (last_s - first_s) / 2:
            found.append((first_s, last_s))
    return tuple(found)
