"""Cut one recording into windows that do not overlap, all modalities on one clock that starts with the recording."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eav_ray.config import ModalityName, Preprocessing
from eav_ray.data.io import audio, features, video
from eav_ray.data.io.stated_durations import find_shorter_modalities
from eav_ray.data.modalities.base import RecordingSignals
from eav_ray.data.modalities.features import average_into_steps
from eav_ray.data.modalities.registry import get_modality
from eav_ray.data.preprocessing.eeg import PreparedEEG
from eav_ray.data.preprocessing.signals import prepare_signals
from eav_ray.data.recordings import MAX_RECORDING_S, Problem, Recording, Span, measure_overlap, shift_spans
from eav_ray.errors import DataError

MIN_COVERAGE = 0.5  # share of a window that a modality must cover to count as present
RECORDING_FIELDS = ("subject", "recording", "label", "task", "order")  # that every window has
LAST_WINDOW_TOLERANCE = 0.05  # share of a window that the last one may lack: videos end some frames early


@dataclass(frozen=True)
class WindowFormat:
    """Describe the windows that are made of recordings.

    Attributes:
        modalities: Those that windows have; need not all exist in a recording.
        eeg_channels: Number of EEG channels, for recordings without EEG, too.
        eeg_channel_names: Their names, where they are known.
    """

    preprocessing: Preprocessing
    modalities: tuple[ModalityName, ...]
    eeg_channels: int
    eeg_channel_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class WindowedRecording:
    """One recording, read and cut."""

    windows: list[dict[str, Any]]  # none where the policy left the recording out
    problems: tuple[Problem, ...]  # files that could not be used
    quality: dict[str, Any]  # of the whole recording, for the table: JSON


def read_signals(
    recording: Recording,
    window_format: WindowFormat,
    prepared_eeg: PreparedEEG | DataError | None,
    max_duration_s: float = MAX_RECORDING_S,
    audio_corruption: Callable[[np.ndarray, int], np.ndarray] | None = None,
    video_corruption: video.FrameCorruption | None = None,
) -> RecordingSignals:
    """Read one recording. A file that cannot be used is a problem, and its modality is not there.

    Args:
        prepared_eeg: The recording's EEG (`preprocessing.eeg.prepare_eeg`), why it cannot be used, or None where there
            is none.
        max_duration_s: A file that lasts longer is refused.
        audio_corruption, video_corruption: What becomes of decoded audio and video.
    """
    preprocessing = window_format.preprocessing
    durations_s: dict[str, float] = {}
    signals: dict[str, np.ndarray] = {}
    problems: list[Problem] = []
    quality: dict[str, Any] = {}
    missing_s: dict[str, tuple[Span, ...]] = {}
    remarks: list[str] = []
    faceless: np.ndarray | None = None
    # Features last: those of a whole recording last as long as what was recorded of it.
    for m in sorted(window_format.modalities, key=lambda m: m in preprocessing.features):
        try:
            match m:
                case "eeg" if prepared_eeg is not None:
                    if isinstance(prepared_eeg, DataError):
                        raise prepared_eeg
                    _check_channels(prepared_eeg, recording, window_format.eeg_channels)
                    signals["eeg"] = prepared_eeg.x_CT
                    durations_s["eeg"] = prepared_eeg.x_CT.shape[1] / preprocessing.eeg.hz
                    quality |= {"eeg_unit": prepared_eeg.unit, "eeg_bad_channel_reasons": prepared_eeg.bad_channels}
                    if preprocessing.eeg.artefacts != "none":
                        quality["eeg_removed_components"] = prepared_eeg.removed_components
                    missing_s["eeg"] = prepared_eeg.missing_s
                    remarks += [f"eeg: {remark}" for remark in prepared_eeg.remarks]
                case "audio" if recording.audio is not None:
                    limit_s = preprocessing.file_timeout_s
                    sound = audio.decode_audio(
                        recording.audio, preprocessing.audio.hz, limit_s, max_duration_s, audio_corruption
                    )
                    samples, span_s = slice(None), recording.spans_s.get("audio")
                    missing_s["audio"] = sound.missing_s
                    if span_s is not None:
                        count = len(sound.samples_T)
                        samples = _find_samples(span_s, preprocessing.audio.hz, count, recording.audio)
                        missing_s["audio"] = shift_spans(sound.missing_s, *span_s)
                    signals["audio"] = sound.samples_T[samples]
                    remarks += [f"audio: {remark}" for remark in sound.remarks]
                    durations_s["audio"] = len(signals["audio"]) / preprocessing.audio.hz
                case "video" if recording.video is not None:
                    v = preprocessing.video
                    film = video.read_video(
                        recording.video,
                        v.fps,
                        v.size,
                        timeout_s=preprocessing.file_timeout_s,
                        face_step=v.face_step if v.crop == "face" else 0,
                        max_duration_s=max_duration_s,
                        corruption=video_corruption,
                    )
                    signals["video"], durations_s["video"], faceless = film.frames, film.duration_s, film.faceless
                    missing_s["video"] = film.missing_s
                    if (span_s := recording.spans_s.get("video")) is not None:
                        frames = _find_samples(span_s, v.fps, len(film.frames), recording.video)
                        signals["video"], missing_s["video"] = film.frames[frames], shift_spans(film.missing_s, *span_s)
                        durations_s["video"] = min(span_s[1], film.duration_s) - span_s[0]
                        faceless = None if film.faceless is None else film.faceless[frames]
                    remarks += [f"video: {remark}" for remark in film.remarks]
                case _ if m in recording.features and preprocessing.features[m].signals:
                    given, section = recording.features[m], preprocessing.features[m]
                    span_s = recording.spans_s.get("eeg") if given.path == recording.eeg else None
                    found = prepare_signals(
                        given.path, section, preprocessing.window_s, max_duration_s, span_s, given.marks
                    )
                    signals[m], durations_s[m], missing_s[m] = found.values_TC, found.duration_s, found.missing_s
                    remarks += [f"{m}: {remark}" for remark in found.remarks]
                case _ if m in recording.features:
                    longest_s = max(durations_s.values(), default=0.0)
                    signals[m], durations_s[m] = _read_features(m, recording, preprocessing, longest_s, max_duration_s)
                case _:
                    pass
        except DataError as error:
            problems.append(Problem(recording.subject, recording.recording, recording.get_source(m) or "", str(error)))
    if remarks:
        quality["remarks"] = remarks
    return RecordingSignals(signals, durations_s, tuple(problems), quality, faceless, missing_s)


def cut_recording(
    recording: Recording,
    window_format: WindowFormat,
    prepared_eeg: PreparedEEG | DataError | None,
    max_duration_s: float = MAX_RECORDING_S,
) -> WindowedRecording:
    """Read and cut one recording (`read`, `cut_signals`). The policy says what becomes of one with a problem."""
    signals = read_signals(recording, window_format, prepared_eeg, max_duration_s)
    return cut_signals(signals, recording, window_format)


def cut_signals(
    recording_signals: RecordingSignals, recording: Recording, window_format: WindowFormat
) -> WindowedRecording:
    """Cut what was read of one recording.

    The longest modality decides how many windows there are: the whole ones, at least one. A modality is present in a
    window where it covers at least half of it, or where it covers anything of the only window; what it lacks there
    is padded (audio and EEG with zeros, video with its last frame). Spans in which it is missing do not count as
    covered. Where it is not present its array is zero.

    Returns:
        Windows, one dictionary each: `subject`, `recording`, `window`, `label`, `task`, `order`, and `target_<k>` where
        numbers are predicted; for each modality
        `has_<m>` (bool), `<m>_seconds` (float, seconds of real signal), the columns that its `Modality` measures,
            and its array:
        `eeg` float32 (channels, eeg.hz * window_s) in microvolts, `audio` float32 (audio.hz * window_s,),
        `video` uint8 (video.fps * window_s, size, size, 3).
    """
    preprocessing, window_s = window_format.preprocessing, window_format.preprocessing.window_s
    arrays, durations_s = recording_signals.arrays, recording_signals.durations_s
    problems = recording_signals.problems
    quality: dict[str, Any] = {"recording": recording.recording, "label": recording.label, **recording_signals.quality}
    if recording.targets:
        quality["targets"] = list(recording.targets)
    quality |= {f"{m}_seconds": s for m, s in durations_s.items()}
    if shorter := find_shorter_modalities(durations_s, window_s):
        remark = f"{', '.join(shorter)}: over a window before the longest modality ends, and missing from then on"
        quality["remarks"] = [*quality.get("remarks", ()), remark]
    if not arrays or (problems and preprocessing.on_bad != "partial"):
        return WindowedRecording([], problems, quality)

    n_windows = max(1, int(max(durations_s.values()) / window_s + LAST_WINDOW_TOLERANCE))
    rows: list[dict[str, Any]] = []
    for w in range(n_windows):
        row: dict[str, Any] = {name: getattr(recording, name) for name in RECORDING_FIELDS} | {"window": w}
        row |= recording.name_targets()
        for m in window_format.modalities:
            start_s = float(w * window_s)
            end_s = min(durations_s.get(m, 0.0), start_s + window_s)
            gaps_s = recording_signals.missing_s.get(m, ())
            covered_s = max(0.0, end_s - start_s) - measure_overlap(gaps_s, start_s, end_s)
            present = covered_s > 0 and (n_windows == 1 or covered_s >= MIN_COVERAGE * window_s)
            modality = get_modality(m)
            row[m] = modality.cut(arrays.get(m), w, modality.compute_shape(preprocessing, window_format.eeg_channels))
            row[f"has_{m}"] = present = present and modality.is_known(row[m])
            if not present:
                row[m] = np.zeros_like(row[m])
            row[f"{m}_seconds"] = covered_s if present else 0.0
            row |= modality.measure(row[m], w, recording_signals, present=present)
        rows.append(row)
    for m in arrays:
        for name in get_modality(m).averaged_columns:
            if measured := [row[name] for row in rows if row[f"has_{m}"] and row[name] is not None]:
                quality[name] = float(np.mean(measured))
    return WindowedRecording(rows, problems, quality)


def _find_samples(span_s: Span, hz: float, count: int, source: str) -> slice:
    """Find the samples of a part of a file; raises DataError where it begins after the end."""
    first, last = (round(time_s * hz) for time_s in span_s)
    if first >= count:
        raise DataError(f"{source} lasts {count / hz:g} s, so nothing of it is of an event at {span_s[0]:g} s")
    return slice(first, min(last, count))


def _read_features(
    modality: str, recording: Recording, preprocessing: Preprocessing, longest_s: float, max_duration_s: float
) -> tuple[np.ndarray, float]:
    """Read the features of a recording by parts of its windows.

    Args:
        longest_s: Of what was recorded; 0 where there is nothing.
        max_duration_s: Features that last longer are refused.
    Returns:
        ((windows * steps, features), seconds that they cover).
    Raises:
        DataError: They cannot be read, or last too long.
    """
    given, section = recording.features[modality], preprocessing.features[modality]
    window_s = preprocessing.window_s
    times_s, values = None, np.array([given.values], np.float32)
    if not given.values:
        times_s, values = features.read_feature_file(Path(given.path), modality, section, given.hz)
    if times_s is None:
        duration_s = longest_s or float(window_s)
        n_parts = max(1, int(np.ceil(duration_s / window_s - 1e-9))) * section.steps
        return np.tile(values, (n_parts, 1)), duration_s
    covered_s = float(times_s[-1]) + (1 / given.hz / 2 if given.hz else 0.0) if len(times_s) else 0.0
    if covered_s > max_duration_s:
        raise DataError(
            f"{given.path} has features up to second {covered_s:.0f}; times count from the beginning of the recording, "
            f"which lasts at most {max_duration_s:g} s"
        )
    duration_s = max(longest_s, covered_s) or float(window_s)
    return average_into_steps(times_s, values, window_s, section.steps, duration_s), covered_s


def _check_channels(prepared_eeg: PreparedEEG, recording: Recording, eeg_channels: int) -> None:
    if len(prepared_eeg.x_CT) != eeg_channels:
        raise DataError(
            f"{recording.eeg} ({recording.id}) has {len(prepared_eeg.x_CT)} EEG channels, but the data set has "
            f"{eeg_channels}; leave this recording out"
        )
