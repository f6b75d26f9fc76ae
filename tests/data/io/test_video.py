"""Frames are chosen by time stamp, whatever the source's rate, and a damaged file gives what decodes or a DataError."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from eav_ray.config import VideoPreprocessing
from eav_ray.data.io import jpeg, video
from eav_ray.data.io.containers import read_frame_s
from eav_ray.data.streaming.buffers import Frame
from eav_ray.data.streaming.stream import resize_frame
from eav_ray.errors import DataError
from tests.helpers.films import make_frames, write_media
from tests.helpers.memory import peak_memory
from tests.helpers.serving import draw_jpeg


def write(path: Path, times_s: Sequence[float], *, rate: int = 30, faststart: bool = True, shape=(48, 64)) -> None:
    """A grey film: a frame's brightness is its time, 40 a second."""
    with av.open(str(path), "w", options={"movflags": "faststart"} if faststart else {}) as container:
        stream = container.add_stream("mpeg4", rate=rate)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = shape
        stream.pix_fmt = "yuv420p"
        stream.codec_context.qmin = stream.codec_context.qmax = 1  # or the brightness is off by several frames
        stream.codec_context.time_base = Fraction(1, 1000)
        for time_s in times_s:
            grey = np.full((*shape, 3), 10 + 40 * time_s, dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(grey, format="rgb24")
            frame.pts, frame.time_base = round(time_s * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def shown_s(frames: np.ndarray) -> np.ndarray:
    return (frames.mean(axis=(1, 2, 3)) - 10) / 40


@pytest.mark.parametrize("rate", [5, 12, 24, 25, 30, 60])
@pytest.mark.parametrize("fps", [5, 4])
def test_frame_k_is_the_one_at_k_by_fps(tmp_path: Path, rate: int, fps: int) -> None:
    write(tmp_path / "a.mp4", np.arange(4 * rate) / rate, rate=rate)
    frames, duration_s, *_ = video.read_video(tmp_path / "a.mp4", fps, 16)
    assert frames.shape == (4 * fps, 16, 16, 3) and frames.dtype == np.uint8
    assert duration_s == pytest.approx(4, abs=0.05)
    late_s = shown_s(frames) - np.arange(4 * fps) / fps
    assert late_s.min() > -0.5 / rate - 0.06 and late_s.max() < 1 / rate + 0.06


def test_a_variable_rate_keeps_the_clock(tmp_path: Path) -> None:
    """Counting frames would be seconds off: half of them lie in the first second."""
    times_s = [*np.arange(40) / 40, *np.arange(1, 5, 0.1)]
    write(tmp_path / "a.mp4", times_s)
    frames, *_ = video.read_video(tmp_path / "a.mp4", 5, 16)
    np.testing.assert_allclose(shown_s(frames), np.arange(len(frames)) / 5, atol=0.12)
    assert len(frames) == 25


def test_in_a_gap_the_frame_before_it_stays(tmp_path: Path) -> None:
    times_s = np.array([t for t in np.arange(120) / 30 if not 1 < t < 2])
    write(tmp_path / "a.mp4", times_s)
    frames, *_ = video.read_video(tmp_path / "a.mp4", 5, 16)
    assert len(frames) == 20
    np.testing.assert_allclose(shown_s(frames)[5:10], 1, atol=0.08)
    np.testing.assert_allclose(shown_s(frames)[10:], np.arange(10, 20) / 5, atol=0.08)


def write_numbered(path: Path, times_s: np.ndarray, rate: float) -> None:
    """Write a film whose frames are told apart by their brightness, nine after each other."""
    pictures = [np.full((48, 64, 3), 20 + 25 * (i % 9), np.uint8) for i in range(len(times_s))]
    write_media(path, make_frames(pictures, times_s), rate=round(rate))


def check_numbers(frames: np.ndarray, numbers: np.ndarray) -> None:
    found = np.rint((frames.mean(axis=(1, 2, 3)) - 20) / 25)
    np.testing.assert_array_equal(found, numbers % 9)


@pytest.mark.parametrize(("rate", "fps"), [(2, 5), (4, 5), (3, 25), (10, 25), (1, 4)])
def test_a_slow_film_shows_no_frame_before_its_time(tmp_path: Path, rate: int, fps: int) -> None:
    """As a player does: each frame from its own time to that of the next, the last one to the end."""
    times_s = np.round(np.arange(4 * rate) / rate, 3)
    write_numbered(tmp_path / "a.mp4", times_s, rate)
    frames, duration_s, *_ = video.read_video(tmp_path / "a.mp4", fps, 16)
    assert duration_s == pytest.approx(4, abs=0.01) and len(frames) == 4 * fps
    check_numbers(frames, np.searchsorted(times_s, np.arange(4 * fps) / fps + 0.002, side="right") - 1)


@pytest.mark.parametrize(("rate", "fps"), [(30, 5), (25, 25), (24, 25), (29.97, 30), (30, 25), (60, 25), (12, 5)])
@pytest.mark.parametrize("jitter_s", [0.0, 0.004])
def test_an_ordinary_film_shows_the_first_frame_from_each_time_on(
    tmp_path: Path, rate: float, fps: int, jitter_s: float
) -> None:
    """To within half a frame of its own; windows of such films are stored already."""
    jitter = np.random.default_rng(0).uniform(-jitter_s, jitter_s, round(3 * rate))
    times_s = np.round(np.clip(np.arange(len(jitter)) / rate + jitter, 0, None), 3)
    write_numbered(tmp_path / "a.mp4", times_s, rate)
    frames, *_ = video.read_video(tmp_path / "a.mp4", fps, 16)
    with av.open(str(tmp_path / "a.mp4")) as container:
        tolerance_s = min(read_frame_s(container.streams.video[0]), 1 / fps) / 2
    wanted_s = np.arange(len(frames)) / fps - tolerance_s - 1e-9
    check_numbers(frames, np.searchsorted(times_s - times_s[0], wanted_s))


def test_missing_frames_at_the_end_are_not_invented(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", np.arange(75) / 30)
    frames, duration_s, *_ = video.read_video(tmp_path / "a.mp4", 5, 16)
    assert len(frames) == 13 and duration_s == pytest.approx(2.5, abs=0.05)


@pytest.mark.parametrize("share", [0.01, 0.25, 0.5, 0.99])
def test_a_film_that_breaks_off_is_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "a.mp4"
    write(path, np.arange(120) / 30, shape=(144, 192))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(DataError, match=r"a\.mp4 (breaks off|cannot be decoded)"):
        video.read_video(path, 5, 16)


def test_a_file_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", np.arange(120) / 30)
    with pytest.raises(DataError, match=r"file_timeout_s"):
        video.read_video(tmp_path / "a.mp4", 5, 16, timeout_s=1e-9)


@pytest.mark.parametrize("share", [0.01, 0.25, 0.5])
def test_a_film_that_lost_its_index_is_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "a.mp4"
    write(path, np.arange(60) / 30, faststart=False)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(DataError, match=r"a\.mp4"):
        video.read_video(path, 5, 16)


def test_what_is_no_film_is_refused(tmp_path: Path) -> None:
    (tmp_path / "zero.mp4").touch()
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "folder.mp4").mkdir()
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        assert isinstance(stream, av.AudioStream)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    for name in ("none.mp4", "zero.mp4", "noise.mp4", "folder.mp4", "sound.mp4"):
        with pytest.raises(DataError, match=name):
            video.read_video(tmp_path / name, 5, 16)
    with pytest.raises(DataError, match="no video stream"):
        video.read_video(tmp_path / "sound.mp4", 5, 16)


def test_garbled_bytes_give_frames_or_a_data_error(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write(path, np.arange(60) / 30)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for round_ in range(40):
        garbled = bytearray(whole)
        for place in rng.integers(0, len(whole) if round_ % 2 else 1500, 10):
            garbled[place] = rng.integers(256)
        path.write_bytes(bytes(garbled))
        try:
            frames, *_ = video.read_video(path, 5, 16)
        except DataError as error:
            assert path.name in str(error)
        else:
            assert 0 < len(frames) < 5 * 60 * 60


# Sizes


def claim_size(file: bytes, height: int, width: int) -> bytes:
    """A JPEG file whose header says another size; a decoder takes memory for it before it misses anything."""
    at = file.index(b"\xff\xc0") + 5
    return file[:at] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + file[at + 4 : -2] + bytes(4_000_000) + END


END = b"\xff\xd9"
SMALL = draw_jpeg(np.random.default_rng(0))
HUGE = claim_size(SMALL, 16_000, 16_000)


def write_jpegs(path: Path, files: list[bytes]) -> None:
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("mjpeg", rate=5)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for k, file in enumerate(files):
            packet = av.Packet(file)
            packet.stream, packet.time_base, packet.pts, packet.dts = stream, Fraction(1, 5), k, k
            container.mux(packet)


@pytest.mark.parametrize("at", [0, 1, 20])
def test_a_film_with_a_frame_of_256_megapixels_takes_no_memory(at: int, tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    write_jpegs(path, [SMALL] * at + [HUGE] * 3)
    with peak_memory() as peak, pytest.raises(DataError, match=r"a\.mkv has (16000 x 16000|a frame that is too large)"):
        video.read_video(path, 5, 16)
    assert peak.mib < 100
    write_jpegs(path, [SMALL] * 23)
    assert len(video.read_video(path, 5, 16).frames) == 23


def test_single_frames_of_256_megapixels_take_no_memory() -> None:
    with peak_memory() as peak:
        assert resize_frame(Frame(0.0, HUGE), VideoPreprocessing(size=16)) is None
        for side, reason in ((16_000, "decompression bomb"), (9000, r"shape \(9000, 9000, 3\)")):
            with pytest.raises(DataError, match=reason):
                jpeg.decode_frames([[claim_size(SMALL, side, side)]], (1, 48, 64, 3))
    assert peak.mib < 100
    assert resize_frame(Frame(0.0, SMALL), VideoPreprocessing(size=16)) is not None
