"""The first stage of whatever reads raw recordings: the EEG of one person, who has one file for all of it in EAV.

Each person's file is read once; the stages after it work on pieces of the person, as soon as their EEG is ready.
"""

import json
from collections.abc import Iterator
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import ray
import ray.data
import safetensors.numpy

from eav_ray.config import DataConfig, EEGPreprocessing, Preprocessing
from eav_ray.data.datasets import registry
from eav_ray.data.preprocessing.eeg import PreparedEEG, prepare_eeg
from eav_ray.data.recordings import Recording
from eav_ray.distributed.ray_workarounds import map_with_retries
from eav_ray.errors import DataError

RecordingUnit = tuple[Recording, ...]  # recordings of one person that a later stage takes together


MAX_BLOCK_BYTES = (
    2**20
)  # bytes: a later stage is to get each unit as soon as it is ready, not a person's units together


def prepare_eeg_units(
    data: DataConfig,
    preprocessing: Preprocessing,
    recording_units: list[RecordingUnit],
    all_recordings: tuple[Recording, ...] = (),
    channels: tuple[str, ...] = (),
    *,
    needs_truth: bool = True,
) -> ray.data.Dataset:
    """One row a unit: `unit` (its number), and its EEG for `unpack`.

    Args:
        all_recordings: All recordings of the people, where `recording_units` may lack some: `preprocessing.eeg.align`
            looks at all, and `official` filters all as one signal.
        channels: Names of the EEG channels that are wanted, in order; all as they stand, where none are named.
        needs_truth: As of `registry.open_reader`.
    """
    if "eeg" not in data.modalities or all(r.eeg is None for unit in recording_units for r in unit):
        rows = [{"unit": i, "eeg": b"", "eeg_facts": "{}"} for i in range(len(recording_units))]
        return ray.data.from_items(rows, override_num_blocks=len(rows))
    ray.data.DataContext.get_current().target_max_block_size = MAX_BLOCK_BYTES
    unit_indices_by_subject = [
        list(g)
        for _, g in groupby(
            range(len(recording_units)), key=lambda i: recording_units[i][0].subject if recording_units[i] else ""
        )
    ]
    rows = [{"subject_index": i} for i in range(len(unit_indices_by_subject))]
    subject_recordings: dict[str, list[Recording]] = {}
    if depends_on_subject(preprocessing.eeg):
        for recording in all_recordings or [r for unit in recording_units for r in unit]:
            subject_recordings.setdefault(recording.subject, []).append(recording)
    work: Any = partial(
        prepare_subject,
        unit_indices_by_subject=unit_indices_by_subject,
        recording_units=recording_units,
        data=data,
        preprocessing=preprocessing,
        subject_recordings=subject_recordings,
        channels=channels,
        needs_truth=needs_truth,
    )
    # A byte of memory keeps Ray Data from fusing it with the next stage, which would make one task of a whole person.
    subject_rows = ray.data.from_items(rows, override_num_blocks=len(rows))
    return map_with_retries(subject_rows.map_batches, work, batch_size=1, num_cpus=1, memory=1)


def depends_on_subject(eeg: EEGPreprocessing) -> bool:
    """Tell whether a recording's EEG depends on all EEG of the person."""
    return eeg.align != "none" or eeg.kind == "official"


def prepare_subject(
    batch: dict[str, np.ndarray],
    *,
    unit_indices_by_subject: list[list[int]],
    recording_units: list[RecordingUnit],
    data: DataConfig,
    preprocessing: Preprocessing,
    subject_recordings: dict[str, list[Recording]],
    channels: tuple[str, ...] = (),
    needs_truth: bool = True,
) -> Iterator[dict[str, np.ndarray]]:
    unit_indices = unit_indices_by_subject[int(batch["subject_index"][0])]
    dataset = registry.open_reader(data, needs_truth=needs_truth)
    # All units in one go: the kind `official` filters a person as one signal.
    recordings = [r for i in unit_indices for r in recording_units[i] if r.eeg is not None]
    alignment_recordings = subject_recordings.get(recordings[0].subject, []) if recordings else []
    results = prepare_eeg(dataset, recordings, preprocessing.eeg, alignment_recordings, channels)
    for i in unit_indices:
        tensors: dict[str, np.ndarray] = {}
        facts: dict[str, Any] = {}
        for recording in recording_units[i]:
            if recording.eeg is None:
                continue
            _, found = next(results)
            if isinstance(found, DataError):
                facts[recording.recording] = str(found)
            else:
                facts[recording.recording] = {
                    "unit": found.unit,
                    "bad_channels": found.bad_channels,
                    "removed_components": found.removed_components,
                    "missing_s": found.missing_s,
                    "remarks": found.remarks,
                }
                tensors[recording.recording] = found.x_CT
        yield {
            "unit": np.array([i]),
            "eeg": np.array([safetensors.numpy.save(tensors)], dtype=object),
            "eeg_facts": np.array([json.dumps(facts)], dtype=object),
        }


def unpack_eeg(row: dict[str, Any]) -> dict[str, PreparedEEG | DataError]:
    """EEG of a unit's recordings, by name; recordings without EEG are not in it."""
    facts = json.loads(row["eeg_facts"])
    tensors = safetensors.numpy.load(row["eeg"]) if row["eeg"] else {}
    return {
        name: DataError(fact)
        if isinstance(fact, str)
        else PreparedEEG(
            tensors[name],
            fact["unit"],
            fact["bad_channels"],
            tuple(fact["removed_components"]),
            tuple((first_s, last_s) for first_s, last_s in fact["missing_s"]),
            tuple(fact["remarks"]),
        )
        for name, fact in facts.items()
    }
