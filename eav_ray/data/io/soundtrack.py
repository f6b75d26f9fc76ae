"""The sound of a film, or of a file that libsndfile does not know, placed by its time stamps."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import av
import av.error
import numpy as np
from av.container import InputContainer

from eav_ray.data.io.channels import ChannelLevels
from eav_ray.data.io.containers import (
    DECODE_ERRORS,
    MAX_BACKWARD_S,
    MAX_GAP_S,
    MAX_MISSING_S,
    open_container,
    read_duration_s,
    read_lateness_s,
    read_start_s,
    select_sound,
)
from eav_ray.data.io.file_structure import check_structure
from eav_ray.data.io.limits import MAX_AUDIO_HZ, MIN_AUDIO_HZ, DecodingLimits
from eav_ray.data.recordings import Span
from eav_ray.errors import DataError

# Time stamps are rounded to a millisecond in some containers, and the shortest packet that can be lost lasts 20 ms.
TOLERANCE_S = 0.015
EXACT_FORMATS = ("flac", "caf", "wv", "tta")  # which state how many samples they have
MAX_LEVEL = 16.0  # of full scale: 24 dB above it; beyond, numbers have another scale, or are none
MAX_MISPLACED = 0.9  # share of packets that are not where the one before ends, beyond which the rate is wrong
MIN_PACKETS = 10  # of which that can be said


class Sound(NamedTuple):
    samples_T: np.ndarray  # (n,) float32, mono (mean of the channels)
    hz: int
    levels: ChannelLevels
    missing_s: tuple[Span, ...] = ()  # where nothing was recorded; samples there are zero
    remarks: tuple[str, ...] = ()


def read_soundtrack(path: str | Path, limits: DecodingLimits, *, is_open_ended: bool = False) -> Sound:
    """Decode the whole stream, on the clock that it shares with the film (`containers.read_start_s`).

    Samples follow each other as long as their time stamps agree to within `TOLERANCE_S`; beyond that the stamps are
    right, and what nothing was recorded of, or a damaged packet held, is silent and missing. What comes after stays in
    its place. A damaged packet where there are no time stamps is an error, since what follows would come too early.

    Args:
        is_open_ended: The file does not state how long it is.
    Raises:
        DataError: Damaged, without sound, breaks off before the length that it states, beyond a limit, sampled at a
            rate that no recorder has, or with time stamps that cannot be.
    """
    structure = check_structure(path)
    try:
        with open_container(path, limits.timeout_s) as container:
            stream, remarks = select_sound(container)
            if stream is None:
                raise DataError(f"{path} has no sound; give an audio file, or leave its audio out")
            return _Track(path, limits, {*structure.remarks, *remarks}, is_open_ended or structure.is_open_ended).read(
                container, stream
            )
    except DataError:
        raise
    except DECODE_ERRORS as error:
        limits.check_time()
        reason = " ".join(str(error).split())
        raise DataError(f"{path} has sound that cannot be decoded ({reason}); replace it or leave it out") from None


@dataclass
class _Track:
    """The sound of one file while it is read; times count from the beginning of the file."""

    path: str | Path
    limits: DecodingLimits
    remarks: set[str]
    is_open_ended: bool
    hz: int = 0
    n_samples: int = 0  # so far, with what is missing
    parts: list[np.ndarray] = field(default_factory=list)
    missing_s: list[Span] = field(default_factory=list)
    levels: ChannelLevels = field(default_factory=ChannelLevels)
    is_damaged: bool = False  # a packet before the next frame was

    def read(self, container: InputContainer, stream: av.AudioStream) -> Sound:
        """Read all of it; raises DataError, or what PyAV raises."""
        start_s = read_start_s(container)
        duration_s = 0.0 if self.is_open_ended else read_duration_s(container, stream)
        n_frames = n_misplaced = n_decoded = 0
        for frame in self._iter_frames(container, stream, bool(duration_s)):
            self._check_rate(frame.sample_rate)
            x_CT = _to_channels(frame)
            with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused by who reads it
                samples_T = x_CT.mean(axis=0).astype(np.float32)
            if not _is_pcm(stream) and not np.abs(samples_T).max() <= MAX_LEVEL:  # a decoder's noise, or no number
                self._note_damage()
                continue
            self.levels.add(x_CT, samples_T)
            if frame.time is not None:
                start_s = frame.time if start_s is None else start_s
                samples_T, is_misplaced = self._place(samples_T, frame.time - start_s)
                n_misplaced += is_misplaced and bool(n_frames)
            elif self.is_damaged:
                raise DataError(
                    f"{self.path} has damaged sound without time stamps, so that what follows has no place; replace it "
                    "or leave it out"
                )
            self.is_damaged = False
            self._append(samples_T)
            n_frames, n_decoded = n_frames + 1, n_decoded + len(samples_T)
        if not n_decoded:
            raise DataError(f"{self.path} holds no audio samples; replace it or leave it out")
        if n_frames >= MIN_PACKETS and n_misplaced > MAX_MISPLACED * n_frames:
            raise DataError(
                f"{self.path} has sound whose time stamps contradict its sampling rate of {self.hz} Hz; convert it or "
                "leave it out"
            )
        end_s, stated_s = self.n_samples / self.hz, duration_s + read_lateness_s(stream, start_s) if duration_s else 0.0
        # Of packets in a CAF file, FFmpeg cuts off the end of the last twice.
        is_exact = container.format.name in EXACT_FORMATS and (container.format.name != "caf" or _is_pcm(stream))
        if stated_s - end_s > (TOLERANCE_S if is_exact else MAX_MISSING_S):
            raise DataError(
                f"{self.path} breaks off: {end_s:.1f} of {stated_s:.1f} s of sound decode; copy it again or leave it "
                "out"
            )
        samples_T = np.concatenate(self.parts)
        return Sound(samples_T, self.hz, self.levels, tuple(self.missing_s), tuple(sorted(self.remarks)))

    def _check_rate(self, hz: int) -> None:
        if not self.hz and not MIN_AUDIO_HZ <= hz <= MAX_AUDIO_HZ:
            raise DataError(
                f"{self.path} says that its sound is sampled at {hz} Hz; {MIN_AUDIO_HZ} to {MAX_AUDIO_HZ} Hz are read"
            )
        if self.hz not in (0, hz):
            raise DataError(f"{self.path} has sound whose sampling rate changes; convert it or leave it out")
        self.hz = hz

    def _place(self, samples_T: np.ndarray, time_s: float) -> tuple[np.ndarray, bool]:
        """Fill what is missing before a frame, or cut off what was there already.

        Returns:
            The samples that are left, and whether their time was not the end of those before.
        """
        end_s = self.n_samples / self.hz
        offset = round((time_s - end_s) * self.hz)
        is_first = not self.parts
        if abs(time_s - end_s) <= (1.5 / self.hz if is_first or self.is_damaged else TOLERANCE_S):
            return samples_T, False
        if offset > 0:
            if time_s - end_s > MAX_GAP_S:
                raise DataError(
                    f"{self.path} has a gap of {time_s - end_s:.0f} s in the time stamps of its sound; at most "
                    f"{MAX_GAP_S:g} s are bridged: cut it there into recordings"
                )
            self._append(np.zeros(offset, np.float32))
            if not is_first or offset > TOLERANCE_S * self.hz:
                self.missing_s.append((end_s, end_s + offset / self.hz))
                if not self.is_damaged:
                    self.remarks.add(
                        "it begins late" if is_first else "its time stamps leave gaps, where nothing was recorded"
                    )
            return samples_T, True
        if end_s - time_s > MAX_BACKWARD_S:
            raise DataError(
                f"{self.path} has sound whose time stamps start again at {end_s:.1f} s, so that what follows has no "
                "place; convert it or leave it out"
            )
        if not is_first:
            self.remarks.add("its time stamps overlap; what came first was kept")
        return samples_T[-offset:], True

    def _append(self, samples_T: np.ndarray) -> None:
        self.parts.append(samples_T)
        self.n_samples += len(samples_T)
        self.limits.check(self.n_samples / self.hz)

    def _iter_frames(
        self, container: InputContainer, stream: av.AudioStream, states_length: bool
    ) -> Iterator[av.AudioFrame]:
        """All frames that decode; what was damaged in between is noted."""
        corrupt = False
        reason: Exception | None = None
        for packet in container.demux(stream):
            if corrupt and packet.size:  # the file goes on after it: it was damaged, not cut off
                self._note_damage()
                corrupt = False
            if packet.is_corrupt:
                corrupt = True
                if states_length or not _is_pcm(stream):  # of samples as such, half a packet holds half
                    continue
            try:
                frames = packet.decode()
            except av.error.FFmpegError as error:
                reason = error
                self._note_damage()
                continue
            yield from (f for f in frames if isinstance(f, av.AudioFrame) and f.samples)
        if corrupt:
            if states_length:
                raise DataError(f"{self.path} breaks off in the middle of its sound; copy it again or leave it out")
            self.remarks.add("it ends in the middle of a packet, as if its recorder was stopped; what is there is used")
        if reason is not None and not self.n_samples:
            raise reason

    def _note_damage(self) -> None:
        self.is_damaged = True
        self.remarks.add("it has damaged or lost packets; what they touch is missing")


def _is_pcm(stream: av.AudioStream) -> bool:
    return stream.codec_context is not None and stream.codec_context.name.startswith("pcm_")


def _to_channels(frame: av.AudioFrame) -> np.ndarray:
    """(channels, n), of full scale 1."""
    x = frame.to_ndarray()
    if not frame.format.is_planar:
        x = x.reshape(-1, frame.layout.nb_channels).T
    if x.dtype.kind in "iu":
        full_scale = 2.0 ** (8 * x.dtype.itemsize - 1)
        x = (x - (full_scale if x.dtype.kind == "u" else 0.0)) / full_scale
    return x
