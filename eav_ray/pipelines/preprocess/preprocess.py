"""Raw recordings to Parquet shards, through Ray Data.

The unit of work is a chunk of one person's recordings. Whoever finishes a chunk writes its shard and then its record,
so a job that was killed continues with the chunks that have no record.
"""

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, WorkerCrashedError

from eav_ray.config import DataConfig, Experiment, Preprocessing, digest
from eav_ray.data.datasets import registry
from eav_ray.data.preprocessing.eeg import PreparedEEG, prepare_eeg
from eav_ray.data.preprocessing.extras import require_preprocessing_extras
from eav_ray.data.preprocessing.windowing import WindowedRecording, WindowFormat, cut_recording
from eav_ray.data.recordings import LISTENING, Listing, Problem, Recording
from eav_ray.data.shards.index import SHARDS_FORMAT, ShardFile, ShardIndex, write_index
from eav_ray.data.shards.location import open_shard_store
from eav_ray.data.shards.schema import make_schema
from eav_ray.data.shards.tables import encode_window
from eav_ray.data.shards.writer import ShardWriter
from eav_ray.distributed import cluster
from eav_ray.distributed.ray_workarounds import configure_ray_data, map_with_retries
from eav_ray.errors import DataError
from eav_ray.pipelines.preprocess import eeg_stage
from eav_ray.storage import Store, list_package_versions
from eav_ray.tracking.progress import open_progress_bar

CRASH_ERRORS = (WorkerCrashedError, OutOfMemoryError)


@dataclass(frozen=True)
class Chunk:
    name: str  # of the shard: person, first recording, and a hash of all that its content depends on
    recordings: tuple[Recording, ...]


PROBLEMS_FORMAT = 1  # of `problems.json`


@dataclass(frozen=True)
class PreprocessingResult:
    index: ShardIndex
    problems: tuple[Problem, ...]  # everything that was set aside, by the reader or while decoding
    n_skipped: int  # chunks that an earlier job had finished
    quality: tuple[dict[str, Any], ...]  # one row a recording: subject, and what `windowing.cut_recording` measured


def plan_chunks(experiment: Experiment, listing: Listing) -> list[Chunk]:
    planned = []
    for subject, group in groupby(listing.recordings, key=lambda r: r.subject):
        recordings = list(group)
        # Alignment makes a recording's windows depend on all recordings of the person.
        aligned = "eeg" in experiment.data.modalities and experiment.preprocessing.eeg.align != "none"
        subject_facts = [_collect_recording_facts(r) for r in recordings] if aligned else []
        for start in range(0, len(recordings), experiment.preprocessing.recordings_per_shard):
            part = tuple(recordings[start : start + experiment.preprocessing.recordings_per_shard])
            content = digest(
                [_collect_recording_facts(r) for r in part],
                sorted(experiment.data.modalities),
                subject_facts,
                length=10,
            )
            planned.append(Chunk(f"{subject}-{part[0].recording}-{content}", part))
    return planned


def _collect_recording_facts(recording: Recording) -> list[Any]:
    """What a shard's content depends on: the facts of a recording, and its files' sizes and times of change."""
    facts = asdict(recording)
    given = [one.path for one in recording.features.values() if not one.values]
    for path in (recording.eeg, recording.audio, recording.video, *given):
        if path is not None and os.path.exists(path):
            facts[path] = [os.path.getsize(path), os.stat(path).st_mtime_ns]
    return sorted((k, v) for k, v in facts.items() if v is not None)


