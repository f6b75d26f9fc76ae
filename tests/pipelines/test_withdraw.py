"""After a withdrawal nothing in the stores holds the subject, and all else is as it was, bit for bit."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from markupsafe import Markup

from eav_ray.cli.main import run_command
from eav_ray.config import Experiment, override, to_dict
from eav_ray.data.io import parquet
from eav_ray.data.shards import content
from eav_ray.data.shards.dataset import open_dataset
from eav_ray.data.splits import Split
from eav_ray.errors import ConfigError, DataError
from eav_ray.pipelines.preprocess.preprocess import preprocess
from eav_ray.pipelines.preprocess.quality_page import write_quality_page
from eav_ray.pipelines.withdraw.mentions import holds_subject
from eav_ray.pipelines.withdraw.withdraw import find_holdings, withdraw
from eav_ray.storage import NodeCache, Store, encode_documents, lease
from eav_ray.training.embeddings import commit_embeddings, write_embedding_part
from eav_ray.training.mapped_embeddings import open_embeddings
from tests.helpers.checkpoints import change_state, make_checkpoint, save_checkpoint
from tests.helpers.in_process_preprocessing import run_in_process
from tests.helpers.predictions import draw_predictions
from tests.helpers.s3_servers import BUCKET, open_conditional_server

GONE, SUBJECTS = "p1", ("p0", "p1", "p1-b", "p10", "p2")


@pytest.fixture
def e(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """Five people with two clips each, one of which cannot be read, preprocessed and mapped."""
    monkeypatch.setattr(content, "SETTLED_S", 0.0)
    run_in_process(monkeypatch)
    table = write_recordings(tmp_path / "raw")
    keys = {"data.dataset": "recordings_table", "data.root": str(table), "data.modalities": ["audio"]}
    keys |= {f"store.{name}": str(tmp_path / name) for name in ("shards", "results", "cache")}
    e = override(Experiment(), keys)
    preprocess_and_map(e)
    return e


def write_recordings(folder: Path) -> Path:
    folder.mkdir()
    rng, rows = np.random.default_rng(0), ["subject,recording,label,audio"]
    for s in SUBJECTS:
        for k in range(2):
            soundfile.write(folder / f"{s}_{k}.wav", rng.normal(0, 0.1, 16_000 * 5), 16_000)
            rows.append(f"{s},r{k},{('calm', 'angry')[k]},{s}_{k}.wav")
    (folder / f"{GONE}_1.wav").write_bytes(b"no sound")
    (folder / "m.csv").write_text("\n".join(rows) + "\n")
    return folder / "m.csv"


def preprocess_and_map(e: Experiment) -> None:
    write_quality_page(e, preprocess(e), frames=False)
    assert len(open_dataset(e).windows)


def write_embeddings(results: Store, cache: NodeCache, key: str, subjects: tuple[str, ...]) -> None:
    values = {"tokens": np.ones((2, 3, 4), np.float32), "mask": np.ones((2, 3), np.uint8)}
    values |= {"pooled": np.ones((2, 4), np.float32), "logits": np.ones((2, 2), np.float32)}
    for number, s in enumerate(subjects):
        ids = {"subject": [s] * 2, "recording": ["r0", "r1"], "window": [0, 0]}
        tensors = {name: pa.FixedShapeTensorArray.from_numpy_ndarray(x) for name, x in values.items()}
        write_embedding_part(results, key, f"a-{key[-1]}", f"{number}", pa.table(ids | tensors))
    commit_embeddings(results, key, f"a-{key[-1]}", torch.zeros(3))
    open_embeddings(results, f"{key}/a-{key[-1]}", cache)


def write_results(e: Experiment) -> None:
    """What commands leave: of all people, and of all but the one who goes."""
    results, cache = Store(e.store.results), NodeCache(e.store.cache, 1)
    others = tuple(s for s in SUBJECTS if s != GONE)
    for key, subjects in (("all", SUBJECTS), ("others", others)):
        folds = {"format": 1, "folds": [{"fold": 0, "test": [f"{s}/r0" for s in subjects]}]}
        tables = draw_predictions(2, 2)
        tables = tables.assign(subject=[subjects[i % len(subjects)] for i in range(len(tables))])
        predictions = {"predictions.parquet": parquet.encode_dataframe(tables)}
        for folder in ("protocols", "baselines"):
            results.commit(
                f"{folder}/{key}", encode_documents({"experiment": to_dict(e), "folds": folds}) | predictions
            )
        results.write(f"evaluations/{key}.parquet", predictions["predictions.parquet"])
        tree = {"experiment": to_dict(e), "by_subject": [{"subject": s, "accuracy": 0.5} for s in subjects]}
        results.write_json(f"robustness/{key}/results.json", tree)
        results.commit(f"ablations/{key}", encode_documents({"results": tree}))
        scores = {"scores": [{"model": "m", "subject": s, "score": 0.5} for s in subjects]}
        rows = "".join(f"m,0,{s},0.5\n" for s in subjects).encode()
        results.commit(f"comparisons/{key}", encode_documents({"encoders": scores}) | {"encoders.csv": rows})
        write_embeddings(results, cache, f"embeddings/{key}", subjects)
        write_embeddings(results, cache, f"features/audio-{key}", subjects)
        results.write_json(f"searches/{key}/experiment.json", to_dict(override(e, {"data.subjects": list(subjects)})))
        results.write(f"searches/{key}/candidates.parquet", b"of no subject")
        results.write_json(f"page-{key}/results.json", tree)
        results.write(f"page-{key}/index.html", f"<td>{'</td><td>'.join(subjects)}</td>".encode())
        results.write(f"mine/{key}.txt", f"ask {subjects[1]} again".encode())
    for key, split in {
        "trained": Split("loso", ("p0/r0", "p1/r0"), (), ("p2/r0",)),
        "chosen": Split("loso", ("p0/r0",), ("p1/r0",), ("p2/r0",)),
        "tested": Split("loso", ("p0/r0",), (), ("p1/r0",)),
        "other": Split("loso", ("p0/r0", "p10/r0"), (), ("p1-b/r0",)),
        "adapted": Split("adapted", ("p2/r0",), (), ("p2/r1",)),
        "fusion": Split("loso", ("p0/r0",), (), ("p1/r0",)),
    }.items():
        checkpoint = make_checkpoint(e, split=split, key=key, weights={"w": torch.zeros(1)})
        encoders = {"audio": "trained"} if key == "fusion" else {}
        save_checkpoint(results, change_state(checkpoint, encoder_keys=encoders))


def list_files(*folders: str) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for f in folders for p in Path(f).rglob("*") if p.is_file()}


def find_traces(files: dict[str, bytes], subject: str) -> Iterator[str]:
    """Find where a subject is named: in names of files, columns of tables, JSON and text."""
    for path, data in files.items():
        name = Path(path).name
        texts = [name.split("-r")[0]]
        if name.endswith((".parquet", ".arrow")) and data[:4] in (b"PAR1", b"ARRO"):
            open_table = pq.read_table if data[:4] == b"PAR1" else lambda source: pa.ipc.open_file(source).read_all()
            texts += open_table(pa.BufferReader(data)).column("subject").to_pylist()
        elif name.endswith((".json", ".html", ".txt")):
            texts += [part.split("/")[0] for part in data.decode().replace("<", '"').replace(">", '"').split('"')]
        if subject in texts:
            yield path


def test_nothing_holds_the_subject_and_all_else_is_as_it_was(e: Experiment, capsys: pytest.CaptureFixture[str]) -> None:
    write_results(e)
    stores = (e.store.shards, e.store.results, e.store.cache)
    before = list_files(*stores)
    assert len(list(find_traces(before, GONE))) > 20
    found = find_holdings(e, GONE)
    assert {p: d for p, d in list_files(*stores).items() if p in before} == before
    assert found.results.models == {
        "runs/trained": "trained on 1 of their recordings",
        "runs/chosen": "chosen by 1 of their recordings",
        "runs/fusion": "made of runs/trained, which knows them",
        "searches/all": "searched with an experiment that names them",
    }
    assert found.results.adapted == ["runs/adapted"]
    assert found.results.tested == ["runs/tested"] and found.results.unknown == ["mine/all.txt"]
    withdraw(e, GONE, models=True)
    after = list_files(*stores)
    split = f"{e.store.results}/runs/tested/"
    assert not [p for p in find_traces(after, GONE) if not p.startswith(split)]
    changed = {p for p, data in after.items() if before.get(p) != data and not p.endswith("lock")}
    # Rows were taken out of these; nothing else was written.
    assert {Path(p).name for p in changed} - {Path(p).name for p in changed if "hashes" in p} == {
        "index.json",
        "problems.json",
    }
    gone = {p.removeprefix(f"{e.store.results}/") for p in before if p not in after}
    assert not any("others" in p or "/other/" in p for p in gone)
    assert {p.split("/")[0] for p in gone if not p.startswith("/")} == {
        *("protocols", "baselines", "evaluations", "robustness", "ablations", "embeddings", "features", "searches"),
        *("page-all", "runs", "comparisons"),
    }
    with pytest.raises(ConfigError, match=r'hold nothing of "nobody".*its shards hold p0, p1-b, p10, p2'):
        find_holdings(e, "nobody")


def test_models_stay_and_are_named_unless_it_is_said(e: Experiment, capsys: pytest.CaptureFixture[str]) -> None:
    write_results(e)
    words = [f"{k}={getattr(e.store, k.split('.')[1])}" for k in ("store.shards", "store.results", "store.cache")]
    words += ["data.dataset=recordings_table", f"data.root={e.data.root}", "data.modalities=[audio]"]
    before = list_files(e.store.shards, e.store.results, e.store.cache)
    assert run_command(["withdraw", "demo", GONE, *words]) == 0
    said = capsys.readouterr().out
    assert "  runs/trained: trained on 1 of their recordings" in said and "nothing was deleted; --yes" in said
    assert "out of reach from here:" in said and "eav pull" in said and "MLflow" in said
    assert {
        p: d for p, d in list_files(e.store.shards, e.store.results, e.store.cache).items() if p in before
    } == before
    assert run_command(["withdraw", "demo", GONE, "--yes", *words]) == 0
    assert "nothing was deleted" not in capsys.readouterr().out
    results = Store(e.store.results)
    assert results.list_folders("runs") == ["adapted", "chosen", "fusion", "other", "tested", "trained"]
    assert results.list_folders("embeddings") == ["others"]


def test_preprocessing_goes_on_without_them(e: Experiment) -> None:
    withdraw(e, GONE)
    data = open_dataset(e)
    assert set(data.windows.ids["subject"]) == {"p0", "p1-b", "p10", "p2"}
    digest = data.digest
    others = override(e, {"data.subjects": ["p0", "p1-b", "p10", "p2"]})
    assert preprocess(others).n_skipped == 4  # all that were made
    assert open_dataset(others).digest == digest
    table = Path(e.data.root)
    table.write_text("\n".join(line for line in table.read_text().splitlines() if not line.startswith("p1,")) + "\n")
    for path in table.parent.glob("p1_*.wav"):
        path.unlink()
    preprocess(e)
    assert set(open_dataset(e).windows.ids["subject"]) == {"p0", "p1-b", "p10", "p2"}


def test_a_subject_whom_an_experiment_names_is_taken_out_of_its_index(e: Experiment) -> None:
    named = override(e, {"data.subjects": ["p0", GONE]})
    preprocess(named)
    withdraw(named, GONE)
    without = override(e, {"data.subjects": ["p0"]})
    assert set(open_dataset(without).windows.ids["subject"]) == {"p0"}


def test_an_index_of_nobody_else_goes(e: Experiment) -> None:
    alone = override(e, {"data.subjects": [GONE]})
    preprocess(alone)
    withdraw(alone, GONE)
    with pytest.raises(DataError, match="no shards in"):
        open_dataset(alone)


@pytest.mark.parametrize("n_steps", [0, 10, 11, 14, 16])
@pytest.mark.parametrize("is_moved", [False, True])
def test_an_interrupted_withdrawal_is_finished_by_the_same_command(
    e: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_steps: int, is_moved: bool
) -> None:
    before = e
    if is_moved:  # what was made before it was moved is theirs as well
        (tmp_path / "moved").symlink_to(tmp_path / "raw")
        e = override(before, {"data.root": str(tmp_path / "moved" / "m.csv")})
        preprocess(e)
    write_results(before)
    delete, write, left = Store.delete, Store.write_json, [n_steps]

    def count() -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1

    def delete_some(self: Store, prefix: str, *, last: str = "") -> None:
        count()
        delete(self, prefix, last=last)

    def write_some(self: Store, name: str, tree: Any) -> None:
        count()
        write(self, name, tree)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Store, "delete", delete_some)
        patch.setattr(Store, "write_json", write_some)
        withdraw(e, GONE, models=True)
    assert set(open_dataset(e).windows.ids["subject"]) >= {"p0", "p1-b", "p10", "p2"}
    withdraw(e, GONE, models=True)
    assert set(open_dataset(e).windows.ids["subject"]) == {"p0", "p1-b", "p10", "p2"}
    split = f"{e.store.results}/runs/tested/"
    traces = find_traces(list_files(e.store.shards, e.store.results, e.store.cache), GONE)
    assert not [p for p in traces if not p.startswith(split)]


@pytest.mark.parametrize("lock", ["shards", "runs/trained/lock", "features/audio-all.lock", "searches/all/lock"])
def test_it_waits_for_no_running_job_and_deletes_nothing_beside_one(e: Experiment, lock: str) -> None:
    write_results(e)
    store = Store(e.store.shards if lock == "shards" else e.store.results)
    name = next(n for n in store.list_files() if n.endswith("/lock")) if lock == "shards" else lock
    before = {p for p in list_files(e.store.shards, e.store.results, e.store.cache) if not p.endswith("lock")}
    with store.lock(name), pytest.raises(DataError, match=r"is held by process .*; wait for it, or end it"):
        withdraw(e, GONE)
    assert before <= set(list_files(e.store.shards, e.store.results, e.store.cache))


def test_a_moved_data_set_is_the_same_and_another_with_the_same_names_is_not(e: Experiment, tmp_path: Path) -> None:
    copy = override(e, {"data.root": str(tmp_path / "copy" / "m.csv")})
    (tmp_path / "copy").symlink_to(tmp_path / "raw")
    other = override(e, {"data.root": str(tmp_path / "other" / "m.csv")})
    write_recordings(tmp_path / "other")
    for path in (tmp_path / "other").glob("*.wav"):
        soundfile.write(path, np.random.default_rng(len(path.name)).normal(0, 0.1, 80_000), 16_000)
    for one in (copy, other):
        preprocess(one)
    found = withdraw(e, GONE)
    assert found.shards.other_roots == {other.data.root}
    for one, subjects in ((e, 4), (copy, 4), (other, 5)):
        assert open_dataset(one).windows.ids["subject"].nunique() == subjects


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("P1", r'hold nothing of "P1" .*its shards hold p0, p1, p1-b, p10, p2; did you mean "p1"\?'),
        ("", "is no name of a subject"),
        ("../p1", "is no name of a subject"),
        ("p1/r0", "is no name of a subject"),
        ("p*", 'hold nothing of "p\\*"'),
    ],
)
def test_who_is_not_there_is_said_in_one_line(e: Experiment, name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        withdraw(e, name)


def test_a_person_called_by_a_number_is_not_taken_for_every_number(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write_json("a.json", {"layer": "1", "ids": ["11/2", "21/1"], "subjects": ["11"]})
    store.write("a.html", b"<td>1</td> 1 of 4")
    store.write_json("b.json", {"subjects": ["1"]})
    store.write_json("c.json", {"test": ["1/004"]})
    store.write("d.html", b"worst: 1/004")
    store.write("e.parquet", parquet.encode_dataframe(draw_predictions(1, 1).assign(subject="1")))
    store.write("f.parquet", parquet.encode_dataframe(draw_predictions(1, 1).assign(note="1")))
    found = [n for n in store.list_files() if holds_subject(store, n, "1")]
    assert found == ["b.json", "c.json", "d.html", "e.parquet"]


def test_a_person_called_as_an_electrode_or_a_side_is_not_taken_for_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    tree = {
        "preprocessing": {"eeg": {"channels": ["P3", "P4"]}},
        "quality": [{"eeg_bad_channel_reasons": {"P3": "flat"}}],
    }
    store.write_json("a.json", tree | {"folds": [{"test": ["P4/r0"], "train": []}]})
    store.write_json("b.json", tree | {"by_subject": {"P3": 0.5, "test": 0.4}})
    store.write_json("c.json", {"test": ["P3/r0"], "train": ["test/r0"]})
    store.write_json("d.json", {"worst": "P3", "people": ["test"]})
    for subject in ("P3", "test"):
        found = [n for n in store.list_files() if holds_subject(store, n, subject)]
        assert found == ["b.json", "c.json", "d.json"]


@pytest.mark.parametrize("subject", ["O'Neill", "A&B", "Zoë 2", 'the "first"'])
def test_a_name_is_found_in_a_page_as_it_is_shown(tmp_path: Path, subject: str) -> None:
    store = Store(tmp_path)
    store.write("a.html", f"<td>{Markup.escape(subject)}</td>".encode())
    store.write("b.html", f"<td>{Markup.escape(subject)}-2</td>".encode())
    assert [n for n in store.list_files() if holds_subject(store, n, subject)] == ["a.html"]


def test_what_an_earlier_version_made_goes_too(e: Experiment) -> None:
    """It had one data set a folder, and its index beside the shards; whoever is in it counts all the same."""
    store = Store(e.store.shards)
    old = "recordings_table-0123456789abcdef"
    rows = [{"file": f"shards/{s}-r0-1.parquet", "sha256": "", "rows": 1, "subject": s} for s in SUBJECTS]
    store.write_json(f"{old}/index.json", {"shards": rows, "data": {"root": e.data.root}})
    store.write_json(f"{old}/problems.json", {"problems": [{"subject": GONE, "recording": "r1"}]})
    store.write(f"{old}/quality.html", b"all")
    for s in SUBJECTS:
        store.write_json(f"{old}/records/{s}-r0-1.json", {"subject": s})
        store.write(f"{old}/shards/{s}-r0-1.parquet", b"old")
    withdraw(e, GONE)
    assert not list(find_traces(list_files(e.store.shards), GONE))
    left = {Path(n).name for n in store.list_files(old)}
    assert left == {"index.json", "problems.json"} | {
        f"{s}-r0-1.{suffix}" for s in SUBJECTS if s != GONE for suffix in ("json", "parquet")
    }


def test_what_a_killed_job_left_half_written_goes_too(e: Experiment) -> None:
    (shards,) = Path(e.store.shards).glob("recordings_table-*/shards")
    for s in (GONE, "p10"):
        (shards / f".{s}-r0-1.parquet.0123abcd.partial").write_bytes(b"half")
    (lost,) = shards.glob(f"{GONE}-r0-*.parquet")
    (shards / f"{GONE}-r0-0000000000.parquet").write_bytes(lost.read_bytes())  # without a record
    withdraw(e, GONE)
    assert [p.name for p in shards.iterdir() if p.name.startswith(".")] == [".p10-r0-1.parquet.0123abcd.partial"]
    assert not list(find_traces(list_files(e.store.shards), GONE))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_stores_in_a_bucket(e: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "TTL_S", 3.0)
    with open_conditional_server() as address:
        stores = {f"store.{n}": f"s3://{BUCKET}/{n}?endpoint={address}&region=us-east-1" for n in ("shards", "results")}
        remote = override(e, stores)
        preprocess_and_map(remote)
        write_results(remote)
        shards, results = Store(remote.store.shards), Store(remote.store.results)

        def read_all() -> dict[str, bytes]:
            return {f"{s.root}/{n}": s.read(n) for s in (shards, results) for n in s.list_files()}

        before = read_all()
        with results.lock("runs/trained/lock"), pytest.raises(DataError, match="is held by"):
            withdraw(remote, GONE)
        assert {n for n in before if not n.endswith("lock")} <= set(read_all())
        withdraw(remote, GONE, models=True)
        after = read_all()
        assert not [n for n in find_traces(after, GONE) if "/runs/tested/" not in n]
        assert all(before[n] == data for n, data in after.items() if not n.endswith(("lock", ".json")))
        assert set(open_dataset(remote).windows.ids["subject"]) == {"p0", "p1-b", "p10", "p2"}
