"""A damaged header gives the right values, or a DataError, or a remark: never other values without a word.

`make chaos` runs each property on many more headers.
"""

import io
import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import scipy.signal
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from eav_ray.data.io import audio, video
from eav_ray.data.recordings import Span
from eav_ray.errors import DataError
from tests.helpers.films import make_frames, write_media

HZ = 16_000
NUMBERS = [0, 1, 2, 255, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1]


class Media(NamedTuple):
    whole: bytes
    places: tuple[int, int]  # where its header begins and ends
    sound: audio.DecodedAudio
    film: video.DecodedVideo | None


@st.composite
def changes(draw: st.DrawFn) -> tuple[float, bytes]:
    """A place, as a share of the header, and one field's new bytes."""
    number = draw(st.sampled_from(NUMBERS) | st.integers(0, 2**32 - 1))
    n_bytes = draw(st.sampled_from([1, 2, 4]))
    order = draw(st.sampled_from(["big", "little"]))
    return draw(st.floats(0, 1, exclude_max=True)), number.to_bytes(4, order)[-n_bytes:]


@cache
def media(suffix: str) -> Media:
    time_s = np.arange(3 * HZ) / HZ
    x_T = 0.3 * np.sin(2 * np.pi * (300 + 200 * time_s) * time_s)  # each moment sounds otherwise
    if suffix == ".wav":
        sink = io.BytesIO()
        soundfile.write(sink, x_T, HZ, format="WAV", subtype="PCM_16")
        whole, places = sink.getvalue(), (0, 44)
    else:
        times_s = np.arange(75) / 25
        pictures = [np.full((48, 64, 3), 20 + 60 * t, np.uint8) for t in times_s]
        with tempfile.TemporaryDirectory() as folder:
            path = write_media(Path(folder) / f"a{suffix}", make_frames(pictures, times_s), x_T, hz=HZ)
            whole = path.read_bytes()
        at = whole.index(b"moov") - 4 if suffix == ".mp4" else 0
        places = (at, len(whole)) if suffix == ".mp4" else (0, whole.index(b"\x1f\x43\xb6\x75"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{suffix}"
        path.write_bytes(whole)
        film = None if suffix == ".wav" else video.read_video(path, 5, 16)
        return Media(whole, places, audio.decode_audio(path, HZ), film)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("headers")


def damage(undamaged: Media, change: tuple[float, bytes]) -> bytes:
    first, last = undamaged.places
    place, new = first + int(change[0] * (last - first)), change[1]
    return undamaged.whole[:place] + new + undamaged.whole[place + len(new) :]


def is_said(found: tuple[str, ...], missing_s: tuple[Span, ...], as_it_was: tuple[str, ...]) -> bool:
    return found != as_it_was or bool(missing_s)


def find_similarity(found_T: np.ndarray, true_T: np.ndarray) -> float:
    """Correlate at the best shift of at most 65 ms: the 1024 samples that AAC puts before are stated once only."""
    products = scipy.signal.correlate(found_T, true_T, method="fft")
    near = products[len(true_T) - 1 - HZ // 15 :][: 2 * (HZ // 15) + 1]
    return float(near.max() / np.sqrt(np.square(found_T).sum() * np.square(true_T).sum()))


@pytest.mark.parametrize("suffix", [".wav", ".mp4", ".mkv"])
@given(change=changes())
def test_sound(folder: Path, suffix: str, change: tuple[float, bytes]) -> None:
    undamaged = media(suffix)
    path = folder / f"a{suffix}"
    path.write_bytes(damage(undamaged, change))
    try:
        found = audio.decode_audio(path, HZ, timeout_s=10)
    except DataError:
        return
    true = undamaged.sound
    if not is_said(found.remarks, found.missing_s, true.remarks):
        assert abs(len(found.samples_T) - len(true.samples_T)) <= 0.1 * HZ
        assert find_similarity(found.samples_T, true.samples_T) > 0.95


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@given(change=changes())
def test_film(folder: Path, suffix: str, change: tuple[float, bytes]) -> None:
    undamaged = media(suffix)
    path = folder / f"a{suffix}"
    path.write_bytes(damage(undamaged, change))
    try:
        found = video.read_video(path, 5, 16, timeout_s=10)
    except DataError:
        return
    true = undamaged.film
    assert true is not None
    if not is_said(found.remarks, found.missing_s, true.remarks):
        assert abs(len(found.frames) - len(true.frames)) <= 1
        n = min(len(found.frames), len(true.frames))
        assert np.abs(found.frames[:n].astype(int) - true.frames[:n].astype(int)).mean() < 6  # half a stored frame
