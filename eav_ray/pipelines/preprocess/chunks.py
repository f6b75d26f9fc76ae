"""Plan the chunks of a preprocessing job: parts of a person's recordings, named by all that their shards depend on."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from eav_ray.config import MODALITIES, Experiment, digest
from eav_ray.data.recordings import DatasetReader, Listing, Recording
from eav_ray.data.shards.content import (
    ContentHashes,
    FileContent,
    RecordingContent,
    list_sources,
    read_hashes,
    write_hashes,
)
from eav_ray.pipelines.preprocess.eeg_stage import depends_on_subject
from eav_ray.storage import Store
from eav_ray.tracking.progress import open_progress_bar

MIN_SHOWN_BYTES = 2**30  # of new files: hashing more shows a bar


@dataclass(frozen=True)
class Chunk:
    name: str  # of the shard: person, first recording, and a hash of all that its content depends on
    recordings: tuple[Recording, ...]
    # What the windows of each recording depend on, by its id, as it was when the chunk was named.
    files: Mapping[str, tuple[FileContent, ...]] = field(default_factory=dict, hash=False)


def hash_listing(
    experiment: Experiment, reader: DatasetReader, listing: Listing, store: Store
) -> dict[str, RecordingContent]:
    """Hash all files that the recordings of an experiment are read from; those that are remembered are not read.

    Args:
        store: Of all shards, where the hashes are remembered.
    """
    hashes = ContentHashes(read_hashes(store, experiment.data))
    modalities = experiment.data.modalities
    paths = {path for r in listing.recordings for path in list_sources(r, modalities).values()}
    sizes = {path: hashes.measure(path) for path in paths if hashes.needs_hash(path)}
    total = sum(sizes.values())
    if total < MIN_SHOWN_BYTES:
        contents = hashes.hash_recordings(listing.recordings, modalities, reader)
    else:
        with open_progress_bar("look at new files", round(total / 1e6), "MB") as bar:
            contents = hashes.hash_recordings(
                listing.recordings, modalities, reader, lambda path: bar.set_done(bar.done + sizes.get(path, 0) / 1e6)
            )
    write_hashes(store, experiment.data, hashes, contents)
    return contents


def plan_chunks(
    experiment: Experiment,
    listing: Listing,
    contents: Mapping[str, RecordingContent],
    channels: Sequence[str] = (),
) -> list[Chunk]:
    """Divide the recordings of each person into chunks.

    Args:
        contents: What their files hold, by recording (`hash_listing`).
        channels: Names of the EEG channels of the data set, which windows have in this order.
    """
    planned = []
    size = experiment.preprocessing.recordings_per_shard
    for subject, group in groupby(listing.recordings, key=lambda r: r.subject):
        recordings = list(group)
        files = {r.id: _list_files(contents[r.id]) for r in recordings}
        subject_facts: list[Any] = []
        if "eeg" in experiment.data.modalities and depends_on_subject(experiment.preprocessing.eeg):
            subject_facts = [_collect_recording_facts(r, contents[r.id], ["eeg"]) for r in recordings]
            of_subject = tuple(file for r in recordings for file in contents[r.id].get("eeg", ()))
            files = {one: tuple(dict.fromkeys((*own, *of_subject))) for one, own in files.items()}
        for start in range(0, len(recordings), size):
            part = tuple(recordings[start : start + size])
            content = digest(
                [_collect_recording_facts(r, contents[r.id], experiment.data.modalities) for r in part],
                sorted(experiment.data.modalities),
                subject_facts,
                list(channels),
                length=10,
            )
            name = f"{subject}-{part[0].recording}-{content}"
            planned.append(Chunk(name, part, {r.id: files[r.id] for r in part}))
    return planned


def _list_files(content: RecordingContent) -> tuple[FileContent, ...]:
    return tuple(dict.fromkeys(file for files in content.values() for file in files))


def _collect_recording_facts(recording: Recording, content: RecordingContent, modalities: Sequence[str]) -> list[Any]:
    """What a shard's content depends on: the facts of a recording, and what its files hold, wherever they lie.

    A file's suffix counts too: MNE chooses a reader by it.
    """
    facts = {k: v for k, v in asdict(recording).items() if k not in MODALITIES and v is not None}
    if not recording.targets:
        facts.pop("targets")  # shards of classes are called as they always were
    facts["features"] = {
        m: [list(given.values), given.hz] for m, given in sorted(recording.features.items()) if m in modalities
    }
    facts["files"] = {
        m: [[Path(file.path).suffix.lower(), file.sha256] for file in files]
        for m, files in sorted(content.items())
        if m in modalities or not m
    }
    return sorted(facts.items())
