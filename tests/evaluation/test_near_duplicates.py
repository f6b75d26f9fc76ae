"""Copies are found whatever was done to them, and no two recordings that are not one."""

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile
from PIL import Image

from eav_ray.config import DataConfig, Preprocessing, VideoPreprocessing
from eav_ray.data.datasets import registry
from eav_ray.data.io.audio import read_audio
from eav_ray.data.io.video import read_video
from eav_ray.data.modalities.registry import get_modality
from eav_ray.data.preprocessing.eeg import prepare_eeg
from eav_ray.data.synthetic import render
from eav_ray.evaluation.leak_audit.content import audit_near_duplicates
from eav_ray.evaluation.leak_audit.near_duplicates import (
    AlikePair,
    FingerprintCache,
    Fingerprints,
    find_alike_pairs,
    measure_complexity,
)

HZ, EEG_HZ = 16000, 100
PREPROCESSING = Preprocessing(video=VideoPreprocessing(fps=5, size=64))
SHIFTS_MS = (1, 7, 15, 30, -1, -7, -15, -30)
Change = Callable[[np.ndarray], np.ndarray]


class Windows:
    """As much of a WindowCache as fingerprints need: recordings of one modality, cut here."""

    def __init__(self, modality: str, signals: Mapping[str, np.ndarray], n_channels: int = 0) -> None:
        of_modality = get_modality(modality)
        shape = of_modality.compute_shape(PREPROCESSING, n_channels)
        self._arrays, rows = [], []
        for name, signal in signals.items():
            length = len(signal) if modality == "video" else signal.shape[-1]
            window_length = shape[0] if modality == "video" else shape[-1]
            for number in range(max(1, length // window_length)):
                self._arrays.append(of_modality.cut(signal, number, shape))
                rows.append({"id": name, "window": number, f"has_{modality}": True})
        self.ids = pd.DataFrame(rows)

    def get(self, rows: np.ndarray, column: str) -> np.ndarray:
        return np.stack([self._arrays[row] for row in rows])


def describe(modality: str, signals: Mapping[str, np.ndarray], n_channels: int = 0) -> Fingerprints:
    windows: Any = Windows(modality, signals, n_channels)
    return FingerprintCache(windows, PREPROCESSING).get(modality, tuple(signals))


def find(modality: str, mine: Fingerprints, theirs: Fingerprints) -> list[AlikePair]:
    return find_alike_pairs(mine, theirs, get_modality(modality).duplicate_similarity)[0]


def name_pairs(pairs: list[AlikePair]) -> set[tuple[str, str]]:
    return {(pair.first, pair.second) for pair in pairs}


def encode(format_: str, **options: Any) -> Change:
    def change(x: np.ndarray) -> np.ndarray:
        file = io.BytesIO()
        soundfile.write(file, x, HZ, format=format_, **options)
        file.seek(0)
        return soundfile.read(file, dtype="float32")[0]

    return change


def shift(ms: float, hz: int) -> Change:
    """Begin later, or earlier with the noise of a room before; between samples by phase."""

    def change(x: np.ndarray) -> np.ndarray:
        n = x.shape[-1]
        # Whatever is shifted out at one end comes in at the other: some milliseconds of another room.
        turned = np.exp(2j * np.pi * np.fft.rfftfreq(n, 1 / hz) * ms / 1000)
        return np.fft.irfft(np.fft.rfft(x) * turned, n).astype(np.float32)

    return change


def add_noise(db: float) -> Change:
    def change(x: np.ndarray) -> np.ndarray:
        noise = np.random.default_rng(0).standard_normal(x.shape) * np.sqrt(np.mean(np.square(x)))
        return (x + 10 ** (-db / 20) * noise).astype(np.float32)

    return change


def chain(*changes: Change) -> Change:
    def change(x: np.ndarray) -> np.ndarray:
        for one in changes:
            x = one(x)
        return x

    return change


OGG = encode("OGG", subtype="VORBIS", compression_level=1.0)
MP3 = encode("MP3", subtype="MPEG_LAYER_III", compression_level=0.95)  # which comes 69 ms late
SOUND_CHANGES: dict[str, Change] = {
    "none": lambda x: x,
    "gain": lambda x: 0.3 * x,
    "ogg": OGG,
    "mp3": MP3,
    "noise": add_noise(20),
    **{f"{ms} ms": shift(ms, HZ) for ms in SHIFTS_MS},
    "ogg, gain, noise, later": chain(OGG, lambda x: 0.3 * x, add_noise(30), shift(25, HZ)),
    "mp3, gain, noise, earlier": chain(MP3, lambda x: 0.3 * x, add_noise(30), shift(-15, HZ)),
}
SIGNAL_CHANGES: dict[str, Change] = {
    "gain": lambda x: 0.3 * x,
    "whole microvolts": lambda x: np.round(x),
    "noise": add_noise(20),
    **{f"{ms} ms": shift(ms, EEG_HZ) for ms in SHIFTS_MS},
    "all": chain(lambda x: np.round(0.5 * x), add_noise(20), shift(15, EEG_HZ)),
}


def draw_voices(n: int) -> dict[str, np.ndarray]:
    """Voices of two people, 12 s each."""
    found = {}
    for number in range(n):
        voice = render.draw_voice(np.random.default_rng(number % 2))
        rng = np.random.default_rng([7, number])
        found[f"v{number}"] = render.render_audio(voice, 1, False, rng, hz=HZ, seconds=12).astype(np.float32)
    return found


@pytest.fixture(scope="module")
def voices() -> dict[str, np.ndarray]:
    return draw_voices(8)


@pytest.fixture(scope="module")
def described_voices(voices: dict[str, np.ndarray]) -> Fingerprints:
    return describe("audio", voices)


@pytest.mark.parametrize("change", SOUND_CHANGES)
def test_copies_of_sound_are_found_and_nothing_else(
    voices: dict[str, np.ndarray], described_voices: Fingerprints, change: str
) -> None:
    copies = describe("audio", {f"copy of {n}": SOUND_CHANGES[change](x) for n, x in voices.items()})
    assert name_pairs(find("audio", copies, described_voices)) == {(f"copy of {n}", n) for n in voices}


def draw_eeg(n: int, channels: int = 30) -> dict[str, np.ndarray]:
    scalp = render.draw_scalp(np.random.default_rng(0))
    found = {}
    for number in range(n):
        x_TC = render.render_eeg(scalp, number % 5, False, np.random.default_rng([8, number]), hz=500, seconds=12)
        found[f"e{number}"] = x_TC[::5].T[:channels].astype(np.float32)
    return found


@pytest.mark.parametrize("change", SIGNAL_CHANGES)
def test_copies_of_eeg_are_found_and_nothing_else(change: str) -> None:
    recordings = draw_eeg(6)
    copies = describe("eeg", {f"copy of {n}": SIGNAL_CHANGES[change](x) for n, x in recordings.items()}, 30)
    found = name_pairs(find("eeg", copies, describe("eeg", recordings, 30)))
    assert found == {(f"copy of {n}", n) for n in recordings}


def draw_film(seed: int, first_frame: int = 0) -> np.ndarray:
    """Some blobs that wander before one and the same wall: (50, 64, 64, 3) uint8, 5 frames a second of 25."""
    rng, wall = np.random.default_rng(seed), np.random.default_rng(99).uniform(40, 160, (64, 64))
    time_s = (first_frame + 5 * np.arange(50)) / 25
    y, x = np.mgrid[:64, :64]
    film = np.repeat(wall[None], 50, 0)
    for _ in range(4):
        phases, rates = rng.uniform(0, 6, (2, 3)), rng.uniform(0.3, 4, (2, 3))
        course = 32 + 8 * np.sin(rates[..., None] * time_s + phases[..., None]).sum(1)
        distance = np.square(y - course[0][:, None, None]) + np.square(x - course[1][:, None, None])
        film += rng.choice([-60, 90]) * np.exp(-distance / 60)
    return np.repeat(film.clip(0, 255).astype(np.uint8)[..., None], 3, -1)


def compress(quality: int) -> Change:
    def change(frames: np.ndarray) -> np.ndarray:
        pictures = []
        for frame in frames:
            file = io.BytesIO()
            Image.fromarray(frame).save(file, "JPEG", quality=quality)
            pictures.append(np.asarray(Image.open(file)))
        return np.stack(pictures)

    return change


@pytest.mark.parametrize(
    ("change", "first_frame"),
    [
        (compress(90), 0),
        (compress(20), 0),
        (lambda x: (0.3 * x).astype(np.uint8), 0),
        (lambda x: x, 1),  # 40 ms
        (chain(lambda x: (0.5 * x).astype(np.uint8), compress(40)), 1),
    ],
)
def test_copies_of_films_are_found_and_nothing_else(change: Change, first_frame: int) -> None:
    films = {f"f{n}": draw_film(n) for n in range(6)}
    copies = {f"copy of {n}": change(draw_film(k, first_frame)) for k, n in enumerate(films)}
    found = name_pairs(find("video", describe("video", copies), describe("video", films)))
    assert found == {(f"copy of {n}", n) for n in films}


def test_what_has_nothing_to_be_told_by_has_no_fingerprint() -> None:
    time_s = np.arange(10 * HZ) / HZ
    tone = np.sin(2 * np.pi * 220 * time_s).astype(np.float32)
    swelling = tone * (1 + np.sin(2 * np.pi * time_s)).astype(np.float32)
    assert describe("audio", {"silence": np.zeros(10 * HZ, np.float32), "tone": tone, "swell": swelling}).ids == ()
    assert describe("eeg", {"flat": np.full((3, 1000), 7, np.float32)}, 3).ids == ()
    still = np.repeat(draw_film(0)[:1], 50, 0)
    noise = np.random.default_rng(0).integers(-2, 3, still.shape)
    fade = (still * np.linspace(0.2, 1, 50)[:, None, None, None]).astype(np.uint8)
    assert describe("video", {"still": still, "noise": (still + noise).astype(np.uint8), "fade": fade}).ids == ()
    check = audit_near_duplicates("video", describe("video", {"a": still}), describe("video", {"b": draw_film(1)}), 1)
    assert check.outcome == "cannot tell" and "no recording on the test side has video" in check.detail


def test_complexity_counts_independent_courses() -> None:
    rng = np.random.default_rng(0)
    courses = np.linalg.qr(rng.standard_normal((40, 4)))[0]  # orthonormal
    for n in (1, 2, 4):
        mixed = courses[:, :n] @ np.linalg.qr(rng.standard_normal((50, n)))[0].T
        assert measure_complexity(mixed[None])[0] == pytest.approx(n)
    assert measure_complexity(np.zeros((1, 5, 5)))[0] == 0


def test_padding_is_not_what_makes_two_recordings_alike() -> None:
    """Short clips that end in digital silence are all alike in that."""
    short = {n: x[: 2 * HZ] for n, x in draw_voices(6).items()}
    clips = describe("audio", short)
    assert name_pairs(find("audio", clips, clips)) == {(n, n) for n in short}


def test_one_common_window_does_not_make_two_recordings_one(voices: dict[str, np.ndarray]) -> None:
    """A jingle at the start: what follows is looked at too."""
    first, second = voices["v0"], voices["v2"]
    mixed = np.concatenate([first[: 5 * HZ], second[5 * HZ :]])
    assert find("audio", describe("audio", {"mixed": mixed}), describe("audio", {"a": first, "b": second})) == []


def test_blocks_and_the_rest_of_them_are_all_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((1100, 1, 20, 3)).astype(np.float16)
    copies = Fingerprints(tuple(f"c{n}" for n in range(700)), values[::-1][:700], 1)
    found, most = find_alike_pairs(copies, Fingerprints(tuple(f"r{n}" for n in range(1100)), values, 1), 0.95)
    assert name_pairs(found) == {(f"c{n}", f"r{1099 - n}") for n in range(700)} and most == pytest.approx(1, abs=1e-3)


def test_fingerprints_of_other_forms_are_not_compared() -> None:
    check = audit_near_duplicates("eeg", describe("eeg", draw_eeg(2), 30), describe("eeg", draw_eeg(2, 20), 20), 2)
    assert check.outcome == "cannot tell" and "another form" in check.detail
    few = Fingerprints(("a",), np.ones((1, 2, 5, 3), np.float16), 0)
    check = audit_near_duplicates("video", few, few, 1)
    assert check.outcome == "cannot tell" and "too few steps" in check.detail


def describe_speech(paths: list[Path]) -> Fingerprints:
    return describe("audio", {f"{p.parent.name}/{p.stem}": read_audio(p, HZ).astype(np.float32) for p in paths})


@pytest.mark.real
def test_repetitions_of_a_sentence_are_no_copies_and_one_published_pair_is(real: Path) -> None:
    """RAVDESS has one recording under two names; all others, though a sentence is said twice alike, are kept apart."""
    speech = describe_speech(sorted((real / "ravdess").glob("Actor_*/*.flac")))
    assert len(speech.ids) == 576
    found = {tuple(sorted(pair)) for pair in name_pairs(find("audio", speech, speech)) if pair[0] != pair[1]}
    assert found == {("Actor_07/03-01-03-01-02-01-07", "Actor_07/03-01-03-01-02-02-07")}


@pytest.mark.real
def test_published_and_converted_clips_are_found_to_be_the_same(real: Path) -> None:
    originals = sorted((real / "ravdess_original").glob("*.wav"))
    actors = {p.stem[-2:] for p in originals}
    copies = describe_speech([p for a in sorted(actors) for p in sorted((real / "ravdess" / f"Actor_{a}").glob("*"))])
    found = {
        (a.split("/")[1], b.split("/")[1]) for a, b in name_pairs(find("audio", describe_speech(originals), copies))
    }
    assert found == {(p.stem, p.stem) for p in originals}


@pytest.mark.real
@pytest.mark.parametrize("change", ["mp3, gain, noise, earlier", "ogg, gain, noise, later"])
def test_copies_of_real_speech_are_found(real: Path, change: str) -> None:
    paths = sorted((real / "ravdess").glob("Actor_*/*.flac"))[::48]
    copies = {p.stem: SOUND_CHANGES[change](read_audio(p, HZ).astype(np.float32)) for p in paths}
    found = find("audio", describe("audio", copies), describe_speech(paths))
    assert {(a, b.split("/")[1]) for a, b in name_pairs(found)} == {(p.stem, p.stem) for p in paths}


@pytest.mark.real
def test_copies_of_real_eeg_are_found_and_no_rest_is_another(real: Path) -> None:
    dataset, listing = registry.scan_dataset(DataConfig(dataset="eegmat", root=str(real), modalities=("eeg",)))
    recordings = listing.recordings[:8]
    signals = {r.id: p.x_CT for r, p in prepare_eeg(dataset, recordings, PREPROCESSING.eeg) if hasattr(p, "x_CT")}
    described = describe("eeg", signals, 19)
    for change in ("all", "30 ms", "-7 ms"):
        copies = describe("eeg", {n: SIGNAL_CHANGES[change](x) for n, x in signals.items()}, 19)
        assert name_pairs(find("eeg", copies, described)) == {(n, n) for n in signals}


@pytest.mark.real
def test_real_films_are_told_apart_and_their_copies_found(real: Path) -> None:
    paths = [real / "video" / name for name in ("fer_test.mp4", "no_face.mp4", "single_face.mp4")]
    films = {p.stem: read_video(p, 5, 64).frames for p in paths}
    change = chain(lambda x: (0.6 * x).astype(np.uint8), compress(60))
    found = find("video", describe("video", {n: change(x) for n, x in films.items()}), describe("video", films))
    assert name_pairs(found) == {(n, n) for n in films}
