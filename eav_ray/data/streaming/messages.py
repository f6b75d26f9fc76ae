"""What comes over a network, checked: signals of one recording, or pieces of a stream. Nobody knows who sent it.

Everything that is wrong is a DataError of one line. Files are let through by their first bytes only: FFmpeg also opens
playlists, which name other files.
"""

import base64
import binascii
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from eav_ray.data.io.limits import require_frame_size
from eav_ray.data.preprocessing.eeg import match_raw_channels
from eav_ray.data.preprocessing.resampling import compute_resampling_ratio
from eav_ray.data.preprocessing.windowing import WindowFormat
from eav_ray.data.recordings import RawEEG
from eav_ray.errors import DataError, suggest_nearest

MAX_HEADER_BYTES = 32 * 1024
MAX_MESSAGE_BYTES = 4 * 2**20
MIN_HZ, MAX_HZ = 1.0, 768_000.0
MAX_CHANNELS = 512
MAX_FEATURE_HZ = 1000.0  # rows a second of given features
MAX_VALUES_PER_S = 400_000  # a second, of all channels together
MAX_RATIO_TERM = 10_000  # of a ratio of two sampling rates: the filter between them is so long
MAX_JPEG_BYTES = 2 * 2**20
UNITS = ("auto", "microvolt", "volt")
DTYPES = {"eeg": ("float32", "float64"), "audio": ("int16", "float32")}
FEATURE_KEYS = ("modality", "time")
HEADER_KEYS = {
    "eeg": ("modality", "time", "hz", "channels", "unit", "dtype"),
    "audio": ("modality", "time", "hz", "channels", "dtype"),
    "video": ("modality", "time"),
}


@dataclass(frozen=True)
class Chunk:
    """A piece of one modality of a stream."""

    modality: str
    time_s: float  # of its first sample, or of the frame, on the clock of who sends
    hz: float = 0.0
    channels: tuple[str, ...] = ()  # EEG; empty where it does not say
    unit: str = "auto"
    # EEG in `unit`; audio (1, samples) in [-1, 1]
    values_CT: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32), repr=False)
    jpeg: bytes = b""
    row: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32), repr=False)  # (features,) float32


def parse_json(data: bytes | str, source: str) -> dict[str, Any]:
    """An object of JSON, whatever the bytes are."""
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())[:200]
        raise DataError(f"{source} is not JSON: {reason}") from None
    if not isinstance(tree, dict):
        raise DataError(f"{source} is JSON, but no object: it must begin with {{")
    return tree


