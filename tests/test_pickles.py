"""A pickle, wherever a command reads something, is refused or skipped and never executed.

So is whatever else could run: tags of YAML, types of columns that unpickle their values, addresses in HDF5.
"""

import ast
import io
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
import ray.data  # registers types of columns, as it does in every command
import scipy.io
import torch
import yaml
from ray.tune import ResultGrid
from ray.tune.experiment import Trial
from transformers import ASTConfig, ASTModel

from eav_ray.config import (
    DataConfig,
    Experiment,
    SearchConfig,
    SearchDimension,
    VideoPreprocessing,
    load_experiment,
    override,
    parse_changes,
)
from eav_ray.data.datasets import registry
from eav_ray.data.datasets.recordings_table import RecordingsTable
from eav_ray.data.io import matlab, parquet
from eav_ray.data.io.jpeg import SHAPE_KEY
from eav_ray.data.io.parquet import FORMAT_KEY, TABLE_FORMAT
from eav_ray.data.recordings import Recording
from eav_ray.data.shards.dataset import Dataset, open_dataset
from eav_ray.data.shards.index import INDEX_FILE, ShardFile, ShardIndex
from eav_ray.data.shards.location import name_index_folder, open_shard_store
from eav_ray.data.shards.schema import make_schema
from eav_ray.data.shards.tables import build_window_table, encode_parquet
from eav_ray.distributed import ray_workarounds
from eav_ray.distributed.scoring import ScoringTask, format_table_name, score_checkpoints
from eav_ray.errors import ConfigError, DataError
from eav_ray.pipelines.inference.pull import pull
from eav_ray.pipelines.inference.store_listing import format_models
from eav_ray.pipelines.preprocess import eeg_stage
from eav_ray.pipelines.preprocess.chunks import Chunk, hash_listing, plan_chunks
from eav_ray.pipelines.preprocess.dataset_check import check_dataset
from eav_ray.pipelines.preprocess.preprocess import ChunkMaker, preprocess
from eav_ray.pipelines.search.search_store import SearchStore
from eav_ray.pipelines.train import cross_validation
from eav_ray.storage import COMMIT, Store, sha256
from eav_ray.training import checkpoint as ckpt
from eav_ray.training.checkpoint import OpenedCheckpoint, open_finished_checkpoint
from eav_ray.training.embeddings import EMBEDDING_ARRAYS, EmbeddingSource
from eav_ray.tuning.best import write_best_record
from eav_ray.tuning.study import StudyClient
from tests.helpers.checkpoints import write_best, write_finished
from tests.helpers.classifiers import AST_SIZES
from tests.helpers.classifiers import make_ast as small_ast
from tests.helpers.generated_eav import write_subject
from tests.helpers.paths import REPOSITORY
from tests.helpers.shards import CHANNELS, MODALITIES, PROFILE, SCHEMA, Shards, make_rows

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


class Malicious:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.proof,)


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda file: None)


@pytest.fixture
def proof(tmp_path: Path) -> Path:
    """There once something was executed."""
    return tmp_path / "executed"


def refused(read: Callable[[], object], named: str, proof: Path) -> None:
    with pytest.raises((ConfigError, DataError)) as caught:
        read()
    assert named in str(caught.value) and "\n" not in str(caught.value)
    assert not proof.exists()


def expect_skipped(read: Callable[[], object], proof: Path) -> None:
    read()
    assert not proof.exists()


# Files of every kind that can hold a pickle, in the place of whatever file a command opens


def written(write: Callable[[io.BytesIO], object]) -> bytes:
    sink = io.BytesIO()
    write(sink)
    return sink.getvalue()


def array(proof: Path) -> np.ndarray:
    return np.array([Malicious(proof)], dtype=object)


PAYLOADS: dict[str, tuple[Callable[[Path], bytes], Callable[[Any], object]]] = {
    "pickle": (lambda p: pickle.dumps(Malicious(p)), pickle.load),
    "pickle in text": (lambda p: pickle.dumps(Malicious(p), protocol=0), pickle.load),
    "torch": (
        lambda p: written(partial(torch.save, {"w": Malicious(p)})),
        lambda f: torch.load(f, weights_only=False),
    ),
    "torch of old": (
        lambda p: written(lambda s: torch.save({"w": Malicious(p)}, s, _use_new_zipfile_serialization=False)),
        lambda f: torch.load(f, weights_only=False),
    ),
    "npy": (
        lambda p: written(lambda s: np.save(s, array(p), allow_pickle=True)),
        lambda f: np.load(f, allow_pickle=True),
    ),
    "npz": (
        lambda p: written(lambda s: np.savez(s, a=array(p))),
        lambda f: np.load(f, allow_pickle=True)["a"],
    ),
}


