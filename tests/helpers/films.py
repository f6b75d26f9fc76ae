"""Films and sounds as cameras, phones and recorders write them: at given times, in any container."""

import struct
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

MILLISECOND = Fraction(1, 1000)
FIXED_RATE = ("mpeg2video", "mpeg1video", "h263", "flv1")  # codecs that know few rates


def draw_corners(height: int = 96, width: int = 128) -> np.ndarray:
    """(height, width, 3): four quarters of different brightness, so that each way to turn it is seen."""
    picture = np.zeros((height, width, 3), np.uint8)
    top, left = height // 2, width // 2
    picture[:top, :left], picture[:top, left:], picture[top:, :left], picture[top:, left:] = 20, 90, 160, 235
    return picture


def read_corners(picture: np.ndarray) -> list[int]:
    """The brightness of the four quarters of a stored picture, by rows."""
    quarter = len(picture) // 4
    grey = picture.astype(float).mean(-1)
    return [round(grey[y, x]) for y in (quarter, -quarter) for x in (quarter, -quarter)]


def set_display_matrix(path: Path, matrix: Sequence[float]) -> None:
    """Write a, b, c, d, x, y of a display matrix into the film of an MP4 file that has no other stream before it."""
    a, b, c, d, x, y = (round(value * 65536) for value in matrix)
    whole = bytearray(path.read_bytes())
    at = whole.index(b"tkhd") + 4
    whole[at + 40 : at + 76] = struct.pack(">9i", a, b, 0, c, d, 0, x, y, 1 << 30)
    path.write_bytes(bytes(whole))


def make_frames(pictures: Iterable[np.ndarray], times_s: Iterable[float]) -> list[av.VideoFrame]:
    """RGB pictures as frames with time stamps."""
    frames: list[av.VideoFrame] = []
    for picture, time_s in zip(pictures, times_s, strict=False):
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts, frame.time_base = round(time_s * 1000), MILLISECOND
        frames.append(frame)
    return frames


def write_media(
    path: Path,
    frames: Sequence[av.VideoFrame] = (),
    x_T: np.ndarray | None = None,
    *,
    form: str | None = None,
    video_codec: str = "mpeg4",
    audio_codec: str = "aac",
    hz: int = 48_000,
    rate: int = 25,
    pix_fmt: str = "yuv420p",
    sound_at_s: float = 0.0,
    options: dict[str, str] | None = None,
    codec_options: dict[str, str] | None = None,
    pixel_aspect: Fraction | None = None,
    lost: Sequence[tuple[str, float, float]] = (),
) -> Path:
    """Write a film, a sound or both into one file.

    Args:
        x_T: (n,) at `hz`, mono.
        sound_at_s: When the sound begins.
        lost: Packets that are left out: their stream ("video" or "audio"), from and to which time.
    """
    with av.open(str(path), "w", format=form, options=options or {}) as container:
        packets: list[av.Packet] = []
        if frames:
            video = container.add_stream(video_codec, rate=rate, options=codec_options or {})
            assert isinstance(video, av.VideoStream)
            video.width, video.height, video.pix_fmt = frames[0].width, frames[0].height, pix_fmt
            if video_codec == "mpeg4":
                video.codec_context.qmin = video.codec_context.qmax = 1
            video.codec_context.time_base = Fraction(1, rate) if video_codec in FIXED_RATE else MILLISECOND
            if pixel_aspect is not None:
                video.codec_context.sample_aspect_ratio = pixel_aspect
        if x_T is not None:
            audio = container.add_stream(audio_codec, rate=hz, layout="mono")
            assert isinstance(audio, av.AudioStream)
            if audio_codec.startswith("wma"):  # which has no rate of its own
                audio.codec_context.bit_rate = 128_000
        container.start_encoding()
        if frames:
            for frame in frames:
                packets += video.encode(frame)
            packets += video.encode()
        if x_T is not None:
            packets += _encode_sound(audio, x_T, hz, sound_at_s)
        for packet in sorted(packets, key=lambda p: float((p.dts or 0) * p.time_base)):
            time_s = float((packet.pts or 0) * packet.time_base)
            if not any(packet.stream.type == kind and first <= time_s < last for kind, first, last in lost):
                container.mux(packet)
    return path


def _encode_sound(stream: av.AudioStream, x_T: np.ndarray, hz: int, at_s: float) -> list[av.Packet]:
    form = stream.codec_context.format.name
    resampler = av.AudioResampler(form, "mono", hz, frame_size=stream.codec_context.frame_size or 1024)
    frame = av.AudioFrame.from_ndarray(x_T[None].astype(np.float32), format="fltp", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = hz, round(at_s * hz), Fraction(1, hz)
    packets: list[av.Packet] = []
    for piece in (*resampler.resample(frame), *resampler.resample(None)):
        packets += stream.encode(piece)
    return packets + stream.encode()


def draw_click(seconds: float, at_s: float, hz: int = 48_000) -> np.ndarray:
    """A tone of 1 kHz that begins at a time, in a little noise."""
    time_s = np.arange(round(seconds * hz)) / hz
    noise = 1e-3 * np.random.default_rng(0).standard_normal(len(time_s))
    return noise + np.where(time_s >= at_s, 0.5 * np.sin(2 * np.pi * 1000 * (time_s - at_s)), 0)


def find_click_s(x_T: np.ndarray, hz: int) -> float:
    """When a tone begins: the first sample beyond a tenth of full scale."""
    return int(np.argmax(np.abs(x_T) > 0.1)) / hz
