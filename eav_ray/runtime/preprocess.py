"""Raw recordings to Parquet shards, through Ray Data.

The unit of work is a chunk of one person's recordings. Whoever finishes a chunk writes its shard and then its record,
so a job that was killed continues with the chunks that have no record.
"""

import os
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby
from typing import Any

import ray
import ray.data

from eav_ray.config import Data, Experiment, Profile, digest
from eav_ray.data import sets
from eav_ray.data.manifest import Listing, Problem, Recording
from eav_ray.data.shard import INDEX, Index, ShardFile, read_index, schema, to_bytes, to_table
from eav_ray.data.windows import cut
from eav_ray.errors import DataError
from eav_ray.report.progress import stage
from eav_ray.runtime import cluster
from eav_ray.storage import Store, sha256, versions


@dataclass(frozen=True)
class Chunk:
    name: str  # of the shard: person, first recording, and a hash of all that its content depends on
    recordings: tuple[Recording, ...]


@dataclass(frozen=True)
class Preprocessed:
    index: Index
    problems: tuple[Problem, ...]  # everything that was set aside, by the reader or while decoding
    skipped: int  # chunks that an earlier job had finished


def shard_store(experiment: Experiment) -> Store:
    """Where the shards of this data set under this profile lie; another profile lies elsewhere."""
    e = experiment
    key = digest({**asdict(e.profile), "on_bad": "", "chunk": 0}, e.data.set, e.data.root, e.data.tasks)
    return Store(e.store.shards).below(f"{e.data.set}-{key}")


def open_index(experiment: Experiment) -> tuple[Store, Index]:
    store = shard_store(experiment)
    return store, read_index(store)


def chunks(experiment: Experiment, listing: Listing) -> list[Chunk]:
    found = []
    for subject, group in groupby(listing.recordings, key=lambda r: r.subject):
        recordings = list(group)
        for start in range(0, len(recordings), experiment.profile.chunk):
            part = tuple(recordings[start : start + experiment.profile.chunk])
            content = digest([_identity(r) for r in part], sorted(experiment.data.modalities), length=10)
            found.append(Chunk(f"{subject}-{part[0].recording}-{content}", part))
    return found


def _identity(recording: Recording) -> list[Any]:
    """What a shard's content depends on: the facts of a recording, and its files' sizes and times of change."""
    facts = asdict(recording)
    for path in (recording.eeg, recording.audio, recording.video):
        if path is not None and os.path.exists(path):
            facts[path] = [os.path.getsize(path), os.stat(path).st_mtime_ns]
    return sorted((k, v) for k, v in facts.items() if v is not None)


def preprocess(experiment: Experiment) -> Preprocessed:
    """Make or complete the shards of an experiment.

    Raises:
        DataError: No recording could be used, or some could not and `profile.on_bad=fail`.
    """
    dataset, listing = sets.scan(experiment.data)
    store = shard_store(experiment)
    wanted = chunks(experiment, listing)
    todo = [c for c in wanted if not store.exists(f"records/{c.name}.json")]
    n_chans = sets.eeg_channels(dataset, listing) if "eeg" in experiment.data.modalities else 0
    if todo:
        with cluster.session(experiment.runtime):
            _run(experiment, todo, store, n_chans)
    records = [store.read_json(f"records/{c.name}.json") for c in wanted]
    problems = listing.problems + tuple(Problem(**p) for r in records for p in r["problems"])
    shards = tuple(ShardFile(r["file"], r["sha256"], r["rows"], r["subject"]) for r in records if r["rows"])
    if problems and experiment.profile.on_bad == "fail":
        raise DataError(
            f"{len(problems)} recordings cannot be used as they are, and profile.on_bad=fail; the first: "
            f"{problems[0].file or problems[0].subject}: {problems[0].reason}"
        )
    if not shards:
        raise DataError(f"not one recording of {experiment.data.root} could be read; run jobs/check.py to see why")
    modalities = tuple(sorted(experiment.data.modalities))
    index = Index(store.root.rsplit("-", 1)[1], dataset.classes, modalities, n_chans, shards, versions())
    store.write_json(INDEX, asdict(index) | {"profile": asdict(experiment.profile), "data": asdict(experiment.data)})
    store.write_json("problems.json", [asdict(p) for p in problems])
    return Preprocessed(index, problems, len(wanted) - len(todo))


def _run(experiment: Experiment, todo: list[Chunk], store: Store, n_chans: int) -> None:
    cluster.quiet_ray_data()
    total = sum(len(c.recordings) for c in todo)
    # The chunks travel as rows, in one block each, so that a task is one chunk and is retried alone.
    rows = ray.data.from_items([{"chunk": i} for i in range(len(todo))], override_num_blocks=len(todo))
    write = partial(
        _write, todo=todo, data=experiment.data, profile=experiment.profile, root=store.root, n_chans=n_chans
    )
    with stage("preprocess", total, "recordings") as bar:
        finished = 0
        for row in rows.map(write, num_cpus=1).iter_rows():
            finished += row["recordings"]
            bar.to(finished)


def _write(
    row: dict[str, Any], *, todo: list[Chunk], data: Data, profile: Profile, root: str, n_chans: int
) -> dict[str, Any]:
    """One chunk: its shard, and then its record."""
    store, chunk, dataset = Store(root), todo[row["chunk"]], sets.open_data(data)
    problems: list[Problem] = []
    windows: list[dict[str, Any]] = []
    for recording in chunk.recordings:
        try:
            windows += cut(dataset, recording, profile, data.modalities, eeg_channels=n_chans)
        except DataError as error:
            problems.append(Problem(recording.subject, recording.recording, "", str(error)))
    record: dict[str, Any] = {"rows": len(windows), "file": "", "sha256": "", "subject": chunk.recordings[0].subject}
    if windows:
        content = to_bytes(to_table(windows, schema(profile, n_chans, data.modalities)))
        record |= {"file": f"shards/{chunk.name}.parquet", "sha256": sha256(content)}
        store.write(record["file"], content)
    record["problems"] = [asdict(p) for p in problems]
    store.write_json(f"records/{chunk.name}.json", record)
    return {"recordings": len(chunk.recordings)}