@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_payload_is_malicious(payload: str, proof: Path) -> None:
    make, opened = PAYLOADS[payload]
    whole = make(proof)
    assert not proof.exists()
    opened(io.BytesIO(whole))
    assert proof.exists()


@dataclass(frozen=True)
class TablePlace:
    put: Callable[[bytes], object]  # the payload, with the right hash where one is kept: who writes files writes both
    read: Callable[[], object]  # as a command does
    named: str = ""  # in the line that refuses it; empty where the command goes on, as `read` makes sure


def recorded(folder: Path, medium: Any, name: str) -> TablePlace:
    """One recording of a user's own table, through the stages of preprocessing."""
    listed = folder / "mine.csv"
    listed.write_text(f"subject,recording,label,{medium}\np1,r1,calm,{name}\n")
    data = DataConfig(dataset="recordings_table", root=str(listed), modalities=(medium,))

    def read() -> None:
        dataset, listing = registry.scan_dataset(data)
        unit, channels = listing.recordings, registry.list_eeg_channels(dataset, listing) if medium == "eeg" else ()
        row: dict[str, Any] = {"unit": 0, "eeg": b"", "eeg_facts": "{}"}
        if medium == "eeg":
            batch = {"subject_index": np.array([0])}
            made = eeg_stage.prepare_subject(
                batch,
                unit_indices_by_subject=[[0]],
                recording_units=[unit],
                data=data,
                preprocessing=PROFILE,
                subject_recordings={},
            )
            row = {k: v[0] for k, v in next(made).items()}
        store = Store(folder / "shards")
        ChunkMaker(data, PROFILE, store, channels).write_chunk(row, chunks=[Chunk("c", unit)], crash_reasons={})
        reported = store.read_json("records/c.json")
        assert reported["rows"] == 0 and name in reported["problems"][0]["reason"]

    # One EEG file that can be read would do for the others; there is none.
    return TablePlace((folder / name).write_bytes, read, name if medium == "eeg" else "")


def of_eav(folder: Path, name: str) -> TablePlace:
    subject = write_subject(folder / "eav")
    e = override(Experiment(), {"data.dataset": "eav", "data.root": str(folder / "eav")})

    def read() -> None:
        found = check_dataset(e)
        assert any(name in p.reason for p in found.problems) and all(r.eeg is None for r in found.recordings)

    return TablePlace((subject / "EEG" / name).write_bytes, read)


def table(folder: Path, name: str) -> TablePlace:
    return TablePlace((folder / name).write_bytes, lambda: RecordingsTable(str(folder / name)).scan(), name)


def own_experiment(folder: Path) -> Experiment:
    """Of one recording that has been listed and not been preprocessed."""
    (folder / "mine.csv").write_text("subject,recording,label,audio\np1,r1,calm,a.wav\n")
    (folder / "a.wav").touch()
    changes = {"data.dataset": "recordings_table", "data.root": str(folder / "mine.csv"), "data.modalities": ["audio"]}
    return override(Experiment(), changes | {"store.shards": str(folder / "shards")})


def index(folder: Path) -> TablePlace:
    e = own_experiment(folder)
    return TablePlace(
        partial(open_shard_store(e).write, f"{name_index_folder(e)}/{INDEX_FILE}"), lambda: open_dataset(e), INDEX_FILE
    )


def record(folder: Path) -> TablePlace:
    e = own_experiment(folder)
    reader, listing = registry.scan_dataset(e.data)
    (chunk,) = plan_chunks(e, listing, hash_listing(e, reader, listing, Store(e.store.shards)))
    return TablePlace(
        partial(open_shard_store(e).write, f"records/{chunk.name}.json"), lambda: preprocess(e), chunk.name
    )


def seen(shards: Shards, folder: Path) -> None:
    windows = shards.windows(folder / "cache")
    for m in MODALITIES:
        windows.get(np.arange(len(windows)), m)


def shard(folder: Path) -> TablePlace:
    shards = Shards(folder / "shards", ())

    def put(data: bytes) -> None:
        shards.store.write("a.parquet", data)
        shards.files = [ShardFile("a.parquet", sha256(data), 5)]

    return TablePlace(put, lambda: seen(shards, folder), "shard a.parquet")


