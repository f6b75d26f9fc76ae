"""Video of one recording: the frames of a fixed rate, chosen by time stamp in one pass."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import av
import av.error
import numpy as np
from av.container import InputContainer

from eav_ray.data.io.container_crop import Crop
from eav_ray.data.io.containers import (
    DECODE_ERRORS,
    MAX_BACKWARD_S,
    MAX_GAP_S,
    MAX_MISSING_S,
    STILL_CODECS,
    open_container,
    read_duration_s,
    read_frame_s,
    read_lateness_s,
    read_start_s,
    require_known_rate,
    select_film,
)
from eav_ray.data.io.face_crop import FaceCropper
from eav_ray.data.io.file_access import require_file
from eav_ray.data.io.file_structure import Structure, check_structure
from eav_ray.data.io.geometry import FrameCorrector, deinterlace
from eav_ray.data.io.limits import DecodingLimits, limit_frames, require_frame_size
from eav_ray.data.recordings import MAX_RECORDING_S, Span
from eav_ray.errors import DataError

MAX_FRAME_S = 1.0  # a frame is shown until the next, but no longer than this: what comes later is missing
SLOW_RATIO = 1.1  # times the time between two chosen frames that those of a slow film lie apart
ROUNDING_S = 0.002  # of time stamps, which some containers round to a millisecond


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
    missing_s: tuple[Span, ...] = ()  # where the film has nothing; frames there are those beside it
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

    Time stamps decide, not counts, so a variable or unusual source rate keeps the pace of the other modalities. Time
    counts from the earliest film or sound of the file (`containers.read_start_s`), so that a film keeps its place
    beside its sound. Of a film that is slower than `fps`, frame k is the one on screen at k / fps, and in a gap the one
    before it stays, as a player shows it; a gap is missing where it lasts longer than a frame is shown. So is what
    comes before the first frame, and what damaged packets touch: frames up to the next whole one.
    Frames are as a player shows them (`geometry.FrameCorrector`). Only chosen frames are converted and resized. Frames
    that are missing at the end are not invented here.

    Args:
        fps: Frames per second to keep.
        size: Height and width of a returned frame, pixels; the aspect ratio is not kept.
        timeout_s: Give up after so long.
        face_step: Crop to the face, looked for in every so many chosen frames (`data/io/face_crop.py`); 0 for the
            whole frame.
        max_duration_s: Longer files are refused.
        corruption: What becomes of decoded frames before they are chosen and resized.
    Raises:
        DataError: The file is missing or damaged, has no film, yields no frame, has one that is too large, breaks off
            before the length that it states, is longer than `max_duration_s`, takes too long, or has time stamps that
            start again or leave a gap of more than a minute.
    """
    require_file(path, "a video file such as .mp4")
    film = _Film(path, fps, FaceCropper(size, face_step) if face_step else FrameResizer(size), corruption)
    film.limits = limits = DecodingLimits(path, timeout_s, max_duration_s)
    film.structure = check_structure(path)
    collector, reason = film.collector, ""
    try:
        with open_container(path, timeout_s) as container:
            film.read(container)
    except DataError:
        raise
    except DECODE_ERRORS as error:
        reason = " ".join(str(error).split())
    limits.check_time()
    if not reason and not collector.pictures:
        reason = "no frame could be decoded"
    if reason:
        raise DataError(f"{path} cannot be decoded as video ({reason}); replace it or leave its video out")
    film.require_stated_length()
    faceless = np.array(collector.faceless) if isinstance(collector, FaceCropper) else None
    return DecodedVideo(
        np.stack(collector.pictures),
        film.end_s,
        faceless,
        tuple(span for span in film.missing_s if span[1] > span[0]),
        tuple(sorted(film.remarks)),
    )


def is_slow(frame_s: float, fps: int) -> bool:
    """Tell whether frames that lie so many seconds apart are fewer than are stored."""
    return frame_s > SLOW_RATIO / fps


def find_tolerances(frame_s: float, average_s: float, fps: int) -> tuple[float, float]:
    """Find how far from its own time a frame may be shown.

    Args:
        frame_s: Seconds between two frames where none is missing.
        average_s: The same of all frames.
    Returns:
        Seconds by which a frame may come late for a place, as rounded time stamps must not choose a neighbour; and by
        which it may be shown too early, before the one on screen stays.
    """
    if is_slow(frame_s, fps):
        return ROUNDING_S, ROUNDING_S
    return min(frame_s, 1 / fps) / 2, ROUNDING_S + max(frame_s, average_s, 0.5 / fps)


@dataclass(frozen=True)
class _Mark:
    """What is known of a frame besides its picture."""

    time_s: float | None
    is_damaged: bool
    follows_damage: bool  # something between it and the frame before was lost


