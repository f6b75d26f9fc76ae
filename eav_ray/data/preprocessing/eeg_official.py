"""EEG preprocessing of the kind `official`: the operations that EAV's authors published, in their order.

Decimation to 100 Hz, then a causal Butterworth band-pass, over all recordings of a person one after the other. Each
recording rings into the next, and a causal filter delays what it passes (292 ms at 1 Hz): `clean` does neither.
"""

from collections.abc import Sequence

import numpy as np
from scipy.signal import butter, resample_poly, sosfilt

from eav_ray.config import EEGPreprocessing
from eav_ray.data.preprocessing.resampling import compute_resampling_ratio, decimate
from eav_ray.data.preprocessing.units import resolve_unit
from eav_ray.data.recordings import RawEEG
from eav_ray.errors import DataError

FILTER_ORDER = 5


def filter_official(
    session: Sequence[RawEEG], preprocessing: EEGPreprocessing
) -> tuple[list[np.ndarray | DataError], str]:
    """Filter the recordings of one person as if they were one.

    Decimation runs in the precision of the file (single for EAV); the recursive filter runs in double, since single
    precision loses 1e-3 SD there.

    Args:
        session: All recordings in the order in which they were made; (channels, samples) each, one rate, one unit.
    Returns:
        For each recording (channels, preprocessing.hz * seconds) float32, microvolts, or why it cannot be used; and the
            unit
        that the values had. A recording that is not finite is filtered as silence, so that it does not reach others.
    Raises:
        DataError: Rates or channels differ inside the session, or the rate is too low for the band.
    """
    hz, channels = session[0].hz, session[0].channels
    if any(r.hz != hz or r.channels != channels for r in session):
        raise DataError(
            "preprocessing.eeg.kind=official filters all recordings of a person as one, but their sampling rates or "
            "channels differ; use preprocessing.eeg.kind=clean"
        )
    if preprocessing.high_hz >= hz / 2:
        raise DataError(f"EEG is sampled at {hz:g} Hz, too slow for {preprocessing.high_hz:g} Hz")
    up, down = compute_resampling_ratio(preprocessing.hz, hz)
    sos = butter(
        FILTER_ORDER, [preprocessing.low_hz, preprocessing.high_hz], "bandpass", fs=preprocessing.hz, output="sos"
    )
    lengths = [r.values_CT.shape[1] for r in session]
    finite = [bool(np.isfinite(r.values_CT).all()) for r in session]
    ends = -(-np.cumsum(lengths) * up // down)  # resample_poly rounds the number of samples up
    filtered_CT = np.empty((len(channels), int(ends[-1])), dtype=np.float32)
    concatenated_T = np.empty(sum(lengths), dtype=np.result_type(*{r.values_CT.dtype for r in session}, np.float32))
    # Offsets are hundreds of times the signal and would take its last digits. Filters are linear: the offset is taken
    # out before, and what becomes of it (it rings at the start) is added in double precision.
    step_response_T = np.asarray(sosfilt(sos, resample_poly(np.ones(len(concatenated_T)), up, down)))
    for c in range(len(channels)):
        offset_samples = 0
        for r, length, good in zip(session, lengths, finite, strict=True):
            concatenated_T[offset_samples : offset_samples + length] = r.values_CT[c] if good else 0
            offset_samples += length
        offset = concatenated_T.dtype.type(concatenated_T.mean(dtype=np.float64))
        concatenated_T -= offset
        decimated_T = decimate(concatenated_T, up, down).astype(np.float64)
        filtered_CT[c] = sosfilt(sos, decimated_T) + float(offset) * step_response_T
    unit, scale = resolve_unit(session[0].unit, preprocessing.unit, filtered_CT.std(axis=1))
    filtered_CT *= scale
    starts = [0, *ends[:-1].tolist()]
    results: list[np.ndarray | DataError] = []
    for start, end, good in zip(starts, ends.tolist(), finite, strict=True):
        bad = DataError(
            "EEG holds values that are not finite; leave this recording out, or use preprocessing.eeg.kind=clean"
        )
        results.append(filtered_CT[:, start:end].copy() if good else bad)
    return results, unit
