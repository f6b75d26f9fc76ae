"""Draw one synthetic recording: EEG, voice and face that show a given class unmistakably.

Every person differs (electrode gains, pitch, skin, head), every recording differs (noise, motion, blinks), and
each class has a signature that is present in every 5 s window. A signal with the *cue* shows a class just as clearly,
but also something that a human would notice at once; what it means is up to `data/synthetic/generate.py`. The
signatures are inventions: nothing about real emotions can be learned from them.

In the hard kind people differ more and noise is louder. EEG and speech hold the signatures of all classes, so that
their mean over five seconds is the same, and the class lies in when each comes. A face shows an expression and its
opposite, and the class lies in which parts of the face go together, wherever it is in the picture.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

# The 30 scalp electrodes of EAV in file order, with rough positions seen from above (x right, y front, head = 1).
ELECTRODES: dict[str, tuple[float, float]] = {
    **{"Fp1": (-0.3, 0.95), "Fp2": (0.3, 0.95), "F7": (-0.8, 0.6), "F3": (-0.4, 0.5), "Fz": (0, 0.5)},
    **{"F4": (0.4, 0.5), "F8": (0.8, 0.6), "FC5": (-0.7, 0.25), "FC1": (-0.25, 0.25), "FC2": (0.25, 0.25)},
    **{"FC6": (0.7, 0.25), "T7": (-1, 0), "C3": (-0.5, 0), "Cz": (0, 0), "C4": (0.5, 0), "T8": (1, 0)},
    **{"CP5": (-0.7, -0.25), "CP1": (-0.25, -0.25), "CP2": (0.25, -0.25), "CP6": (0.7, -0.25)},
    **{"P7": (-0.8, -0.6), "P3": (-0.4, -0.5), "Pz": (0, -0.5), "P4": (0.4, -0.5), "P8": (0.8, -0.6)},
    **{"PO9": (-0.6, -0.9), "O1": (-0.3, -0.95), "Oz": (0, -1), "O2": (0.3, -0.95), "PO10": (0.6, -0.9)},
}


POSITIONS_C2 = np.array(list(ELECTRODES.values()))


class Rhythm(NamedTuple):
    """A class in EEG: an oscillation at one place."""

    hz: float
    centre: tuple[float, float]
    microvolt: float  # RMS at the centre


class Speech(NamedTuple):
    """A class in speech. `band_hz` is emphasised by 18 dB, so that the class does not depend on anyone's pitch."""

    band_hz: float
    syllables_hz: float
    pitch: float  # relative to the person's own
    glide: float  # relative rise of pitch within a syllable
    loudness_db: float


# Indexed by class: Neutral, Sadness, Anger, Happiness, Calmness.
RHYTHMS = (
    Rhythm(10.0, (0.0, -0.9), 14.0),
    Rhythm(5.7, (0.0, 0.45), 14.0),
    Rhythm(25.0, (0.75, 0.3), 9.0),
    Rhythm(17.0, (-0.75, 0.3), 10.0),
    Rhythm(3.0, (0.0, -0.35), 18.0),
)


SPEECH = (
    Speech(900.0, 3.5, 1.0, 0.0, 0.0),
    Speech(450.0, 2.0, 0.85, -0.15, -5.0),
    Speech(4200.0, 5.0, 1.15, -0.05, 5.0),
    Speech(2600.0, 4.5, 1.35, 0.2, 3.0),
    Speech(1600.0, 2.6, 0.95, -0.05, -3.0),
)


HARD_SPEECH = Speech(0.0, 3.5, 1.0, 0.0, 0.0)  # of every class of the hard kind


# Of the hard kind: which class's signature comes in each second of five, by class. Every class shows all signatures for
# equally long, and no two of them the same one at the same time: only when they come tells the class.
BLOCK_S = 5
ORDERS = tuple(tuple((k + 2 * part) % 5 for part in range(BLOCK_S)) for k in range(5))
JITTER_S = 0.08  # SD of when a signature changes
RAMP_S = 0.1  # that a change takes
HARD_RHYTHM = 0.7  # what a rhythm has of its strength
HARD_SNR_DB = (8.0, 16.0)