def preprocess(experiment: Experiment) -> PreprocessingResult:
    """Make or complete the shards of an experiment.

    Raises:
        DataError: No recording could be used, or some file could not and `preprocessing.on_bad=fail`.
    """
    dataset, listing = registry.scan_dataset(experiment.data, experiment.preprocessing.features)
    _check_problem_policy(experiment, listing.problems)
    listing = _drop_incomplete_recordings(experiment, listing)
    require_preprocessing_extras(experiment)
    store = open_shard_store(experiment)
    planned = plan_chunks(experiment, listing)
    todo = [c for c in planned if not is_chunk_done(store, c)]
    channels = registry.list_eeg_channels(dataset, listing) if "eeg" in experiment.data.modalities else ()
    if todo:
        store.probe()
        store.require_writable()
        maker = ChunkMaker(experiment.data, experiment.preprocessing, store, channels, listing.recordings)
        total = sum(len(c.recordings) for c in todo)
        with cluster.connect_to_ray(experiment.runtime), open_progress_bar("preprocess", total, "recordings") as bar:
            for chunk in maker.make(todo):
                bar.set_done(bar.done + len(chunk.recordings))
    records = [store.read_json(f"records/{c.name}.json") for c in planned]
    problems = listing.problems + tuple(Problem(**p) for r in records for p in r["problems"])
    _check_problem_policy(experiment, problems)
    shards = tuple(ShardFile(r["file"], r["sha256"], r["rows"], r["subject"]) for r in records if r["rows"])
    if not shards:
        raise DataError(f"not one recording of {experiment.data.root} could be read; run `eav check` to see why")
    modalities = tuple(sorted(experiment.data.modalities))
    index = ShardIndex(
        store.root.rsplit("-", 1)[1],
        dataset.classes,
        modalities,
        len(channels),
        shards,
        list_package_versions(),
        channels,
    )
    settings = {"preprocessing": asdict(experiment.preprocessing), "data": asdict(experiment.data)}
    settings |= {"is_real": dataset.is_real}
    write_index(store, index, settings)
    store.write_json("problems.json", {"format": PROBLEMS_FORMAT, "problems": [asdict(p) for p in problems]})
    quality = tuple({"subject": r["subject"], **q} for r in records for q in r["quality"])
    return PreprocessingResult(index, problems, len(planned) - len(todo), quality)


def is_chunk_done(store: Store, chunk: Chunk) -> bool:
    """Tell whether an earlier job made this chunk without a problem; what took too long then may do now."""
    if not store.exists(f"records/{chunk.name}.json"):
        return False
    record = store.read_json(f"records/{chunk.name}.json")
    if record.get("format") != SHARDS_FORMAT:
        return False
    return not record["problems"] and (not record["rows"] or store.exists(record["file"]))


def _check_problem_policy(experiment: Experiment, problems: tuple[Problem, ...]) -> None:
    if problems and experiment.preprocessing.on_bad == "fail":
        first = problems[0]
        raise DataError(
            f"{len(problems)} problems, and preprocessing.on_bad=fail; the first: {first.file or first.subject}: "
            f"{first.reason}. `eav check` lists those that names and labels show; preprocessing.on_bad=partial keeps "
            "what can be used of such recordings, drop leaves them out"
        )


def _drop_incomplete_recordings(experiment: Experiment, listing: Listing) -> Listing:
    """Where the policy is `drop`, only recordings with every modality that their task has."""
    if experiment.preprocessing.on_bad != "drop":
        return listing
    complete, problems = [], list(listing.problems)
    for r in listing.recordings:
        lacks = [m for m in experiment.data.modalities if r.get_source(m) is None]
        if r.task == LISTENING and "audio" in lacks:  # which nobody spoke in
            lacks.remove("audio")
        if lacks:
            reason = f"has no {' and no '.join(lacks)}; left out, as preprocessing.on_bad=drop"
            problems.append(Problem(r.subject, r.recording, "", reason))
        else:
            complete.append(r)
    return Listing(tuple(complete), tuple(problems))


