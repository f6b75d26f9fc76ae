"""EEG of one recording: reading it through MNE, and the profile `clean` that makes it comparable between people.

Every step sees one recording alone: filtering a concatenation of recordings lets each ring into the next.
"""

import configparser
import struct
import zlib
from collections.abc import Sequence
from functools import lru_cache
from math import gcd
from pathlib import Path
from typing import Any

import mne
import numpy as np
from scipy.io.matlab import MatReadError
from scipy.signal import resample_poly

from eav_ray.config import EEGProfile
from eav_ray.data.manifest import RawEEG
from eav_ray.errors import DataError

VOLT_SD = 1e-3  # scalp EEG has an SD of some 1e-5 V or some 10 to 300 uV: anything in between is neither
FLAT_UV = 0.1  # less than an amplifier's own noise
EXTREME = 10.0  # times the median channel's SD; blinks on frontal channels stay below
SHORTEST_S = 1.0
HEAD_CENTRE = (0.0, 0.0, 0.04)  # of MNE's spherical head model, metres in head coordinates
# What MNE's many readers raise on damaged files. MNE has no error class of its own for that.
READ_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    RuntimeError,
    AttributeError,
    AssertionError,
    EOFError,
    OverflowError,
    ZeroDivisionError,
    MemoryError,
    configparser.Error,
    struct.error,
    zlib.error,
    MatReadError,
)


def open_raw(path: str | Path) -> mne.io.BaseRaw:
    """Open a file of any format that `mne.io.read_raw` knows, without loading its samples.

    Raises:
        DataError: The file is missing, damaged, or of a format that MNE does not know.
    """
    if not Path(path).is_file():
        raise DataError(f"{path} is missing; expected an EEG file that mne.io.read_raw opens")
    try:
        match Path(path).suffix.lower():
            case ".edf":
                # latin1 decodes any byte: for others MNE raises a bare Exception, and annotations are not used here.
                return mne.io.read_raw_edf(path, encoding="latin1", preload=False, verbose="ERROR")
            case ".bdf":
                return mne.io.read_raw_bdf(path, encoding="latin1", preload=False, verbose="ERROR")
            case _:
                return mne.io.read_raw(path, preload=False, verbose="ERROR")
    except READ_ERRORS as error:
        raise DataError(f"{path} cannot be read as EEG ({_one_line(error)}); replace it or leave it out") from None


def read(path: str | Path, channels: Sequence[str]) -> RawEEG:
    """Read the named channels of a file, in that order.

    MNE hands out volts; they become microvolts here, so that later steps need not guess.

    Returns:
        `values_CT` float64 (len(channels), samples), microvolts.
    Raises:
        DataError: As `open_raw`; or a channel is missing.
    """
    raw = open_raw(path)
    missing = [name for name in channels if name not in raw.ch_names]
    if missing:
        raise DataError(
            f"{path} has no channel {', '.join(missing)}; it has {', '.join(raw.ch_names)}; "
            "all recordings of a data set need the same channels"
        )
    try:
        values_CT = np.asarray(raw.get_data(picks=np.array(channels), verbose="ERROR"), dtype=np.float64) * 1e6
    except READ_ERRORS as error:
        raise DataError(f"{path} cannot be read to its end ({_one_line(error)}); replace it or leave it out") from None
    finally:
        raw.close()
    return RawEEG(values_CT, float(raw.info["sfreq"]), tuple(channels), "microvolt")


def clean(raw: RawEEG, profile: EEGProfile) -> tuple[np.ndarray, dict[str, Any]]:
    """Bring one recording to the profile's rate, band, reference and unit. Zero-phase throughout.

    Offset, mains notch, decimation, band-pass, search for extreme channels, interpolation, reference. The notch comes
    before decimation because a mains frequency above the new Nyquist frequency would fold into the band.

    A unit that the file states wins; `profile.unit` speaks where it does not ("auto"); where both are "auto" a
    typical (median) channel SD below 1e-3 means volts.

    Args:
        raw: Values (channels, samples).
    Returns:
        (channels, profile.hz * seconds), float32, microvolts; and the quality: `unit` (of the input), `seconds`,
        `bad_channels` (number), `bad_names`, `masked_names` (bad, without a known position, hence zero).
    Raises:
        DataError: Not two-dimensional, not one row per channel, shorter than 1 s, sampled too slowly for the band,
            or more than half of the channels are bad.
    """
    _check(raw, profile)
    x_CT = np.array(raw.values_CT, dtype=np.float64)
    finite_C = np.isfinite(x_CT).all(axis=1)
    x_CT[~finite_C] = 0.0  # one NaN would spread over its whole channel in the filters, and to all in the reference
    x_CT -= x_CT.mean(axis=1, keepdims=True)
    unit = _unit(raw, profile, x_CT[finite_C].std(axis=1))
    if unit == "volt":
        x_CT *= 1e6
    good_C = finite_C & (x_CT.std(axis=1) > FLAT_UV)
    _require_half(good_C, raw.channels)

    x_CT = _filter(x_CT, raw.hz, profile)
    sd_C = x_CT.std(axis=1)
    good_C &= sd_C <= EXTREME * np.median(sd_C[good_C])
    _require_half(good_C, raw.channels)

    masked_C = _interpolate(x_CT, good_C, raw.channels, profile.hz)
    if profile.reference == "average":
        x_CT -= x_CT[good_C].mean(axis=0)
    x_CT[masked_C] = 0.0
    quality = {
        "unit": unit,
        "seconds": raw.values_CT.shape[1] / raw.hz,
        "bad_channels": int((~good_C).sum()),
        "bad_names": tuple(np.array(raw.channels)[~good_C].tolist()),
        "masked_names": tuple(np.array(raw.channels)[masked_C].tolist()),
    }
    return x_CT.astype(np.float32), quality


