"""Whether the steps of the EEG profile `clean` help: artefacts of known waveform, mixed into real EEG.

    EAV_RAY_REAL=... python -m benchmarks.eeg_cleaning

The recordings of EEGMAT (16 people, 19 channels, 500 Hz, published after cleaning by hand) are cut into pieces of
20 s. What the profile makes of a piece as it is, is the truth; what it makes of the piece with an artefact mixed in,
with a step and without it, is compared with that truth. Each piece is its own control. A step pays if the median SNR
over pieces is higher with it.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from scipy.signal import butter, sosfiltfilt, welch

from benchmarks.common import Goal, find_real_data, finish_benchmark, format_spread
from eav_ray.config import EEGPreprocessing
from eav_ray.data.datasets.eegmat import EEGMAT, EEGMAT_CHANNELS
from eav_ray.data.preprocessing.eeg_clean import clean_eeg, filter_eeg
from eav_ray.data.recordings import RawEEG
from eav_ray.electrodes import load_standard_montage
from eav_ray.errors import DataError

HZ, SECONDS = 500, 20
PIECES = 3  # of each recording
BANDS = {"delta": (0.5, 4), "theta": (4, 8), "alpha": (8, 13), "beta": (13, 30), "gamma": (30, 45)}
BASE = EEGPreprocessing(notch_hz=0, bad_channel_correlation=0)
BAD_KINDS = ("not finite", "flat", "extreme", "uncorrelated")


def read_pieces() -> Iterator[np.ndarray]:
    """(channels, samples), microvolts."""
    dataset = EEGMAT(str(find_real_data() / "eegmat"))
    for recording in dataset.scan().recordings:
        x_CT = dataset.read_eeg(recording).values_CT
        for k in range(min(PIECES, x_CT.shape[1] // (HZ * SECONDS))):
            yield x_CT[:, k * HZ * SECONDS : (k + 1) * HZ * SECONDS]


def clean_piece(x_CT: np.ndarray, preprocessing: EEGPreprocessing) -> tuple[np.ndarray, set[str]]:
    found = clean_eeg(RawEEG(x_CT, HZ, EEGMAT_CHANNELS, "microvolt"), preprocessing)
    return found.x_CT, set(found.bad_channels)


def compute_snr(truth_CT: np.ndarray, x_CT: np.ndarray) -> float:
    """Decibel: power of the truth over power of what differs from it."""
    return float(10 * np.log10(truth_CT.var() / max(np.square(x_CT - truth_CT).mean(), 1e-12)))


def compute_band_error(truth_CT: np.ndarray, x_CT: np.ndarray, active_T: np.ndarray) -> float:
    """Mean absolute error of the log power over channels and bands, on the stretches without artefact, decibel.

    Args:
        active_T: Where something was mixed in, at the recorded rate.
    """
    active_T = active_T.reshape(-1, HZ // 100).any(axis=1)  # at the profile's rate
    free = [t for t in range(0, len(active_T) - 200 + 1, 20) if not active_T[t : t + 200].any()]
    spans = [np.stack([y[:, t : t + 200] for t in free], axis=1) for y in (truth_CT, x_CT)]
    p, q = (welch(y, 100, nperseg=200)[1].mean(axis=1) for y in spans)
    f = np.arange(p.shape[1]) / 2
    errors = []
    for low, high in BANDS.values():
        inside = (f >= low) & (f < high)
        errors.append(np.abs(10 * np.log10(q[:, inside].mean(1) / np.maximum(p[:, inside].mean(1), 1e-12))))
    return float(np.mean(errors))


# --- what is mixed in ---


Mix = Callable[[np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]]  # the piece, and where it is spoilt


def add_hum(x_CT: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Mains of 20 microvolts that wander by 0.1 Hz, with two harmonics, of another size on each channel."""
    t = np.arange(x_CT.shape[1]) / HZ
    phase = 2 * np.pi * np.cumsum(50 + 0.1 * np.sin(2 * np.pi * 0.05 * t + rng.uniform(0, 6))) / HZ
    wave = sum(a * np.sin(n * phase + rng.uniform(0, 6)) for n, a in ((1, 20), (2, 6), (3, 4)))
    return x_CT + rng.uniform(0.3, 1.7, (len(x_CT), 1)) * wave, np.zeros(x_CT.shape[1], bool)  # it is everywhere


