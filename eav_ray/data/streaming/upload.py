"""One recording as it is sent, to windows: through the code that preprocessing uses, by files that last as long."""

import io
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import safetensors.numpy
from av.container import OutputContainer
from PIL import Image

from eav_ray.config import MODALITIES
from eav_ray.data.io.features import TIME_NAME, VALUES_NAME
from eav_ray.data.preprocessing.eeg import PreparedEEG, prepare_eeg
from eav_ray.data.preprocessing.windowing import WindowedRecording, WindowFormat, cut_recording
from eav_ray.data.recordings import DatasetReader, GivenFeatures, RawEEG, Recording
from eav_ray.data.streaming import messages
from eav_ray.errors import DataError

MAX_UPLOAD_S = 120  # of what is sent
DECODE_TIMEOUT_S = 20  # to decode one file
NOT_SENT = "not sent"
NOTHING_KNOWN = "it covers less than half of every window, or no number of it is known"
MAX_FEATURE_VALUES = 2**22  # of given features


@dataclass(frozen=True)
class UploadLimits:
    """How long a recording and its decoding may last; by default what a stranger may send."""

    max_duration_s: float = MAX_UPLOAD_S
    decode_timeout_s: int = DECODE_TIMEOUT_S  # of one file


UPLOAD_LIMITS = UploadLimits()


@dataclass(frozen=True)
class FeatureRows:
    """Features that somebody else has computed of one recording."""

    values: np.ndarray  # (rows, features) float32, NaN where a number is not known
    times_s: np.ndarray | None = None  # (rows,) since the recording began; none: one row, or rows at a rate
    hz: float = 0.0


@dataclass(frozen=True)
class Upload:
    """What was sent of each modality: as it came, or why it cannot be used. Keys are the modalities that were sent."""

    eeg: RawEEG | None = None  # its channels have names only where they were given
    audio: bytes | Path | None = None  # a file: what it holds, or where it lies
    video: bytes | Path | None = None
    frames: tuple[bytes, ...] | np.ndarray = ()  # instead of `video`: JPEG files, or (n, height, width, 3) uint8 RGB
    frames_hz: float = 0.0
    features: Mapping[str, FeatureRows | GivenFeatures] = field(default_factory=dict)  # by the name of the modality
    errors: dict[str, str] = field(default_factory=dict)  # modality -> reason


def parse_upload(tree: dict[str, Any], feature_names: Sequence[str] = ()) -> Upload:
    """Read what was sent of one recording.

    `{"eeg": {...}, "audio": base64, "video": base64 or {"hz", "frames": [base64]}, "NAME": {"values", "time_s" or
    "hz"}}`, any of them. A modality that is wrong is set aside with its reason; a key that means nothing is an error.

    Args:
        feature_names: Names of given features.
    """
    messages.check_keys(tree, (*MODALITIES, *feature_names), "the request")
    parts: dict[str, Any] = {}
    features: dict[str, FeatureRows] = {}
    errors: dict[str, str] = {}
    for m, value in tree.items():
        if value is None:
            continue
        try:
            match m:
                case "eeg":
                    parts["eeg"] = messages.parse_eeg(value)
                case "audio":
                    parts["audio"] = messages.require_audio_file(_decode_bytes(value, m))
                case _ if m in feature_names:
                    features[m] = _parse_features(value, m)
                case _ if isinstance(value, dict):
                    parts |= _parse_frames(value)
                case _:
                    parts["video"] = messages.require_video_file(_decode_bytes(value, m))
        except DataError as error:
            errors[m] = str(error)
    return Upload(**parts, features=features, errors=errors)


def _parse_features(value: Any, name: str) -> FeatureRows:
    tree = messages.parse_json(value, name) if isinstance(value, bytes) else value
    if not isinstance(tree, dict):
        raise DataError(f'{name} is no object; give {{"values": [...]}}, or rows of them with "time_s" or "hz"')
    messages.check_keys(tree, ("values", "time_s", "hz"), name)
    hz = messages.parse_number(tree, "hz", 1e-3, messages.MAX_FEATURE_HZ) if "hz" in tree else 0.0
    values = tree.get("values")
    rows = values if isinstance(values, list) and values and isinstance(values[0], list) else [values]
    widest = max((len(row) for row in rows if isinstance(row, list)), default=0)
    if len(rows) > MAX_UPLOAD_S * messages.MAX_FEATURE_HZ or len(rows) * widest > MAX_FEATURE_VALUES:
        raise DataError(f"{name}.values has {len(rows)} rows of up to {widest} numbers; send fewer")
    try:
        values = np.array(values, np.float32)  # null becomes NaN
        times_s = None if tree.get("time_s") is None else np.array(tree["time_s"], np.float64)
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise DataError(f"{name}.values and {name}.time_s must be numbers, or rows of equally many") from None
    return FeatureRows(np.atleast_2d(values), times_s, hz)


def _decode_bytes(value: Any, source: str) -> bytes:
    return value if isinstance(value, bytes) else messages.decode_base64(value, source)


def _parse_frames(tree: dict[str, Any]) -> dict[str, Any]:
    messages.check_keys(tree, ("hz", "frames"), "video")
    hz = messages.parse_number(tree, "hz", 0.1, 240)
    frames = tree.get("frames")
    if not isinstance(frames, list) or not frames:
        raise DataError("video.frames is no list of base64 JPEG files")
    if len(frames) / hz > MAX_UPLOAD_S:
        raise DataError(f"video is longer than {MAX_UPLOAD_S} s; cut it into recordings")
    return {"frames": tuple(messages.require_jpeg(_decode_bytes(f, "a frame")) for f in frames), "frames_hz": hz}