def parse_chunk(message: bytes, feature_names: Sequence[str] = ()) -> Chunk:
    """A binary message of a stream: one line of JSON, a line feed, and the samples, the JPEG file or the features.

    The header has `modality` and `time` (seconds), with `hz`, `channels` and `dtype` for samples, which lie one moment
    after the other, all channels of each, little-endian. Audio: `int16` or `float32`, `channels` is their number
    (default 1). EEG: `float32` or `float64`, `channels` their names or their number, `unit` one of `UNITS`. Given
    features: one row, `float32`.

    Args:
        feature_names: Names of given features.
    """
    size = len(message)
    if size > MAX_MESSAGE_BYTES:
        raise DataError(f"a message has {size} bytes; at most {MAX_MESSAGE_BYTES} are taken: send shorter pieces")
    line, newline, payload = message[:MAX_HEADER_BYTES].partition(b"\n")
    if not newline:
        raise DataError(
            f"a message has no line feed in its first {MAX_HEADER_BYTES} bytes; begin it with a line of JSON"
        )
    header = parse_json(line, "the first line of a message")
    payload = memoryview(message)[len(line) + 1 :]
    modality = header.get("modality")
    keys = HEADER_KEYS | dict.fromkeys(feature_names, FEATURE_KEYS)
    if not isinstance(modality, str) or modality not in keys:
        raise DataError(f"modality is {_format_value(modality)}; use one of {', '.join(keys)}")
    check_keys(header, keys[modality], "the header")
    time_s = parse_number(header, "time", -1e12, 1e12)
    if modality == "video":
        return Chunk(modality, time_s, jpeg=require_jpeg(bytes(payload)))
    if modality not in HEADER_KEYS:
        if not len(payload) or len(payload) % 4:
            raise DataError(f"a row of {modality} has {len(payload)} bytes, which are no float32 numbers")
        return Chunk(modality, time_s, row=np.frombuffer(payload, "<f4").astype(np.float32))
    dtype = header.get("dtype", "float32")
    if dtype not in DTYPES[modality]:
        raise DataError(f"dtype of {modality} is {_format_value(dtype)}; use {' or '.join(DTYPES[modality])}")
    hz = parse_number(header, "hz", MIN_HZ, MAX_HZ)
    names, count = _parse_channels(header.get("channels", 1 if modality == "audio" else None))
    if count * hz > MAX_VALUES_PER_S:
        raise DataError(f"{count} channels at {hz:g} Hz are more than {MAX_VALUES_PER_S} values a second; send less")
    bytes_per_sample = np.dtype(dtype).itemsize * count
    if not len(payload) or len(payload) % bytes_per_sample:
        raise DataError(
            f"a piece of {modality} has {len(payload)} bytes, which are not whole moments of {count} x {dtype} "
            f"({bytes_per_sample} bytes)"
        )
    x_TC = np.frombuffer(payload, np.dtype(dtype).newbyteorder("<")).reshape(-1, count)
    if modality == "audio":
        x_TC = x_TC.astype(np.float32) / (32768 if dtype == "int16" else 1)  # as libsndfile does
        if not np.isfinite(x_TC).all():
            raise DataError("a piece of audio holds values that are not finite")
        return Chunk(modality, time_s, hz, values_CT=x_TC.mean(axis=1)[None])
    return Chunk(modality, time_s, hz, names, parse_unit(header), np.ascontiguousarray(x_TC.T))


def parse_eeg(tree: Any) -> RawEEG:
    """EEG of one recording: `{"hz", "channels", "unit", "values"}`.

    `values` is a list of lists, one a channel, or base64 of little-endian float32, channel after channel; `channels`
    are their names or their number: then the result has none.
    """
    if not isinstance(tree, dict):
        raise DataError('eeg is no object; give {"hz": 500, "channels": [...], "unit": "microvolt", "values": [...]}')
    check_keys(tree, ("hz", "channels", "unit", "values"), "eeg")
    hz = parse_number(tree, "hz", MIN_HZ, MAX_HZ)
    values = tree.get("values")
    try:
        if isinstance(values, str):
            names, count = _parse_channels(tree.get("channels"))
            flat = np.frombuffer(decode_base64(values, "eeg.values"), "<f4")
            if not flat.size or flat.size % count:
                raise DataError(f"eeg.values holds {flat.size} numbers, which {count} channels do not share equally")
            x_CT = flat.reshape(count, -1)
        else:
            x_CT = np.asarray(values, dtype=np.float64)
            names, count = _parse_channels(tree.get("channels", len(x_CT) if x_CT.ndim == 2 else 1))
    except DataError:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise DataError("eeg.values is neither a list of lists of numbers of equal length nor base64") from None
    if x_CT.ndim != 2 or len(x_CT) != count or not x_CT.shape[1]:
        raise DataError(f"eeg.values has shape {x_CT.shape}; it must be ({count} channels, samples)")
    return RawEEG(x_CT, hz, names, parse_unit(tree))


def arrange_channels(raw: RawEEG, inputs: WindowFormat) -> RawEEG:
    """Arrange EEG to the channels that a model was trained on, in its order.

    Args:
        raw: Its channels have no names where the sender gave none. Then they are in the model's order, and so they are
            where the model has none.
    """
    if raw.channels and inputs.eeg_channel_names:
        return match_raw_channels(raw, inputs.eeg_channel_names, "what was sent")
    count = len(raw.values_CT)
    if count != inputs.eeg_channels:
        raise DataError(f"EEG has {count} channels, but the model was trained on {inputs.eeg_channels}")
    names = inputs.eeg_channel_names or raw.channels or tuple(f"channel {i + 1}" for i in range(count))
    return replace(raw, channels=names)


