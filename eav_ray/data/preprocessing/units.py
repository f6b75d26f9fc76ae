"""Find the unit of raw EEG numbers."""

import numpy as np

from eav_ray.data.io.eeg_units import MICROVOLTS
from eav_ray.data.recordings import RawEEG
from eav_ray.errors import DataError

MAX_VOLT_SD = 1e-3  # scalp EEG has an SD of some 1e-5 V or some 10 to 300 uV: anything in between is neither
MIN_SD_UV, MAX_SD_UV = 1e-3, 1e4  # of EEG as recorded, hum included; less than any amplifier resolves, to its range
USUAL_SD_UV = (0.1, 1e3)  # outside, an experiment that states another unit than the file is right
BLOCK_S = 1.0
ROUNDING = 1e-9


def measure_sd(x_CT: np.ndarray, hz: float) -> np.ndarray:
    """SD of each channel within a typical second: (channels,), NaN where there is no whole one.

    Neither drift, nor jumps between pieces, nor artefacts of some seconds, nor what is missing count. Some 100 samples
    of a second are enough.
    """
    step = max(1, int(hz / 100))
    x_CT = x_CT[:, ::step]
    n_block = max(2, round(BLOCK_S * hz / step))
    count = x_CT.shape[-1] // n_block
    if not count:
        return np.full(len(x_CT), np.nan)
    sd_CB = x_CT[:, : count * n_block].reshape(len(x_CT), count, n_block).std(axis=2, dtype=np.float64)
    sd_CB = np.where(np.isfinite(sd_CB), sd_CB, np.nan)
    known_C = ~np.isnan(sd_CB).all(axis=1)
    sd_C = np.full(len(x_CT), np.nan)
    sd_C[known_C] = np.nanmedian(sd_CB[known_C], axis=1)
    return sd_C


def resolve_unit(raw: RawEEG, configured_unit: str, sd_C: np.ndarray) -> tuple[str, float, tuple[str, ...]]:
    """The unit of raw numbers, what makes microvolts of them, and what is to be remarked on.

    What the file states wins where it gives an amplitude that EEG can have, else what the experiment says; that also
    speaks where the file states nothing. Where nothing is said, a typical (median) channel SD below 1e-3 means volts.

    Args:
        sd_C: SD of each channel, in the unit of `raw`.
    Raises:
        DataError: The result is no amplitude of EEG.
    """
    # What filters leave of a flat channel by rounding is no signal.
    sd_C = sd_C[np.isfinite(sd_C) & (sd_C > ROUNDING * np.nanmax(sd_C, initial=0.0))]
    sd = float(np.median(sd_C)) if sd_C.size else None  # all are flat, which is for others to say
    if raw.unit == "auto":
        unit, lowest = configured_unit, MIN_SD_UV
        if unit == "auto":
            unit, lowest = "volt" if sd is not None and sd < MAX_VOLT_SD else "microvolt", USUAL_SD_UV[0]
        return unit, _require_plausible(sd, MICROVOLTS[unit], unit, lowest), ()
    scale, stated = MICROVOLTS[raw.unit], raw.stated_unit or raw.unit
    is_usual = sd is None or USUAL_SD_UV[0] <= sd * scale <= USUAL_SD_UV[1]
    if is_usual or configured_unit in ("auto", stated):
        return raw.unit, _require_plausible(sd, scale, stated), ()
    # Back to the numbers of the file, which the experiment knows better.
    scale *= MICROVOLTS[configured_unit] / MICROVOLTS[stated]
    remark = f"the file says {stated}, preprocessing.eeg.unit={configured_unit} is used"
    return configured_unit, _require_plausible(sd, scale, configured_unit), (remark,)


def _require_plausible(sd: float | None, scale: float, unit: str, lowest: float = MIN_SD_UV) -> float:
    """Raise DataError where an SD is none of EEG; return the scale.

    Args:
        scale: Microvolts in one.
    """
    if sd is not None and not lowest <= sd * scale <= MAX_SD_UV:
        raise DataError(
            f"EEG has an SD of {sd * scale:.3g} uV if its numbers are in {unit}, which EEG cannot have; set "
            f"preprocessing.eeg.unit to what they are in ({', '.join(MICROVOLTS)}), or leave this recording out"
        )
    return scale
