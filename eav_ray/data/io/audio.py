"""Audio of one recording, decoded once to mono at the stored rate."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import librosa
import numpy as np
import soundfile

from eav_ray.data.io import soundtrack
from eav_ray.data.io.channels import SILENT_LEVEL, ChannelLevels, find_silent_spans
from eav_ray.data.io.file_access import require_file
from eav_ray.data.io.limits import MAX_AUDIO_HZ, MIN_AUDIO_HZ, DecodingLimits
from eav_ray.data.io.wav_header import UNKNOWN_LENGTH_BYTES, check_wav_header, is_wav, require_stated_length
from eav_ray.data.recordings import MAX_RECORDING_S, Span
from eav_ray.errors import DataError

# In libsndfile's log of an AIFF, AU or Wave64 header.
LENGTH_PATTERN = re.compile(r"(?:SSND|Data Size|riff)\s*: (\d+) \(should be (\d+)\)")
UNKNOWN_FRAMES = 1 << 40  # libsndfile's count where a file states none is beyond
# What begins so is libsndfile's; all else is FFmpeg's, whatever its name is.
SOUND_FILE_MAGIC = (b"FORM", b"riff\x2e\x91\xcf\x11", b".snd", b"NIST_1A")
OTHER_MAGIC = (b"OggS", b"fLaC", b"caff", b"ID3", b"\x1a\x45\xdf\xa3")  # of FFmpeg's, so that they are no raw samples
RAW_SUFFIXES = (".raw", ".pcm", ".s16", ".s16le", ".s24le", ".s32le", ".f32", ".f32le", ".u8", ".sw", ".vox")
HEAD_BYTES = 4096
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
    """Decode a file of any rate, number of channels and format that libsndfile or FFmpeg knows, or a film's sound.

    The content says what a file is, not its name. Channels are averaged; one that is silent halves the others, and
    those that cancel each other are refused. Sound that is silent from its beginning to its end was not recorded: all
    of it is missing, and so are stretches of two seconds and more in which no sample differs from the next.

    Args:
        timeout_s: Give up after so long.
        max_duration_s: Longer files are refused.
        corruption: What becomes of the decoded signal, at the file's rate (`data/corruptions/audio.py`).
    Raises:
        DataError: The file is missing, unreadable, empty, shorter than its header says, longer than `max_duration_s`,
            sampled at a rate that no recorder has, takes too long, holds a value that is not finite or of another
            scale, or has a header that contradicts itself; or a film has no sound.
    """
    require_file(path, "an audio file such as .wav or .flac")
    limits = DecodingLimits(path, timeout_s, max_duration_s)
    sound = _read_sound(path, limits)
    if sound.levels.do_cancel():
        raise DataError(
            f"{path} has channels in opposite phase, whose mean holds next to nothing; save one of them alone, for "
            "example with `ffmpeg -i FILE -af pan=mono|c0=c0 FILE.wav`"
        )
    x_T, missing_s, remarks = sound.samples_T, sound.missing_s, [*sound.remarks, *sound.levels.describe()]
    _require_finite(x_T, path)
    lowest, highest = (float(x_T.min()), float(x_T.max())) if x_T.size else (0.0, 0.0)
    if max(-lowest, highest) > soundtrack.MAX_LEVEL:
        raise DataError(
            f"{path} holds samples up to {max(-lowest, highest):.0f}, where full scale is 1; divide them by the full "
            "scale that they have, such as 32768, and save it anew"
        )
    if max(-lowest, highest) > 1:
        remarks.append("it goes beyond full scale, and was clipped there")
    if highest - lowest < 2 * SILENT_LEVEL:
        missing_s = ((0.0, len(x_T) / sound.hz),)
        remarks.append("it is silent from beginning to end, which no microphone is, and counts as missing")
    elif silent_s := find_silent_spans(x_T, sound.hz, missing_s):
        missing_s = tuple(sorted((*missing_s, *silent_s)))
        seconds = sum(last_s - first_s for first_s, last_s in silent_s)
        remarks.append(
            f"it is exactly silent for {seconds:.1f} s from {silent_s[0][0]:.1f} s on, as where a recorder stopped or "
            "noise was cut out, and counts as missing there"
        )
    if corruption is not None:
        x_T = corruption(x_T, sound.hz)
    return DecodedAudio(resample_audio(x_T, sound.hz, hz, path), missing_s, tuple(remarks))


def _read_sound(path: str | Path, limits: DecodingLimits) -> soundtrack.Sound:
    """Read a file by libsndfile or FFmpeg, as its first bytes say."""
    with Path(path).open("rb") as file:
        head = file.read(HEAD_BYTES)
    if is_wav(head):
        header = check_wav_header(path)
        if header.has_length_of_zero or header.is_compressed:
            sound = soundtrack.read_soundtrack(path, limits, is_open_ended=header.is_unfinished)
            require_stated_length(header, len(sound.samples_T) / sound.hz, path)
        else:
            sound = _read_sound_file(path, limits)
        said = ("its header states no length, as if its recorder was stopped; what is there is used",)
        rest = ("something that is no sound follows its end, and was left out",)
        rate = ("its header states no bytes a second, which would confirm its sampling rate",)
        remarks = (
            (said if header.is_unfinished else ())
            + (rate if not (header.bytes_per_s or header.is_compressed) else ())
            + (rest if header.has_rest else ())
        )
        return sound._replace(remarks=(sound.remarks if not header.is_unfinished else ()) + remarks)
    # FFmpeg places the first samples of Vorbis too late.
    if head.startswith(SOUND_FILE_MAGIC) or (head.startswith(b"OggS") and b"\x01vorbis" in head[:64]):
        return _read_sound_file(path, limits)
    if Path(path).suffix.lower() in RAW_SUFFIXES and not head.startswith(OTHER_MAGIC) and head[4:8] != b"ftyp":
        raise DataError(
            f"{path} is raw samples without a header, which do not say their rate; convert it, for example with "
            "`ffmpeg -f s16le -ar 16000 -ac 1 -i FILE FILE.wav`"
        )
    has_no_length = head.startswith(b"caff") and b"data" + b"\xff" * 8 in head  # it was never written
    return soundtrack.read_soundtrack(path, limits, is_open_ended=has_no_length)


def _read_sound_file(path: str | Path, limits: DecodingLimits) -> soundtrack.Sound:
    """Read what libsndfile makes of a file."""
    blocks: list[np.ndarray] = []
    levels = ChannelLevels()
    n_samples = 0
    try:
        # A descriptor has no name that could lie.
        with Path(path).open("rb") as opened, soundfile.SoundFile(opened.fileno(), closefd=False) as file:
            source_hz, stated = file.samplerate, file.frames
            truncation = _describe_truncation(file.extra_info)
            if not MIN_AUDIO_HZ <= source_hz <= MAX_AUDIO_HZ:
                raise DataError(
                    f"{path} says that it is sampled at {source_hz} Hz; {MIN_AUDIO_HZ} to {MAX_AUDIO_HZ} Hz are read"
                )
            # Mono already here: channels of a long file need not all be kept.
            while len(block := file.read(max(1, BLOCK_SAMPLES // file.channels), dtype="float32", always_2d=True)):
                with np.errstate(over="ignore", invalid="ignore"):  # what comes of it is not finite, and refused below
                    blocks.append(block.mean(axis=1))
                levels.add(block.T, blocks[-1])
                n_samples += len(block)
                limits.check(n_samples / source_hz)
    except DataError:
        raise
    except (soundfile.SoundFileError, OSError, ValueError, TypeError) as error:
        words = getattr(error, "error_string", str(error))  # without the number that stands for the file
        raise DataError(
            f"{path} cannot be decoded as audio ({' '.join(words.split())}); replace it or leave it out"
        ) from None
    if not truncation and n_samples < stated < UNKNOWN_FRAMES:
        truncation = f"{n_samples} of {stated} samples decode"
    if truncation and blocks:
        raise DataError(f"{path} breaks off: {truncation}; copy it again or leave it out")
    if not blocks:
        raise DataError(f"{path} holds no audio samples; replace it or leave it out")
    return soundtrack.Sound(np.concatenate(blocks), source_hz, levels)


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
