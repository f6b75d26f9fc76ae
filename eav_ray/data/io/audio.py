"""Audio of one recording, decoded once to mono at the stored rate."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import librosa
import numpy as np
import soundfile

from eav_ray.data.io import soundtrack
from eav_ray.data.io.limits import MAX_AUDIO_HZ, MIN_AUDIO_HZ, DecodingLimits
from eav_ray.data.recordings import MAX_RECORDING_S, Span
from eav_ray.errors import DataError

UNKNOWN_LENGTH_BYTES = 0x7FFFF000  # recorders that cannot go back to the header write a length like 0xFFFFFFFF
LENGTH_PATTERN = re.compile(r"(?:data|SSND) : (\d+) \(should be (\d+)\)")  # in libsndfile's log of a header
BLOCK_SAMPLES = 1 << 18  # read in blocks: a damaged header may promise more samples than memory holds


class DecodedAudio(NamedTuple):
    samples_T: np.ndarray  # (n,) float32 in [-1, 1], mono (mean of the channels), at the rate that was asked for
    missing_s: tuple[Span, ...] = ()  # where the file has nothing; samples there are zero
    remarks: tuple[str, ...] = ()  # what the file says of itself that changed what is stored, in a line each


def read_audio(
    path: str | Path, hz: int, timeout_s: float = 120.0, max_duration_s: float = MAX_RECORDING_S
) -> np.ndarray:
    """Decode a file as `decode_audio` does: the samples alone."""
    return decode_audio(path, hz, timeout_s, max_duration_s).samples_T


def decode_audio(
    path: str | Path,
    hz: int,
    timeout_s: float = 120.0,
    max_duration_s: float = MAX_RECORDING_S,
    corruption: Callable[[np.ndarray, int], np.ndarray] | None = None,
) -> DecodedAudio:
    """Decode a file of any rate, number of channels and format that libsndfile knows (wav, flac, ogg, mp3), or a film.

    Args:
        timeout_s: Give up after so long.
        max_duration_s: Longer files are refused.
        corruption: What becomes of the decoded signal, at the file's rate (`data/corruptions/audio.py`).
    Raises:
        DataError: The file is missing, unreadable, empty, shorter than its header says, longer than `max_duration_s`,
            sampled at a rate that no recorder has, takes too long, or holds a value that is not finite; or a film has
            no sound.
    """
    if not Path(path).is_file():
        raise DataError(f"{path} is missing; expected an audio file such as .wav or .flac")
    is_video = Path(path).suffix.lower() in soundtrack.CONTAINER_SUFFIXES
    limits = DecodingLimits(path, timeout_s, max_duration_s)
    x_T, source_hz = (soundtrack.read_soundtrack if is_video else _read_sound_file)(path, limits)
    if corruption is not None:
        _require_finite(x_T, path)
        x_T = corruption(x_T, source_hz)
    return DecodedAudio(resample_audio(x_T, source_hz, hz, path))


def _read_sound_file(path: str | Path, limits: DecodingLimits) -> tuple[np.ndarray, int]:
    """What libsndfile makes of a file: (n,) float32, mono, and samples per second."""
    blocks: list[np.ndarray] = []
    n_samples = 0
    try:
        with soundfile.SoundFile(path) as file:
            source_hz = file.samplerate
            truncation = _describe_truncation(file.extra_info)
            if not MIN_AUDIO_HZ <= source_hz <= MAX_AUDIO_HZ:
                raise DataError(
                    f"{path} says that it is sampled at {source_hz} Hz; {MIN_AUDIO_HZ} to {MAX_AUDIO_HZ} Hz are read"
                )
            # Mono already here: channels of a long file need not all be kept.
            while len(block := file.read(max(1, BLOCK_SAMPLES // file.channels), dtype="float32", always_2d=True)):
                with np.errstate(over="ignore", invalid="ignore"):  # what comes of it is not finite, and refused below
                    blocks.append(block.mean(axis=1))
                n_samples += len(block)
                limits.check(n_samples / source_hz)
    except DataError:
        raise
    except (soundfile.SoundFileError, OSError, ValueError, TypeError) as error:
        raise DataError(
            f"{path} cannot be decoded as audio ({' '.join(str(error).split())}); replace it or leave it out"
        ) from None
    if truncation:
        raise DataError(f"{path} breaks off: {truncation}; copy it again or leave it out")
    if not blocks:
        raise DataError(f"{path} holds no audio samples; replace it or leave it out")
    return np.concatenate(blocks), source_hz


def resample_audio(x_T: np.ndarray, source_hz: int, hz: int, path: str | Path) -> np.ndarray:
    """Mono samples at another rate, (n,) float32 in [-1, 1].

    Raises:
        DataError: A value that is not finite, or nothing left. The text begins with `path`.
    """
    _require_finite(x_T, path)
    if source_hz != hz:
        x_T = librosa.resample(x_T, orig_sr=source_hz, target_sr=hz, res_type="soxr_hq")
        _require_finite(x_T, path)  # the filter may carry a huge sample beyond what a float holds
    if not x_T.size:
        raise DataError(f"{path} is shorter than one sample at {hz} Hz; replace it or leave it out")
    # The resampler overshoots steep edges a little.
    return np.clip(x_T, -1.0, 1.0).astype(np.float32, copy=False)


def _require_finite(x_T: np.ndarray, path: str | Path) -> None:
    if not np.isfinite(x_T).all():
        raise DataError(f"{path} holds audio samples that are not finite; replace it or leave it out")


def _describe_truncation(log: str) -> str:
    """What is missing at the end of a file, by its header; libsndfile reads on without a word."""
    match = LENGTH_PATTERN.search(log)
    if match is None or not int(match[2]) < int(match[1]) < UNKNOWN_LENGTH_BYTES:
        return ""
    return f"{match[2]} of {match[1]} bytes of samples are there"