def add_blinks(x_CT: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One of 150 microvolts at Fp1 and Fp2 every 4 s, falling off with the distance from the eyes."""
    weight_C = np.exp(-_compute_distances(("Fp1", "Fp2")) / 0.04)
    wave = np.zeros(x_CT.shape[1])
    for start in np.arange(0.5, SECONDS - 1, 4) + rng.uniform(0, 0.5):
        n = int(0.4 * HZ)
        wave[int(start * HZ) :][:n] += 150 * np.hanning(n)
    return x_CT + weight_C[:, None] * wave, wave > 0


def add_muscle(x_CT: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Bursts of 0.5 s of 20 to 200 Hz, 30 microvolts at the temples, every 3 s."""
    weight_C = np.exp(-_compute_distances(("T3", "T4")) / 0.04)
    noise = sosfiltfilt(butter(4, [20, 200], "bandpass", fs=HZ, output="sos"), rng.normal(size=x_CT.shape), axis=1)
    envelope = np.zeros(x_CT.shape[1])
    for start in np.arange(0.5, SECONDS - 1, 3) + rng.uniform(0, 1):
        n = int(0.5 * HZ)
        envelope[int(start * HZ) :][:n] = np.hanning(n)
    return x_CT + 30 * weight_C[:, None] * envelope * noise / noise.std(), envelope > 0


def spoil_channels(x_CT: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, str]]:
    """One to three channels become bad, each in its own way."""
    x_CT = x_CT.copy()
    bad_channels: dict[str, str] = {}
    for c in rng.choice(len(EEGMAT_CHANNELS), rng.integers(1, 4), replace=False):
        kind = bad_channels[EEGMAT_CHANNELS[c]] = str(rng.choice(BAD_KINDS))
        n = x_CT.shape[1]
        match kind:
            case "not finite":
                x_CT[c, rng.integers(0, n, 20)] = np.nan
            case "flat":
                x_CT[c] = rng.normal(0, 0.01, n)
            case "extreme":
                x_CT[c] *= 50
            case _:  # an electrode off the scalp: pink noise of the usual size
                spectrum = np.fft.rfft(rng.normal(size=n)) / np.sqrt(np.maximum(np.arange(n // 2 + 1), 1))
                pink = np.fft.irfft(spectrum, n)
                x_CT[c] = pink / pink.std() * np.median(x_CT.std(axis=1))
    return x_CT, bad_channels


def _compute_distances(names: tuple[str, ...]) -> np.ndarray:
    """Of each channel from the nearest of these, metres."""
    places = load_standard_montage().get_positions()["ch_pos"]
    at = np.array([places[c] for c in EEGMAT_CHANNELS])
    return np.min([np.linalg.norm(at - places[n], axis=1) for n in names], axis=0)


def compare_step(mix: Mix, **step: float | str) -> list[list[float]]:
    """A row a piece: SNR without and with the step; band error of stretches without artefact, without and with it;
    harm of the step where it is not needed (SNR of the clean piece with the step)."""
    rows = []
    for i, piece in enumerate(read_pieces()):
        truth, _ = clean_piece(piece, BASE)
        mixed, active_T = mix(piece, np.random.default_rng(i))
        without, _ = clean_piece(mixed, BASE)
        with_it, _ = clean_piece(mixed, replace(BASE, **step))  # pyright: ignore[reportArgumentType]
        idle, _ = clean_piece(piece, replace(BASE, **step))  # pyright: ignore[reportArgumentType]
        rows.append(
            [compute_snr(truth, without), compute_snr(truth, with_it)]
            + [compute_band_error(truth, y, active_T) for y in (without, with_it)]
            + [min(compute_snr(truth, idle), 99.0)]
        )
    return rows


def count_detections(preprocessing: EEGPreprocessing) -> dict[str, list[int]]:
    """Hits, misses, false alarms of each kind of bad channel; what is found in a piece as it is counts for neither."""
    counts = {kind: [0, 0, 0] for kind in BAD_KINDS}
    for i, piece in enumerate(read_pieces()):
        _, before = clean_piece(piece, preprocessing)
        spoiled, bad_channels = spoil_channels(piece, np.random.default_rng(i))
        found = clean_eeg(RawEEG(spoiled, HZ, EEGMAT_CHANNELS, "microvolt"), preprocessing).bad_channels
        for name, kind in bad_channels.items():
            if name not in before:
                counts[kind][0 if name in found else 1] += 1
        for name, reason in found.items():
            if name not in bad_channels and name not in before:
                counts[reason][2] += 1
    return counts


def filter_and_reference(x_CT: np.ndarray) -> np.ndarray:
    """Filters and average reference alone, whatever the channels hold."""
    y_CT = filter_eeg(x_CT - x_CT.mean(axis=1, keepdims=True), HZ, BASE)
    return y_CT - y_CT.mean(axis=0)


def measure_interpolation(preprocessing: EEGPreprocessing) -> list[list[float]]:
    """SNR of a spoiled piece, its bad channels set to zero where they are not finite, against a repaired one."""
    rows = []
    for i, piece in enumerate(read_pieces()):
        truth, before = clean_piece(piece, preprocessing)
        if before:
            continue
        spoiled, bad_channels = spoil_channels(piece, np.random.default_rng(i))
        unrepaired = filter_and_reference(np.nan_to_num(spoiled))
        try:
            fixed, _ = clean_piece(spoiled, preprocessing)
        except DataError:
            continue
        bad = [EEGMAT_CHANNELS.index(c) for c in bad_channels]
        good = np.setdiff1d(np.arange(len(EEGMAT_CHANNELS)), bad)
        rows.append(
            [
                compute_snr(truth[good], unrepaired[good]),
                compute_snr(truth[good], fixed[good]),
                compute_snr(truth[bad], fixed[bad]),
            ]
        )
    return rows


def main() -> int:
    lines: list[str] = []
    gain_lines: list[str] = []
    goals: list[Goal] = []
    n = sum(1 for _ in read_pieces())
    lines += [f"{n} pieces of 20 s of 16 people, 19 channels. Each row: median (range) over pieces.", ""]

    lines += [
        "| artefact and step | SNR without, dB | SNR with, dB | band error of clean stretches without, dB | with, dB "
        "| SNR of the piece as it is, with the step, dB (99: untouched) |"
    ]
    lines += ["|---|---|---|---|---|---|"]
    default = EEGPreprocessing()
    steps: tuple[tuple[str, Mix, dict[str, float | str]], ...] = (
        ("hum, notch", add_hum, {"notch_hz": 50.0}),
        ("blinks, artefacts=blinks", add_blinks, {"artefacts": "blinks"}),
        ("blinks, artefacts=all", add_blinks, {"artefacts": "all"}),
        ("muscle, artefacts=blinks", add_muscle, {"artefacts": "blinks"}),
        ("muscle, artefacts=all", add_muscle, {"artefacts": "all"}),
    )
    for name, mix, step in steps:
        rows = np.array(compare_step(mix, **step))
        lines.append(
            f"| {name} | " + " | ".join(format_spread(rows[:, k], 1 if k in (0, 1, 4) else 3) for k in range(5)) + " |"
        )
        gain = rows[:, 1] - rows[:, 0]
        gain_lines.append(f"- {name}: {format_spread(gain, 1)} dB won; higher in {(gain > 0).mean():.0%} of pieces.")
        # A goal where the step is on by default, or offered for this artefact.
        if all(getattr(default, key) == value for key, value in step.items()) or name == "blinks, artefacts=blinks":
            goals.append(Goal(f"{name}: median SNR gain", float(np.median(gain)), 0, " dB"))

    rows = np.array(
        measure_interpolation(replace(BASE, bad_channel_correlation=EEGPreprocessing().bad_channel_correlation))
    )
    others = " | ".join(format_spread(rows[:, k], 1) for k in (0, 1))
    lines.append(f"| bad channels found and interpolated, the other channels | {others} | | | |")
    lines.append(f"| the same, the bad channels themselves | | {format_spread(rows[:, 2], 1)} | | | |")
    gain = rows[:, 1] - rows[:, 0]
    gain_lines.append(
        f"- bad channels, SNR of the others: {format_spread(gain, 1)} dB won; higher in {(gain > 0).mean():.0%} of "
        "pieces."
    )
    lines += ["", *gain_lines]
    goals.append(Goal("bad channels: median SNR gain of the others", float(np.median(gain)), 0, " dB"))

    lines += [
        "",
        "Bad channels, one to three a piece. Precision counts false alarms of that reason on channels left alone.",
        "",
    ]
    lines += [
        "| correlation below | kind | found | missed | false | precision | recall |",
        "|---|---|---|---|---|---|---|",
    ]
    for correlation in sorted({0.0, 0.3, 0.4, 0.5, 0.6, EEGPreprocessing().bad_channel_correlation}):
        counts = count_detections(replace(BASE, bad_channel_correlation=correlation))
        for kind, (hit, miss, false) in counts.items():
            if kind != "uncorrelated" and correlation != EEGPreprocessing().bad_channel_correlation:
                continue
            precision = f"{hit / (hit + false):.2f}" if hit + false else "-"
            lines.append(
                f"| {correlation:g} | {kind} | {hit} | {miss} | {false} | {precision} | {hit / (hit + miss):.2f} |"
            )
        if correlation == EEGPreprocessing().bad_channel_correlation:
            total = np.sum(list(counts.values()), axis=0)
            goals.append(Goal("bad channels: precision", total[0] / (total[0] + total[2]), 0.9))
            goals.append(Goal("bad channels: recall", total[0] / (total[0] + total[1]), 0.9))
    return finish_benchmark("eeg_cleaning", "What the EEG profile `clean` wins on real EEG", "\n".join(lines), goals)


if __name__ == "__main__":
    sys.exit(main())
