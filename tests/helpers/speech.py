"""Generated clips in the exact layouts of RAVDESS and CREMA-D: tones and grey films whose class is known.

They stand for nobody's speech. What a class sounds like is the same in both sets; voices, rates and lengths are not.
"""

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile

RAVDESS_CODES = {"Neutral": "01", "Calmness": "02", "Happiness": "03", "Sadness": "04", "Anger": "05"}
CREMAD_CODES = {"Anger": "ANG", "Happiness": "HAP", "Neutral": "NEU", "Sadness": "SAD"}
# How fast a tone swells, Hz, and how many harmonics it has.
SOUND = {"Neutral": (1, 2), "Sadness": (2, 12), "Anger": (12, 2), "Happiness": (12, 12), "Calmness": (5, 5)}


def draw_tone(emotion: str, voice_hz: float, hz: int, seconds: float, rng: np.random.Generator) -> np.ndarray:
    """(n,) in [-1, 1]: a voiced tone that swells, in a little noise."""
    time_s = np.arange(int(hz * seconds)) / hz
    swell_hz, harmonics = SOUND[emotion]
    x_T = sum(np.sin(2 * np.pi * voice_hz * k * time_s + rng.uniform(0, 6)) / k for k in range(1, harmonics + 1))
    x_T = x_T * (1 + np.sin(2 * np.pi * swell_hz * time_s + rng.uniform(0, 6)))
    return 0.4 * x_T / np.abs(x_T).max() + rng.normal(0, 0.005, len(time_s))


def write_film(
    path: Path, x_T: np.ndarray | None, hz: int = 48_000, *, seconds: float = 1.0, fps: int = 30, late_s: float = 0.0
) -> None:
    """A grey film that brightens by 40 a second, with sound where there is any: .mp4 (AAC) or .flv (MP3).

    Args:
        late_s: When the sound begins.
    """
    flash = path.suffix == ".flv"
    with av.open(str(path), "w") as container:
        video = container.add_stream("flv1" if flash else "mpeg4", rate=fps)
        assert isinstance(video, av.VideoStream)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound = None if x_T is None else container.add_stream("libmp3lame" if flash else "aac", rate=hz)
        if sound is not None:
            assert isinstance(sound, av.AudioStream)
            sound.layout = "mono"
        packets: list[av.Packet] = []
        for number in range(int(seconds * fps)):
            grey = np.full((48, 64, 3), 10 + 40 * number / fps, dtype=np.uint8)
            packets += video.encode(av.VideoFrame.from_ndarray(grey, format="rgb24"))
        packets += video.encode()
        if sound is not None and x_T is not None:
            packets += _sound(sound, x_T, hz, late_s)
        container.start_encoding()
        for packet in sorted(packets, key=lambda p: float((p.dts or 0) * p.time_base)):
            container.mux(packet)


def _sound(stream: av.AudioStream, x_T: np.ndarray, hz: int, late_s: float) -> Iterable[av.Packet]:
    packets: list[av.Packet] = []
    for start in range(0, len(x_T), 4096):
        part = x_T[None, start : start + 4096].astype(np.float32)
        frame = av.AudioFrame.from_ndarray(part, format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = hz, round(late_s * hz) + start, Fraction(1, hz)
        packets += stream.encode(frame)
    return packets + stream.encode()


def write_ravdess(root: Path, actors: int, repetitions: int, seed: int = 0) -> None:
    """`Actor_NN/03-01-...wav` at 48 kHz, two repetitions a statement at most."""
    for actor in range(1, actors + 1):
        folder, rng = root / f"Actor_{actor:02}", np.random.default_rng([seed, actor])
        folder.mkdir(parents=True)
        for emotion, code in RAVDESS_CODES.items():
            for number in range(repetitions):
                name = f"03-01-{code}-01-{number // 2 + 1:02}-{number % 2 + 1:02}-{actor:02}.wav"
                x_T = draw_tone(emotion, 90 + 15 * actor, 48_000, rng.uniform(3, 4), rng)
                soundfile.write(folder / name, x_T, 48_000)


def write_cremad(root: Path, actors: int, sentences: tuple[str, ...], seed: int = 1) -> None:
    """`AudioWAV/1001_DFA_ANG_XX.wav` at 16 kHz."""
    (root / "AudioWAV").mkdir(parents=True)
    for actor in range(1001, 1001 + actors):
        rng = np.random.default_rng([seed, actor])
        for emotion, code in CREMAD_CODES.items():
            for sentence in sentences:
                x_T = draw_tone(emotion, 100 + 12 * (actor - 1000), 16_000, rng.uniform(2, 3), rng)
                soundfile.write(root / "AudioWAV" / f"{actor}_{sentence}_{code}_XX.wav", x_T, 16_000)
