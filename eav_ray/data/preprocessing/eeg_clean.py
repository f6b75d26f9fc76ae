"""EEG preprocessing of the kind `clean`: one recording made comparable between people.

Every step sees one recording alone: filtering a concatenation of recordings lets each ring into the next.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import mne
import numpy as np
from scipy.signal import sosfiltfilt

from eav_ray.config import EEGPreprocessing
from eav_ray.data.preprocessing.eeg_ica import estimate_artifacts
from eav_ray.data.preprocessing.eeg_pieces import Piece, find_pieces, to_seconds
from eav_ray.data.preprocessing.resampling import count_resampled, find_lead, resample
from eav_ray.data.preprocessing.units import measure_sd, resolve_unit
from eav_ray.data.recordings import RawEEG, Span
from eav_ray.electrodes import load_standard_montage, resolve_electrodes
from eav_ray.errors import DataError

FLAT_SD_UV = 0.1  # less than an amplifier's own noise


EXTREME_SD_RATIO = 10.0  # times the median channel's SD; blinks on frontal channels stay below


MIN_DURATION_S = 1.0


HEAD_CENTRE = (0.0, 0.0, 0.04)  # of MNE's spherical head model, metres in head coordinates


MIN_CORRELATION_CHANNELS = 8  # channels: fewer lie too far apart to expect anything of their correlation


class PreparedEEG(NamedTuple):
    # float32, at the rate of `preprocessing.eeg.hz`; microvolts, or no unit where `preprocessing.eeg.align` is set.
    x_CT: np.ndarray
    unit: str  # that the file had
    bad_channels: dict[str, str]  # bad channel -> reason; those without a known position are zero
    removed_components: tuple[str, ...] = ()  # labels of the components that were taken out
    missing_s: tuple[Span, ...] = ()  # as of `RawEEG`; zero in `x_CT`
    remarks: tuple[str, ...] = ()  # as of `RawEEG`


def clean_eeg(raw: RawEEG, preprocessing: EEGPreprocessing) -> PreparedEEG:
    """Bring one recording to the stored rate, band, reference and unit. Zero-phase throughout.

    Offset, mains notch, decimation, band-pass, search for bad channels, artefacts, interpolation, reference. The notch
    comes before decimation because a mains frequency above the new Nyquist frequency would fold into the band.

    Pieces that were not recorded one after the other are filtered each on its own. Lost samples are bridged, or are
    missing; what the file marks as bad is filtered along, and missing.

    A unit that the file states wins where it gives an amplitude of EEG; `preprocessing.unit` speaks where it does not.

    Args:
        raw: Values (channels, samples).
    Returns:
        (channels, preprocessing.hz * seconds), and what was found.
    Raises:
        DataError: Not two-dimensional, not one row per channel, shorter than 1 s, sampled too slowly for the band,
            or more than half of the channels are bad.
    """
    _check_input(raw, preprocessing)
    found = find_pieces(raw, MIN_DURATION_S)
    bad = _mark_bad(found.lost_channels, "not finite", raw.channels)
    _require_half_good(bad, raw.channels)
    if not found.pieces:
        raise DataError(
            f"EEG has no piece of {MIN_DURATION_S:g} s without pauses, lost samples or joins; leave this recording out"
        )
    x_CT = np.array(found.values_CT, dtype=np.float64)
    for first, last in found.pieces:
        x_CT[:, first:last] -= x_CT[:, first:last].mean(axis=1, keepdims=True)
    known_CT = x_CT if found.is_whole else x_CT[:, _select(found.pieces, found.missing, x_CT.shape[1])]
    known_CT = known_CT if known_CT.size else x_CT[:, _select(found.pieces, (), x_CT.shape[1])]
    sd_C = known_CT.std(axis=1)
    unit, scale, unit_remarks = resolve_unit(raw, preprocessing.unit, measure_sd(known_CT, raw.hz))
    bad |= _mark_bad(~found.lost_channels & (sd_C * scale <= FLAT_SD_UV), "flat", raw.channels)
    bad |= {name: reason for name, reason in raw.bad_channels.items() if name in raw.channels}
    _require_half_good(bad, raw.channels)
    x_CT *= scale
    broad_CT = x_CT
    missing_s = to_seconds(found.missing, raw.hz)
    pieces = plan_pieces(found.pieces, raw.hz, preprocessing.hz)
    x_CT = filter_pieces(x_CT, raw.hz, pieces, preprocessing)
    used_T, out_missing = slice(None), []
    if not found.is_whole:
        out_missing = [(round(a * preprocessing.hz), round(b * preprocessing.hz)) for a, b in missing_s]
        used_T = _select([p.output for p in pieces], out_missing, x_CT.shape[1])
        if not used_T.any():
            used_T = _select([p.output for p in pieces], (), x_CT.shape[1])
    for reason, find_bad in (("extreme", find_extreme_channels), ("uncorrelated", find_uncorrelated_channels)):
        good = [i for i, name in enumerate(raw.channels) if name not in bad]
        wrong_C = np.zeros(len(raw.channels), dtype=bool)
        wrong_C[good] = find_bad(x_CT[good][:, used_T], preprocessing)
        bad |= _mark_bad(wrong_C, reason, raw.channels)
        _require_half_good(bad, raw.channels)

    good_C = np.array([name not in bad for name in raw.channels])
    removed: tuple[str, ...] = ()
    if preprocessing.artefacts != "none":
        electrodes = resolve_electrodes(raw.channels)
        used_C = good_C & np.array([site != "" for site in electrodes])
        names = [site for site, used in zip(electrodes, used_C, strict=True) if used]
        montage = load_standard_montage()
        known_T = _select(found.pieces, found.missing, broad_CT.shape[1])
        part_CT = np.zeros((int(used_C.sum()), broad_CT.shape[1]))
        part_CT[:, known_T], removed = estimate_artifacts(
            broad_CT[used_C][:, known_T], raw.hz, names, montage, preprocessing.artefacts
        )
        if removed:  # filters are linear: what is taken out is filtered like what it is taken from
            x_CT[used_C] -= filter_pieces(part_CT, raw.hz, pieces, preprocessing)
    masked_C = interpolate_channels(x_CT, good_C, raw.channels, preprocessing.hz)
    _require_reference([name for name in raw.channels if name not in bad], preprocessing)
    if preprocessing.reference == "average":
        x_CT -= x_CT[good_C].mean(axis=0)
    x_CT[masked_C] = 0.0
    if not found.is_whole:
        x_CT[:, ~_select([p.output for p in pieces], out_missing, x_CT.shape[1])] = 0.0
    remarks = (*raw.remarks, *unit_remarks, *found.remarks)
    return PreparedEEG(x_CT.astype(np.float32), unit, bad, removed, missing_s, remarks)


def _select(spans: Sequence[Piece], without: Sequence[Piece], n_times: int) -> np.ndarray:
    """Samples that lie in some spans and not in others: (samples,) bool."""
    selected_T = np.zeros(n_times, dtype=bool)
    for first, last in spans:
        selected_T[first:last] = True
    for first, last in without:
        selected_T[first:last] = False
    return selected_T


def find_extreme_channels(x_CT: np.ndarray, preprocessing: EEGPreprocessing) -> np.ndarray:
    """Channels with many times the median channel's SD: (channels,) bool."""
    sd_C = x_CT.std(axis=1)
    return sd_C > EXTREME_SD_RATIO * np.median(sd_C)