def cached(folder: Path) -> TablePlace:
    shards = Shards(folder / "shards", (0,))
    seen(shards, folder)
    (file,) = (folder / "cache").glob("*.arrow")
    return TablePlace(file.write_bytes, lambda: seen(shards, folder), file.name)


def frame(folder: Path) -> TablePlace:
    shards = Shards(folder / "shards", ())
    preprocessing = replace(PROFILE, video=VideoPreprocessing(fps=2, size=4))

    def put(data: bytes) -> None:
        made = [row | {"video": [data, b""]} for row in make_rows(3, 0)]
        shards.files = [
            shards.put("a.parquet", build_window_table(made, make_schema(preprocessing, CHANNELS, MODALITIES)))
        ]

    return TablePlace(put, lambda: seen(shards, folder), "a stored frame")


def checkpoint(folder: Path, name: str, use: Callable[[Store, str], object]) -> TablePlace:
    """A finished one; `use` is given the store and the prefix."""
    store = Store(folder / "results")
    prefix = write_finished(store, "run").prefix
    kept = store.read_committed(prefix)
    opened(store, prefix)  # as it is, it is read

    def put(data: bytes) -> None:
        if name == COMMIT:
            store.write(f"{prefix}/{name}", data)
        else:
            store.commit(prefix, kept | {name: data})

    return TablePlace(put, lambda: use(store, prefix), prefix if use is opened and name != "versions.json" else "")


def opened(store: Store, prefix: str) -> None:
    open_finished_checkpoint(f"{store}/{prefix}").load()


def continued(store: Store, prefix: str) -> None:
    found, damaged = ckpt.load_latest_checkpoint(store, "run")
    assert found is None and prefix in damaged[0]


def pruned(store: Store, prefix: str) -> None:
    ckpt.prune_checkpoints(store, "run", "a0001", keep=0)
    assert not store.exists(prefix)


def scored(store: Store, prefix: str) -> None:
    assert ckpt.find_finished_checkpoint(store, "run") is None


def pulled(folder: Path, name: str) -> TablePlace:
    store = Store(folder / "results")
    write_best(store, "one")
    prefix = store.read_json("searches/one/best.json")["checkpoint"]
    kept = store.read_committed(prefix)

    def put(data: bytes) -> None:
        if name == "best.json":
            store.write("searches/one/best.json", data)
            return
        store.commit(prefix, kept | {name: data})
        reported = {"checkpoint": prefix, "commit_sha256": OpenedCheckpoint(store, prefix).commit_sha256}
        write_best_record(store, "one", [reported])

    def read() -> None:
        shutil.rmtree(folder / "mine", ignore_errors=True)
        pull(str(store), str(folder / "mine"))
        format_models(str(store))

    return TablePlace(put, read, {"best.json": "best.json", "extra.pkl": ""}.get(name, prefix))


def journal(folder: Path, before: bool) -> TablePlace:
    """Of a search: the payload alone, or behind what was written before it."""
    of = SearchConfig(
        candidates=2, ask_batch_size=2, sampler="random", space={"fusion.heads": SearchDimension(choice=(1, 2))}
    )
    path = folder / "journal.log"
    if before:
        StudyClient(of, "study", path).ask()
    earlier = path.read_bytes() if before else b""

    def read() -> None:
        StudyClient(of, "study", path).ask()
        StudyClient(of, "study", path).ask()

    return TablePlace(lambda data: path.write_bytes(earlier + data), read, "journal.log")


def trials(folder: Path) -> TablePlace:
    of, owner = SearchStore(Store(folder), "s"), cast(StudyClient, SimpleNamespace(completed=lambda: [0]))
    name = f"{of.folder}/candidates/000001-a.parquet"
    return TablePlace(partial(of.results.write, name), lambda: of.read_completed_rows(owner), name)


def predictions(folder: Path) -> TablePlace:
    store = Store(folder / "results")
    e = override(Experiment(), {"store.results": str(store)})
    task, of = (
        ScoringTask(write_finished(store, "run"), ("p0/0",)),
        ShardIndex("k", ("a", "b"), ("eeg",), 3, (), {}),
    )
    name = format_table_name(task, of)
    return TablePlace(
        partial(store.write, name), lambda: score_checkpoints(e, [task], Dataset(store, of, str(folder), 1.0)), name
    )


def folds(folder: Path, name: str) -> TablePlace:
    store = Store(folder)
    kept = {
        "predictions.parquet": parquet.encode_dataframe(pd.DataFrame({"subject": ["p0"]})),
        "folds.json": b'{"format": 2, "folds": []}',
    }
    return TablePlace(
        lambda data: store.commit("p", kept | {name: data}), lambda: cross_validation.read_cv_result(store, "p"), "/p "
    )


