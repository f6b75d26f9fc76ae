"""EEG preprocessing of the kind `official`: the operations that EAV's authors published, in their order.

Decimation to 100 Hz, then a causal Butterworth band-pass, over all recordings of a person one after the other. Each
recording rings into the next, and a causal filter delays what it passes (292 ms at 1 Hz): `clean` does neither. What
EAV has none of, pauses, joins and lost samples inside of a recording, begins the filter anew.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.signal import butter, sosfilt

from eav_ray.config import EEGPreprocessing
from eav_ray.data.preprocessing.eeg_clean import MIN_DURATION_S, PreparedEEG, interpolate_channels
from eav_ray.data.preprocessing.eeg_pieces import Pieces, find_pieces, to_seconds
from eav_ray.data.preprocessing.resampling import count_resampled, find_lead, resample
from eav_ray.data.preprocessing.units import measure_sd, resolve_unit
from eav_ray.data.recordings import RawEEG
from eav_ray.errors import DataError

FILTER_ORDER = 5


@dataclass
class _Run:
    """Pieces, of one recording or several, that are filtered as one signal."""

    parts: list[tuple[int, int, int]] = field(default_factory=list)  # recording, first and last sample


def filter_official(session: Sequence[RawEEG], preprocessing: EEGPreprocessing) -> list[PreparedEEG | DataError]:
    """Filter the recordings of one person as if they were one.

    Decimation runs in the precision of the file (single for EAV); the recursive filter runs in double, since single
    precision loses 1e-3 SD there. Channels that the file calls bad are interpolated.

    Args:
        session: All recordings in the order in which they were made; (channels, samples) each, one rate, one unit.
    Returns:
        For each recording (channels, preprocessing.hz * seconds) float32, microvolts, or why it cannot be used. One
            with a channel that lacks too much is filtered as silence, so that it does not reach others.
    Raises:
        DataError: Rates, channels or units differ inside the session, or the rate is too low for the band.
    """
    hz, channels = session[0].hz, session[0].channels
    if any(
        (r.hz, r.channels, r.unit, r.stated_unit) != (hz, channels, session[0].unit, session[0].stated_unit)
        for r in session
    ):
        raise DataError(
            "preprocessing.eeg.kind=official filters all recordings of a person as one, but their sampling rates, "
            "channels or units differ; use preprocessing.eeg.kind=clean"
        )
    if preprocessing.high_hz >= hz / 2:
        raise DataError(f"EEG is sampled at {hz:g} Hz, too slow for {preprocessing.high_hz:g} Hz")
    found = [find_pieces(raw, min(MIN_DURATION_S, raw.values_CT.shape[1] / hz)) for raw in session]
    dtype = np.result_type(*{r.values_CT.dtype for r in session}, np.float32)
    filtered: list[dict[int, np.ndarray]] = [{} for _ in session]  # by recording, and by the first sample of a piece
    for n, run in enumerate(_plan_runs(found)):
        ends, filtered_CT = _filter_run(run, found, dtype, hz, preprocessing, is_first=n == 0)
        for (k, first, _), start, end in zip(run.parts, [0, *ends[:-1]], ends, strict=True):
            filtered[k][first] = filtered_CT[:, start:end]
    sd_PC: list[np.ndarray] = []
    for raw, pieces, of in zip(session, found, filtered, strict=True):
        if not pieces.lost_channels.any() and not _find_flat(raw).all():
            sds = [measure_sd(piece_CT, preprocessing.hz) for piece_CT in of.values()]
            # Of a flat channel filters leave what rings and rounds, which is no signal.
            sd_PC += [np.where(_find_flat(raw), 0.0, sd_C) for sd_C in sds if np.isfinite(sd_C).all()]
    sd_C = np.median(sd_PC, axis=0) if sd_PC else np.zeros(0)
    unit, scale, remarks = resolve_unit(session[0], preprocessing.unit, sd_C)
    return [
        _assemble(raw, pieces, of, preprocessing, unit, scale, remarks)
        for raw, pieces, of in zip(session, found, filtered, strict=True)
    ]


def _find_flat(raw: RawEEG) -> np.ndarray:
    """Channels that never change: (channels,) bool."""
    return np.asarray(np.ptp(raw.values_CT, axis=1) == 0)


def _plan_runs(found: Sequence[Pieces]) -> list[_Run]:
    """Plan which pieces are filtered as one: those that meet at the end of one recording and the start of the next."""
    runs = [_Run()]
    is_open = True
    for k, pieces in enumerate(found):
        n_times = pieces.values_CT.shape[1]
        for first, last in ((0, n_times),) if pieces.lost_channels.any() else pieces.pieces:
            if runs[-1].parts and not (is_open and first == 0):
                runs.append(_Run())
            runs[-1].parts.append((k, first, last))
            is_open = last == n_times
        is_open = is_open and bool(pieces.pieces)
    return [run for run in runs if run.parts]


def _filter_run(
    run: _Run, found: Sequence[Pieces], dtype: np.dtype, hz: float, preprocessing: EEGPreprocessing, *, is_first: bool
) -> tuple[list[int], np.ndarray]:
    """Decimate and filter the pieces of a run as one signal.

    Args:
        is_first: Whether the filter meets the electrodes' offset, which rings, as published. After a pause or a join it
            begins settled.
    Returns:
        Where each piece ends; (channels, samples) float32.
    """
    sos = butter(
        FILTER_ORDER, [preprocessing.low_hz, preprocessing.high_hz], "bandpass", fs=preprocessing.hz, output="sos"
    )
    lengths = [last - first for _, first, last in run.parts]
    lead = find_lead(run.parts[0][1], hz, preprocessing.hz)
    # The number of samples is rounded up.
    start = count_resampled(lead, hz, preprocessing.hz)
    ends = [count_resampled(lead + int(n), hz, preprocessing.hz) - start for n in np.cumsum(lengths)]
    n_chans = len(found[0].values_CT)
    filtered_CT = np.empty((n_chans, ends[-1]), dtype=np.float32)
    concatenated_T = np.empty(lead + sum(lengths), dtype=dtype)
    # Offsets are hundreds of times the signal and would take its last digits. Filters are linear: the offset is taken
    # out before, and what becomes of it (it rings at the start) is added in double precision.
    step_response_T = np.asarray(sosfilt(sos, resample(np.ones(len(concatenated_T)), hz, preprocessing.hz)))
    for c in range(n_chans):
        offset_samples = lead
        for (k, first, last), length in zip(run.parts, lengths, strict=True):
            good = not found[k].lost_channels.any()
            concatenated_T[offset_samples : offset_samples + length] = found[k].values_CT[c, first:last] if good else 0
            offset_samples += length
        offset = concatenated_T.dtype.type(concatenated_T[lead:].mean(dtype=np.float64))
        concatenated_T -= offset
        concatenated_T[:lead] = 0
        decimated_T = resample(concatenated_T, hz, preprocessing.hz)[start:].astype(np.float64)
        filtered_CT[c] = sosfilt(sos, decimated_T) + (float(offset) if is_first else 0.0) * step_response_T[start:]
    return ends, filtered_CT


def _assemble(
    raw: RawEEG,
    found: Pieces,
    filtered: dict[int, np.ndarray],
    preprocessing: EEGPreprocessing,
    unit: str,
    scale: float,
    remarks: tuple[str, ...],
) -> PreparedEEG | DataError:
    """Put the filtered pieces of one recording in their places."""
    if found.lost_channels.any():
        return DataError(
            "EEG holds values that are not finite; leave this recording out, or use preprocessing.eeg.kind=clean"
        )
    if _find_flat(raw).all():
        return DataError("EEG is flat in all channels; leave this recording out")
    if not filtered:
        return DataError(
            f"EEG has no piece of {MIN_DURATION_S:g} s without pauses, lost samples or joins; leave this recording out"
        )
    if found.is_whole:
        x_CT = filtered[0] * np.float32(scale)
    else:
        x_CT = np.zeros(
            (len(raw.channels), count_resampled(raw.values_CT.shape[1], raw.hz, preprocessing.hz)), np.float32
        )
        for first, piece_CT in filtered.items():
            lead = find_lead(first, raw.hz, preprocessing.hz)
            start = round((first - lead) * preprocessing.hz / raw.hz) + count_resampled(lead, raw.hz, preprocessing.hz)
            kept_CT = piece_CT[:, : x_CT.shape[1] - start]
            x_CT[:, start : start + kept_CT.shape[1]] = kept_CT * np.float32(scale)
    missing_s = to_seconds(found.missing, raw.hz)
    bad = {name: reason for name, reason in raw.bad_channels.items() if name in raw.channels}
    if bad:
        if len(bad) * 2 > len(raw.channels):
            return DataError(f"{len(bad)} of {len(raw.channels)} EEG channels are marked bad; leave this recording out")
        good_C = np.array([name not in bad for name in raw.channels])
        whole_CT = x_CT.astype(np.float64)
        masked_C = interpolate_channels(whole_CT, good_C, raw.channels, preprocessing.hz)
        whole_CT[masked_C] = 0.0
        x_CT = whole_CT.astype(np.float32)
    for first_s, last_s in missing_s:
        x_CT[:, round(first_s * preprocessing.hz) : round(last_s * preprocessing.hz)] = 0.0
    return PreparedEEG(x_CT, unit, bad, missing_s=missing_s, remarks=(*raw.remarks, *remarks, *found.remarks))