def _check(raw: RawEEG, profile: EEGProfile) -> None:
    shape = raw.values_CT.shape
    if len(shape) != 2 or shape[0] != len(raw.channels):
        raise DataError(f"EEG has shape {shape}; it must be (channels, samples) with {len(raw.channels)} channels")
    if raw.hz <= 0 or shape[1] < SHORTEST_S * raw.hz:
        raise DataError(f"EEG has {shape[1]} samples at {raw.hz:g} Hz; the filters need at least {SHORTEST_S:g} s")
    if profile.high_hz >= raw.hz / 2:
        raise DataError(
            f"EEG is sampled at {raw.hz:g} Hz, too slow for profile.eeg.high_hz={profile.high_hz:g}; "
            f"set profile.eeg.high_hz below {raw.hz / 2:g}"
        )


def _unit(raw: RawEEG, profile: EEGProfile, sd_C: np.ndarray) -> str:
    for stated in (raw.unit, profile.unit):
        if stated != "auto":
            return stated
    sd_C = sd_C[sd_C > 0]
    return "volt" if sd_C.size and np.median(sd_C) < VOLT_SD else "microvolt"


def _require_half(good_C: np.ndarray, channels: tuple[str, ...]) -> None:
    bad = [name for name, good in zip(channels, good_C, strict=True) if not good]
    if len(bad) * 2 > len(channels):
        raise DataError(
            f"{len(bad)} of {len(channels)} EEG channels are flat, extreme or not finite ({', '.join(bad)}); "
            "at most half may be: leave this recording out"
        )


def _filter(x_CT: np.ndarray, hz: float, profile: EEGProfile) -> np.ndarray:
    """Notch at the recorded rate, decimate, then band-pass at the new rate, where it costs a fifth."""
    if profile.notch_hz:
        # The mains itself, and those of its harmonics that the new rate can still hold.
        mains = np.arange(profile.notch_hz, max(profile.hz / 2, profile.notch_hz) + 1e-9, profile.notch_hz)
        mains = mains[mains + 2.5 < hz / 2]
        if mains.size:
            # 3 Hz wide: rings for some tenths of a second instead of the seconds of MNE's default width, and takes
            # the mains' drift of 0.2 Hz along. Within half a second of the ends only some 10 dB are won.
            x_CT = mne.filter.notch_filter(
                x_CT,
                hz,
                mains,
                notch_widths=2.0,
                method="iir",
                iir_params={"order": 1, "ftype": "butter", "output": "sos"},
                phase="zero",
                verbose="ERROR",
            )
    if hz != profile.hz:
        # padtype: beyond its ends a recording drifts on; zeros there would make a step at each end.
        x_CT = resample_poly(x_CT, *_ratio(profile.hz, hz), axis=1, padtype="line")
    return mne.filter.filter_data(
        x_CT,
        profile.hz,
        profile.low_hz,
        profile.high_hz,
        method="iir",
        iir_params={"order": 4, "ftype": "butter", "output": "sos"},
        phase="zero",
        verbose="ERROR",
    )


def _ratio(target_hz: int, hz: float) -> tuple[int, int]:
    """Up and down for polyphase resampling; rates are taken to a thousandth of a hertz."""
    up, down = target_hz * 1000, round(hz * 1000)
    divisor = gcd(up, down)
    return up // divisor, down // divisor


def _interpolate(x_CT: np.ndarray, good_C: np.ndarray, channels: tuple[str, ...], hz: int) -> np.ndarray:
    """Overwrite bad channels by spherical splines (Perrin et al. 1989, as in MNE); returns which could not be."""
    montage = _montage()
    known = {name.lower() for name in montage.ch_names}
    placed_C = np.array([name.lower() in known for name in channels])
    bad = [name for name, wanted in zip(channels, ~good_C & placed_C, strict=True) if wanted]
    if not bad or (good_C & placed_C).sum() < 4:  # a spline through fewer points is no map of the scalp
        return ~good_C
    names = [name for name, placed in zip(channels, placed_C, strict=True) if placed]
    raw = mne.io.RawArray(x_CT[placed_C], mne.create_info(names, hz, "eeg", verbose="ERROR"), verbose="ERROR")
    raw.set_montage(montage, match_case=False, verbose="ERROR")
    raw.info["bads"] = bad
    # Fitting the sphere to the channels fails where they are few. MNE's stub says str, its documentation also a triple.
    origin: Any = HEAD_CENTRE
    raw.interpolate_bads(origin=origin, verbose="ERROR")
    x_CT[placed_C] = raw.get_data()
    return ~good_C & ~placed_C


@lru_cache(maxsize=1)
def _montage() -> mne.channels.DigMontage:
    """The 10-05 positions, which MNE renames in 1.14."""
    name = "colin27_1005" if "colin27_1005" in mne.channels.get_builtin_montages() else "standard_1005"
    return mne.channels.make_standard_montage(name)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