def embedded(folder: Path, name: str) -> TablePlace:
    shards = Shards(folder / "shards", (0,))
    store, windows = Store(folder / "results"), shards.windows(folder / "cache")
    kept = {"part-0000.parquet": encode_parquet(embedding()), "times.json": b'{"format": 2, "times_s": [0.5]}'}
    pointer = b'{"format": 2, "attempt": "a"}'

    def put(data: bytes) -> None:
        store.commit("e/a", kept | ({name: data} if name in kept else {}))
        store.write("e/current.json", data if name == "current.json" else pointer)

    def read() -> None:
        EmbeddingSource(store, {"eeg": "e"}, windows).get(np.arange(5))

    names = {"part-0000.parquet": "e/a/part", "times.json": "/e/a "}
    return TablePlace(put, read, names.get(name, "current.json"))


def cached_embeddings(folder: Path, name: str) -> TablePlace:
    place = embedded(folder, "part-0000.parquet")
    place.put(encode_parquet(embedding()))
    place.read()
    (made,) = (folder / "cache").glob("*.embeddings")
    return TablePlace((made / name).write_bytes, place.read, made.name)


def embedding() -> pa.Table:
    ids = {c: [row[c] for row in make_rows(5, 0)] for c in ("subject", "recording", "window")}
    arrays = {a: pa.FixedShapeTensorArray.from_numpy_ndarray(np.zeros((5, 1, 2), np.float32)) for a in EMBEDDING_ARRAYS}
    return pa.table(ids | arrays)


def weights(folder: Path, name: str, *, beside_others: bool = False, given: str = "") -> TablePlace:
    """A user's own, of an AST.

    Args:
        beside: Put whole weights there first.
        given: The name that the user gives; the folder if empty.
    """
    place = folder / "weights"
    place.mkdir()
    if beside_others:
        ASTModel(ASTConfig(**AST_SIZES)).save_pretrained(place)
    harmless = beside_others and name == "pytorch_model.bin"
    named = "" if harmless else "model.audio.weights"
    return TablePlace((place / name).write_bytes, lambda: encoder().load_pretrained(str(place / given)), named)


@cache
def encoder() -> Any:
    return small_ast(1024)


PLACES: dict[str, Callable[[Path], TablePlace]] = {
    **{
        f"EEG as a{suffix}": partial(recorded, medium="eeg", name=f"a{suffix}")
        for suffix in (".edf", ".bdf", ".gdf", ".fif", ".set", ".vhdr", ".cnt", ".mat", ".snirf", ".npy", ".pkl")
    },
    **{f"sound as a{s}": partial(recorded, medium="audio", name=f"a{s}") for s in (".wav", ".flac", ".npy")},
    **{f"a film as a{s}": partial(recorded, medium="video", name=f"a{s}") for s in (".mp4", ".avi", ".npz")},
    "EEG of EAV": partial(of_eav, name="subject1_eeg.mat"),
    "labels of EAV": partial(of_eav, name="subject1_eeg_label.mat"),
    "a table in text": partial(table, name="mine.csv"),
    "a table in Parquet": partial(table, name="mine.parquet"),
    "an experiment": lambda folder: TablePlace(
        (folder / "e.yaml").write_bytes, lambda: load_experiment(folder / "e.yaml"), "e.yaml"
    ),
    "the index of shards": index,
    "the record of a shard": record,
    "a shard": shard,
    "cached windows": cached,
    "a stored frame": frame,
    **{
        f"{name} of a checkpoint": partial(checkpoint, name=name, use=opened)
        for name in ("model.safetensors", "optimizer.safetensors", COMMIT, "versions.json")
    },
    **{
        f"{name}.json of a checkpoint": partial(checkpoint, name=f"{name}.json", use=opened)
        for name in ("experiment", "split", "metrics", "state")
    },
    "a run that goes on": partial(checkpoint, name="model.safetensors", use=continued),
    "a run that is tested": partial(checkpoint, name="state.json", use=scored),
    "a run that is pruned": partial(checkpoint, name="metrics.json", use=pruned),
    "the best of a search": partial(pulled, name="best.json"),
    "a pulled checkpoint": partial(pulled, name="model.safetensors"),
    "a file in a pulled checkpoint": partial(pulled, name="extra.pkl"),
    "a journal": partial(journal, before=False),
    "the end of a journal": partial(journal, before=True),
    "the trials of a search": trials,
    "predictions": predictions,
    "predictions of a protocol": partial(folds, name="predictions.parquet"),
    "folds of a protocol": partial(folds, name="folds.json"),
    "embeddings": partial(embedded, name="part-0000.parquet"),
    **{f"cached {n}": partial(cached_embeddings, name=n) for n in ("pooled.npy", "contents.json")},
    "times of embeddings": partial(embedded, name="times.json"),
    "the name of embeddings": partial(embedded, name="current.json"),
    "weights": partial(weights, name="model.safetensors"),
    "facts beside weights": partial(weights, name="config.json", beside_others=True),
    "weights in a folder": partial(weights, name="pytorch_model.bin"),
    "weights beside others": partial(weights, name="pytorch_model.bin", beside_others=True),
    **{f"weights as a{s}": partial(weights, name=f"a{s}", given=f"a{s}") for s in (".bin", ".pt", ".pth", ".npz")},
}


