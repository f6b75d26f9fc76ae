"""One recording as Python code gives it: paths of files, arrays with their rates, or MNE's objects."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import mne
import numpy as np
import soundfile

from eav_ray.data.io.eeg import open_eeg_file
from eav_ray.data.io.eeg_file import EEGFile, MNEFile
from eav_ray.data.io.features import FILE_SUFFIXES
from eav_ray.data.io.file_access import is_file
from eav_ray.data.preprocessing.channel_choice import choose_channels
from eav_ray.data.recordings import GivenFeatures, RawEEG
from eav_ray.data.streaming.messages import UNITS
from eav_ray.data.streaming.upload import FeatureRows, Upload
from eav_ray.electrodes import canonicalize_channel_name
from eav_ray.errors import ConfigError, DataError, suggest_nearest

EEGSource = str | Path | np.ndarray | mne.io.BaseRaw
MediaSource = str | Path | np.ndarray
FeatureSource = str | Path | np.ndarray


def make_upload(
    eeg: EEGSource | None = None,
    audio: MediaSource | None = None,
    video: MediaSource | None = None,
    *,
    known_eeg_names: Sequence[str] = (),
    eeg_hz: float | None = None,
    eeg_channels: Sequence[str] = (),
    eeg_unit: str = "auto",
    audio_hz: int | None = None,
    video_fps: float | None = None,
    features: Mapping[str, FeatureSource] | None = None,
    features_hz: Mapping[str, float] | None = None,
    feature_names: Sequence[str] = (),
) -> Upload:
    """Bring one recording into the form in which it is predicted. Files of audio and video are not read here.

    Args:
        eeg: A file of any format that `mne.io.read_raw` knows, an `mne.io.Raw`, or (channels, samples).
        audio: A file, or (samples,) or (samples, channels): floats in [-1, 1] or 16-bit integers.
        video: A file, or (frames, height, width, 3) uint8 RGB.
        known_eeg_names: The channels that the model knows, which are taken from a file by name where it has them all;
            else its EEG channels are.
        eeg_hz, audio_hz, video_fps: Rates of arrays, per second.
        eeg_channels: Names of an array's channels.
        eeg_unit: Of an array: "microvolt", "volt", or "auto" to tell by its size.
        features: Given features by name: a file, (features,) of the whole recording, or (rows, features) at a rate.
        features_hz: The rate of such rows by name, per second.
        feature_names: The names that the model knows.

    Raises:
        ConfigError: Nothing is given, an array without its rate or of another shape, an unknown unit or name.
        DataError: The EEG file cannot be read.
    """
    given = _read_features(features, features_hz, feature_names)
    if eeg is None and audio is None and video is None and not given:
        known = ", ".join(["eeg", "audio", "video", *(f"features[{name!r}]" for name in feature_names)])
        raise ConfigError(f"there is nothing to predict; give at least one of {known}")
    frames = _check_frames(video) if isinstance(video, np.ndarray) else ()
    return Upload(
        eeg=None if eeg is None else _read_eeg(eeg, known_eeg_names, eeg_hz, eeg_channels, eeg_unit),
        audio=None if audio is None else _read_audio(audio, audio_hz),
        video=None if video is None or isinstance(video, np.ndarray) else _find_file("video", video),
        frames=frames,
        frames_hz=_require_rate("video", "video_fps", video_fps, 25) if len(frames) else 0.0,
        features=given,
    )


def _read_features(
    features: Mapping[str, FeatureSource] | None, rates: Mapping[str, float] | None, known_names: Sequence[str]
) -> dict[str, FeatureRows | GivenFeatures]:
    for argument, values in (("features", features), ("features_hz", rates)):
        if values is not None and not isinstance(values, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(
                f'{argument} is a {type(values).__name__}; give it by name, such as {argument}={{"face": ...}}'
            )
        for name in values or {}:
            if name not in known_names:
                known = ", ".join(known_names) or "none"
                raise ConfigError(f"{argument} names {name}; the model has {known}{suggest_nearest(name, known_names)}")
    found: dict[str, FeatureRows | GivenFeatures] = {}
    for name, source in (features or {}).items():
        what, hz = f"features[{name!r}]", (rates or {}).get(name, 0.0)
        if not isinstance(hz, int | float) or not 0 <= hz < math.inf:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"features_hz[{name!r}] is {hz!r}; give the rows a second")
        if isinstance(source, str | Path):
            path = _find_file(what, source)
            if path.suffix.lower() not in FILE_SUFFIXES:
                raise ConfigError(f"{what} is {path.name}; give a {', '.join(FILE_SUFFIXES)} file, or an array")
            found[name] = GivenFeatures(str(path), hz=float(hz))
            continue
        is_array = isinstance(source, np.ndarray) and source.ndim in (1, 2) and source.dtype.kind in "fiu"  # pyright: ignore[reportUnnecessaryIsInstance]
        if not is_array:
            shape = f" of shape {source.shape}" if isinstance(source, np.ndarray) else ""
            raise ConfigError(
                f"{what} is a {type(source).__name__}{shape}; give an array of numbers, (features,) or (rows, features)"
            )
        rows = np.atleast_2d(source).astype(np.float32)
        if len(rows) > 1 and not hz:
            raise ConfigError(
                f"{what} has {len(rows)} rows, so their rate is needed: for example features_hz={{{name!r}: 25}}"
            )
        found[name] = FeatureRows(rows, hz=float(hz))
    return found


def _find_file(name: str, path: str | Path) -> Path:
    found = Path(path).expanduser()
    if not is_file(found):
        raise DataError(f"{name} is {path}, where there is no file")
    return found


def _require_rate(name: str, argument: str, rate: float | None, example: int) -> float:
    if rate is None or not rate > 0:
        raise ConfigError(f"{name} is an array, so its rate is needed: for example {argument}={example}")
    return float(rate)


def _read_eeg(
    source: EEGSource, known_names: Sequence[str], hz: float | None, channels: Sequence[str], unit: str
) -> RawEEG:
    if isinstance(source, np.ndarray):
        rate = _require_rate("eeg", "eeg_hz", hz, 500)
        if source.ndim != 2 or (channels and len(channels) != len(source)):
            expected = f"({len(channels) or 'channels'}, samples)"
            raise ConfigError(f"eeg has shape {source.shape}; give {expected}")
        if unit not in UNITS:
            raise ConfigError(f"eeg_unit is {unit!r}; use one of {', '.join(UNITS)}")
        return RawEEG(np.asarray(source, dtype=np.float64), rate, tuple(channels), unit)
    if isinstance(source, mne.io.BaseRaw):
        return _read_channels(MNEFile(source, "eeg"), known_names)
    file = open_eeg_file(Path(source).expanduser())
    try:
        return _read_channels(file, known_names)
    finally:
        file.close()


def _read_channels(file: EEGFile, known_names: Sequence[str]) -> RawEEG:
    """Read the channels that the model knows, or all scalp channels."""
    known = {canonicalize_channel_name(name) for name in known_names}
    available = [name for name, kind in zip(file.names, file.types, strict=True) if kind != "stim"]
    names = [name for name in available if canonicalize_channel_name(name) in known]
    if not known or len({canonicalize_channel_name(name) for name in names}) < len(known):
        names = list(choose_channels(file.names, file.types, (), "eeg").taken)
    return file.read(names)


def _read_audio(source: MediaSource, hz: int | None) -> Path | bytes:
    if not isinstance(source, np.ndarray):
        return _find_file("audio", source)
    rate = _require_rate("audio", "audio_hz", hz, 16000)
    if source.ndim not in (1, 2) or not (np.issubdtype(source.dtype, np.floating) or source.dtype == np.int16):
        raise ConfigError(
            f"audio has shape {source.shape} and holds {source.dtype}; give (samples,) or (samples, channels), as "
            "floats in [-1, 1] or 16-bit integers"
        )
    is_integer = source.dtype == np.int16
    sink = io.BytesIO()
    samples = source if is_integer else source.astype(np.float32)
    soundfile.write(sink, samples, round(rate), format="WAV", subtype="PCM_16" if is_integer else "FLOAT")
    return sink.getvalue()


def _check_frames(frames: np.ndarray) -> np.ndarray:
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ConfigError(
            f"video has shape {frames.shape} and holds {frames.dtype}; give (frames, height, width, 3) of uint8, RGB"
        )
    return frames
