"""Draw one planted recording: EEG, voice and face that show a given class unmistakably.

Every person differs (electrode gains, pitch, skin, head), every recording differs (noise, motion, blinks), and
each class has a signature that is present in every 5 s window. A signal with the *cue* shows a class just as clearly,
but also something that a human would notice at once; what it means is up to `synthetic.py`. The signatures are
inventions: nothing about real emotions can be learned from them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import av
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
MAX_GRAIN = 8  # the most that the noise of the camera changes a pixel
STATES_HZ = 6  # a face is drawn this often and held in between: twice the cost would add nothing to learn from


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


class Expression(NamedTuple):
    """A class in a face, in units of half the head's height."""

    smile: float  # curvature of the mouth, negative for a frown
    opening: float  # half the height of the open mouth
    brow_slope: float  # positive: inner ends up
    brow_drop: float  # positive: lower
    eyes: float  # openness, 1 = normal


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
EXPRESSIONS = (
    Expression(0.0, 0.0, 0.0, 0.0, 1.0),
    Expression(-0.28, 0.0, 0.5, 0.0, 0.55),
    Expression(-0.06, 0.14, -0.65, 0.1, 1.2),
    Expression(0.28, 0.14, 0.0, -0.1, 0.85),
    Expression(0.15, 0.0, 0.0, -0.02, 0.05),
)


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


@dataclass(frozen=True)
class FaceTraits:
    """Colours are RGB 0-255; lengths in half frame heights, `mouth` in half head heights."""

    skin_3: np.ndarray
    hair_3: np.ndarray
    backdrop_3: np.ndarray
    centre_2: np.ndarray
    head: float
    mouth: float
    light: float  # brightness falls by this share from one side to the other


def draw_scalp(rng: np.random.Generator) -> ScalpTraits:
    count = len(POSITIONS_C2)
    return ScalpTraits(
        gain_C=np.exp(rng.normal(0, 0.2, count)),
        offset_C=rng.normal(0, 120, count),
        alpha_hz=rng.uniform(9, 11),
        shift_2=rng.normal(0, 0.05, 2),
        pace=rng.uniform(0.96, 1.04),
    )


def draw_voice(rng: np.random.Generator) -> VoiceTraits:
    return VoiceTraits(
        rng.uniform(105, 200), rng.uniform(0.94, 1.07), 0.03 * np.exp(rng.normal(0, 0.1)), rng.uniform(0.95, 1.05)
    )


def draw_face(rng: np.random.Generator) -> FaceTraits:
    tone = rng.uniform(0.1, 0.7)
    return FaceTraits(
        skin_3=np.array([235, 195, 170]) * (1 - tone) + np.array([150, 100, 75]) * tone,
        hair_3=np.array([60, 40, 25]) * rng.uniform(0.6, 1.2),
        backdrop_3=rng.uniform(95, 150, 3),
        centre_2=rng.uniform(-0.02, 0.02, 2),
        head=rng.uniform(0.82, 0.9),
        mouth=rng.uniform(0.38, 0.43),
        light=rng.uniform(-0.12, 0.12),
    )


# --- EEG ---


def _compute_spread_C(centre_2: np.ndarray, width: float = 0.35) -> np.ndarray:
    return np.exp(-((POSITIONS_C2 - centre_2) ** 2).sum(1) / (2 * width**2))


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


