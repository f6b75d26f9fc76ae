"""Find recordings of one data set that hold nearly the same: encoded anew, louder or softer, or begun a little later.

All are decoded, and compared by the fingerprints that the leak audit compares.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby

import numpy as np

from eav_ray.config import DataConfig, Experiment, Preprocessing
from eav_ray.data.datasets import registry
from eav_ray.data.modalities.registry import get_modality
from eav_ray.data.preprocessing.eeg import prepare_eeg
from eav_ray.data.preprocessing.windowing import WindowFormat, cut_recording
from eav_ray.data.recordings import DatasetReader, Listing, Problem, Recording
from eav_ray.distributed.machine_limits import count_usable_cpus
from eav_ray.errors import DataError
from eav_ray.evaluation.leak_audit.near_duplicates import (
    MIN_STEPS,
    N_WINDOWS,
    AlikePair,
    Fingerprints,
    compute_fingerprints,
    find_alike_pairs_within,
)
from eav_ray.pipelines.preprocess.duplicates import Duplicate, describe_recording, describe_rows
from eav_ray.processes import map_in_processes
from eav_ray.tracking.progress import open_progress_bar

RECORDINGS_PER_TASK = 25
MAX_SHOWN = 50  # pairs


@dataclass
class NearDuplicates:
    """What decoding has shown.

    Attributes:
        pairs: By modality, the most alike first; without those whose files are equal.
        compared: How many recordings of each modality have a fingerprint, and of how many.
        problems: Files that cannot be decoded.
    """

    pairs: dict[str, list[AlikePair]] = field(default_factory=dict)
    compared: dict[str, tuple[int, int]] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class _Decoded:
    fingerprints: dict[str, dict[str, np.ndarray]]  # modality -> recording -> (windows, steps, features) float16
    problems: tuple[Problem, ...]


def find_near_duplicates(
    experiment: Experiment, reader: DatasetReader, listing: Listing, known: Sequence[Duplicate] = ()
) -> NearDuplicates:
    """Decode all recordings of a data set, on all cores of this machine, and find those that are nearly equal.

    Args:
        known: Recordings whose files are equal, which are not named again.
    Raises:
        DataError: A file ends the process that decodes it.
    """
    data, preprocessing = experiment.data, simplify_preprocessing(experiment.preprocessing)
    channels = registry.list_eeg_channels(reader, listing) if "eeg" in data.modalities else ()
    tasks = list(_divide(listing.recordings))
    n_workers = min(count_usable_cpus(), len(tasks))
    found, values = NearDuplicates(), dict[str, dict[str, np.ndarray]]()
    with open_progress_bar("decode", len(listing.recordings), "recordings") as bar:
        for task, decoded in _decode_all(data, preprocessing, channels, tasks, n_workers):
            found.problems += decoded.problems
            for m, by_recording in decoded.fingerprints.items():
                values.setdefault(m, {}).update(by_recording)
            bar.set_done(bar.done + len(task))
    equal = {(d.modality, a.id, b.id) for d in known for a in d.recordings for b in d.recordings}
    for m in sorted(data.modalities):
        present = [r for r in listing.recordings if r.get_source(m) is not None]
        by_recording = {i: x_WTF for i, x_WTF in values.get(m, {}).items() if x_WTF.any()}
        found.compared[m] = (len(by_recording), len(present))
        if not by_recording:
            continue
        stacked = Fingerprints.build(list(by_recording), np.stack(list(by_recording.values())), preprocessing)
        if np.prod(stacked.values.shape[1:3]) < MIN_STEPS:
            continue
        pairs = find_alike_pairs_within(stacked, get_modality(m).duplicate_similarity)
        found.pairs[m] = [pair for pair in pairs if (m, pair.first, pair.second) not in equal]
    return found


def simplify_preprocessing(preprocessing: Preprocessing) -> Preprocessing:
    """Leave out what takes long, and what makes a person's recordings depend on each other."""
    eeg = replace(preprocessing.eeg, artefacts="none", align="none")
    video = replace(preprocessing.video, crop="none")
    return replace(preprocessing, eeg=eeg, video=video, on_bad="partial")


