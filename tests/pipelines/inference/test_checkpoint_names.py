"""A checkpoint is found by a path or by the beginning of a name; what is not there is said to not be there."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from eav_ray.config import Experiment
from eav_ray.errors import ConfigError, DataError
from eav_ray.pipelines.inference.checkpoint_names import find_checkpoint, record_latest, shorten_key
from eav_ray.pipelines.train.fold_records import FOLDS_FORMAT
from eav_ray.storage import Store, encode_documents
from tests.helpers.checkpoints import make_checkpoint, save_checkpoint, write_best, write_finished

FUSION, ENCODER = "fusion-3f0c2a91b7d45e68", "encoder-3f11111111111111"
STUDY, PROTOCOL = "faces-aa00000000000000", "faces-bb00000000000000"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with two trainings, a search and a protocol of two folds."""
    results = Store(tmp_path / "results")
    write_finished(results, FUSION)
    write_finished(results, ENCODER)
    write_best(results, STUDY)
    folds = []
    for number in range(2):
        checkpoint = write_finished(results, f"run-{number}")
        folds.append({"fold": number, "checkpoint": checkpoint.prefix, "commit_sha256": checkpoint.commit_sha256})
    files = encode_documents({"folds": {"format": FOLDS_FORMAT, "folds": folds}})
    results.commit(f"protocols/{PROTOCOL}", files | {"predictions.parquet": b""})
    return results


@pytest.mark.parametrize(
    ("name", "key"),
    [
        (FUSION, FUSION),
        ("fusion", FUSION),
        ("fusion-3f0c", FUSION),
        ("3f0", FUSION),
        ("enc", ENCODER),
        ("faces-aa", f"run-{STUDY}"),
        ("bb/1", "run-1"),
        ("faces-bb/0", "run-0"),
        (shorten_key(FUSION), FUSION),
    ],
)
def test_the_beginning_of_a_name_is_enough(store: Store, name: str, key: str, tmp_path: Path) -> None:
    assert find_checkpoint(name, store.root).key == key


def test_a_path_comes_first(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = save_checkpoint(Store(tmp_path / "other"), make_checkpoint(Experiment(), key="own"))
    (tmp_path / "fusion").symlink_to(Path(own.path))
    assert find_checkpoint("fusion", store.root).key == "own"
    assert find_checkpoint(own.path, "/nowhere").key == "own"
    # The folder of a training, or the beginning of its name, as `ls` shows it.
    assert find_checkpoint(f"results/runs/{FUSION}", "/nowhere").key == FUSION
    assert find_checkpoint("results/runs/fusion-3f", "/nowhere").key == FUSION
    # A checkpoint that somebody keeps in a folder of that name.
    shutil.copytree(own.path, tmp_path / "runs" / "mine")
    assert find_checkpoint("runs/mine", "/nowhere").key == "own"


def test_latest_is_what_ended_last(store: Store) -> None:
    with pytest.raises(DataError, match="has no latest training: no `eav train`, `eav search` or `eav protocol` ended"):
        find_checkpoint("latest", store.root)
    for folder, key, found in (("runs", ENCODER, ENCODER), ("searches", STUDY, f"run-{STUDY}")):
        record_latest(store, folder, key)
        assert find_checkpoint("latest", store.root).key == found
    record_latest(store, "protocols", PROTOCOL)
    assert find_checkpoint("latest/1", store.root).key == "run-1"
    store.delete(f"protocols/{PROTOCOL}")
    with pytest.raises(DataError, match=f"latest.json names {PROTOCOL}, which is not there any more"):
        find_checkpoint("latest/1", store.root)
    for damaged in (b"[]", b"{"):
        store.write("latest.json", damaged)
        with pytest.raises(DataError, match=r"latest\.json"):
            find_checkpoint("latest", store.root)
    record_latest(store, "runs", FUSION)
    assert find_checkpoint("latest", store.root).key == FUSION
    written = (Path(store.root) / "latest.json").stat().st_mtime_ns
    record_latest(store, "runs", FUSION)
    assert (Path(store.root) / "latest.json").stat().st_mtime_ns == written


def damage_record(store: Store) -> None:
    write_best(store, STUDY, checkpoint="../x")


CASES: dict[str, tuple[str, type[Exception], str, Callable[[Store], object] | None]] = {
    "several": ("f", ConfigError, r"f may be any of 3 in .*fusion-3f0c2a91b7d45e68 \(training\), .*more letters", None),
    "several by hash": ("3f", ConfigError, "3f may be any of 2", None),
    "none": ("nosuch", DataError, "no checkpoint nosuch: there is no such folder, and no training, search or pr", None),
    "a slip": ("fusoin-3f0c2a91b7d45e68", DataError, f'did you mean "{FUSION}"', None),
    "a fold of none": ("fusion/1", ConfigError, r"\(training\) has no folds; give it without /1", None),
    "no fold": (
        "faces-bb",
        ConfigError,
        "has a model for each of the folds 0, 1; name one, for example faces-bb0",
        None,
    ),
    "an unknown fold": ("faces-bb/7", ConfigError, "the folds 0, 1; name one", None),
    "a path": ("some/where", DataError, "some/where does not exist", None),
    "a record that leads out": ("faces-aa", DataError, "not a name inside a store", damage_record),
    "no training that ended": (
        "runs-x",
        DataError,
        "the training runs-x in .* is not finished; rerun its command",
        lambda store: store.write("runs/runs-x/lock", b""),
    ),
    "no search that ended": (
        "open",
        DataError,
        "the search open-1 is not finished; .*`eav pull .* open-1 --list`",
        lambda store: store.write("searches/open-1/journal.log", b""),
    ),
    "no protocol that ended": (
        "half",
        DataError,
        "the protocol half-1 in .* is not finished; rerun its command",
        lambda store: store.write("protocols/half-1/lock", b""),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_names_no_checkpoint_is_one_line_with_the_way_out(case: str, store: Store) -> None:
    name, error, expected, prepare = CASES[case]
    if prepare:
        prepare(store)
    with pytest.raises(error, match=expected) as caught:
        find_checkpoint(name, store.root)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_there_is_said_to_not_exist_with_the_nearest(store: Store, tmp_path: Path) -> None:
    (tmp_path / "best").mkdir()
    with pytest.raises(DataError, match=rf'{tmp_path}/bset does not exist; did you mean "best"'):
        find_checkpoint(str(tmp_path / "bset"), store.root)
    with pytest.raises(DataError, match="/results is a results store, not a checkpoint; `eav pull .* --list` lists"):
        find_checkpoint(store.root, "/nowhere")
    with pytest.raises(DataError, match=r"no checkpoint best2: .*/empty has none yet"):
        find_checkpoint("best2", str(tmp_path / "empty"))


def test_a_relative_name_in_a_submitted_job_says_where_it_was_looked_for(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(DataError, match="a submitted job runs in a temporary copy of the folder, so give an absolute"):
        find_checkpoint("best", store.root)