@dataclass
class _Film:
    """The film of one file while it is read; times count from the beginning of the file."""

    path: str | Path
    fps: int
    collector: FrameResizer | FaceCropper
    corruption: FrameCorruption | None
    end_s: float = 0.0
    stated_s: float = 0.0  # when it ends by its file
    frame_s: float = 0.0  # between two frames where none is missing
    average_s: float = 0.0  # between two frames
    missing_s: list[Span] = field(default_factory=list)
    remarks: set[str] = field(default_factory=set)
    limits: DecodingLimits = field(init=False)
    structure: Structure = field(init=False)
    _damaged_until_s: float | None = None  # on the stream's clock; what is decoded up to the next key frame leans on it
    _is_new_damage: bool = False  # since the frame before
    _waiting_s: set[float] = field(default_factory=set)  # times of packets that came to no frame yet
    _last_s: float | None = None  # of the frame before, on the stream's clock
    _n_frames: int = 0
    _n_shown: int = 0  # places that have a frame
    _tick_s: tuple[int, int] = (0, 0)  # of the stream's time stamps, as a fraction; PyAV makes a new one at each look
    _damaged_from_s: float | None = None

    def read(self, container: InputContainer) -> None:
        """Read the frames into the collector; raises DataError, or what PyAV raises."""
        stream, remarks = select_film(container, self.path, self.limits.timeout_s)
        self.remarks |= {*self.structure.remarks, *remarks}
        if decoder := stream.codec_context:  # a damaged header may name no codec
            require_frame_size(decoder.width, decoder.height, str(self.path))
            limit_frames(decoder)
        stream.thread_type, stream.thread_count = "NONE", 1  # Ray runs one task a core
        require_known_rate(container, stream, self.path)
        self.frame_s = read_frame_s(stream)
        self.average_s = 1 / float(stream.average_rate) if stream.average_rate else 0.0
        if stream.time_base:
            self._tick_s = stream.time_base.numerator, stream.time_base.denominator
        start_s = read_start_s(container)
        if (duration_s := read_duration_s(container, stream)) and not self.structure.is_open_ended:
            self.stated_s = duration_s + read_lateness_s(stream, start_s)
        number = list(container.streams.video).index(stream)
        crop = self.structure.crops[number] if number < len(self.structure.crops) else Crop()
        corrector = FrameCorrector(
            self.path, stream.sample_aspect_ratio, crop, square_pixels=isinstance(self.collector, FaceCropper)
        )
        self._select(deinterlace(self._iter_frames(container, stream), self.remarks), start_s, corrector)
        self.collector.flush()
        self.remarks |= corrector.remarks
        is_picture = stream.codec_context is not None and stream.codec_context.name in STILL_CODECS
        if self._n_frames == 1 and is_picture and container.streams.audio:
            reason = "it has no film, only a cover picture"
            raise DataError(f"{self.path} cannot be decoded as video ({reason}); replace it or leave its video out")

    def require_stated_length(self) -> None:
        """Raise DataError where the file says that it lasts longer than it does."""
        if self.stated_s - self.end_s > MAX_MISSING_S:
            raise DataError(
                f"{self.path} breaks off: {self.end_s:.1f} of {self.stated_s:.1f} s decode; copy it again or leave it "
                "out"
            )

    def _select(
        self, frames: Iterator[tuple[av.VideoFrame, _Mark]], start_s: float | None, corrector: FrameCorrector
    ) -> None:
        """Give the chosen frames to the collector."""
        tolerance_s, early_s = find_tolerances(self.frame_s, self.average_s, self.fps)
        last: av.VideoFrame | None = None

        def show(frame: av.VideoFrame, n_shown: int) -> None:
            """Show the frame in all places up to this one that have none yet."""
            if n_shown > self._n_shown:
                frame = corrector.correct(frame)
                frame = frame if self.corruption is None else self.corruption.corrupt_frame(frame)
                self.collector.add(frame, n_shown - self._n_shown)
                self._n_shown = n_shown

        for frame, mark in frames:
            time_s = self._n_frames * self.frame_s if mark.time_s is None else mark.time_s
            start_s = time_s if start_s is None else start_s
            time_s -= start_s
            self._note_time(time_s, mark)
            shown = frame if self.corruption is None else self.corruption.replace_lost_frame(frame, max(0.0, time_s))
            if shown is not None:
                n_due = int((time_s + tolerance_s) * self.fps) + 1  # all k with k / fps <= time_s + tolerance_s
                if last is not None:  # for k with k / fps < time_s - early_s
                    show(last, min(n_due, math.ceil((time_s - early_s) * self.fps)))
                show(shown, n_due)
                last = shown
            self._n_frames += 1
            self.end_s = max(self.end_s, time_s + self.frame_s)
            self.limits.check(self.end_s)
        if is_slow(self.frame_s, self.fps) and last is not None:
            show(last, math.ceil((self.end_s - ROUNDING_S) * self.fps))
        if self._damaged_from_s is not None:
            self.missing_s.append((self._damaged_from_s, self.end_s))

    def _note_time(self, time_s: float, mark: _Mark) -> None:
        """Note what is missing before a frame, and that the frame itself is damaged."""
        if time_s > self.end_s + MAX_GAP_S:
            raise DataError(
                f"{self.path} has a gap of {time_s - self.end_s:.0f} s in the time stamps of its film; at most "
                f"{MAX_GAP_S:g} s are bridged: cut it there into recordings"
            )
        if time_s < self.end_s - self.frame_s - MAX_BACKWARD_S:
            raise DataError(
                f"{self.path} has time stamps that start again at {self.end_s:.1f} s, so that what follows has no "
                "place; convert it or leave its video out"
            )
        is_gap = time_s - self.end_s > (
            MAX_FRAME_S - self.frame_s if self._n_frames else max(self.frame_s, 1 / self.fps)
        )
        if is_gap and time_s > self.end_s + self.frame_s:
            self.missing_s.append((self.end_s, time_s))
            self.remarks.add(
                "its time stamps leave gaps, where nothing was recorded" if self._n_frames else "it begins late"
            )
        elif mark.follows_damage and self._n_frames and not mark.is_damaged and self._damaged_from_s is None:
            self.missing_s.append((min(self.end_s, time_s), time_s))
        if time_s < self.end_s - 1.5 * self.frame_s:
            self.remarks.add("its time stamps go back; what came first was kept")
        if mark.is_damaged and self._damaged_from_s is None:
            self._damaged_from_s = min(time_s, self.end_s) if self._n_frames else time_s
        elif not mark.is_damaged and self._damaged_from_s is not None:
            self.missing_s.append((self._damaged_from_s, time_s))
            self._damaged_from_s = None

    def _iter_frames(self, container: InputContainer, stream: av.VideoStream) -> Iterator[tuple[av.VideoFrame, _Mark]]:
        """All frames that decode. What was damaged in between is marked; where the file breaks off, it ends."""
        packets = container.demux(stream)  # the last is empty, which empties the decoder
        corrupt, has_ended = False, False
        while not has_ended:
            try:
                packet = next(packets)
            except StopIteration:
                break
            except DECODE_ERRORS:
                packet, has_ended = av.Packet(), True
            time_s = self._read_time_s(packet.pts)
            if corrupt and packet.size:  # the file goes on after it: it was damaged, not cut off
                self._note_damage(time_s)
            corrupt = packet.is_corrupt if packet.size else corrupt
            if not corrupt or not packet.size:
                if time_s is not None and not packet.is_discard:
                    self._waiting_s.add(time_s)
                yield from self._decode(stream, packet, time_s)
        if corrupt:
            if self.stated_s:
                raise DataError(f"{self.path} breaks off in the middle of a frame; copy it again or leave it out")
            self.remarks.add("it ends in the middle of a frame, as if its recorder was stopped; what is there is used")

    def _decode(
        self, stream: av.VideoStream, packet: av.Packet, packet_s: float | None
    ) -> Iterator[tuple[av.VideoFrame, _Mark]]:
        try:
            frames = packet.decode() if packet.stream is not None else stream.codec_context.decode(None)
        except av.error.FFmpegError:
            if stream.codec_context and not stream.codec_context.width:  # it has no size any more
                raise DataError(
                    f"{self.path} has a frame that is too large, or is damaged; leave its video out"
                ) from None
            self._note_damage(packet_s)
            return
        for frame in frames:
            assert isinstance(frame, av.VideoFrame)
            yield frame, self._mark(frame)

    def _mark(self, frame: av.VideoFrame) -> _Mark:
        # A frame's own time base is not set where the decoder was emptied after an error.
        time_s = self._read_time_s(frame.pts)
        if time_s is not None:
            self._note_lost_packets(time_s)
        if frame.is_corrupt:
            self._note_damage(time_s)
        elif frame.key_frame and (time_s is None or time_s > (self._damaged_until_s or 0.0)):
            self._damaged_until_s = None
        follows_damage, self._is_new_damage = self._is_new_damage, False
        return _Mark(time_s, self._damaged_until_s is not None, follows_damage)

    def _note_lost_packets(self, time_s: float) -> None:
        """Note packets from between the last two frames that came to nothing: some decoders drop them without a word.

        Half frames come in two packets, so that a frame must be missing, too.
        """
        last_s, self._last_s = self._last_s, time_s
        if last_s is not None and time_s - last_s > 1.5 * self.frame_s:
            between = [s for s in self._waiting_s if last_s + self.frame_s / 2 < s < time_s - self.frame_s / 2]
            if between and self.frame_s:
                self._note_damage(max(between))
        self._waiting_s = {s for s in self._waiting_s if s > time_s}

    def _note_damage(self, time_s: float | None) -> None:
        self._damaged_until_s = max(self._damaged_until_s or 0.0, time_s or 0.0)
        self._is_new_damage = True
        self.remarks.add("it has damaged or lost packets; what they touch is missing")

    def _read_time_s(self, pts: int | None) -> float | None:
        numerator, denominator = self._tick_s
        return None if pts is None or not denominator else pts * numerator / denominator