@pytest.mark.parametrize("place", PLACES)
def test_a_pickle_is_not_executed(place: str, tmp_path: Path, proof: Path) -> None:
    there = PLACES[place](tmp_path)
    for make, _ in PAYLOADS.values():
        there.put(make(proof))
        if there.named:
            refused(there.read, there.named, proof)
        else:
            expect_skipped(there.read, proof)


# Columns of tables


def retyped(values: pa.Array, name: str, metadata: bytes = b"") -> pa.Field:
    """Of a type that a library brought, as a file states it."""
    stated = {b"ARROW:extension:name": name.encode(), b"ARROW:extension:metadata": metadata}
    return pa.field("x", values.type, metadata=stated)


def pickles(count: int, proof: Path) -> pa.Array:
    return pa.array([pickle.dumps(Malicious(proof))] * count, pa.large_binary())


def objects(count: int, proof: Path) -> tuple[pa.Field, pa.Array]:
    values = pickles(count, proof)
    return retyped(values, "ray.data.arrow_pickled_object"), values


def in_lists(count: int, proof: Path) -> tuple[pa.Field, pa.Array]:
    inner, values = objects(count, proof)
    kind = pa.list_(inner)
    return pa.field("x", kind), pa.ListArray.from_arrays(pa.array(range(count + 1), pa.int32()), values, type=kind)


def in_structs(count: int, proof: Path) -> tuple[pa.Field, pa.Array]:
    inner, values = objects(count, proof)
    return pa.field("x", pa.struct([inner])), pa.StructArray.from_arrays([values], fields=[inner])


def stating(name: str, values: list[Any], kind: pa.DataType) -> Callable[[int, Path], tuple[pa.Field, pa.Array]]:
    """A type whose parameters are a pickle."""

    def made(count: int, proof: Path) -> tuple[pa.Field, pa.Array]:
        column = pa.array(values * count, kind)
        return retyped(column, name, pickle.dumps(Malicious(proof))), column

    return made


COLUMNS: dict[str, Callable[[int, Path], tuple[pa.Field, pa.Array]]] = {
    "objects of Ray": objects,
    "objects of Ray in lists": in_lists,
    "objects of Ray in structs": in_structs,
    "tensors of Ray": stating("ray.data.arrow_tensor", [[1.0]], pa.list_(pa.float32())),
    "newer tensors of Ray": stating("ray.data.arrow_tensor_v2", [[1.0]], pa.large_list(pa.float32())),
    "periods of pandas": stating("pandas.period", [1], pa.int64()),
    "objects of Arrow": stating("arrow.py_extension_type", [b"x"], pa.binary()),
    "a type that nobody knows": stating("x.y", [b"x"], pa.binary()),
    "bytes": lambda count, proof: (pa.field("x", pa.large_binary()), pickles(count, proof)),
}


def with_column(whole: pa.Table, name: str, column: tuple[pa.Field, pa.Array]) -> pa.Table:
    field, values = column
    return whole.set_column(whole.column_names.index(name), field.with_name(name), values)


def in_parquet(whole: pa.Table) -> bytes:
    """As the program writes what it keeps: with the number of the format."""
    number = {FORMAT_KEY: str(TABLE_FORMAT).encode()}
    numbered = whole.replace_schema_metadata((whole.schema.metadata or {}) | number)
    return written(lambda sink: pq.write_table(numbered, sink))


