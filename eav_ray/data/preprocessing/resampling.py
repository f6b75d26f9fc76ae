"""What both kinds of EEG preprocessing need: resampling, and the unit of raw numbers."""

from functools import lru_cache
from math import gcd
from typing import Any

import numpy as np
from scipy.signal import firwin, resample_poly

BLOCK_OUTPUTS = 64  # of one block of `decimate`: more are more arithmetic, fewer more overhead


def compute_resampling_ratio(target_hz: int, hz: float) -> tuple[int, int]:
    """Up and down for polyphase resampling; rates are taken to a thousandth of a hertz."""
    up, down = target_hz * 1000, round(hz * 1000)
    divisor = gcd(up, down)
    return up // divisor, down // divisor


def decimate(x: np.ndarray, up: int, down: int) -> np.ndarray:
    """`scipy.signal.resample_poly` of the last axis with its default filter, in the precision of the input.

    Where only every n-th sample is kept, blocks of outputs are one matrix product, which takes a third of the time
    (docs/log.md).

    Args:
        x: (samples,) or (channels, samples), single or double precision.
    """
    if up != 1 or down == 1:
        return resample_poly(x, up, down, axis=-1)
    weights, half = _compute_block_weights(down, x.dtype.str)
    n_times = x.shape[-1]
    count, step = -(-n_times // down), BLOCK_OUTPUTS * down
    blocks = -(-count // BLOCK_OUTPUTS)
    padded = np.zeros((*x.shape[:-1], (blocks + 1) * step + 2 * half), x.dtype)
    padded[..., half : half + n_times] = x
    # A block sees its own samples, and the first of the next.
    own = padded[..., : blocks * step].reshape(*x.shape[:-1], blocks, step)
    following = padded[..., step : (blocks + 1) * step].reshape(*x.shape[:-1], blocks, step)[..., : 2 * half]
    return (own @ weights[:step] + following @ weights[step:]).reshape(*x.shape[:-1], -1)[..., :count]


@lru_cache(maxsize=8)
def _compute_block_weights(down: int, dtype: str) -> tuple[np.ndarray, int]:
    """Column k holds the taps of the filter at the k-th output's place; and how far they reach to each side."""
    half = 10 * down
    kaiser: Any = ("kaiser", 5.0)  # SciPy's stub says str
    taps = np.asarray(firwin(2 * half + 1, 1 / down, window=kaiser), dtype)
    weights = np.zeros((BLOCK_OUTPUTS * down + 2 * half, BLOCK_OUTPUTS), dtype)
    for k in range(BLOCK_OUTPUTS):
        weights[k * down : k * down + 2 * half + 1, k] = taps
    return weights, half
