"""Signals other than EEG, such as ECG, skin conductance, respiration or gaze: filtered, and at the stored rate."""

from functools import lru_cache

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.signal import butter, sosfiltfilt

from eav_ray.config import FeaturePreprocessing
from eav_ray.data.io.eeg import read_eeg_file
from eav_ray.data.recordings import Span
from eav_ray.errors import DataError

BAND_ORDER, ANTI_ALIAS_ORDER = 2, 8  # Butterworth, run forwards and backwards
PASSED_SHARE = 0.8  # of the stored rate's Nyquist frequency; what lies between is attenuated
MIN_SAMPLES = 4  # of a piece, for a cubic spline


def prepare_signals(
    path: str, section: FeaturePreprocessing, window_s: float, max_duration_s: float, span_s: Span | None = None
) -> tuple[np.ndarray, float]:
    """Read channels of an EEG-like file, filter them, and bring them to `section.steps` samples a window.

    Each piece between what is missing is filtered by itself. Stored samples are read off a cubic spline at their own
    times, so that any rate can be brought to any other.

    Args:
        span_s: The part of the file that is wanted; all of it where none is given.
    Returns:
        ((samples, channels) float32, in microvolts where the file states volts, NaN where nothing was recorded; seconds
        that they cover).
    Raises:
        DataError: The file cannot be read, lacks a channel, is sampled too slowly for the band, or lasts too long.
    """
    raw = read_eeg_file(path, section.signals)
    n_samples = raw.values_CT.shape[1]
    duration_s, hz = n_samples / raw.hz, section.steps / window_s
    if duration_s > max_duration_s:
        raise DataError(f"{path} lasts {duration_s:.0f} s; a recording may last {max_duration_s:g} s: cut it")
    if max(section.low_hz, section.high_hz) >= raw.hz / 2:
        raise DataError(
            f"{path} is sampled at {raw.hz:g} Hz, too slowly for low_hz={section.low_hz:g} and "
            f"high_hz={section.high_hz:g}; they must be below {raw.hz / 2:g}"
        )
    known_T = np.array(np.isfinite(raw.values_CT).all(0))
    for start_s, end_s in raw.missing_s:
        known_T[round(start_s * raw.hz) : round(end_s * raw.hz)] = False
    out_TC = np.full((_count_samples(duration_s, hz), len(section.signals)), np.nan, np.float32)
    edges = np.flatnonzero(np.diff(known_T, prepend=False, append=False)).tolist()
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        if end - start < MIN_SAMPLES:
            continue
        piece_CT = _filter(raw.values_CT[:, start:end].astype(np.float64), raw.hz, hz, section)
        first, last = _count_samples(start / raw.hz, hz), _count_samples(end / raw.hz, hz)
        position_T = np.arange(first, last) * (raw.hz / hz) - start  # in samples of the piece
        # Between the piece's last sample and its end the spline is not continued.
        position_T = np.minimum(position_T, end - start - 1)
        out_TC[first:last] = CubicSpline(np.arange(end - start), piece_CT, axis=1)(position_T).T
    if span_s is None:
        return out_TC, duration_s
    start_s, end_s = span_s[0], min(span_s[1], duration_s)
    if start_s >= end_s:
        raise DataError(f"{path} lasts {duration_s:g} s, so nothing of it is of an event at {start_s:g} s")
    return out_TC[round(start_s * hz) : round(end_s * hz)], end_s - start_s


def _count_samples(seconds: float, hz: float) -> int:
    """Count samples of a rate that lie before a time."""
    return int(np.ceil(seconds * hz - 1e-6))


def _filter(x_CT: np.ndarray, hz: float, stored_hz: float, section: FeaturePreprocessing) -> np.ndarray:
    for sos, padding in _design_filters(hz, stored_hz, section.low_hz, section.high_hz):
        x_CT = sosfiltfilt(sos, x_CT, axis=1, padtype="odd", padlen=min(padding, x_CT.shape[1] - 1))
    return x_CT


@lru_cache(maxsize=16)
def _design_filters(hz: float, stored_hz: float, low_hz: float, high_hz: float) -> list[tuple[np.ndarray, int]]:
    """Second-order sections, and the samples by which a piece is padded: three periods of the edge."""
    wanted = [(BAND_ORDER, low_hz, "highpass")] if low_hz else []
    if high_hz:
        wanted.append((BAND_ORDER, high_hz, "lowpass"))
    if stored_hz < hz:
        wanted.append((ANTI_ALIAS_ORDER, PASSED_SHARE * stored_hz / 2, "lowpass"))
    return [
        (np.asarray(butter(order, edge, kind, fs=hz, output="sos")), round(3 * hz / edge))
        for order, edge, kind in wanted
    ]