def in_arrow(whole: pa.Table) -> bytes:
    with pa.BufferOutputStream() as sink:
        with pa.ipc.new_file(sink, whole.schema) as writer:
            writer.write_table(whole)
        return sink.getvalue().to_pybytes()


def listed() -> pa.Table:
    return pa.table({c: ["p1"] for c in ("subject", "recording", "label", "audio")})


def tried() -> pa.Table:
    return pa.table({"study": ["s"], "candidate": [0], "state": ["COMPLETE"], "changes": ["{}"], "fold": [0]})


def predicted() -> pa.Table:
    return pa.table({"subject": ["p0"], "recording": ["0"], "window": [0], "label": [0], "fusion.logit_0": [0.5]})


def windows() -> pa.Table:
    return build_window_table(make_rows(5, 0), SCHEMA)


# Place -> the table that is there, how it is stored, and the columns that are looked at.
TABLES: dict[str, tuple[Callable[[], pa.Table], Callable[[pa.Table], bytes], tuple[str, ...]]] = {
    "a table in Parquet": (listed, in_parquet, ("subject", "audio")),
    "a shard": (windows, in_parquet, ("subject", "task", "has_eeg", "eeg", "video")),
    "cached windows": (windows, in_arrow, ("subject", "task", "has_eeg", "eeg", "video")),
    "embeddings": (embedding, in_parquet, ("subject", "tokens")),
    "the trials of a search": (tried, in_parquet, ("changes",)),
    "predictions": (predicted, in_parquet, ("subject", "fusion.logit_0")),
    "predictions of a protocol": (predicted, in_parquet, ("subject", "fusion.logit_0")),
}


@pytest.mark.parametrize("kind", ["objects of Ray", "objects of Ray in lists", "objects of Ray in structs"])
def test_a_column_is_malicious_once_ray_data_is_there(kind: str, proof: Path) -> None:
    assert ray.data
    whole = in_parquet(with_column(listed(), "subject", COLUMNS[kind](1, proof)))
    read = pq.read_table(pa.BufferReader(whole))
    assert not proof.exists()
    read.column("subject").to_pylist()
    assert proof.exists()


@pytest.mark.parametrize("kind", COLUMNS)
@pytest.mark.parametrize("place", TABLES)
def test_a_type_that_can_run_code_is_not_read(place: str, kind: str, tmp_path: Path, proof: Path) -> None:
    base, stored, columns = TABLES[place]
    whole, there = base(), PLACES[place](tmp_path)
    there.put(stored(whole))
    there.read()  # as it is, it is read
    for column in columns:
        for file in (tmp_path / "cache").glob("*.arrow"):
            file.unlink()  # which there is of the shard before
        there.put(stored(with_column(whole, column, COLUMNS[kind](whole.num_rows, proof))))
        refused(there.read, "", proof)


@pytest.mark.parametrize("place", TABLES)
def test_a_pickle_in_what_a_table_says_of_itself_is_not_executed(place: str, tmp_path: Path, proof: Path) -> None:
    base, stored, _ = TABLES[place]
    there, whole, payload = PLACES[place](tmp_path), base(), pickle.dumps(Malicious(proof))
    said = {b"pandas": payload, SHAPE_KEY: payload}
    there.put(stored(whole.replace_schema_metadata(said)))
    expect_skipped(there.read, proof)
    there.put(stored(whole.cast(pa.schema([field.with_metadata(said) for field in whole.schema]))))
    expect_skipped(there.read, proof)
    if stored is in_parquet:  # which keeps the types of Arrow there
        there.put(stored(whole.replace_schema_metadata({b"ARROW:schema": payload})))
        refused(there.read, there.named, proof)


def test_a_pickle_in_the_place_of_the_shape_of_frames_is_refused(tmp_path: Path, proof: Path) -> None:
    shards, preprocessing = Shards(tmp_path / "shards", ()), replace(PROFILE, video=VideoPreprocessing(fps=2, size=4))
    whole = build_window_table(
        [row | {"video": [b"", b""]} for row in make_rows(3, 0)], make_schema(preprocessing, CHANNELS, MODALITIES)
    )
    at = whole.column_names.index("video")
    field = whole.schema.field(at).with_metadata({SHAPE_KEY: pickle.dumps(Malicious(proof))})
    shards.files = [shards.put("a.parquet", whole.set_column(at, field, whole.column(at)))]
    refused(lambda: seen(shards, tmp_path), "video", proof)


# Tags of YAML

TAGS = {
    "a call": '!!python/object/apply:os.mkdir ["{proof}"]',
    "a command": '!!python/object/apply:os.system ["mkdir {proof}"]',
    "a key": '{{? !!python/object/apply:os.mkdir ["{proof}"] : 1}}',
}


