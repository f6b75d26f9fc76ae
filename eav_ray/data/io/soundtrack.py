"""The sound of a film: its first audio stream, as recorded, for files that libsndfile does not know."""

from collections.abc import Iterator
from pathlib import Path

import av
import av.error
import numpy as np
from av.container import InputContainer

from eav_ray.data.io.limits import MAX_AUDIO_HZ, MIN_AUDIO_HZ, DecodingLimits
from eav_ray.data.io.video import DECODE_ERRORS, MAX_GAP_S, MAX_MISSING_S, read_duration_s
from eav_ray.errors import DataError

CONTAINER_SUFFIXES = (".mp4", ".m4a", ".m4v", ".mov", ".flv", ".mkv", ".webm", ".avi")


def read_soundtrack(path: str | Path, limits: DecodingLimits) -> tuple[np.ndarray, int]:
    """Decode the whole stream, on the clock of the picture where there is one.

    Sound that begins after the first frame of the picture is preceded by silence, sound from before it is cut off: the
    frames of `video.read_video` count from there too. A packet that does not decode is an error and not skipped, since
    what follows would come too early.

    Returns:
        (n,) float32, mono (mean of the channels), and samples per second.
    Raises:
        DataError: Damaged, without sound, breaks off before the length that it states, beyond a limit, or sampled at a
            rate that no recorder has.
    """
    try:
        with av.open(str(path), metadata_errors="ignore", timeout=limits.timeout_s) as container:
            if not container.streams.audio:
                raise DataError(f"{path} has no sound; give an audio file, or leave its audio out")
            return _decode_stream(container, path, limits)
    except DataError:
        raise
    except DECODE_ERRORS as error:
        limits.check_time()
        reason = " ".join(str(error).split())
        raise DataError(f"{path} has sound that cannot be decoded ({reason}); replace it or leave it out") from None


def _decode_stream(container: InputContainer, path: str | Path, limits: DecodingLimits) -> tuple[np.ndarray, int]:
    stream = container.streams.audio[0]
    stated_s = read_duration_s(container, stream)
    hz, n_samples, delay_s = 0, 0, 0.0
    parts: list[np.ndarray] = []
    for frame in _iter_frames(container, stream, path):
        if not parts:
            hz, delay_s = frame.sample_rate, _compute_delay_s(container, frame)
            if not MIN_AUDIO_HZ <= hz <= MAX_AUDIO_HZ:
                raise DataError(
                    f"{path} says that its sound is sampled at {hz} Hz; {MIN_AUDIO_HZ} to {MAX_AUDIO_HZ} Hz are read"
                )
        elif frame.sample_rate != hz:
            raise DataError(f"{path} has sound whose sampling rate changes; convert it or leave it out")
        parts.append(_to_mono(frame))
        n_samples += len(parts[-1])
        limits.check(n_samples / hz)
    if not n_samples:
        raise DataError(f"{path} holds no audio samples; replace it or leave it out")
    decoded_s = n_samples / hz + max(0.0, delay_s)
    if stated_s - decoded_s > MAX_MISSING_S:
        raise DataError(
            f"{path} breaks off: {decoded_s:.1f} of {stated_s:.1f} s of sound decode; copy it again or leave it out"
        )
    silence = np.zeros(max(0, round(delay_s * hz)), dtype=np.float32)
    return np.concatenate([silence, *parts])[max(0, round(-delay_s * hz)) :], hz


def _iter_frames(container: InputContainer, stream: av.AudioStream, path: str | Path) -> Iterator[av.AudioFrame]:
    for packet in container.demux(stream):
        if packet.is_corrupt:  # only a part of it could be read: the file ends here
            raise DataError(f"{path} breaks off in the middle of its sound; copy it again or leave it out")
        for frame in packet.decode():
            if isinstance(frame, av.AudioFrame) and frame.samples:
                yield frame


def _compute_delay_s(container: InputContainer, first: av.AudioFrame) -> float:
    """Seconds from the first frame of the picture to that of the sound; 0 where a file does not say, or cannot be."""
    if not container.streams.video or first.time is None:
        return 0.0
    video_stream = container.streams.video[0]
    if video_stream.start_time is None or video_stream.time_base is None:
        return 0.0
    delay_s = first.time - float(video_stream.start_time * video_stream.time_base)
    return delay_s if abs(delay_s) <= MAX_GAP_S else 0.0


def _to_mono(frame: av.AudioFrame) -> np.ndarray:
    x = frame.to_ndarray()
    if not frame.format.is_planar:
        x = x.reshape(-1, frame.layout.nb_channels).T
    if x.dtype.kind in "iu":
        full_scale = 2.0 ** (8 * x.dtype.itemsize - 1)
        x = (x - (full_scale if x.dtype.kind == "u" else 0.0)) / full_scale
    with np.errstate(over="ignore", invalid="ignore"):  # what comes of it is not finite, and refused by who reads it
        return x.mean(axis=0).astype(np.float32)
