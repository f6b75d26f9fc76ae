"""What both EEG profiles need: resampling ratios and the unit of raw numbers."""

from math import gcd

import numpy as np

VOLT_SD = 1e-3  # scalp EEG has an SD of some 1e-5 V or some 10 to 300 uV: anything in between is neither


def ratio(target_hz: int, hz: float) -> tuple[int, int]:
    """Up and down for polyphase resampling; rates are taken to a thousandth of a hertz."""
    up, down = target_hz * 1000, round(hz * 1000)
    divisor = gcd(up, down)
    return up // divisor, down // divisor


def scale_of(stated: str, wanted: str, sd_C: np.ndarray) -> tuple[str, float]:
    """The unit of raw numbers, and what makes microvolts of them.

    What the file states wins; what the experiment says speaks where it does not; where both are "auto" a typical
    (median) channel SD below 1e-3 means volts.

    Args:
        sd_C: SD of each channel, in the file's unit.
    """
    unit = wanted if stated == "auto" else stated
    if unit == "auto":
        sd_C = sd_C[np.isfinite(sd_C) & (sd_C > 0)]
        unit = "volt" if sd_C.size and np.median(sd_C) < VOLT_SD else "microvolt"
    return unit, 1e6 if unit == "volt" else 1.0