def check_rate(hz: float, target_hz: int) -> None:
    """Raises DataError for a rate that only a huge filter could bring to another."""
    if max(compute_resampling_ratio(target_hz, hz)) > MAX_RATIO_TERM or hz > MAX_VALUES_PER_S:
        raise DataError(
            f"EEG is sampled at {hz:g} Hz, which has no simple ratio to {target_hz} Hz; give the nominal rate"
        )


def decode_base64(text: Any, source: str) -> bytes:
    """The bytes of a base64 text."""
    if not isinstance(text, str):
        raise DataError(f"{source} is {type(text).__name__}; give base64")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise DataError(f"{source} is not base64") from None


def require_audio_file(data: bytes) -> bytes:
    is_known = data[:4] in (b"RIFF", b"RF64", b"fLaC", b"OggS", b"FORM") or data[:3] == b"ID3"
    if not is_known and not (data[:1] == b"\xff" and data[1:2] >= b"\xe0"):
        raise DataError("audio is no wav, flac, ogg, aiff or mp3 file")
    return data


def require_video_file(data: bytes) -> bytes:
    if data[4:8] != b"ftyp" and data[:4] != b"\x1aE\xdf\xa3" and not (data[:4] == b"RIFF" and data[8:12] == b"AVI "):
        raise DataError("video is no mp4, mov, webm, mkv or avi file")
    return data


def require_jpeg(data: bytes) -> bytes:
    """A whole JPEG file of a reasonable size, by its header and its end; it is decoded later."""
    if len(data) > MAX_JPEG_BYTES:
        raise DataError(f"a frame has {len(data)} bytes; at most {MAX_JPEG_BYTES} are taken")
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            width, height = image.size
    # Pillow warns of files that are bombs, and raises for worse ones.
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError, TypeError):
        raise DataError("a frame is no JPEG file") from None
    require_frame_size(width, height, "a frame")
    if b"\xff\xd9" not in data[-64:]:  # cameras pad the end
        raise DataError("a frame breaks off: its JPEG file has no end")
    return data


def check_keys(tree: dict[str, Any], allowed: tuple[str, ...], source: str) -> None:
    """Raise DataError for a key that means nothing."""
    for key in tree:
        if key not in allowed:
            nearest = suggest_nearest(key, allowed)
            raise DataError(f"{source} has the key {_format_value(key)}; it may have {', '.join(allowed)}{nearest}")


def parse_number(tree: dict[str, Any], key: str, minimum: float, maximum: float) -> float:
    value = tree.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{key} is {_format_value(value)}; give a number")
    try:
        parsed = float(value)
    except OverflowError:
        parsed = math.inf
    if not minimum <= parsed <= maximum:  # not for NaN either
        raise DataError(f"{key} is {_format_value(value)}; give a number from {minimum:g} to {maximum:g}")
    return parsed


def parse_unit(tree: dict[str, Any]) -> str:
    unit = tree.get("unit", "auto")
    if unit not in UNITS:
        raise DataError(f"unit is {_format_value(unit)}; use one of {', '.join(UNITS)}")
    return str(unit)


def _parse_channels(given: Any) -> tuple[tuple[str, ...], int]:
    """Names, where there are some, and number."""
    if isinstance(given, int) and not isinstance(given, bool) and 1 <= given <= MAX_CHANNELS:
        return (), given
    if isinstance(given, list) and 1 <= len(given) <= MAX_CHANNELS and all(isinstance(n, str) for n in given):
        names = tuple(given)
        if len({n.strip().lower() for n in names}) == len(names):
            return names, len(names)
        raise DataError("channels names one channel twice")
    raise DataError(f"channels is {_format_value(given)}; give their number or a list of names, 1 to {MAX_CHANNELS}")


def _format_value(value: Any) -> str:
    try:
        text = json.dumps(value, default=str)
    except RecursionError:  # writing happens deeper in the stack than reading did
        text = "nested too deeply"
    return text if len(text) <= 60 else f"{text[:57]}..."
