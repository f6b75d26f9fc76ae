"""Cut one recording into windows that do not overlap, all modalities on one clock that starts with the recording."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from eav_ray.config import Modality, Profile
from eav_ray.data import audio, eeg, video
from eav_ray.data.manifest import DataSet, Recording
from eav_ray.errors import DataError

PRESENT = 0.5  # share of a window that a modality must cover to count as present
NEARLY = 0.05  # share of a window that the last one may lack: videos end some frames early


def cut(
    dataset: DataSet,
    recording: Recording,
    profile: Profile,
    modalities: Sequence[Modality],
    *,
    eeg_channels: int,
) -> list[dict[str, Any]]:
    """Read, clean and cut one recording.

    The longest modality decides how many windows there are: the whole ones, at least one. A modality is present in a
    window where it covers at least half of it, or where it covers anything of the only window; what it lacks there
    is padded (audio and EEG with zeros, video with its last frame). Where it is not present its array is zero.

    Args:
        modalities: Which keys the windows get; need not all exist in this recording.
        eeg_channels: Number of EEG channels of the data set, for recordings without EEG.
    Returns:
        One dictionary a window: `subject`, `recording`, `window`, `label`, `task`, `order`; `eeg_bad_channels` (int);
        for each modality `has_<m>` (bool), `<m>_seconds` (float, seconds of real signal), and its array:
        `eeg` float32 (channels, eeg.hz * window_s) in microvolts, `audio` float32 (audio.hz * window_s,),
        `video` uint8 (video.fps * window_s, size, size, 3).
    Raises:
        DataError: A file cannot be read, or the recording has none of the modalities.
    """
    window_s = profile.window_s
    seconds: dict[str, float] = {}
    signals: dict[str, np.ndarray] = {}
    bad_channels = 0
    if "eeg" in modalities and recording.eeg is not None:
        try:
            x_CT, quality = eeg.clean(dataset.read_eeg(recording), profile.eeg)
        except DataError as error:
            raise DataError(_naming(error, recording.eeg, recording)) from None
        if len(x_CT) != eeg_channels:
            raise DataError(
                f"{recording.eeg} ({recording.id}) has {len(x_CT)} EEG channels, but the data set has {eeg_channels}; "
                "leave this recording out"
            )
        signals["eeg"], seconds["eeg"] = x_CT, x_CT.shape[1] / profile.eeg.hz
        bad_channels = quality["bad_channels"]
    if "audio" in modalities and recording.audio is not None:
        signals["audio"] = audio.read(recording.audio, profile.audio.hz)
        seconds["audio"] = len(signals["audio"]) / profile.audio.hz
    if "video" in modalities and recording.video is not None:
        signals["video"], seconds["video"] = video.read(recording.video, profile.video.fps, profile.video.size)
    if not signals:
        raise DataError(f"recording {recording.id} has no {' and no '.join(modalities)}; leave it out")

    count = max(1, int(max(seconds.values()) / window_s + NEARLY))
    frames = (profile.video.fps * window_s, profile.video.size, profile.video.size, 3)
    cutters: dict[str, Callable[[int], np.ndarray]] = {
        "eeg": lambda w: _samples(signals.get("eeg"), w, (eeg_channels, profile.eeg.hz * window_s)),
        "audio": lambda w: _samples(signals.get("audio"), w, (profile.audio.hz * window_s,)),
        "video": lambda w: _frames(signals.get("video"), w, frames),
    }
    rows: list[dict[str, Any]] = []
    for w in range(count):
        row: dict[str, Any] = {
            "subject": recording.subject,
            "recording": recording.recording,
            "window": w,
            "label": recording.label,
            "task": recording.task,
            "order": recording.order,
            "eeg_bad_channels": bad_channels,
        }
        for m in modalities:
            real_s = float(np.clip(seconds.get(m, 0.0) - w * window_s, 0.0, window_s))
            present = real_s > 0 and (count == 1 or real_s >= PRESENT * window_s)
            row[f"has_{m}"] = present
            row[f"{m}_seconds"] = real_s if present else 0.0
            row[m] = cutters[m](w)
            if not present:
                row[m] = np.zeros_like(row[m])
        rows.append(row)
    return rows


def _samples(signal: np.ndarray | None, w: int, shape: tuple[int, ...]) -> np.ndarray:
    """Window `w` along the last axis, zeros after the signal's end."""
    out = np.zeros(shape, dtype=np.float32)
    if signal is not None:
        piece = signal[..., w * shape[-1] : (w + 1) * shape[-1]]
        out[..., : piece.shape[-1]] = piece
    return out


def _frames(frames: np.ndarray | None, w: int, shape: tuple[int, ...]) -> np.ndarray:
    """Window `w` along the first axis, the last frame held after the video's end."""
    if frames is None:
        return np.zeros(shape, dtype=np.uint8)
    wanted = np.arange(w * shape[0], (w + 1) * shape[0])
    return frames[np.minimum(wanted, len(frames) - 1)]


def _naming(error: DataError, file: str, recording: Recording) -> str:
    """`eeg.clean` sees numbers only: say whose they are."""
    return str(error) if file in str(error) else f"{file} ({recording.id}): {error}"