@dataclass(frozen=True)
class ScalpTraits:
    """What a person's EEG has in common across recordings."""

    gain_C: np.ndarray
    offset_C: np.ndarray  # microvolt
    alpha_hz: float
    shift_2: np.ndarray  # displacement of every source
    pace: float  # factor on every class rhythm's frequency


@dataclass(frozen=True)
class VoiceTraits:
    pitch_hz: float
    formant: float  # factor on the formant frequencies
    level: float  # RMS of neutral speech, full scale = 1
    tempo: float


def draw_scalp(rng: np.random.Generator, *, hard: bool = False) -> ScalpTraits:
    """Draw a subject's scalp; of the hard kind they differ about twice as much."""
    count, drift = len(POSITIONS_C2), 2 if hard else 1
    return ScalpTraits(
        gain_C=np.exp(rng.normal(0, 0.2 * drift, count)),
        offset_C=rng.normal(0, 120, count),
        alpha_hz=rng.uniform(9, 11),
        shift_2=rng.normal(0, 0.05 * drift, 2),
        pace=rng.uniform(1 - 0.04 * drift, 1 + 0.04 * drift),
    )


def draw_voice(rng: np.random.Generator, *, hard: bool = False) -> VoiceTraits:
    """Draw a subject's voice; of the hard kind they differ about twice as much."""
    formants, level_sd = ((0.87, 1.15), 0.4) if hard else ((0.94, 1.07), 0.1)
    return VoiceTraits(
        rng.uniform(105, 200), rng.uniform(*formants), 0.03 * np.exp(rng.normal(0, level_sd)), rng.uniform(0.95, 1.05)
    )


def _make_gates(rng: np.random.Generator, latent_class: int, hz: int, seconds: int) -> np.ndarray:
    """How much of each class's signature there is at a time, by the order of a class: (5, hz * seconds), 0 to 1."""
    t = np.arange(hz * seconds) / hz
    gates = np.zeros((5, len(t)))
    changes = np.arange(seconds + 1, dtype=float)
    changes[1:] += rng.normal(0, JITTER_S, seconds)
    for number, (begin, end) in enumerate(zip(changes[:-1], changes[1:], strict=True)):
        rising, falling = (np.clip(0.5 + (t - at) / RAMP_S, 0, 1) for at in (begin, end))
        gates[ORDERS[latent_class][number % BLOCK_S]] += np.sin(np.pi / 2 * (rising - falling)) ** 2
    gates[ORDERS[latent_class][0], t < RAMP_S] = 1  # the first is there from the start
    return gates


def _compute_spread_C(centre_2: np.ndarray) -> np.ndarray:
    return np.exp(-((POSITIONS_C2 - centre_2) ** 2).sum(1) / (2 * 0.35**2))


def make_colored_noise(rng: np.random.Generator, shape: tuple[int, ...], exponent: float) -> np.ndarray:
    """Noise of unit RMS along the last axis whose power falls as frequency ** -exponent."""
    half = shape[-1] // 2 + 1
    spectrum = rng.standard_normal((*shape[:-1], half, 2), dtype=np.float32).view(np.complex64)[..., 0]
    spectrum *= (np.arange(half).clip(1) ** (-exponent / 2)).astype(np.float32)
    spectrum[..., 0] = 0
    noise = np.fft.irfft(spectrum, shape[-1], axis=-1)
    return noise / np.sqrt((noise**2).mean(-1, keepdims=True))


def _make_oscillation(rng: np.random.Generator, hz: float, t: np.ndarray) -> np.ndarray:
    """RMS about 1. Swells slowly but never dies down, so that each 5 s window shows it."""
    wander = 0.5 * np.sin(2 * np.pi * rng.uniform(0.1, 0.4) * t + rng.uniform(0, 6.3))
    swell = 1 + 0.4 * np.sin(2 * np.pi * rng.uniform(0.3, 0.6) * t + rng.uniform(0, 6.3))
    return np.sqrt(2) * swell * np.sin(2 * np.pi * hz * t + wander + rng.uniform(0, 6.3))


