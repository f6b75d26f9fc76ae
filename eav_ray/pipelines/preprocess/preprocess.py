"""Raw recordings to Parquet shards, through Ray Data.

The unit of work is a chunk of one person's recordings. Whoever finishes a chunk writes its shard and then its record,
so a job that was killed continues with the chunks that have no record.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, WorkerCrashedError

from eav_ray.config import DataConfig, Experiment, Preprocessing
from eav_ray.data.datasets import registry
from eav_ray.data.io.stated_durations import remark_long_clips
from eav_ray.data.preprocessing.eeg import PreparedEEG, prepare_eeg
from eav_ray.data.preprocessing.extras import require_preprocessing_extras
from eav_ray.data.preprocessing.windowing import WindowedRecording, WindowFormat, cut_recording
from eav_ray.data.recordings import LISTENING, DatasetReader, Listing, Problem, Recording
from eav_ray.data.shards.content import find_changed_file
from eav_ray.data.shards.index import INDEX_FILE, SHARDS_FORMAT, ShardFile, ShardIndex, write_index
from eav_ray.data.shards.location import name_index_folder, open_shard_store
from eav_ray.data.shards.schema import make_schema
from eav_ray.data.shards.tables import encode_window
from eav_ray.data.shards.writer import ShardWriter
from eav_ray.distributed import cluster
from eav_ray.distributed.ray_workarounds import configure_ray_data, map_with_retries
from eav_ray.errors import DataError
from eav_ray.pipelines.preprocess import eeg_stage
from eav_ray.pipelines.preprocess.chunks import Chunk, hash_listing, plan_chunks
from eav_ray.pipelines.preprocess.duplicates import Duplicate, find_duplicates
from eav_ray.storage import LOCK, Store, list_package_versions
from eav_ray.tracking.progress import open_progress_bar
from eav_ray.words import format_count

CHANGED = (
    "it was changed while this job ran, so the recording is left out; give the command again once nobody writes to it"
)
CRASH_ERRORS = (WorkerCrashedError, OutOfMemoryError)


PROBLEMS_FILE = "problems.json"
PROBLEMS_FORMAT = 1  # of that file


@dataclass(frozen=True)
class PreprocessingResult:
    index: ShardIndex
    problems: tuple[Problem, ...]  # everything that was set aside, by the reader or while decoding
    n_skipped: int  # chunks that an earlier job had finished
    quality: tuple[dict[str, Any], ...]  # one row a recording: subject, and what `windowing.cut_recording` measured
    duplicates: tuple[Duplicate, ...] = ()  # recordings of one file, or of equal bytes


def preprocess(experiment: Experiment) -> PreprocessingResult:
    """Make or complete the shards of an experiment.

    Raises:
        DataError: No recording could be used, or some file could not and `preprocessing.on_bad=fail`.
    """
    dataset, listing = registry.scan_dataset(experiment.data, experiment.preprocessing.features)
    _check_problem_policy(experiment, listing.problems)
    listing = _drop_incomplete_recordings(experiment, listing)
    require_preprocessing_extras(experiment)
    store, folder = open_shard_store(experiment), name_index_folder(experiment)
    store.probe()
    store.require_writable()
    with store.lock(f"{folder}/{LOCK}") as store:
        contents = hash_listing(experiment, dataset, listing, Store(experiment.store.shards))
        wanted = experiment.preprocessing.eeg.channels
        channels = registry.list_eeg_channels(dataset, listing, wanted) if "eeg" in experiment.data.modalities else ()
        planned = plan_chunks(experiment, listing, contents, channels)
        todo = [c for c in planned if not is_chunk_done(store, c)]
        if todo:
            maker = ChunkMaker(experiment.data, experiment.preprocessing, store, channels, listing.recordings)
            _make_chunks(experiment, maker, todo)
        records = [store.read_json(f"records/{c.name}.json") for c in planned]
        problems = listing.problems + tuple(Problem(**p) for r in records for p in r["problems"])
        _check_problem_policy(experiment, problems)
        index = _build_index(experiment, store, dataset, channels, records)
        settings = {"preprocessing": asdict(experiment.preprocessing), "data": asdict(experiment.data)}
        settings |= {"is_real": dataset.is_real}
        write_index(store, index, settings, f"{folder}/{INDEX_FILE}")
        tree = {"format": PROBLEMS_FORMAT, "problems": [asdict(p) for p in problems]}
        store.write_json(f"{folder}/{PROBLEMS_FILE}", tree)
    quality = tuple({"subject": r["subject"], **q} for r in records for q in r["quality"])
    remark_long_clips(quality)
    duplicates = find_duplicates(listing.recordings, contents)
    return PreprocessingResult(index, problems, len(planned) - len(todo), quality, duplicates)


def _make_chunks(experiment: Experiment, maker: "ChunkMaker", todo: list[Chunk]) -> None:
    total = sum(len(c.recordings) for c in todo)
    with cluster.connect_to_ray(experiment.runtime), open_progress_bar("preprocess", total, "recordings") as bar:
        for chunk in maker.make(todo):
            bar.set_done(bar.done + len(chunk.recordings))


def _build_index(
    experiment: Experiment,
    store: Store,
    dataset: DatasetReader,
    channels: tuple[str, ...],
    records: list[dict[str, Any]],
) -> ShardIndex:
    """Build the index of all shards that have windows.

    Raises:
        DataError: There is none.
    """
    shards = tuple(ShardFile(r["file"], r["sha256"], r["rows"], r["subject"]) for r in records if r["rows"])
    if not shards:
        raise DataError(f"not one recording of {experiment.data.root} could be read; run `eav check` to see why")
    key, modalities = store.root.rsplit("-", 1)[1], tuple(sorted(experiment.data.modalities))
    classes, targets = registry.list_classes(experiment.data, dataset), experiment.data.targets.names
    versions = list_package_versions()
    return ShardIndex(key, classes, modalities, len(channels), shards, versions, channels, targets)


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
            f"{format_count(len(problems), 'problem')}, and preprocessing.on_bad=fail; the first: "
            f"{first.file or first.subject}: "
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
    return Listing(tuple(complete), tuple(problems), listing.remarks)


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
        n_targets = len(self.data.targets.columns)
        schema = make_schema(self.preprocessing, len(self.channels), self.data.modalities, n_targets)
        with ShardWriter(self.store, f"shards/{chunk.name}.parquet", schema) as shard:
            for recording in chunk.recordings:
                if recording.id in crash_reasons:
                    problems.append(Problem(recording.subject, recording.recording, "", crash_reasons[recording.id]))
                    continue
                cut_result = self._cut(recording, eeg_by_recording.get(recording.recording))
                if changed := find_changed_file(chunk.files.get(recording.id, ())):
                    problems.append(Problem(recording.subject, recording.recording, changed, CHANGED))
                    continue
                problems += cut_result.problems
                quality.append(cut_result.quality | {"windows": len(cut_result.windows)})
                shard.add([encode_window(w, self.preprocessing) for w in cut_result.windows])
        record: dict[str, Any] = {"format": SHARDS_FORMAT, "rows": shard.rows}
        record |= {"file": shard.name, "sha256": shard.sha256}
        record |= {"subject": chunk.recordings[0].subject, "quality": quality}
        self.store.write_json(f"records/{chunk.name}.json", record | {"problems": [asdict(p) for p in problems]})
        return {"unit": row["unit"]}