def format_near_duplicates(
    found: NearDuplicates, recordings: Sequence[Recording], classes: Sequence[str], targets: Sequence[str] = ()
) -> list[str]:
    """Write a line for each pair, with the way out, and one on what was compared; arguments as `format_duplicates`."""
    by_id = {r.id: r for r in recordings}
    lines = []
    for m, pairs in found.pairs.items():
        for pair in pairs[:MAX_SHOWN]:
            rows = (by_id[pair.first], by_id[pair.second])
            names = " and ".join(describe_recording(r, classes, targets) for r in rows)
            lines.append(
                f"near-duplicates: {names} have nearly the same {m} (correlation {pair.similarity:.2f})"
                f"{describe_rows(rows)}"
            )
        if len(pairs) > MAX_SHOWN:
            lines.append(f"near-duplicates: and {len(pairs) - MAX_SHOWN} more pairs of {m}")
    compared = ", ".join(f"{n} of {total} of {m}" for m, (n, total) in found.compared.items())
    pairs = sum(map(len, found.pairs.values()))
    lines.append(f"compared by content: {compared}; {pairs} pairs nearly equal; the others are still, plain or missing")
    return lines


def _divide(recordings: Sequence[Recording]) -> Iterator[tuple[Recording, ...]]:
    for _, group in groupby(recordings, key=lambda r: r.subject):
        own = tuple(group)
        for start in range(0, len(own), RECORDINGS_PER_TASK):
            yield own[start : start + RECORDINGS_PER_TASK]


def _decode_all(
    data: DataConfig,
    preprocessing: Preprocessing,
    channels: tuple[str, ...],
    tasks: list[tuple[Recording, ...]],
    n_workers: int,
) -> Iterator[tuple[tuple[Recording, ...], _Decoded]]:
    if n_workers <= 1:
        for task in tasks:
            yield task, decode_recordings(data, preprocessing, channels, task)
        return
    decode = partial(decode_recordings, data, preprocessing, channels)
    try:
        yield from zip(tasks, map_in_processes(decode, tasks, n_workers), strict=True)
    except BrokenProcessPool:
        raise DataError(
            "a file ends the process that decodes it, or it takes more memory than there is; `eav preprocess` finds "
            "such files and names them: leave them out, and check again"
        ) from None


def decode_recordings(
    data: DataConfig, preprocessing: Preprocessing, channels: tuple[str, ...], recordings: tuple[Recording, ...]
) -> _Decoded:
    """Decode some recordings of one subject, and compute the fingerprints of their first windows."""
    with_eeg = [r for r in recordings if r.eeg is not None] if "eeg" in data.modalities else []
    prepared = prepare_eeg(registry.open_reader(data), with_eeg, preprocessing.eeg, channels=channels)
    eeg = dict(prepared) if with_eeg else {}
    window_format = WindowFormat(preprocessing, data.modalities, len(channels))
    problems: list[Problem] = []
    fingerprints: dict[str, dict[str, np.ndarray]] = {m: {} for m in data.modalities}
    for recording in recordings:
        cut = cut_recording(recording, window_format, eeg.get(recording))
        problems += cut.problems
        for m in data.modalities:
            rows = [row for row in cut.windows[:N_WINDOWS] if row[f"has_{m}"]]
            if not rows:
                continue
            x_WTF = compute_fingerprints(m, np.stack([row[m] for row in rows]), preprocessing)
            values = np.zeros((N_WINDOWS, *x_WTF.shape[1:]), np.float16)
            values[[row["window"] for row in rows]] = x_WTF
            fingerprints[m][recording.id] = values
    return _Decoded(fingerprints, tuple(problems))
