"""Find the unit of raw EEG numbers."""

import numpy as np

MAX_VOLT_SD = 1e-3  # scalp EEG has an SD of some 1e-5 V or some 10 to 300 uV: anything in between is neither


def resolve_unit(file_unit: str, configured_unit: str, sd_C: np.ndarray) -> tuple[str, float]:
    """The unit of raw numbers, and what makes microvolts of them.

    What the file states wins; what the experiment says speaks where it does not; where both are "auto" a typical
    (median) channel SD below 1e-3 means volts.

    Args:
        sd_C: SD of each channel, in the file's unit.
    """
    unit = configured_unit if file_unit == "auto" else file_unit
    if unit == "auto":
        sd_C = sd_C[np.isfinite(sd_C) & (sd_C > 0)]
        unit = "volt" if sd_C.size and np.median(sd_C) < MAX_VOLT_SD else "microvolt"
    return unit, 1e6 if unit == "volt" else 1.0