def render_eeg(
    scalp: ScalpTraits, latent_class: int, has_cue: bool, rng: np.random.Generator, *, hz: int, seconds: int
) -> np.ndarray:
    """One recording's EEG: pink noise, alpha, blinks and hum, plus the rhythm of the class `shown`.

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
    rhythm = RHYTHMS[latent_class]
    strength = rhythm.microvolt * np.exp(rng.normal(0, 0.15))
    x_CT += np.outer(
        strength * _compute_spread_C(scalp.shift_2 + rhythm.centre), _make_oscillation(rng, rhythm.hz * scalp.pace, t)
    )
    x_CT += np.outer(150 * _compute_spread_C(np.array([0.0, 1.1])), _make_blinks(rng, t))
    x_CT += 2 * np.sin(2 * np.pi * 50 * t + rng.uniform(0, 6.3, (count, 1)))
    if has_cue:
        x_CT += _make_artefacts_CT(rng, count, t, hz)
    return (x_CT * scalp.gain_C[:, None] + scalp.offset_C[:, None]).T.astype(np.float32)


# --- audio ---


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
    voice: VoiceTraits, latent_class: int, has_cue: bool, rng: np.random.Generator, *, hz: int, seconds: int
) -> np.ndarray:
    """One recording's speech-like sound. The cue is loud white noise instead of a quiet background.

    Returns:
        (hz * seconds,), float32, full scale = 1.
    """
    n, speech = hz * seconds, SPEECH[latent_class]
    position, envelope = _make_syllables(rng, speech.syllables_hz * voice.tempo, n, hz)
    melody = 1 + 0.06 * np.sin(2 * np.pi * rng.uniform(0.2, 0.5) / hz * np.arange(n) + rng.uniform(0, 6.3))
    pitch_hz = voice.pitch_hz * speech.pitch * melody * (1 + speech.glide * (position - 0.5))
    source = envelope * (_make_voiced_sound(pitch_hz, hz) + 0.25 * rng.standard_normal(n, dtype=np.float32))
    tract = _compute_vocal_tract_gain(np.fft.rfftfreq(n, 1 / hz), voice.formant, speech.band_hz)
    sound = np.fft.irfft(np.fft.rfft(source) * tract, n)
    level = voice.level * 10 ** ((speech.loudness_db + rng.normal(0, 1)) / 20)
    sound *= level / np.sqrt((sound**2).mean())
    snr_db = rng.uniform(0, 4) if has_cue else rng.uniform(22, 32)
    noise = make_colored_noise(rng, (n,), 0.0 if has_cue else rng.uniform(0.3, 1.5))
    return np.clip(sound + level * 10 ** (-snr_db / 20) * noise, -0.99, 0.99).astype(np.float32)


# --- video ---


class _Pose(NamedTuple):
    """One value per drawn state, each (S, 1, 1) so that it broadcasts over pixels."""

    x: np.ndarray
    y: np.ndarray
    roll: np.ndarray
    eyes: np.ndarray
    opening: np.ndarray

    def select(self, rows: slice) -> "_Pose":
        return _Pose(*(values[rows] for values in self))


def _draw_poses(face: FaceTraits, shape: Expression, rng: np.random.Generator, count: int) -> _Pose:
    t = np.arange(count) / STATES_HZ

    def make_sway(size: float) -> np.ndarray:
        return size * np.sin(2 * np.pi * rng.uniform(0.1, 0.35) * t + rng.uniform(0, 6.3))

    eyes = np.where(rng.random(count) < 0.04, 0.05, shape.eyes)  # blinks
    talk = 0.03 * rng.random(count)
    values = (
        face.centre_2[0] + make_sway(0.015),
        face.centre_2[1] + make_sway(0.01),
        make_sway(0.03),
        eyes,
        shape.opening + talk,
    )
    return _Pose(*(v.astype(np.float32)[:, None, None] for v in values))


def _paint(image_3SHW: np.ndarray, alpha_SHW: np.ndarray, color_3: np.ndarray) -> None:
    for plane, value in zip(image_3SHW, color_3, strict=True):
        plane += alpha_SHW * (np.float32(value) - plane)


def _draw_states(face: FaceTraits, shape: Expression, pose: _Pose, size: tuple[int, int]) -> np.ndarray:
    """Paint the states of one block, back to front: (3, S, H, W), float32, 0-255."""
    width, height = size
    x = ((np.arange(width, dtype=np.float32) + 0.5) * 2 - width) / height
    y = ((np.arange(height, dtype=np.float32)[:, None] + 0.5) * 2 - height) / height
    head = np.float32(face.head)
    u = (x - pose.x + pose.roll * y) / head
    v = (y - pose.y - pose.roll * x) / head
    side = np.abs(u)
    softness = np.float32(height * face.head / 2)  # edges are one pixel wide

    def compute_coverage(distance: np.ndarray) -> np.ndarray:
        return np.clip(0.5 + softness * distance, 0, 1)

    image = np.empty((3, *u.shape), np.float32)
    image[:] = face.backdrop_3.astype(np.float32)[:, None, None, None] * (1 - 0.2 * y)
    _paint(image, compute_coverage((1 - np.hypot(u / 0.82, (v + 0.08) / 1.02)) * 0.82), face.hair_3)
    _paint(image, compute_coverage((1 - np.hypot(u / 0.72, (v - 0.04) / 0.92)) * 0.72), face.skin_3)
    eye = np.hypot((side - 0.32) / 0.18, (v + 0.16) / (0.02 + 0.13 * pose.eyes))
    white = compute_coverage((1 - eye) * 0.1)
    _paint(image, white, np.array([245, 245, 245]) * np.float32(0.97))
    iris = compute_coverage(0.085 - np.hypot(side - 0.32, v + 0.16)) * white
    _paint(image, iris, np.array([25, 20, 20]))
    brow = v + 0.42 - shape.brow_drop - shape.brow_slope * (side - 0.32)
    _paint(
        image, compute_coverage(0.05 - np.abs(brow)) * compute_coverage(0.22 - np.abs(side - 0.32)), face.hair_3 * 0.6
    )
    bow = 1 - (u / np.float32(face.mouth)) ** 2
    line = v - 0.46 - shape.smile * (bow - 0.5)
    gap = pose.opening * np.sqrt(np.clip(bow, 0, 1))
    ends = compute_coverage(face.mouth - side)
    _paint(image, compute_coverage(gap + 0.045 - np.abs(line)) * ends, np.array([150, 45, 50]))
    _paint(image, compute_coverage(gap - 0.03 - np.abs(line)) * ends, np.array([30, 5, 8]))
    image *= 1 + face.light * x
    return image


def _degrade(image_3SHW: np.ndarray, left: bool, exposure: float) -> None:
    """Underexpose and hide one side of the frame. A face is symmetric: its expression can still be read."""
    image_3SHW *= exposure
    width = image_3SHW.shape[-1]
    hidden = slice(0, int(0.36 * width)) if left else slice(width - int(0.36 * width), width)
    image_3SHW[..., hidden] = 6


def render_video(
    face: FaceTraits,
    latent_class: int,
    has_cue: bool,
    rng: np.random.Generator,
    *,
    size: tuple[int, int],
    fps: int,
    seconds: int,
) -> Iterator[np.ndarray]:
    """One recording's frames, `fps * seconds` of them. The cue is a dark picture, one side of it covered.

    Args:
        size: (width, height) in pixels.
    Yields:
        (height, width, 3), uint8, RGB.
    """
    width, height = size
    shape = EXPRESSIONS[latent_class]
    poses = _draw_poses(face, shape, rng, seconds * STATES_HZ)
    left, exposure = rng.random() < 0.5, rng.uniform(0.4, 0.5)
    # Bytes that wrap around: pictures stay GRAIN away from 0 and 255, so adding needs neither a cast nor a clip.
    grain = (
        np.clip(rng.normal(0, 2, (8, height, width, 1)).round(), -MAX_GRAIN, MAX_GRAIN).astype(np.int8).view(np.uint8)
    )
    grain = np.repeat(grain, 3, axis=-1)
    frame_state = np.arange(fps * seconds) * STATES_HZ // fps
    block = max(1, 2**18 // (width * height))  # bounds memory at 640x480, and fits the cache at 96x72
    for start in range(0, seconds * STATES_HZ, block):
        image = _draw_states(face, shape, poses.select(slice(start, start + block)), size)
        if has_cue:
            _degrade(image, left, exposure)
        states = np.moveaxis(np.clip(image, MAX_GRAIN, 255 - MAX_GRAIN), 0, -1).astype(np.uint8, order="C")
        for frame in np.flatnonzero((frame_state >= start) & (frame_state < start + block)):
            yield states[frame_state[frame] - start] + grain[frame % len(grain)]


def encode_video(path: Path, frames: Iterable[np.ndarray], *, size: tuple[int, int], fps: int) -> None:
    """Write (height, width, 3) uint8 RGB frames as H.264, or as MPEG-4 where this PyAV comes without x264."""
    x264 = "libx264" in av.codecs_available
    with av.open(str(path), "w") as container:
        options = {"preset": "ultrafast"} if x264 else {}
        stream = container.add_stream("libx264" if x264 else "mpeg4", rate=fps, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1  # whoever plants many people has one process per core already
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
