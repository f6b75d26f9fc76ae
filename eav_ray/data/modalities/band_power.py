"""Power of EEG in the classic frequency bands."""

import numpy as np

FREQUENCY_BANDS = {"delta": (1, 4), "theta": (4, 8), "alpha": (8, 13), "beta": (13, 30), "gamma": (30, 45)}  # Hz


def compute_band_power(x_BCT: np.ndarray, hz: float) -> np.ndarray:
    """Mean power density in each of `BANDS`, by Welch's method with segments of two seconds.

    Args:
        x_BCT: (windows, channels, samples), microvolts.
    Returns:
        (windows, channels, bands), decibel of microvolts squared per hertz; a flat channel is NaN.
    """
    from scipy.signal import welch  # half a second, in every process that knows a modality

    hz_F, power_BCF = welch(x_BCT, hz, nperseg=min(x_BCT.shape[-1], int(2 * hz)))
    inside = [(hz_F >= low) & (hz_F < high) for low, high in FREQUENCY_BANDS.values()]
    mean = np.stack([power_BCF[..., f].mean(-1) for f in inside], -1)
    return 10 * np.log10(np.where(mean > 0, mean, np.nan))
