"""EEG corrupted as recorded: before filters, bad-channel search and reference."""

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.fft import irfft, rfft, rfftfreq
from scipy.signal import butter, detrend, sosfiltfilt

from eav_ray.data.corruptions.base import Corruption, scale_to_snr
from eav_ray.data.preprocessing.units import measure_sd, resolve_unit
from eav_ray.data.recordings import DatasetReader, RawEEG, TransformedReader
from eav_ray.electrodes import resolve_electrodes
from eav_ray.errors import DataError

MIN_SIGNAL_HZ = 0.5  # power below is offset and drift of the electrodes, and no signal
MAINS_HZ = 50.0
THIRD_HARMONIC_GAIN = 0.2  # amplitude of the third harmonic of the mains, of the first's
BLINKS_PER_MINUTE = 30
BLINK_DURATION_S = (0.2, 0.4)
BURST_DURATION_S = (0.2, 1.0)
MUSCLE_HZ = (20.0, 150.0)
# How much of a blink each row of electrodes sees, from the front back; what lies further back sees REST.
BLINK_GAINS = {"FP": 1.0, "AF": 0.7, "F": 0.4, "FT": 0.15, "FC": 0.15, "C": 0.05, "T": 0.05}
POSTERIOR_BLINK_GAIN, UNKNOWN_BLINK_GAIN = 0.02, 0.2
ELECTRODE_ROW = re.compile(r"[A-Za-z]+?(?=z|\d|$)")


def corrupt_dataset(reader: DatasetReader, corruption: Corruption, unit: str) -> DatasetReader:
    """Corrupt the EEG of a data set, for whatever reads it.

    Args:
        unit: `preprocessing.eeg.unit`, which speaks where a file states none.
    """
    return TransformedReader(reader, lambda raw, recording: corrupt_eeg(raw, corruption, recording.id, unit))


def corrupt_eeg(raw: RawEEG, corruption: Corruption, recording: str, unit: str = "auto") -> RawEEG:
    """One recording, corrupted; same shape, rate and channels.

    The ratio of signal to noise is each channel's own: its power above 0.5 Hz over that of what is added. What is not
    finite stays as it is. The unit is settled by the recording as it was, and stated in the result: noise
    must not make volts look like microvolts.

    Args:
        unit: `preprocessing.eeg.unit`.
    Raises:
        DataError: The rate is too low to hold what is to be added.
    """
    if corruption.is_identity or raw.hz <= 0 or raw.values_CT.shape[-1] < raw.hz:
        return raw  # less than a second is for the preprocessing to refuse
    kind, level, rng = corruption.name, corruption.level, corruption.make_rng(recording)
    dtype = raw.values_CT.dtype if raw.values_CT.dtype.kind == "f" else np.dtype(np.float64)
    x_CT = raw.values_CT.astype(np.float64)
    finite_CT = np.isfinite(x_CT)
    finite_C = np.asarray(finite_CT.any(axis=1))
    n_finite_C = np.maximum(finite_CT.sum(axis=1, keepdims=True), 1)
    mean_C = np.where(finite_CT, x_CT, 0.0).sum(axis=1, keepdims=True) / n_finite_C
    clean_CT = x_CT if finite_CT.all() else np.where(finite_CT, x_CT, mean_C)
    # What is missing has no power; what is added is not finite there, either.
    power_C = compute_power(clean_CT, raw.hz) * (x_CT.shape[1] / n_finite_C[:, 0])
    resolved_unit, to_microvolts, _ = resolve_unit(raw, unit, measure_sd(clean_CT[finite_C], raw.hz))
    shape = x_CT.shape
    match kind:
        case "gaussian":
            added_CT = scale_to_snr(rng.standard_normal(shape), power_C, level)
        case "pink":
            added_CT = scale_to_snr(_make_pink_noise(rng, shape, raw.hz), power_C, level)
        case "mains":
            added_CT = scale_to_snr(_make_mains_hum(rng, shape, raw.hz), power_C, level)
        case "muscle":
            added_CT = scale_to_snr(_make_muscle_bursts(rng, shape, raw.hz), power_C, level)
        case "dropout":
            flat_channels = rng.permutation(shape[0])[: round(level * shape[0])]
            flat_CT = np.broadcast_to(clean_CT[flat_channels].mean(axis=1, keepdims=True), x_CT[flat_channels].shape)
            x_CT[flat_channels] = np.where(finite_CT[flat_channels], flat_CT, np.nan)
            added_CT = np.zeros(shape)
        case "drift":
            added_CT = _make_random_walks(rng, shape) * (level / to_microvolts)
        case "blinks":
            height_C = compute_blink_gains(raw.channels) * (level / to_microvolts)
            added_CT = height_C[:, None] * _make_blinks(rng, shape[1], raw.hz)
        case _:
            raise AssertionError(kind)
    return replace(
        raw, values_CT=(x_CT + added_CT).astype(dtype), unit=resolved_unit if raw.unit == "auto" else raw.unit
    )