def find_uncorrelated_channels(x_CT: np.ndarray, preprocessing: EEGPreprocessing) -> np.ndarray:
    """Channels that hear what no other hears: (channels,) bool.

    Volume conduction makes neighbours alike, so a channel whose highest absolute correlation with any other stays
    below `preprocessing.bad_channel_correlation` in most windows of 1 s is not on the scalp. After the
    correlation criterion of the PREP pipeline (Bigdely-Shamlo et al. 2015).
    """
    n_chans, n_times = x_CT.shape
    count = n_times // preprocessing.hz
    if not preprocessing.bad_channel_correlation or n_chans < MIN_CORRELATION_CHANNELS or not count:
        return np.zeros(n_chans, dtype=bool)
    x_WCT = x_CT[:, : count * preprocessing.hz].reshape(n_chans, count, preprocessing.hz).transpose(1, 0, 2)
    x_WCT = x_WCT - x_WCT.mean(axis=2, keepdims=True)
    norm = np.sqrt(np.square(x_WCT).sum(axis=2, keepdims=True))
    x_WCT = x_WCT / np.where(norm > 0, norm, 1.0)
    r_WCC = np.abs(x_WCT @ x_WCT.transpose(0, 2, 1))
    r_WCC[:, np.arange(n_chans), np.arange(n_chans)] = 0.0
    return (r_WCC.max(axis=2) < preprocessing.bad_channel_correlation).mean(axis=0) > 0.5


