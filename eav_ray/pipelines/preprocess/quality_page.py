"""The quality page of a data set that was preprocessed."""

import numpy as np
from scipy.signal import welch

from eav_ray.config import Experiment
from eav_ray.data.datasets import registry
from eav_ray.data.io.eeg_units import MICROVOLTS
from eav_ray.data.modalities.registry import get_modality
from eav_ray.data.recordings import DatasetReader, Recording
from eav_ray.data.shards.index import read_shard
from eav_ray.data.shards.location import name_index_folder, open_shard_store
from eav_ray.errors import DataError
from eav_ray.pipelines.preprocess.preprocess import PreprocessingResult
from eav_ray.reporting.quality_page import EEGSpectrum, QualityReport, format_quality, render_quality_page

PAGE_NAME = "quality.html"
MAX_SPECTRUM_SUBJECTS = 6  # whose spectrum is shown: each costs reading a file


def write_quality_page(experiment: Experiment, result: PreprocessingResult, *, frames: bool) -> tuple[str, str]:
    """Write the page beside the shards.

    Args:
        frames: Show one frame of each person. Faces are personal data: only where somebody asks.
    Returns:
        The table for the terminal, and the path of the page.
    """
    dataset, listing = registry.scan_dataset(experiment.data, experiment.preprocessing.features)
    dataset.wanted_channels = experiment.preprocessing.eeg.channels
    store = open_shard_store(experiment)
    quality = QualityReport(
        result.index.classes,
        result.quality,
        result.problems,
        channels=result.index.eeg_channel_names,
        spectrum=_compute_spectrum(experiment, result, dataset, list(listing.recordings)),
        remarks=listing.remarks,
        targets=result.index.targets,
        frames=_pick_example_frames(experiment, result) if frames and "video" in result.index.modalities else None,
    )
    name = f"{name_index_folder(experiment)}/{PAGE_NAME}"
    store.write(name, render_quality_page(quality).encode())
    return format_quality(quality), store.format_path(name)


def _compute_spectrum(
    experiment: Experiment, result: PreprocessingResult, dataset: DatasetReader, recordings: list[Recording]
) -> EEGSpectrum | None:
    """Of the first recording of a few people: channels as recorded, and windows as stored."""
    if "eeg" not in result.index.modalities:
        return None
    first = {r.subject: r for r in reversed(recordings) if r.eeg is not None}
    first_recordings = [r for r in recordings if first.get(r.subject) is r]
    step = max(1, len(first_recordings) // MAX_SPECTRUM_SUBJECTS)
    before, after = [], []
    hz_before = hz_after = np.zeros(0)
    store = open_shard_store(experiment)
    for recording in first_recordings[::step][:MAX_SPECTRUM_SUBJECTS]:
        try:
            raw = dataset.read_eeg(recording)
            rows = [
                table.filter((np.array(table.column("recording").to_pylist()) == recording.recording).tolist())
                for table in (read_shard(store, s) for s in result.index.shards if s.subject == recording.subject)
            ]
        except DataError:
            continue  # it is among the problems already
        stored = [t.column("eeg").combine_chunks().to_numpy_ndarray() for t in rows if t.num_rows]
        good_C = np.isfinite(raw.values_CT).all(axis=1)
        if not stored or not good_C.any():
            continue
        unit = _find_eeg_unit(result, recording)
        scale = MICROVOLTS.get(unit, 1.0)
        if raw.unit not in (unit, "auto"):  # the experiment knew better than the file
            scale /= MICROVOLTS[raw.stated_unit or raw.unit]
        hz_before, power = welch(raw.values_CT[good_C] * scale, raw.hz, nperseg=int(2 * raw.hz))
        before.append(10 * np.log10(np.median(power, axis=0) + 1e-12))
        x_CT = np.concatenate(list(stored[0]), axis=1)
        hz_after, power = welch(x_CT, experiment.preprocessing.eeg.hz, nperseg=2 * experiment.preprocessing.eeg.hz)
        after.append(10 * np.log10(np.median(power, axis=0) + 1e-12))
    if not before or len({len(b) for b in before}) > 1:  # no EEG, or of several rates, which have no common axis
        return None
    return EEGSpectrum(hz_before, np.stack(before), hz_after, np.stack(after))


def _find_eeg_unit(result: PreprocessingResult, recording: Recording) -> str:
    found = (q for q in result.quality if (q["subject"], q["recording"]) == (recording.subject, recording.recording))
    return str(next(found, {}).get("eeg_unit", ""))


def _pick_example_frames(experiment: Experiment, result: PreprocessingResult) -> dict[str, np.ndarray]:
    """The middle frame of the first window with video of each person."""
    store = open_shard_store(experiment)
    frame_by_subject: dict[str, np.ndarray] = {}
    for shard in result.index.shards:
        if shard.subject in frame_by_subject:
            continue
        table = read_shard(store, shard)
        for i in np.flatnonzero(table.column("has_video").to_numpy())[:1].tolist():
            column = table.column("video").combine_chunks()
            stored = (
                column.to_numpy_ndarray()[i] if experiment.preprocessing.video.codec == "raw" else column[i].as_py()
            )
            video = get_modality("video").decode(stored, experiment.preprocessing)
            frame_by_subject[shard.subject] = video[len(video) // 2]
    return frame_by_subject
