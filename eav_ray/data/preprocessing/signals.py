"""Signals other than EEG, such as ECG, skin conductance, respiration or gaze: filtered, and at the stored rate."""

from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.signal import butter, sosfiltfilt

from eav_ray.config import FeaturePreprocessing
from eav_ray.data.io.eeg import open_eeg_file
from eav_ray.data.io.eeg_file import EEGFile
from eav_ray.data.io.eeg_marks import JOINED, MARKED_BAD
from eav_ray.data.io.eeg_units import EEG_UNIT_KEY
from eav_ray.data.preprocessing.channel_choice import is_marker
from eav_ray.data.recordings import RawEEG, SignalMarks, Span
from eav_ray.errors import DataError

BAND_ORDER, ANTI_ALIAS_ORDER = 2, 8  # Butterworth, run forwards and backwards
PASSED_SHARE = 0.8  # of the stored rate's Nyquist frequency; what lies between is attenuated
MIN_SAMPLES = 4  # of a piece, for a cubic spline


class PreparedSignals(NamedTuple):
    """Signals at the stored rate.

    Attributes:
        values_TC: (samples, channels) float32, in microvolts where the file states volts; NaN where nothing is known.
        duration_s: Seconds that they cover.
        missing_s: Where no channel is known; seconds since the first sample.
        remarks: As of `RawEEG`.
    """

    values_TC: np.ndarray
    duration_s: float
    missing_s: tuple[Span, ...] = ()
    remarks: tuple[str, ...] = ()


def prepare_signals(
    path: str,
    section: FeaturePreprocessing,
    window_s: float,
    max_duration_s: float,
    span_s: Span | None = None,
    marks: SignalMarks | None = None,
) -> PreparedSignals:
    """Read channels of an EEG-like file, filter them, and bring them to `section.steps` samples a window.

    Each channel is read by itself, since units and rates of sensors differ, and each piece between what is missing or
    joined is filtered by itself. Stored samples are read off a cubic spline at their own times, so that any rate can be
    brought to any other.

    Args:
        span_s: The part of the file that is wanted; all of it where none is given.
        marks: What tables say of the file.
    Raises:
        DataError: The file cannot be read, lacks a channel, is sampled too slowly for the band, or lasts too long;
            one is a marker.
    """
    marks = marks or SignalMarks()
    if marks.problem:
        raise DataError(marks.problem)
    hz = section.steps / window_s
    file = open_eeg_file(path)
    try:
        _check_channels(file, section)
        raws = [_mark_signal(file.read([name]), marks) for name in section.signals]
    finally:
        file.close()
    duration_s = max(raw.values_CT.shape[1] / raw.hz for raw in raws)
    if not duration_s:
        raise DataError(f"{path} has no samples; replace it or leave it out")
    if span_s is None and duration_s > max_duration_s:
        raise DataError(f"{path} lasts {duration_s:.0f} s; a recording may last {max_duration_s:g} s: cut it")
    out_TC = np.full((_count_samples(duration_s, hz), len(raws)), np.nan, np.float32)
    remarks: list[str] = []
    for c, raw in enumerate(raws):
        if max(section.low_hz, section.high_hz) >= raw.hz / 2:
            raise DataError(
                f"{path}: {section.signals[c]} is sampled at {raw.hz:g} Hz, too slowly for low_hz={section.low_hz:g} "
                f"and high_hz={section.high_hz:g}; they must be below {raw.hz / 2:g}"
            )
        if raw.bad_channels:
            remarks.append(f"{section.signals[c]} is {raw.bad_channels[section.signals[c]]}, and missing")
        else:
            _fill_channel(out_TC[:, c], raw, hz, section)
        remarks += [remark for remark in raw.remarks if EEG_UNIT_KEY not in remark]
    if span_s is not None:
        start_s, end_s = span_s[0], min(span_s[1], duration_s)
        if start_s >= end_s:
            raise DataError(f"{path} lasts {duration_s:g} s, so nothing of it is of an event at {start_s:g} s")
        out_TC, duration_s = out_TC[round(start_s * hz) : round(end_s * hz)], end_s - start_s
    edges = np.flatnonzero(np.diff(np.isnan(out_TC).all(1), prepend=False, append=False)) / hz
    missing_s = tuple(zip(edges[::2].tolist(), np.minimum(edges[1::2], duration_s).tolist(), strict=True))
    return PreparedSignals(out_TC, duration_s, missing_s, tuple(dict.fromkeys(remarks)))


def check_signals(path: str, section: FeaturePreprocessing) -> None:
    """Open a file, and raise DataError where a signal is not there, there twice, or a marker; reads no samples."""
    file = open_eeg_file(path)
    try:
        _check_channels(file, section)
    finally:
        file.close()


def _check_channels(file: EEGFile, section: FeaturePreprocessing) -> None:
    file.require_channels(section.signals)
    kinds = dict(zip(file.names, file.types, strict=True))
    if marker := next((n for n in section.signals if is_marker(n) or kinds[n] == "stim"), None):
        raise DataError(
            f"{file.source}: {marker} marks or counts something, which may give the label away; take it out of "
            "preprocessing.features"
        )


def _mark_signal(raw: RawEEG, marks: SignalMarks) -> RawEEG:
    """Add what tables say of a signal to what its file says."""
    said = {MARKED_BAD: marks.missing_s, JOINED: marks.joins_s}
    return replace(
        raw,
        missing_s=(*raw.missing_s, *marks.missing_s),
        joins_s=(*raw.joins_s, *marks.joins_s),
        bad_channels={**raw.bad_channels, **{n: why for n, why in marks.bad_channels.items() if n in raw.channels}},
        remarks=(*raw.remarks, *(remark for remark, found in said.items() if found)),
    )


def _fill_channel(out_T: np.ndarray, raw: RawEEG, stored_hz: float, section: FeaturePreprocessing) -> None:
    """Filter the one channel of `raw` piece by piece, and fill in the stored samples that lie in a piece."""
    x_T, hz = raw.values_CT[0], raw.hz
    known_T = np.array(np.isfinite(x_T))
    for start_s, end_s in raw.missing_s:
        known_T[round(start_s * hz) : round(end_s * hz)] = False
    joins = [round(join_s * hz) for join_s in raw.joins_s]
    edges = np.flatnonzero(np.diff(known_T, prepend=False, append=False)).tolist()
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        cuts = [start, *sorted({join for join in joins if start < join < end}), end]
        for first, last in pairwise(cuts):
            if last - first < MIN_SAMPLES:
                continue
            piece_T = _filter(x_T[first:last].astype(np.float64), hz, stored_hz, section)
            out_first, out_last = _count_samples(first / hz, stored_hz), _count_samples(last / hz, stored_hz)
            position_T = np.arange(out_first, out_last) * (hz / stored_hz) - first  # in samples of the piece
            # Between the piece's last sample and its end the spline is not continued.
            position_T = np.minimum(position_T, last - first - 1)
            out_T[out_first:out_last] = CubicSpline(np.arange(last - first), piece_T)(position_T)


def _count_samples(seconds: float, hz: float) -> int:
    """Count samples of a rate that lie before a time."""
    return int(np.ceil(seconds * hz - 1e-6))


def _filter(x_T: np.ndarray, hz: float, stored_hz: float, section: FeaturePreprocessing) -> np.ndarray:
    for sos, padding in _design_filters(hz, stored_hz, section.low_hz, section.high_hz):
        x_T = sosfiltfilt(sos, x_T, padtype="odd", padlen=min(padding, len(x_T) - 1))
    return x_T


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