def _check_input(raw: RawEEG, preprocessing: EEGPreprocessing) -> None:
    shape = raw.values_CT.shape
    if len(shape) != 2 or shape[0] != len(raw.channels):
        raise DataError(f"EEG has shape {shape}; it must be (channels, samples) with {len(raw.channels)} channels")
    if raw.hz <= 0 or shape[1] < MIN_DURATION_S * raw.hz:
        raise DataError(f"EEG has {shape[1]} samples at {raw.hz:g} Hz; the filters need at least {MIN_DURATION_S:g} s")
    if preprocessing.high_hz >= raw.hz / 2:
        raise DataError(
            f"EEG is sampled at {raw.hz:g} Hz, too slow for preprocessing.eeg.high_hz={preprocessing.high_hz:g}; "
            f"set preprocessing.eeg.high_hz below {raw.hz / 2:g}"
        )


def _require_reference(good: Sequence[str], preprocessing: EEGPreprocessing) -> None:
    """Raise DataError where the average of channels, as reference, would take away all that there is."""
    if preprocessing.reference == "average" and len(good) < 2:
        raise DataError(
            f"EEG has one good channel ({', '.join(good)}), and less the average of all channels nothing is left of "
            "it; set preprocessing.eeg.reference=none"
        )


def _mark_bad(wrong_C: Any, reason: str, channels: tuple[str, ...]) -> dict[str, str]:
    return {name: reason for name, wrong in zip(channels, wrong_C, strict=True) if wrong}


def _require_half_good(bad: dict[str, str], channels: tuple[str, ...]) -> None:
    if len(bad) * 2 > len(channels):
        shown = ", ".join(f"{name} {reason}" for name, reason in bad.items())
        or_else = ", or do not ask for correlation: preprocessing.eeg.bad_channel_correlation=0"
        raise DataError(
            f"{len(bad)} of {len(channels)} EEG channels are bad ({shown}); at most half may be: leave this recording "
            f"out{or_else if 'uncorrelated' in shown else ''}"
        )


class PlannedPiece(NamedTuple):
    """Where a piece lies before and after resampling."""

    samples: Piece
    lead: int  # samples from the last one before the piece that the new rate has, too
    output: Piece


def plan_pieces(pieces: Sequence[Piece], hz: float, target_hz: int) -> list[PlannedPiece]:
    """Plan where pieces go, each on the one grid of the new rate."""
    planned = []
    for first, last in pieces:
        lead = find_lead(first, hz, target_hz)
        start = round((first - lead) * target_hz / hz)
        skipped = count_resampled(lead, hz, target_hz)
        planned.append(
            PlannedPiece(
                (first, last), lead, (start + skipped, start + count_resampled(lead + last - first, hz, target_hz))
            )
        )
    return planned


def filter_pieces(
    x_CT: np.ndarray, hz: float, pieces: Sequence[PlannedPiece], preprocessing: EEGPreprocessing
) -> np.ndarray:
    """Filter each piece on its own (`filter_eeg`); what lies in none is zero."""
    n_times = x_CT.shape[1]
    if len(pieces) == 1 and pieces[0].samples == (0, n_times):
        return filter_eeg(x_CT, hz, preprocessing)
    out_CT = np.zeros((len(x_CT), count_resampled(n_times, hz, preprocessing.hz)))
    for (first, last), lead, (start, end) in pieces:
        out_CT[:, start:end] = filter_eeg(x_CT[:, first:last], hz, preprocessing, lead)[:, : out_CT.shape[1] - start]
    return out_CT


