"""The sound of a film is what went into it, on the clock of the picture; a damaged film is told."""

from pathlib import Path

import numpy as np
import pytest
import scipy.signal

from eav_ray.data.io import audio, video
from eav_ray.errors import DataError
from tests.helpers.speech import draw_tone, write_film

HZ = 44_100
KINDS = pytest.mark.parametrize("suffix", [".mp4", ".flv"])


def sound(seconds: float = 2.0) -> np.ndarray:
    return draw_tone("Anger", 200.0, HZ, seconds, np.random.default_rng(0))


def lag_s(found: np.ndarray, true: np.ndarray) -> float:
    return (np.argmax(scipy.signal.correlate(found, true, method="fft")) - len(true) + 1) / HZ


@KINDS
@pytest.mark.parametrize("late_s", [0.0, 0.3])
def test_it_sounds_as_it_was_and_begins_when_it_did(tmp_path: Path, suffix: str, late_s: float) -> None:
    path, x_T = tmp_path / f"a{suffix}", sound()
    write_film(path, x_T, HZ, seconds=2.0, late_s=late_s)
    found = audio.read_audio(path, HZ)
    assert found.dtype == np.float32 and len(found) / HZ == pytest.approx(2 + late_s, abs=0.05)
    at_s = lag_s(found, x_T)
    assert at_s == pytest.approx(late_s, abs=0.05 if suffix == ".mp4" else 0.01)  # AAC has frames of 23 ms
    begin = round(at_s * HZ)
    n = min(len(x_T), len(found) - begin)
    assert np.corrcoef(found[begin : begin + n], x_T[:n])[0, 1] > 0.99
    if late_s:
        assert np.abs(found[: begin - HZ // 20]).max() < 0.05  # nothing before
    assert len(audio.read_audio(path, 16_000)) == pytest.approx(len(found) * 16_000 / HZ, abs=2)


def test_a_film_without_sound_and_sound_that_is_called_a_film_are_refused(tmp_path: Path) -> None:
    write_film(tmp_path / "mute.mp4", None)
    with pytest.raises(DataError, match=r"mute\.mp4 has no sound; give an audio file"):
        audio.read_audio(tmp_path / "mute.mp4", 16_000)
    (tmp_path / "text.mp4").write_text("not a film")
    with pytest.raises(DataError, match=r"text\.mp4 has sound that cannot be decoded"):
        audio.read_audio(tmp_path / "text.mp4", 16_000)
    with pytest.raises(DataError, match=r"none\.mp4 is missing"):
        audio.read_audio(tmp_path / "none.mp4", 16_000)


@KINDS
def test_one_that_breaks_off_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    write_film(path, sound(), HZ, seconds=2.0)
    whole = path.read_bytes()
    for share in (0.1, 0.3, 0.5, 0.7):
        path.write_bytes(whole[: int(share * len(whole))])
        for read in (lambda: audio.read_audio(path, HZ), lambda: video.read_video(path, 5, 16)):
            with pytest.raises(DataError, match=path.name):
                read()


def test_one_that_takes_too_long_or_is_too_long_is_refused(tmp_path: Path) -> None:
    write_film(tmp_path / "a.mp4", sound(), HZ, seconds=2.0)
    with pytest.raises(DataError, match="takes over 1e-09 s to decode"):
        audio.read_audio(tmp_path / "a.mp4", HZ, timeout_s=1e-9)
    with pytest.raises(DataError, match=r"a\.mp4 is longer than 1 s; cut it"):
        audio.read_audio(tmp_path / "a.mp4", HZ, max_duration_s=1)
