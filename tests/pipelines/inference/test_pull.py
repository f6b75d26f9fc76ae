"""What is pulled is the checkpoint that the search recorded, into a new folder and from nowhere else."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from eav_ray.data.io import parquet
from eav_ray.errors import ConfigError, DataError
from eav_ray.pipelines.demo import pull_if_missing
from eav_ray.pipelines.inference.checkpoint_names import record_latest
from eav_ray.pipelines.inference.pull import format_candidates, pull
from eav_ray.pipelines.inference.store_listing import format_models
from eav_ray.pipelines.search.search_store import build_candidates_table
from eav_ray.storage import COMMIT, Store, sha256
from eav_ray.training.checkpoint import OpenedCheckpoint, make_checkpoint_prefix
from eav_ray.training.run_spec import SELECTION_METRIC, Position
from eav_ray.tuning.best import write_best_record
from tests.helpers.checkpoints import FIRST, write_best, write_finished


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "results")


def test_the_best_checkpoint_is_copied_whole(store: Store, tmp_path: Path) -> None:
    write_best(store, "one")
    pulled = pull(str(store), str(tmp_path / "mine"))
    assert pulled.paths == [str(tmp_path / "mine")] and not pulled.skipped
    copied = Store(tmp_path).read_committed("mine")
    assert copied == store.read_committed(make_checkpoint_prefix("run-one", FIRST, Position(3, 0)))
    assert OpenedCheckpoint(Store(tmp_path), "mine").state.classes == ("calm", "sad")


def test_a_search_that_is_not_finished_is_not_pulled(store: Store, tmp_path: Path) -> None:
    write_best(store, "one")
    store.write("searches/unfinished/journal", b"")
    with pytest.raises(
        DataError, match="the search unfinished is not finished; rerun its command to continue, or see its"
    ):
        pull(str(store), str(tmp_path / "mine"), name="unfinished")


def ranked(store: Store, count: int) -> list[str]:
    """A study that kept several candidates; the prefixes of their checkpoints, the best first."""
    kept = [write_finished(store, f"run-{n}") for n in range(count)]
    records = [{"checkpoint": one.prefix, "commit_sha256": one.commit_sha256} for one in kept]
    write_best_record(store, "one", [{"value": 0.7, "candidate": 1} | record for record in records])
    return [one.prefix for one in kept]


def test_the_best_few_are_copied_into_folders_of_their_own(store: Store, tmp_path: Path) -> None:
    prefixes = ranked(store, 3)
    pulled = pull(str(store), str(tmp_path / "mine"), top=2)
    assert pulled.paths == [str(tmp_path / "mine"), str(tmp_path / "mine-2")]
    for path, prefix in zip(pulled.paths, prefixes, strict=False):
        assert Store(tmp_path).read_committed(Path(path).name) == store.read_committed(prefix)
    with pytest.raises(DataError, match="keeps 3 whole checkpoints of this search, not 4; search again with a larger"):
        pull(str(store), str(tmp_path / "other"), top=4)
    assert not (tmp_path / "other").exists()


def test_the_next_best_is_taken_only_when_that_is_said(store: Store, tmp_path: Path) -> None:
    prefixes = ranked(store, 2)
    damaged = Path(store.resolve_path(f"{prefixes[0]}/model.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(DataError, match="model.safetensors is damaged.*--next-best takes the next one that is whole"):
        pull(str(store), str(tmp_path / "mine"))
    assert not (tmp_path / "mine").exists()
    pulled = pull(str(store), str(tmp_path / "mine"), next_best=True)
    assert len(pulled.skipped) == 1 and "model.safetensors is damaged" in pulled.skipped[0]
    assert Store(tmp_path).read_committed("mine") == store.read_committed(prefixes[1])


def test_candidates_of_a_search_that_still_runs_are_listed_by_any_metric(store: Store) -> None:
    rows = [
        {
            "candidate": n,
            "fold": fold,
            "state": state,
            "changes": "{}",
            SELECTION_METRIC: score,
            "validation_window_accuracy": -score,
        }
        for n, (state, scores) in enumerate(
            [("COMPLETE", [0.2, 0.4]), ("COMPLETE", [0.5, 0.6]), ("PRUNED", [0.9]), ("FAIL", [float("nan")])]
        )
        for fold, score in enumerate(scores)
    ]
    store.write("searches/one/candidates.parquet", parquet.encode_dataframe(build_candidates_table(rows)))
    lines = format_candidates(str(store), "one").splitlines()
    assert [line.split()[:4] for line in lines[2:]] == [
        ["1", "0.5500", "2", "COMPLETE"],
        ["0", "0.3000", "2", "COMPLETE"],
        ["2", "0.9000", "1", "PRUNED"],
        ["3", "nan", "1", "FAIL"],
    ]
    lines = format_candidates(str(store), "one", metric="validation_window_accuracy", top=1).splitlines()
    assert lines[2].split()[0] == "0" and len(lines) == 3
    with pytest.raises(ConfigError, match="--metric=accuracy is not in searches/one/candidates.parquet; it has valid"):
        format_candidates(str(store), "one", metric="accuracy")
    assert "\n".join(lines) == format_candidates(str(store), "on", metric="validation_window_accuracy", top=1)
    with pytest.raises(DataError, match='no checkpoint ona: .*did you mean "one"'):
        format_candidates(str(store), "ona")
    write_finished(store, "fusion-1")
    with pytest.raises(ConfigError, match=r"fusion-1 \(training\) is no search, so it has no candidates"):
        format_candidates(str(store), "fusion")
    store.write("searches/one/candidates.parquet", parquet.encode_dataframe(pd.DataFrame({"fold": [1]})))
    with pytest.raises(DataError, match="is damaged: it has no column candidate"):
        format_candidates(str(store), "one")


def test_several_studies_need_a_name(store: Store, tmp_path: Path) -> None:
    write_best(store, "one")
    write_best(store, "other")
    with pytest.raises(ConfigError, match="has 2 searches; name one, for example `eav pull .* one`: one, other"):
        pull(str(store), str(tmp_path / "mine"))
    with pytest.raises(DataError, match='did you mean "other"'):
        pull(str(store), str(tmp_path / "mine"), name="othr")
    pull(str(store), str(tmp_path / "mine"), name="other")
    assert (tmp_path / "mine" / COMMIT).exists()


def test_without_a_finished_search_what_was_trained_last_is_pulled(store: Store, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="/results does not exist; a results store is what store.results names"):
        pull(str(store), str(tmp_path / "mine"))
    store.write("evaluations/x", b"")
    with pytest.raises(DataError, match="holds no training, search or protocol"):
        pull(str(store), str(tmp_path / "mine"))
    one, other = (write_finished(store, f"fusion-{n}") for n in range(2))
    with pytest.raises(DataError, match="no latest training"):
        pull(str(store), str(tmp_path / "mine"))
    record_latest(store, "runs", "fusion-1")
    pulled = pull(str(store), str(tmp_path / "mine"))
    assert pulled.source == "fusion-1 (training)"
    assert Store(tmp_path).read_committed("mine") == store.read_committed(other.prefix)
    pull(str(store), str(tmp_path / "first"), name="fusion-0")
    assert Store(tmp_path).read_committed("first") == store.read_committed(one.prefix)
    with pytest.raises(ConfigError, match="has one checkpoint; --top and --next-best are of searches"):
        pull(str(store), str(tmp_path / "two"), name="fusion-0", top=2)
    store.write("searches/unfinished/journal", b"")
    with pytest.raises(DataError, match="has no finished search: unfinished; rerun its command to continue"):
        pull(str(store), str(tmp_path / "three"))


@pytest.mark.parametrize("name", ["../other/run", "/etc", "runs/../../other/run", ""])
def test_a_record_that_names_a_path_outside_is_refused(store: Store, name: str, tmp_path: Path) -> None:
    write_finished(Store(tmp_path / "other"), "run")
    write_best(store, "one", checkpoint=name)
    with pytest.raises(DataError, match="not a name inside a store"):
        pull(str(store), str(tmp_path / "mine"))
    assert not (tmp_path / "mine").exists()


def test_a_record_that_names_a_link_to_outside_is_refused(store: Store, tmp_path: Path) -> None:
    prefix = write_finished(Store(tmp_path / "other"), "run").prefix
    write_best(store, "one", checkpoint="link")
    Path(store.resolve_path("link")).symlink_to(tmp_path / "other" / prefix)
    with pytest.raises(DataError, match="leads outside"):
        pull(str(store), str(tmp_path / "mine"))
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize("record", [[], {"format": 1}, {"format": 1, "checkpoint": "x"}, None, "x"])
def test_a_damaged_record_is_a_data_error(store: Store, record: Any, tmp_path: Path) -> None:
    store.write_json("searches/one/best.json", record)
    with pytest.raises(DataError, match="damaged"):
        pull(str(store), str(tmp_path / "mine"))
    if not isinstance(record, dict):
        with pytest.raises(DataError, match="damaged"):
            format_models(str(store))


def test_a_record_of_another_format_is_one_line(store: Store, tmp_path: Path) -> None:
    write_best(store, "one")
    name = "searches/one/best.json"
    store.write_json(name, store.read_json(name) | {"format": 2})
    with pytest.raises(DataError, match="best.json has the format 2, and this version reads format 1; run .eav search"):
        pull(str(store), str(tmp_path / "mine"))


def test_a_checkpoint_that_was_replaced_since_is_refused(store: Store, tmp_path: Path) -> None:
    write_best(store, "one")
    write_finished(store, "run-one")  # whole, but another one
    with pytest.raises(DataError, match="is not the checkpoint that .*searches/one names; rerun"):
        pull(str(store), str(tmp_path / "mine"))
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "state.json"])
def test_a_damaged_file_is_refused_and_nothing_is_written(store: Store, name: str, tmp_path: Path) -> None:
    write_best(store, "one")
    path = Path(store.resolve_path(f"{make_checkpoint_prefix('run-one', FIRST, Position(3, 0))}/{name}"))
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(DataError, match=f"{name} is damaged"):
        pull(str(store), str(tmp_path / "mine"))
    assert not (tmp_path / "mine").exists()


def test_a_commit_that_names_files_outside_writes_nothing_there(store: Store, tmp_path: Path) -> None:
    write_best(store, "one")
    prefix = make_checkpoint_prefix("run-one", FIRST, Position(3, 0))
    listed = json.loads(store.read(f"{prefix}/{COMMIT}"))
    listed["files"]["../../../../evil"] = listed["files"]["state.json"]
    store.write_json(f"{prefix}/{COMMIT}", listed)
    record = {"checkpoint": prefix, "commit_sha256": sha256(store.read(f"{prefix}/{COMMIT}"))}
    write_best_record(store, "one", [record])
    with pytest.raises(DataError, match="not a name inside a store"):
        pull(str(store), str(tmp_path / "mine"))
    assert not list(tmp_path.rglob("evil"))


def test_a_folder_that_is_not_empty_is_left_alone(store: Store, tmp_path: Path) -> None:
    write_best(store, "one")
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
    write_best(store, "one")
    target = Path(pull_if_missing(str(store), "one", "runs/one"))
    assert target == Path(store.resolve_path("best/runs-one"))
    whole = Store(target.parent).read_committed(target.name)
    (target / COMMIT).unlink()
    (target / "state.json").write_bytes(b"{")
    (target / "state.json.1234.partial").write_bytes(b"")
    assert pull_if_missing(str(store), "one", "runs/one") == str(target)
    assert Store(target.parent).read_committed(target.name) == whole


def test_the_demo_keeps_what_it_pulled(store: Store) -> None:
    write_best(store, "one")
    target = Path(pull_if_missing(str(store), "one", "runs/one"))
    before = (target / COMMIT).stat().st_mtime_ns
    assert pull_if_missing(str(store), "one", "runs/one") == str(target)
    assert (target / COMMIT).stat().st_mtime_ns == before