def filter_eeg(x_CT: np.ndarray, hz: float, preprocessing: EEGPreprocessing, lead: int = 0) -> np.ndarray:
    """Notch at the recorded rate, decimate, then band-pass at the new rate, where it costs a fifth.

    Args:
        lead: So many samples before the first lies one that is the first of the new rate; the result begins with the
            first of the new rate that is not before the signal.
    """
    for sos, padding in _design_notches(hz, preprocessing):
        x_CT = _filter_zero_phase(x_CT, sos, padding)
    if hz != preprocessing.hz:
        # Beyond its ends a recording drifts on, along the line from its first sample to its last, as with SciPy's
        # padtype="line"; zeros there would make a step at each end. In single precision, for an error of 1e-6 SD.
        first_C, slope_C = x_CT[:, :1], (x_CT[:, -1:] - x_CT[:, :1]) / (x_CT.shape[1] - 1)
        level_CT = (x_CT - (first_C + slope_C * np.arange(x_CT.shape[1]))).astype(np.float32)
        skipped = count_resampled(lead, hz, preprocessing.hz)
        new_CT = resample(np.pad(level_CT, ((0, 0), (lead, 0))) if lead else level_CT, hz, preprocessing.hz)[
            :, skipped:
        ]
        times_T = np.arange(skipped, skipped + new_CT.shape[1]) * (hz / preprocessing.hz) - lead
        x_CT = new_CT + (first_C + slope_C * times_T)
    return _filter_zero_phase(x_CT, *_design_filter(preprocessing.hz, preprocessing.low_hz, preprocessing.high_hz, 4))


def _design_notches(hz: float, preprocessing: EEGPreprocessing) -> list[tuple[np.ndarray, int]]:
    """The mains itself, and those of its harmonics that the new rate can still hold.

    3 Hz wide: rings for some tenths of a second instead of the seconds of MNE's default width, and takes the mains'
    drift of 0.2 Hz along. Within half a second of the ends only some 10 dB are won.
    """
    if not preprocessing.notch_hz:
        return []
    notch_hz = preprocessing.notch_hz
    mains = np.arange(notch_hz, max(preprocessing.hz / 2, notch_hz) + 1e-9, notch_hz)
    return [_design_filter(hz, f + 1.5, f - 1.5, 1) for f in mains.tolist() if f + 2.5 < hz / 2]


@lru_cache(maxsize=32)
def _design_filter(hz: float, low_hz: float, high_hz: float, order: int) -> tuple[np.ndarray, int]:
    """MNE's Butterworth filter: second-order sections, and the samples by which it pads; a notch where low > high.

    Designed once: MNE's own filter functions design and check at every call, which costs more than the filtering.
    """
    kind = {"order": order, "ftype": "butter", "output": "sos"}
    design: Any = mne.filter.create_filter(
        None, hz, low_hz, high_hz, method="iir", iir_params=kind, phase="zero", verbose="ERROR"
    )
    return design["sos"], int(design["padlen"])


def _filter_zero_phase(x_CT: np.ndarray, sos: np.ndarray, padding: int) -> np.ndarray:
    """As MNE filters with `method="iir", phase="zero"`, by `scipy.signal.sosfiltfilt` (a test compares them)."""
    return sosfiltfilt(sos, x_CT, axis=1, padtype="odd", padlen=min(padding, x_CT.shape[1] - 1))


def interpolate_channels(x_CT: np.ndarray, good_C: np.ndarray, channels: tuple[str, ...], hz: int) -> np.ndarray:
    """Overwrite bad channels by spherical splines (Perrin et al. 1989, as in MNE); returns which could not be."""
    electrodes = resolve_electrodes(channels)
    known_C = np.array([site != "" for site in electrodes])
    bad = [site for site, wanted in zip(electrodes, ~good_C & known_C, strict=True) if wanted]
    if not bad or (good_C & known_C).sum() < 4:  # a spline through fewer points is no map of the scalp
        return ~good_C
    names = [site for site in electrodes if site]
    raw = mne.io.RawArray(x_CT[known_C], mne.create_info(names, hz, "eeg", verbose="ERROR"), verbose="ERROR")
    raw.set_montage(load_standard_montage(), verbose="ERROR")
    raw.info["bads"] = bad
    # Fitting the sphere to the channels fails where they are few. MNE's stub says str, its documentation also a triple.
    origin: Any = HEAD_CENTRE
    raw.interpolate_bads(origin=origin, verbose="ERROR")
    x_CT[known_C] = raw.get_data()
    return ~good_C & ~known_C