@pytest.mark.parametrize("tag", TAGS)
def test_a_tag_of_yaml_is_not_executed(tag: str, tmp_path: Path, proof: Path) -> None:
    text = TAGS[tag].format(proof=proof)
    (tmp_path / "e.yaml").write_text(f"name: {text}\n")
    for read in (lambda: load_experiment(tmp_path / "e.yaml"), lambda: parse_changes([f"name={text}"])):
        with pytest.raises(ConfigError, match="is not YAML"):
            read()
    assert not proof.exists()
    yaml.unsafe_load(text)
    assert proof.exists()  # it is malicious


# Addresses in HDF5


def address(place: h5py.Group | h5py.Dataset, name: str, *, of_attribute: bool = False, inside: bool = False) -> None:
    """Opaque values that say that they are objects in memory; here, for the test's own sake, at address 0."""
    kind = h5py.h5t.create(h5py.h5t.OPAQUE, 8)
    kind.set_tag(b"NUMPY:|O")
    values = np.zeros(3, "V8")
    if inside:
        whole = h5py.h5t.create(h5py.h5t.COMPOUND, 8)
        whole.insert(b"a", 0, kind)
        kind, values = whole, np.zeros(3, [("a", "V8")])
    space = h5py.h5s.create_simple((3,))
    if of_attribute:
        h5py.h5a.create(place.id, name.encode(), kind, space)
    else:
        h5py.h5d.create(place.id, name.encode(), kind, space).write(h5py.h5s.ALL, h5py.h5s.ALL, values, mtype=kind)


def addressed(path: Path, how: str, name: str) -> None:
    with h5py.File(path, "w", userblock_size=512) as file:
        match how:
            case "values":
                address(file, name)
            case "a part of values":
                address(file, name, inside=True)
            case "an attribute":
                address(file.create_dataset(name, data=np.zeros(3)), "MATLAB_class", of_attribute=True)
            case _:
                file[name] = h5py.ExternalLink("other.h5", "x")
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")


def test_h5py_takes_opaque_values_for_objects(tmp_path: Path) -> None:
    addressed(tmp_path / "a.mat", "values", "seg")
    with h5py.File(tmp_path / "a.mat") as file:
        assert file["seg"][()].dtype == object


@pytest.mark.parametrize("how", ["values", "a part of values"])
def test_addresses_in_the_place_of_a_matrix_are_refused_unread(how: str, tmp_path: Path) -> None:
    addressed(tmp_path / "a.mat", how, "seg")
    for read in (
        lambda: matlab.read_array_shapes(tmp_path / "a.mat", ["seg"]),
        lambda: matlab.read_array(tmp_path / "a.mat", "seg", (3,)),
    ):
        with pytest.raises(DataError, match="seg holds .*, not real numbers"):
            read()