def compute_power(x_CT: np.ndarray, hz: float) -> np.ndarray:
    """Mean square of each channel above 0.5 Hz: (channels,), in the square of the channel's unit."""
    spectrum_CF = np.square(np.abs(rfft(detrend(x_CT, axis=1), axis=1)))
    n_times = x_CT.shape[1]
    spectrum_CF[:, 1 : (n_times + 1) // 2] *= 2  # negative frequencies
    return spectrum_CF[:, rfftfreq(n_times, 1 / hz) >= MIN_SIGNAL_HZ].sum(axis=1) / n_times**2


def compute_blink_gains(channels: Sequence[str]) -> np.ndarray:
    """How much of a blink each channel sees, by its name: (channels,), 1 at Fp1 and Fp2."""
    rows = [ELECTRODE_ROW.match(site) for site in resolve_electrodes(channels)]
    known = [row and BLINK_GAINS.get(row[0].upper(), POSTERIOR_BLINK_GAIN) for row in rows]
    return np.array([UNKNOWN_BLINK_GAIN if gain is None else gain for gain in known])


def _make_pink_noise(rng: np.random.Generator, shape: tuple[int, ...], hz: float) -> np.ndarray:
    f = rfftfreq(shape[1], 1 / hz)
    weight = np.divide(1.0, np.sqrt(f), out=np.zeros_like(f), where=f >= MIN_SIGNAL_HZ)
    return irfft(rfft(rng.standard_normal(shape), axis=1) * weight, n=shape[1], axis=1)


def _make_mains_hum(rng: np.random.Generator, shape: tuple[int, ...], hz: float) -> np.ndarray:
    _require_rate(hz, MAINS_HZ, "mains hum")
    t = np.arange(shape[1]) / hz
    phase = rng.uniform(0, 2 * np.pi, 2) + rng.normal(0, 0.1, (shape[0], 1, 2))  # nearly the same on all electrodes
    hum_CT = np.sin(2 * np.pi * MAINS_HZ * t + phase[..., 0])
    if hz / 2 > 3 * MAINS_HZ:
        hum_CT += THIRD_HARMONIC_GAIN * np.sin(6 * np.pi * MAINS_HZ * t + phase[..., 1])
    return hum_CT


def _make_muscle_bursts(rng: np.random.Generator, shape: tuple[int, ...], hz: float) -> np.ndarray:
    _require_rate(hz, MUSCLE_HZ[0] / 0.9, "muscle")
    band = (MUSCLE_HZ[0], min(MUSCLE_HZ[1], 0.45 * hz))
    noise_CT = sosfiltfilt(butter(4, band, "bandpass", fs=hz, output="sos"), rng.standard_normal(shape), axis=1)
    gate_T = np.zeros(shape[1])
    while gate_T.mean() < 0.25:  # a raised cosine's mean is a half
        length = max(2, min(shape[1], int(rng.uniform(*BURST_DURATION_S) * hz)))
        at = int(rng.integers(0, shape[1] - length + 1))
        gate_T[at : at + length] = np.maximum(gate_T[at : at + length], np.hanning(length))
    return noise_CT * gate_T


def _make_random_walks(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Random walks from 0 that go as far as 1."""
    walk_CT = np.cumsum(rng.standard_normal(shape), axis=1)
    walk_CT -= walk_CT[:, :1]
    return walk_CT / np.maximum(np.abs(walk_CT).max(axis=1, keepdims=True), 1e-12)


def _make_blinks(rng: np.random.Generator, n_times: int, hz: float) -> np.ndarray:
    """At least one, each with a peak of 1: (samples,)."""
    blinks_T = np.zeros(n_times)
    for _ in range(max(1, round(BLINKS_PER_MINUTE * n_times / hz / 60))):
        # Of odd length, so that the window has its peak on a sample.
        length = max(3, min(n_times, int(rng.uniform(*BLINK_DURATION_S) * hz)) // 2 * 2 - 1)
        at = int(rng.integers(0, max(1, n_times - length + 1)))
        blinks_T[at : at + length] = np.maximum(blinks_T[at : at + length], np.hanning(length))
    return blinks_T


def _require_rate(hz: float, min_hz: float, what: str) -> None:
    if hz / 2 <= min_hz:
        raise DataError(f"EEG is sampled at {hz:g} Hz, too slow to hold {what}; leave it out with --corruptions")
