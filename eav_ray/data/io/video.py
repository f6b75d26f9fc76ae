"""Video of one recording: the frames of a fixed rate, chosen by time stamp in one pass."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import av
import av.error
import numpy as np
from av.container import InputContainer

from eav_ray.data.io.face_crop import FaceCropper
from eav_ray.data.io.limits import DecodingLimits, limit_frames, require_frame_size
from eav_ray.data.recordings import MAX_RECORDING_S, Span
from eav_ray.errors import DataError

MAX_MISSING_S = 0.5  # a stream may state a few frames more than it has
MAX_GAP_S = 60.0  # a damaged time stamp may claim years, and every frame of the gap would be filled
# PyAV's own errors, and what it lets through where a header holds nonsense.
DECODE_ERRORS = (av.error.FFmpegError, OSError, ValueError, ArithmeticError, IndexError, MemoryError)


class FrameCorruption(Protocol):
    """Corrupt the frames of one film while it is decoded."""

    def replace_lost_frame(self, frame: av.VideoFrame, time_s: float) -> av.VideoFrame | None:
        """Return the frame that a player would show at this time; None where it is lost."""
        ...

    def corrupt_frame(self, frame: av.VideoFrame) -> av.VideoFrame:
        """Corrupt a frame of the film's own size."""
        ...


class DecodedVideo(NamedTuple):
    frames: np.ndarray  # (n, size, size, 3) uint8 RGB
    duration_s: float  # duration of what was decoded
    faceless: np.ndarray | None = None  # (n,) bool: no face was found; None where none was looked for
    missing_s: tuple[Span, ...] = ()  # where the film has nothing; frames there are those before it
    remarks: tuple[str, ...] = ()  # what the file says of itself that changed what is stored, in a line each


class FrameResizer:
    """Frames to pictures as they are, whatever their aspect ratio."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.pictures: list[np.ndarray] = []

    def add(self, frame: av.VideoFrame, repeats: int) -> None:
        picture = frame.reformat(self.size, self.size, format="rgb24", interpolation="AREA").to_ndarray()
        self.pictures += [picture] * repeats

    def flush(self) -> None:
        pass


def read_video(
    path: str | Path,
    fps: int,
    size: int,
    timeout_s: float = 120.0,
    face_step: int = 0,
    max_duration_s: float = MAX_RECORDING_S,
    corruption: FrameCorruption | None = None,
) -> DecodedVideo:
    """Decode a file once; frame k is the first whose time is at least k / fps, to within half a source frame.

    Time stamps decide, not counts, so a variable or unusual source rate keeps the pace of the other modalities; a gap
    is bridged by the frame after it. Only chosen frames are converted and resized. Frames that are missing at the end
    are not invented here.

    Args:
        fps: Frames per second to keep.
        size: Height and width of a returned frame, pixels; the aspect ratio is not kept.
        timeout_s: Give up after so long.
        face_step: Crop to the face, looked for in every so many chosen frames (`data/io/face_crop.py`); 0 for the
            whole frame.
        max_duration_s: Longer files are refused.
        corruption: What becomes of decoded frames before they are chosen and resized.
    Raises:
        DataError: The file is missing or damaged, has no video stream, yields no frame, has one that is too large,
            breaks off before the length that it states, is longer than `max_duration_s`, or takes too long.
    """
    if not Path(path).is_file():
        raise DataError(f"{path} is missing; expected a video file such as .mp4")
    collector = FaceCropper(size, face_step) if face_step else FrameResizer(size)
    end_s = stated_s = 0.0
    reason = "no frame could be decoded"
    limits = DecodingLimits(path, timeout_s, max_duration_s)
    try:
        with av.open(str(path), metadata_errors="ignore", timeout=timeout_s) as container:
            if container.streams.video:
                stream = container.streams.video[0]
                if decoder := stream.codec_context:  # a damaged header may name no codec
                    require_frame_size(decoder.width, decoder.height, str(path))
                    limit_frames(decoder)
                stated_s = read_duration_s(container, stream)
                end_s = _select_frames(
                    _iter_frames(container, stream, path), stream, fps, collector, limits, corruption
                )
                collector.flush()
            else:
                reason = "it has no video stream"
    except DataError:
        raise
    except DECODE_ERRORS as error:
        reason = " ".join(str(error).split())
    limits.check_time()
    if not collector.pictures:
        raise DataError(f"{path} cannot be decoded as video ({reason}); replace it or leave its video out")
    if stated_s - end_s > MAX_MISSING_S:
        raise DataError(f"{path} breaks off: {end_s:.1f} of {stated_s:.1f} s decode; copy it again or leave it out")
    faceless = np.array(collector.faceless) if isinstance(collector, FaceCropper) else None
    return DecodedVideo(np.stack(collector.pictures), end_s, faceless)


def read_duration_s(container: InputContainer, stream: av.VideoStream | av.AudioStream) -> float:
    """Seconds that a stream lasts by its file; 0 where it does not say. A Flash file says one length for all."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    if container.format.name == "flv" and container.duration:
        return container.duration / av.time_base
    return 0.0


def _select_frames(
    frames: Iterator[av.VideoFrame],
    stream: av.VideoStream,
    fps: int,
    collector: FrameResizer | FaceCropper,
    limits: DecodingLimits,
    corruption: FrameCorruption | None,
) -> float:
    """Give the chosen frames to `collector`; returns the time at which the last decoded frame ends."""
    stream.thread_type, stream.thread_count = "NONE", 1  # Ray runs one task a core
    rate = stream.average_rate or stream.guessed_rate
    frame_s = 1 / float(rate) if rate else 0.0
    tolerance_s = min(frame_s, 1 / fps) / 2  # keeps rounded time stamps from choosing a neighbour
    start_s: float | None = None
    end_s, n_emitted = 0.0, 0
    for index, frame in enumerate(frames):
        time_s = index * frame_s if frame.time is None else frame.time
        start_s = time_s if start_s is None else start_s
        time_s -= start_s
        if time_s > end_s + MAX_GAP_S:
            break
        n_due = int((time_s + tolerance_s) * fps) + 1  # frames due by now: all k with k / fps <= time_s + slack_s
        corrupted = frame if corruption is None else corruption.replace_lost_frame(frame, time_s)
        if n_due > n_emitted and corrupted is not None:
            collector.add(corrupted if corruption is None else corruption.corrupt_frame(corrupted), n_due - n_emitted)
            n_emitted = n_due
        end_s = max(end_s, time_s + frame_s)
        limits.check(end_s)
    return end_s


def _iter_frames(container: InputContainer, stream: av.VideoStream, path: str | Path) -> Iterator[av.VideoFrame]:
    """All frames that decode. A damaged packet is skipped; where the file breaks off, the decoder is emptied."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except DECODE_ERRORS:
            break
        if packet.is_corrupt:  # only a part of it could be read: the file ends here
            raise DataError(f"{path} breaks off in the middle of a frame; copy it again or leave it out")
        try:
            yield from packet.decode()
        except av.error.FFmpegError:
            if stream.codec_context and not stream.codec_context.width:  # it has no size any more
                raise DataError(f"{path} has a frame that is too large, or is damaged; leave its video out") from None
            continue
    yield from stream.codec_context.decode(None)