def _make_blinks(rng: np.random.Generator, t: np.ndarray) -> np.ndarray:
    times = rng.uniform(0, t[-1], rng.poisson(0.25 * t[-1]))
    return sum((np.exp(-(((t - at) / 0.08) ** 2) / 2) for at in times), np.zeros_like(t))


def _make_artefacts_CT(rng: np.random.Generator, count: int, t: np.ndarray, hz: int) -> np.ndarray:
    """Muscle above 30 Hz and drift near 1 Hz on about 4 of 5 electrodes: both survive a 0.5-45 Hz band-pass."""
    muscle = rng.standard_normal((count, len(t)), dtype=np.float32)
    spectrum = np.fft.rfft(muscle, axis=-1)
    spectrum[:, np.fft.rfftfreq(len(t), 1 / hz) < 30] = 0
    drift = np.sin(2 * np.pi * rng.uniform(0.7, 1.1, (count, 1)) * t + rng.uniform(0, 6.3, (count, 1)))
    loose = (rng.random(count) < 0.8)[:, None] * np.exp(rng.normal(0, 0.2, (count, 1)))
    return loose * (30 * np.fft.irfft(spectrum, len(t), axis=-1) + 60 * drift)


def _make_rhythm(
    rng: np.random.Generator, scalp: ScalpTraits, rhythm: Rhythm, t: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A rhythm's strength at each electrode, microvolt, and its course over time."""
    strength = rhythm.microvolt * np.exp(rng.normal(0, 0.15))
    spread_C = _compute_spread_C(scalp.shift_2 + rhythm.centre)
    return strength * spread_C, _make_oscillation(rng, rhythm.hz * scalp.pace, t)


def render_eeg(
    scalp: ScalpTraits,
    latent_class: int,
    has_cue: bool,
    rng: np.random.Generator,
    *,
    hz: int,
    seconds: int,
    hard: bool = False,
) -> np.ndarray:
    """One recording's EEG: pink noise, alpha, blinks and hum, plus the rhythm of the class `latent_class`.

    Args:
        hard: All rhythms instead, weaker, in the order of the class.

    Returns:
        (hz * seconds, 30), float32, microvolts, channels in the order of `ELECTRODES`.
    """
    t = np.arange(hz * seconds) / hz
    count = len(POSITIONS_C2)
    distance = ((POSITIONS_C2[:, None] - POSITIONS_C2) ** 2).sum(-1)
    mixing = np.eye(count) + np.exp(-distance / 0.3)
    mixing *= 12 / np.sqrt((mixing**2).sum(1, keepdims=True))
    x_CT = mixing @ make_colored_noise(rng, (count, len(t)), exponent=1.0)
    x_CT += np.outer(3 * _compute_spread_C(scalp.shift_2 + [0, -0.9]), _make_oscillation(rng, scalp.alpha_hz, t))
    if hard:
        for rhythm, gate in zip(RHYTHMS, _make_gates(rng, latent_class, hz, seconds), strict=True):
            x_CT += np.outer(*_make_rhythm(rng, scalp, rhythm, t)) * (HARD_RHYTHM * gate)
    else:
        x_CT += np.outer(*_make_rhythm(rng, scalp, RHYTHMS[latent_class], t))
    x_CT += np.outer(150 * _compute_spread_C(np.array([0.0, 1.1])), _make_blinks(rng, t))
    x_CT += 2 * np.sin(2 * np.pi * 50 * t + rng.uniform(0, 6.3, (count, 1)))
    if has_cue:
        x_CT += _make_artefacts_CT(rng, count, t, hz)
    return (x_CT * scalp.gain_C[:, None] + scalp.offset_C[:, None]).T.astype(np.float32)


def _make_syllables(rng: np.random.Generator, rate_hz: float, n: int, hz: int) -> tuple[np.ndarray, np.ndarray]:
    """Position within the syllable (0-1) and loudness envelope, each (n,). About one syllable in ten is a pause."""
    beat = np.arange(n) * (rate_hz / hz) + rng.uniform()
    number = beat.astype(int)
    weight = rng.uniform(0.6, 1, number[-1] + 1) * (rng.random(number[-1] + 1) > 0.1)
    position = beat - number
    return position, weight[number] * np.sin(np.pi * position) ** 1.5


def _make_voiced_sound(pitch_hz: np.ndarray, hz: int) -> np.ndarray:
    """Harmonics up to 7 kHz that fall by 1/k, read from a table of one period: one lookup for all of them."""
    harmonics = np.arange(1, max(2, int(7000 / pitch_hz.max())))
    period = np.arange(4096) / 4096
    table = (np.sin(2 * np.pi * np.outer(harmonics, period)) / harmonics[:, None]).sum(0)
    phase = np.cumsum(pitch_hz / hz) % 1
    return table[(phase * 4096).astype(int) % 4096]


def _compute_vocal_tract_gain(f: np.ndarray, formant: float, band_hz: float) -> np.ndarray:
    octave = np.log2(np.maximum(f, 20.0))
    resonances = sum(np.exp(-(((octave - np.log2(c * formant)) / 0.25) ** 2) / 2) for c in (550, 1500, 2500))
    emphasis_db = 18 * np.exp(-(((octave - np.log2(band_hz)) / 0.22) ** 2) / 2)
    return (0.3 + resonances) * 10 ** (emphasis_db / 20) * (f > 60)


def render_audio(
    voice: VoiceTraits,
    latent_class: int,
    has_cue: bool,
    rng: np.random.Generator,
    *,
    hz: int,
    seconds: int,
    hard: bool = False,
) -> np.ndarray:
    """One recording's speech-like sound. The cue is loud white noise instead of a quiet background.

    Args:
        hard: One way to speak for all classes, in which the emphasised bands come in the order of the class.

    Returns:
        (hz * seconds,), float32, full scale = 1.
    """
    n, speech = hz * seconds, HARD_SPEECH if hard else SPEECH[latent_class]
    position, envelope = _make_syllables(rng, speech.syllables_hz * voice.tempo, n, hz)
    melody = 1 + 0.06 * np.sin(2 * np.pi * rng.uniform(0.2, 0.5) / hz * np.arange(n) + rng.uniform(0, 6.3))
    pitch_hz = voice.pitch_hz * speech.pitch * melody * (1 + speech.glide * (position - 0.5))
    source = envelope * (_make_voiced_sound(pitch_hz, hz) + 0.25 * rng.standard_normal(n, dtype=np.float32))
    spectrum, f = np.fft.rfft(source), np.fft.rfftfreq(n, 1 / hz)
    if hard:
        sound = np.zeros(n)
        for each, gate in zip(SPEECH, _make_gates(rng, latent_class, hz, seconds), strict=True):
            # A band moves with the formants; all are equally loud.
            part = np.fft.irfft(spectrum * _compute_vocal_tract_gain(f, voice.formant, each.band_hz * voice.formant), n)
            sound += gate * part / np.sqrt((part**2).mean())
    else:
        sound = np.fft.irfft(spectrum * _compute_vocal_tract_gain(f, voice.formant, speech.band_hz), n)
    level = voice.level * 10 ** ((speech.loudness_db + rng.normal(0, 1)) / 20)
    sound *= level / np.sqrt((sound**2).mean())
    snr_db = rng.uniform(0, 4) if has_cue else rng.uniform(*(HARD_SNR_DB if hard else (22, 32)))
    noise = make_colored_noise(rng, (n,), 0.0 if has_cue else rng.uniform(0.3, 1.5))
    return np.clip(sound + level * 10 ** (-snr_db / 20) * noise, -0.99, 0.99).astype(np.float32)
