"""What both kinds of EEG preprocessing need: resampling, and the unit of raw numbers."""

import math
from functools import lru_cache
from math import gcd
from typing import Any

import numpy as np
import soxr
from scipy.signal import firwin, resample_poly

# Above, the filter of polyphase resampling takes longer to design than everything else, and soxr resamples.
MAX_POLYPHASE_TERM = 10_000
BLOCK_OUTPUTS = 64  # of one block of `decimate`: more are more arithmetic, fewer more overhead


def compute_resampling_ratio(target_hz: int, hz: float) -> tuple[int, int]:
    """Up and down for polyphase resampling; rates are taken to a thousandth of a hertz."""
    up, down = target_hz * 1000, round(hz * 1000)
    divisor = gcd(up, down)
    return up // divisor, down // divisor


def count_resampled(n_times: int, hz: float, target_hz: int) -> int:
    """Count the samples that `resample` makes."""
    if _is_even_ratio(hz, target_hz):
        up, down = compute_resampling_ratio(target_hz, hz)
        return -(-n_times * up // down)
    return math.ceil(n_times * target_hz / hz - 1e-9)


def find_lead(first: int, hz: float, target_hz: int) -> int:
    """Find how many samples before one lies another that the new rate has, too, or nearly (to a hundredth of one)."""
    if hz == target_hz:
        return 0
    leads = np.arange(min(first, MAX_POLYPHASE_TERM) + 1)
    places = (first - leads) * (target_hz / hz)
    off = np.abs(places - np.round(places))
    near = np.flatnonzero(off < 1e-6)
    return int(leads[near[0]] if len(near) else leads[np.argmin(off)])


def resample(x: np.ndarray, hz: float, target_hz: int) -> np.ndarray:
    """Resample the last axis, in the precision of the input; beyond its ends the signal counts as zero.

    Rates of a simple ratio as SciPy's `resample_poly`, any other by soxr, whose time follows the exact ratio.

    Args:
        x: (samples,) or (channels, samples), single or double precision.
    """
    if _is_even_ratio(hz, target_hz):
        return decimate(x, *compute_resampling_ratio(target_hz, hz))
    count = count_resampled(x.shape[-1], hz, target_hz)
    rows = np.atleast_2d(x)
    out = np.zeros((len(rows), count), x.dtype)
    for row, made in zip(rows, out, strict=True):
        values = soxr.resample(np.ascontiguousarray(row), hz, target_hz, quality="VHQ")[:count]
        made[: len(values)] = values
    return out.reshape(*x.shape[:-1], count)


def _is_even_ratio(hz: float, target_hz: int) -> bool:
    """Whether polyphase resampling follows the ratio of two rates exactly, and is fast."""
    exact = abs(hz * 1000 - round(hz * 1000)) < 1e-6 * hz
    return exact and max(compute_resampling_ratio(target_hz, hz)) <= MAX_POLYPHASE_TERM


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