def make_windows(
    upload: Upload, inputs: WindowFormat, limits: UploadLimits = UPLOAD_LIMITS
) -> tuple[WindowedRecording, dict[str, str]]:
    """Windows of what was sent, as `windowing.cut_recording` makes them, and for each modality without any, why.

    Args:
        limits: How long the recording and its decoding may last.
    """
    modalities = inputs.modalities
    reasons = dict.fromkeys(modalities, NOT_SENT) | {m: r for m, r in upload.errors.items() if m in modalities}
    timeout_s = min(inputs.preprocessing.file_timeout_s, limits.decode_timeout_s)
    preprocessing = replace(inputs.preprocessing, on_bad="partial", file_timeout_s=timeout_s)
    with tempfile.TemporaryDirectory(prefix="eav-ray-") as folder:
        files: dict[str, str] = {}
        for m in ("audio", "video"):
            if m in modalities and (path := _write_file(upload, m, Path(folder))):
                files[m] = str(path)
        given = {m: _store_features(rows, Path(folder) / f"{m}.safetensors") for m, rows in upload.features.items()}
        given = {m: each for m, each in given.items() if m in modalities}
        files |= {m: each.path for m, each in given.items()}
        recording = Recording(
            "sent", "sent", 0, "speaking", 0, audio=files.get("audio"), video=files.get("video"), features=given
        )
        prepared: PreparedEEG | DataError | None = None
        if upload.eeg is not None and "eeg" in modalities:
            recording = replace(recording, eeg="eeg")
            prepared = prepare_single_recording(upload.eeg, inputs, limits.max_duration_s)
        window_format = replace(inputs, preprocessing=preprocessing)
        result = cut_recording(recording, window_format, prepared, limits.max_duration_s)
    for problem in result.problems:
        m = next((m for m, path in files.items() if path == problem.file), "eeg")
        reasons[m] = problem.reason.replace(problem.file, m)
    used = {m for m in modalities if any(w[f"has_{m}"] for w in result.windows)}
    sent = {m for m in modalities if recording.get_source(m) is not None}
    reasons |= {m: NOTHING_KNOWN for m in sent if reasons[m] == NOT_SENT}
    return result, {m: reason for m, reason in reasons.items() if m not in used}


def _store_features(rows: FeatureRows | GivenFeatures, path: Path) -> GivenFeatures:
    """Store them as a file of one recording, so that what reads such files checks them."""
    if isinstance(rows, GivenFeatures):
        return rows
    tensors: dict[str, np.ndarray] = {VALUES_NAME: np.ascontiguousarray(rows.values, np.float32)}
    if rows.times_s is not None:
        tensors[TIME_NAME] = np.ascontiguousarray(rows.times_s, np.float64)
    safetensors.numpy.save_file(tensors, path)
    return GivenFeatures(str(path), hz=rows.hz)


def prepare_single_recording(
    raw: RawEEG, inputs: WindowFormat, max_duration_s: float = MAX_UPLOAD_S
) -> PreparedEEG | DataError:
    """EEG of one recording alone, cleaned as `preprocessing.eeg` says; or why it cannot be used."""
    try:
        seconds = raw.values_CT.shape[1] / raw.hz
        if seconds > max_duration_s:
            raise DataError(
                f"EEG is {seconds:.0f} s long; at most {max_duration_s:g} s are taken: cut it into recordings"
            )
        messages.check_rate(raw.hz, inputs.preprocessing.eeg.hz)
        reader = _UploadedDataset(messages.arrange_channels(raw, inputs))
        recording = Recording("sent", "sent", 0, "", 0, eeg="eeg")
        ((_, prepared),) = prepare_eeg(reader, [recording], inputs.preprocessing.eeg)
        if isinstance(prepared, DataError):
            return DataError(str(prepared).removeprefix("eeg (sent/sent): "))
        if not np.isfinite(prepared.x_CT).all():
            raise DataError("EEG holds values that are too large to filter")
        return prepared
    except DataError as error:
        return error


class _UploadedDataset(DatasetReader):
    """A data set of one recording, for `preprocessing.eeg.prepare_eeg`."""

    def __init__(self, raw: RawEEG) -> None:
        self.raw = raw

    def read_eeg(self, recording: Recording) -> RawEEG:
        return self.raw


def _write_file(upload: Upload, modality: str, folder: Path) -> Path | None:
    content, path = upload.audio if modality == "audio" else upload.video, folder / modality
    if isinstance(content, Path):
        return content
    if content is not None:
        path.write_bytes(content)
        return path
    if modality == "audio" or not len(upload.frames):
        return None
    write = _write_lossless if isinstance(upload.frames, np.ndarray) else _write_mjpeg
    with av.open(str(path), "w", format="matroska") as container:
        write(upload.frames, Fraction(upload.frames_hz).limit_denominator(1000), container)
    return path


def _write_lossless(frames: Any, rate: Fraction, container: OutputContainer) -> None:
    """Write pictures, (n, height, width, 3) uint8 RGB, as they are."""
    stream = container.add_stream("ffv1", rate=rate)
    stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "bgr0"
    for frame in frames:
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
    container.mux(stream.encode())


def _write_mjpeg(frames: Any, rate: Fraction, container: OutputContainer) -> None:
    """Write JPEG files as they are."""
    stream = container.add_stream("mjpeg", rate=rate)
    with Image.open(io.BytesIO(frames[0])) as first:
        stream.width, stream.height = first.size
    stream.pix_fmt = "yuvj420p"
    for k, frame in enumerate(frames):
        packet = av.Packet(frame)
        packet.stream, packet.time_base, packet.pts, packet.dts = stream, 1 / rate, k, k
        container.mux(packet)
