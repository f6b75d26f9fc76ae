"""Any audio file becomes mono at one rate, and any damaged one a DataError."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from eav_ray.data.io import audio
from eav_ray.errors import DataError


def sine(hz: int, seconds: float = 1.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * 440 * np.arange(int(hz * seconds)) / hz)


@pytest.mark.parametrize("hz", [8000, 16000, 22050, 44100, 48000])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_every_source_gives_the_same_signal(tmp_path: Path, hz: int, channels: int, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, np.tile(sine(hz)[:, None], channels), hz)
    x_T = audio.read_audio(path, 16000)
    assert x_T.dtype == np.float32 and x_T.shape == (16000,)
    np.testing.assert_allclose(x_T[500:-500], sine(16000)[500:-500], atol=2e-3)


def test_channels_are_averaged(tmp_path: Path) -> None:
    other = np.cos(2 * np.pi * 100 * np.arange(16000) / 16000) / 4
    soundfile.write(tmp_path / "a.wav", np.stack([sine(16000), other], axis=1), 16000)
    np.testing.assert_allclose(audio.read_audio(tmp_path / "a.wav", 16000), (sine(16000) + other) / 2, atol=1e-4)


def test_values_stay_between_minus_one_and_one(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", 4 * np.sign(sine(48000)), 48000, subtype="FLOAT")
    assert np.abs(audio.read_audio(tmp_path / "a.wav", 16000)).max() == 1


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    x_T = sine(16000)
    x_T[7] = np.nan
    soundfile.write(tmp_path / "a.wav", x_T, 16000, subtype="FLOAT")
    with pytest.raises(DataError, match=r"a\.wav.*not finite"):
        audio.read_audio(tmp_path / "a.wav", 16000)


def test_missing_empty_and_silent_headers_are_refused(tmp_path: Path) -> None:
    (tmp_path / "zero.wav").touch()
    soundfile.write(tmp_path / "header.wav", np.zeros(0), 16000)
    for name in ("none.wav", "zero.wav", "header.wav"):
        with pytest.raises(DataError, match=name):
            audio.read_audio(tmp_path / name, 16000)


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_a_broken_file_gives_samples_or_a_data_error(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, sine(44100), 44100)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for share in (0.001, 0.01, 0.25, 0.5, 0.99):
        path.write_bytes(whole[: int(share * len(whole))])
        read_or_refuse(path)
    for _ in range(30):
        garbled = bytearray(whole)
        for place in rng.integers(0, 120, 6):
            garbled[place] = rng.integers(256)
        path.write_bytes(bytes(garbled))
        read_or_refuse(path)
    path.write_bytes(rng.bytes(1000))
    with pytest.raises(DataError):
        audio.read_audio(path, 16000)


def read_or_refuse(path: Path) -> None:
    try:
        x_T = audio.read_audio(path, 16000)
    except DataError as error:
        assert path.name in str(error)
    else:
        assert x_T.size and np.isfinite(x_T).all()