@pytest.mark.parametrize("how", ["values", "a part of values", "an attribute", "a link"])
@pytest.mark.parametrize("suffix", [".set", ".mat", ".snirf"])
def test_eeg_with_addresses_does_not_reach_its_reader(
    how: str, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reached(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr("mne.io.read_raw", reached)
    addressed(tmp_path / f"a{suffix}", how, "data")
    (tmp_path / "mine.csv").write_text(f"subject,recording,label,eeg\np1,r1,calm,a{suffix}\n")
    listing = RecordingsTable(str(tmp_path / "mine.csv"))
    with pytest.raises(DataError, match=r"can run code|points into another file"):
        listing.read_eeg(Recording("p1", "r1", 0, "speaking", 0, eeg=str(tmp_path / f"a{suffix}")))


@pytest.mark.parametrize("compressed", [False, True])
def test_objects_of_matlab_are_no_signal(compressed: bool, tmp_path: Path) -> None:
    values = np.array([["x", {"a": 1}]], dtype=object)
    scipy.io.savemat(tmp_path / "a.mat", {"seg": values}, do_compression=compressed)
    with pytest.raises(DataError, match=r"a\.mat"):
        matlab.read_array(tmp_path / "a.mat", "seg", matlab.read_array_shapes(tmp_path / "a.mat", ["seg"])["seg"])


# What Ray Tune leaves in the results store


def test_the_pickled_error_of_a_candidate_is_not_opened(tmp_path: Path, proof: Path) -> None:
    trial: Any = object.__new__(Trial)
    trial.storage = SimpleNamespace(storage_filesystem=pafs.LocalFileSystem(), trial_fs_path=str(tmp_path))
    trial.run_metadata = SimpleNamespace(pickled_error_filename="error.pkl", error_filename="error.txt")
    trial.temporary_state = SimpleNamespace()
    trial.status = Trial.ERROR
    (tmp_path / "error.pkl").write_bytes(pickle.dumps(Malicious(proof)))
    (tmp_path / "error.txt").write_text("Failure # 1\nValueError: no\n")
    with ray_workarounds.tune_settings(1):
        assert "ValueError: no" in str(ResultGrid._populate_exception(trial))
    assert not proof.exists()
    ResultGrid._populate_exception(trial)
    assert proof.exists()  # it is malicious


# What the program itself may not call

BANNED_MODULES = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
BANNED_CALLS = {
    *("eval", "exec", "torch.jit.load", "torch.hub.load", "torch.package.PackageImporter", "pd.read_pickle"),
    *("yaml.unsafe_load", "yaml.unsafe_load_all", "yaml.full_load", "yaml.full_load_all", "yaml.load_all"),
    *("pd.read_hdf", "np.lib.format.read_array"),
}
BANNED_METHODS = {"load_checkpoint", "from_pretrained", "read_pickle", "get_pickled_error", "allow_pickle"}
RESTORED = ("Tuner.restore", "Trainer.restore")
# Whatever reads tables goes through `data/io/parquet.py`, which looks at the types of columns first.
TABLE_READERS = {
    "read_table",
    "read_parquet",
    "read_feather",
    "ParquetFile",
    "ParquetDataset",
    "open_file",
    "open_stream",
}


def unsafe(source: str, *, reads_tables: bool = False) -> list[str]:
    """Lines of a module that could run what a file holds."""
    tree = ast.parse(source)
    safe_loaders = {"yaml.SafeLoader", "yaml.CSafeLoader"} | {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and "yaml.SafeLoader" in map(ast.unparse, node.bases)
    }
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names) if any(BANNED_MODULES & set(n.name.split(".")) for n in names):
                found.append(ast.unparse(node))
            case ast.ImportFrom(module=module, names=names):
                named = {n.name for n in names}
                loads = module in ("torch", "numpy", "yaml") and named & {"load", "unsafe_load", "full_load"}
                if loads or BANNED_MODULES & {*(module or "").split("."), *named}:
                    found.append(ast.unparse(node))
            case ast.Call() if _is_unsafe(node, safe_loaders, reads_tables):
                found.append(ast.unparse(node))
    return found


def _is_unsafe(call: ast.Call, safe_loaders: set[str], reads_tables: bool) -> bool:
    name = ast.unparse(call.func)
    last, given = name.rsplit(".", 1)[-1], {k.arg: ast.unparse(k.value) for k in call.keywords}
    if name == "torch.load":
        return given.get("weights_only") != "True"
    if name == "yaml.load":
        return given.get("Loader", ast.unparse(call.args[1]) if len(call.args) > 1 else "") not in safe_loaders
    if last in TABLE_READERS and not reads_tables:
        return True
    pickles = given.get("allow_pickle", "False") != "False"
    return pickles or name in BANNED_CALLS or last in BANNED_METHODS or name.endswith(RESTORED)


@pytest.mark.parametrize("folder", ["eav_ray", "jobs"])
def test_no_module_calls_what_could_run_a_file(folder: str) -> None:
    modules = sorted((REPOSITORY / folder).rglob("*.py"))
    assert len(modules) > 5
    reader = REPOSITORY / "eav_ray" / "data" / "io" / "parquet.py"
    found = {m.name: unsafe(m.read_text(), reads_tables=m == reader) for m in modules}
    assert not {name: lines for name, lines in found.items() if lines}


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "import ray.cloudpickle as c",
        "from joblib import load",
        "from ray import cloudpickle",
        "from torch import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=given)",
        "yaml.load(text)",
        "yaml.load(text, yaml.Loader)",
        "yaml.unsafe_load(text)",
        "engine.load_checkpoint(path)",
        "tune.Tuner.restore(path, trainable)",
        "AutoModel.from_pretrained(path)",
        "pd.read_parquet(path)",
        "pq.read_table(path)",
        "pa.ipc.open_file(path)",
        "eval(text)",
    ],
)
def test_a_line_that_could_run_a_file_is_seen(line: str) -> None:
    assert unsafe(line) and not unsafe("torch.load(path, weights_only=True)\nnp.load(path)\nmodel.eval()")
