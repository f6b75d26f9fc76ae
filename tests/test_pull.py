"""What is pulled is the checkpoint that the search recorded, into a new folder and from nowhere else."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from eav_ray.config import Experiment
from eav_ray.data.split import Split
from eav_ray.errors import ConfigError, DataError
from eav_ray.models.build import Shapes
from eav_ray.runtime.demo import pulled
from eav_ray.runtime.pull import pull, studies
from eav_ray.storage import COMMIT, Store, sha256
from eav_ray.training import checkpoint as ckpt
from eav_ray.training.loop import Position

FIRST = "a0000-aaaaaaaa"  # attempt


def saved(store: Store, key: str) -> str:
    made = ckpt.Checkpoint(
        experiment=Experiment(),
        split=Split("loso", ("a/1",), (), ("b/1",)),
        classes=("calm", "sad"),
        shapes=Shapes(3, 2),
        weights={"w": torch.randn(2, 3)},
        moments={},
        position=Position(3, 0),
        finished=True,
        metrics={},
        encoders={},
    )
    return ckpt.save(store, key, FIRST, made)


def best(store: Store, study: str, **changes: Any) -> None:
    prefix = saved(store, f"run-{study}")
    recorded = {"checkpoint": prefix, "commit_sha256": sha256(store.read(f"{prefix}/{COMMIT}"))}
    recorded |= {"value": 0.75, "candidate": 3, "changes": {"optim.lr": 0.1}}
    store.write_json(f"searches/{study}/best.json", recorded | changes)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "results")


def test_the_best_checkpoint_is_copied_whole(store: Store, tmp_path: Path) -> None:
    best(store, "one")
    target = pull(str(store), str(tmp_path / "mine"))
    assert target == str(tmp_path / "mine")
    copied = Store(tmp_path).read_committed("mine")
    assert copied == store.read_committed(ckpt.prefix_of("run-one", FIRST, Position(3, 0)))
    assert ckpt.load(Store(tmp_path), "mine").classes == ("calm", "sad")


def test_finished_studies_are_listed(store: Store) -> None:
    best(store, "one")
    best(store, "other", value=0.5)
    store.write("searches/unfinished/journal", b"")
    lines = studies(str(store)).splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [["one", "0.7500", "3"], ["other", "0.5000", "3"]]


def test_several_studies_need_a_name(store: Store, tmp_path: Path) -> None:
    best(store, "one")
    best(store, "other")
    with pytest.raises(ConfigError, match="has 2 studies; name one with --study: one, other"):
        pull(str(store), str(tmp_path / "mine"))
    with pytest.raises(ConfigError, match='did you mean "other"'):
        pull(str(store), str(tmp_path / "mine"), study="othr")
    pull(str(store), str(tmp_path / "mine"), study="other")
    assert (tmp_path / "mine" / COMMIT).exists()


def test_without_a_finished_search_there_is_nothing_to_pull(store: Store, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a results store with searches"):
        pull(str(store), str(tmp_path / "mine"))
    store.write("searches/unfinished/journal", b"")
    with pytest.raises(DataError, match="no finished search"):
        pull(str(store), str(tmp_path / "mine"))


@pytest.mark.parametrize("name", ["../other/run", "/etc", "runs/../../other/run", ""])
def test_a_record_that_names_a_path_outside_is_refused(store: Store, name: str, tmp_path: Path) -> None:
    saved(Store(tmp_path / "other"), "run")
    best(store, "one", checkpoint=name)
    with pytest.raises(DataError, match="not a name inside a store"):
        pull(str(store), str(tmp_path / "mine"))
    assert not (tmp_path / "mine").exists()


def test_a_record_that_names_a_link_to_outside_is_refused(store: Store, tmp_path: Path) -> None:
    prefix = saved(Store(tmp_path / "other"), "run")
    best(store, "one", checkpoint="link")
    Path(store.path("link")).symlink_to(tmp_path / "other" / prefix)
    with pytest.raises(DataError, match="leads outside"):
        pull(str(store), str(tmp_path / "mine"))
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize("record", [[], {}, {"checkpoint": "x"}, None, "x"])
def test_a_damaged_record_is_a_data_error(store: Store, record: Any, tmp_path: Path) -> None:
    store.write_json("searches/one/best.json", record)
    with pytest.raises(DataError, match="damaged"):
        pull(str(store), str(tmp_path / "mine"))
    if not isinstance(record, dict):
        with pytest.raises(DataError, match="damaged"):
            studies(str(store))


def test_a_checkpoint_that_was_replaced_since_is_refused(store: Store, tmp_path: Path) -> None:
    best(store, "one")
    saved(store, "run-one")  # whole, but another one
    with pytest.raises(DataError, match="not the checkpoint that best.json names"):
        pull(str(store), str(tmp_path / "mine"))
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "state.json"])
def test_a_damaged_file_is_refused_and_nothing_is_written(store: Store, name: str, tmp_path: Path) -> None:
    best(store, "one")
    path = Path(store.path(f"{ckpt.prefix_of('run-one', FIRST, Position(3, 0))}/{name}"))
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(DataError, match=f"{name} is damaged"):
        pull(str(store), str(tmp_path / "mine"))
    assert not (tmp_path / "mine").exists()


def test_a_commit_that_names_files_outside_writes_nothing_there(store: Store, tmp_path: Path) -> None:
    best(store, "one")
    prefix = ckpt.prefix_of("run-one", FIRST, Position(3, 0))
    listed = json.loads(store.read(f"{prefix}/{COMMIT}"))
    listed["files"]["../../../../evil"] = listed["files"]["state.json"]
    store.write_json(f"{prefix}/{COMMIT}", listed)
    record = {"checkpoint": prefix, "commit_sha256": sha256(store.read(f"{prefix}/{COMMIT}"))}
    store.write_json("searches/one/best.json", record)
    with pytest.raises(DataError, match="not a name inside a store"):
        pull(str(store), str(tmp_path / "mine"))
    assert not list(tmp_path.rglob("evil"))


def test_a_folder_that_is_not_empty_is_left_alone(store: Store, tmp_path: Path) -> None:
    best(store, "one")
    target = tmp_path / "mine"
    target.mkdir()
    (target / "notes.txt").write_text("kept")
    with pytest.raises(ConfigError, match="not empty"):
        pull(str(store), str(target))
    assert [p.name for p in target.iterdir()] == ["notes.txt"]
    (tmp_path / "file").write_text("kept")
    with pytest.raises(ConfigError, match="give another folder"):
        pull(str(store), str(tmp_path / "file"))
    (target / "notes.txt").unlink()
    pull(str(store), str(target))


def test_the_demo_pulls_again_what_was_not_pulled_whole(store: Store) -> None:
    best(store, "one")
    target = Path(pulled(str(store), "one", "runs/one"))
    assert target == Path(store.path("best/runs-one"))
    whole = Store(target.parent).read_committed(target.name)
    (target / COMMIT).unlink()
    (target / "state.json").write_bytes(b"{")
    (target / "state.json.1234.partial").write_bytes(b"")
    assert pulled(str(store), "one", "runs/one") == str(target)
    assert Store(target.parent).read_committed(target.name) == whole


def test_the_demo_keeps_what_it_pulled(store: Store) -> None:
    best(store, "one")
    target = Path(pulled(str(store), "one", "runs/one"))
    before = (target / COMMIT).stat().st_mtime_ns
    assert pulled(str(store), "one", "runs/one") == str(target)
    assert (target / COMMIT).stat().st_mtime_ns == before