@dataclass(frozen=True)
class ChunkMaker:
    """Makes chunks through Ray Data: what every task knows.

    Args:
        all_recordings: All recordings of the people, finished ones included: `preprocessing.eeg.align` looks at all.
    """

    data: DataConfig
    preprocessing: Preprocessing
    store: Store
    channels: tuple[str, ...]  # EEG, of the data set
    all_recordings: tuple[Recording, ...] = ()

    def make(self, chunks: list[Chunk]) -> Iterator[Chunk]:
        """Make chunks; yields each when its record is written.

        Recordings that end the process which reads them are found, and left out.
        """
        configure_ray_data()
        finished: set[str] = set()
        try:
            for chunk in self._run_tasks(chunks, {}):
                finished.add(chunk.name)
                yield chunk
        except CRASH_ERRORS:
            left = [chunk for chunk in chunks if chunk.name not in finished]
            yield from self._run_tasks(left, self._find_crashing_recordings(left))

    def _run_tasks(self, chunks: list[Chunk], crash_reasons: dict[str, str]) -> Iterator[Chunk]:
        """
        Args:
            crash_reasons: Why recordings are left out, by id.
        """

        def drop_crashing(recordings: tuple[Recording, ...]) -> tuple[Recording, ...]:
            return tuple(r for r in recordings if r.id not in crash_reasons)

        units = [drop_crashing(chunk.recordings) for chunk in chunks]
        rows = eeg_stage.prepare_eeg_units(
            self.data, self.preprocessing, units, drop_crashing(self.all_recordings), self.channels
        )
        write_chunk = partial(self.write_chunk, chunks=chunks, crash_reasons=crash_reasons)
        for row in map_with_retries(rows.map, write_chunk, num_cpus=1).iter_rows():
            yield chunks[row["unit"]]

    def _find_crashing_recordings(self, chunks: list[Chunk]) -> dict[str, str]:
        """Find recordings that end the process which reads them: each is tried in a task of its own.

        Decoders are C programs, and a damaged or hostile file can bring one down; that costs this recording and no
        other.

        Returns:
            The reason, by id.
        """
        attempt: Any = ray.remote(num_cpus=1, max_retries=0)(ChunkMaker._try_recording)
        references = {r.id: attempt.remote(self, r) for chunk in chunks for r in chunk.recordings}
        crash_reasons: dict[str, str] = {}
        for recording_id, reference in references.items():
            try:
                ray.get(reference)
            except CRASH_ERRORS as error:
                kind = "takes more memory than there is" if isinstance(error, OutOfMemoryError) else "ends the process"
                crash_reasons[recording_id] = (
                    f"reading one of its files {kind}; replace the files of this recording or leave it out"
                )
        return crash_reasons

    def _try_recording(self, recording: Recording) -> None:
        eeg = None
        if "eeg" in self.data.modalities and recording.eeg is not None:
            reader = registry.open_reader(self.data)
            _, eeg = next(prepare_eeg(reader, [recording], self.preprocessing.eeg, channels=self.channels))
        self._cut(recording, eeg)

    def _cut(self, recording: Recording, eeg: PreparedEEG | DataError | None) -> WindowedRecording:
        window_format = WindowFormat(self.preprocessing, self.data.modalities, len(self.channels))
        return cut_recording(recording, window_format, eeg)

    def write_chunk(self, row: dict[str, Any], *, chunks: list[Chunk], crash_reasons: dict[str, str]) -> dict[str, Any]:
        """Write one chunk: its shard, and then its record."""
        chunk, eeg_by_recording = chunks[row["unit"]], eeg_stage.unpack_eeg(row)
        problems: list[Problem] = []
        quality: list[dict[str, Any]] = []
        schema = make_schema(self.preprocessing, len(self.channels), self.data.modalities)
        with ShardWriter(self.store, f"shards/{chunk.name}.parquet", schema) as shard:
            for recording in chunk.recordings:
                if recording.id in crash_reasons:
                    problems.append(Problem(recording.subject, recording.recording, "", crash_reasons[recording.id]))
                    continue
                cut_result = self._cut(recording, eeg_by_recording.get(recording.recording))
                problems += cut_result.problems
                quality.append(cut_result.quality | {"windows": len(cut_result.windows)})
                shard.add([encode_window(w, self.preprocessing) for w in cut_result.windows])
        record: dict[str, Any] = {"format": SHARDS_FORMAT, "rows": shard.rows}
        record |= {"file": shard.name, "sha256": shard.sha256}
        record |= {"subject": chunk.recordings[0].subject, "quality": quality}
        self.store.write_json(f"records/{chunk.name}.json", record | {"problems": [asdict(p) for p in problems]})
        return {"unit": row["unit"]}
