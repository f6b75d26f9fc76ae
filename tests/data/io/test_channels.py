"""What becomes of the channels of a sound, and of stretches without any: nothing is lost without a word."""

from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from eav_ray.data.io import audio
from eav_ray.errors import DataError

HZ = 16_000


def noise(seed: int, seconds: float = 2.0) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal(round(HZ * seconds))


def write_channels(path: Path, *channels: np.ndarray) -> Path:
    """Write them by libsndfile, or by FFmpeg into a film's container."""
    x_CT = np.stack(channels)
    if path.suffix == ".wav":
        soundfile.write(path, x_CT.T, HZ)
        return path
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[len(x_CT)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=HZ, layout=layout)
        samples = np.rint(32767 * x_CT.T.reshape(1, -1)).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout=layout)
        frame.sample_rate, frame.pts = HZ, 0
        container.mux([*stream.encode(frame), *stream.encode()])
    return path


@pytest.mark.parametrize("suffix", ["wav", "mkv"])
@pytest.mark.parametrize("rest", [0.0, 0.02])
def test_channels_that_cancel_each_other_are_refused(tmp_path: Path, suffix: str, rest: float) -> None:
    """A microphone's cable with its poles changed, or a balanced line taken for stereo."""
    path = write_channels(tmp_path / f"a.{suffix}", noise(0), -noise(0) + rest * noise(1))
    with pytest.raises(DataError, match=r"a\.\w+ has channels in opposite phase.*pan=mono"):
        audio.decode_audio(path, HZ)


@pytest.mark.parametrize("suffix", ["wav", "mkv"])
def test_channels_that_have_nothing_in_common_are_averaged_without_a_word(tmp_path: Path, suffix: str) -> None:
    first, second = noise(0), noise(1) + 0.3  # the level of a cheap converter's zero means nothing
    sound = audio.decode_audio(write_channels(tmp_path / f"a.{suffix}", first, second), HZ)
    np.testing.assert_allclose(sound.samples_T, (first + second) / 2, atol=1e-4)
    assert sound.remarks == () and sound.missing_s == ()


@pytest.mark.parametrize(
    ("n_channels", "said"),
    [
        (2, "1 of its 2 channels is silent, which makes the mean 6 dB softer"),
        (6, "5 of its 6 channels are silent, which makes the mean 16 dB softer"),
    ],
)
@pytest.mark.parametrize("suffix", ["wav", "mkv"])
def test_channels_that_are_silent_beside_others_are_said(
    tmp_path: Path, suffix: str, n_channels: int, said: str
) -> None:
    silent = [np.zeros(2 * HZ)] * (n_channels - 1)
    sound = audio.decode_audio(write_channels(tmp_path / f"a.{suffix}", *silent, noise(0)), HZ)
    np.testing.assert_allclose(sound.samples_T, noise(0) / n_channels, atol=1e-4)
    assert sound.remarks == (said,)


def test_channels_that_are_all_silent_are_a_silent_sound(tmp_path: Path) -> None:
    sound = audio.decode_audio(write_channels(tmp_path / "a.wav", np.zeros(HZ), np.zeros(HZ)), HZ)
    assert sound.missing_s == ((0.0, 1.0),) and "silent from beginning to end" in sound.remarks[0]


@pytest.mark.parametrize("suffix", ["wav", "mkv"])
@pytest.mark.parametrize("level", [0.0, 0.25])
def test_sound_that_stops_half_way_is_missing_from_there(tmp_path: Path, suffix: str, level: float) -> None:
    x_T = np.concatenate([noise(0, 3.0), np.full(3 * HZ, level)])
    sound = audio.decode_audio(write_channels(tmp_path / f"a.{suffix}", x_T), HZ)
    assert sound.missing_s == ((3.0, 6.0),) and len(sound.samples_T) == 6 * HZ
    assert sound.remarks == (
        "it is exactly silent for 3.0 s from 3.0 s on, as where a recorder stopped or noise was cut out, and counts as "
        "missing there",
    )


@pytest.mark.parametrize("pause", [np.zeros(HZ), noise(3) / 1000])
def test_short_or_soft_pauses_are_part_of_the_sound(tmp_path: Path, pause: np.ndarray) -> None:
    x_T = np.concatenate([noise(0), pause, noise(1)])
    path = tmp_path / "a.flac"
    soundfile.write(path, x_T, HZ, subtype="PCM_24")
    sound = audio.decode_audio(path, HZ)
    assert sound.missing_s == () and sound.remarks == ()
