"""Where a study lies: a journal on any file system, whatever was left there; a database that others use too."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from eav_ray.config import Experiment, SearchConfig
from eav_ray.errors import ConfigError, DataError
from eav_ray.pipelines.search.search_store import SearchStore
from eav_ray.pipelines.search.trial_runner import run_candidates
from eav_ray.storage import Store
from eav_ray.tuning.study import StoreIdentity, StudyClient
from tests.helpers.searches import SPACE

# Optuna calls its journal experimental.
pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
SEARCH = SearchConfig(candidates=4, ask_batch_size=2, sampler="random", space=SPACE)
MINE, OTHER = StoreIdentity("1a", "/lab/mine"), StoreIdentity("2b", "/lab/other")


def ask_and_tell(study: StudyClient, count: int) -> None:
    for _ in range(count):
        candidate = study.ask()
        assert candidate
        study.tell(candidate.number, 0.5)


# A journal


@pytest.mark.parametrize("target", ["journal.log", "/nowhere/journal.log"])
def test_a_lock_that_a_killed_process_left_holds_nobody_up(target: str, tmp_path: Path) -> None:
    """Optuna's own lock waits for 30 s for a link to the journal, and for ever for one that leads nowhere."""
    journal = tmp_path / "journal.log"
    ask_and_tell(StudyClient(SEARCH, "study", journal), 1)
    (tmp_path / "journal.log.lock").symlink_to(target if target.startswith("/") else tmp_path / target)
    study = StudyClient(SEARCH, "study", journal)
    ask_and_tell(study, 1)
    assert StudyClient(SEARCH, "study", journal).completed() == [0, 1]


def test_a_disk_without_links_has_a_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **options: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "symlink", refuse)
    monkeypatch.setattr(os, "link", refuse)
    ask_and_tell(StudyClient(SEARCH, "study", tmp_path / "journal.log"), 2)
    assert StudyClient(SEARCH, "study", tmp_path / "journal.log").completed() == [0, 1]
    assert os.listdir(tmp_path) == ["journal.log"]


# A database


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/search.db?timeout=0.1"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")


def test_a_database_that_another_program_holds_is_named(url: str, tmp_path: Path) -> None:
    search = replace(SEARCH, storage=url)
    study = StudyClient(search, "study", url)
    ask_and_tell(study, 1)
    candidate = study.ask()
    assert candidate
    with locked(tmp_path / "search.db"):
        for attempt in (lambda: study.tell(candidate.number, 0.5), study.ask, study.completed):
            expected = r"search.storage=sqlite:.* is locked by another program \(.*database is locked\); end that one"
            with pytest.raises(DataError, match=expected):
                attempt()
        with pytest.raises(ConfigError, match="search.storage=sqlite:.* cannot be opened: .*database is locked"):
            StudyClient(search, "study", url)
    again = StudyClient(search, "study", url)
    assert again.completed() == [0]
    ask_and_tell(again, 3)
    assert again.completed() == [0, 1, 2, 3]


def test_a_database_that_cannot_be_written_is_named(url: str, tmp_path: Path) -> None:
    study = StudyClient(replace(SEARCH, storage=url), "study", url)
    with closing(sqlite3.connect(tmp_path / "search.db")) as connection:
        connection.execute("DROP TABLE trials")
    with pytest.raises(DataError, match="cannot be read or written: .*no such table: trials"):
        study.ask()


def test_two_results_stores_do_not_share_a_study(url: str) -> None:
    search = replace(SEARCH, storage=url)
    ask_and_tell(StudyClient(search, "study", url, MINE), 1)
    with pytest.raises(ConfigError, match="the study study was begun with another results store, /lab/mine; use that"):
        StudyClient(search, "study", url, OTHER)
    moved = replace(MINE, path="/archive/mine")
    assert StudyClient(search, "study", url, moved).completed() == [0]
    ask_and_tell(StudyClient(search, "another", url, OTHER), 1)  # of the same database


def test_a_study_without_an_owner_gets_one(url: str) -> None:
    """It is of an earlier version, or of a search that was killed before it could say whose it is."""
    search = replace(SEARCH, storage=url)
    ask_and_tell(StudyClient(search, "study", url), 1)
    assert StudyClient(search, "study", url, MINE).completed() == [0]
    with pytest.raises(ConfigError, match="another results store, /lab/mine"):
        StudyClient(search, "study", url, OTHER)


def test_a_results_store_keeps_its_studies_when_it_is_moved(url: str, tmp_path: Path) -> None:
    search = replace(SEARCH, storage=url)
    with SearchStore(Store(tmp_path / "a"), "study").lock(Experiment()) as store:
        ask_and_tell(store.open_study(search), 1)
    (tmp_path / "a").rename(tmp_path / "moved")
    with SearchStore(Store(tmp_path / "moved"), "study").lock(Experiment()) as store:
        assert store.open_study(search).completed() == [0]
    with (
        SearchStore(Store(tmp_path / "b"), "study").lock(Experiment()) as store,
        pytest.raises(ConfigError, match=f"begun with another results store, {tmp_path}/a; use that one"),
    ):
        store.open_study(search)


def test_a_whole_study_of_which_the_store_lacks_candidates_is_refused(url: str, tmp_path: Path) -> None:
    """Nothing is left to try, and yet the best candidate could be one that was never trained here."""
    search = replace(SEARCH, storage=url)
    store = SearchStore(Store(tmp_path), "study", "000001-a")
    study = StudyClient(search, "study", url)
    ask_and_tell(study, 4)
    rows = [{"candidate": 0, "fold": 0, "score": 0.5}, {"candidate": 2, "fold": 0, "score": 0.5}]
    store.write_candidates(rows, rows)
    plan: Any = SimpleNamespace(experiment=Experiment(search=search), store=store)
    with pytest.raises(DataError, match="has 2 candidates of which .*candidates.parquet knows nothing"):
        run_candidates(plan, pd.DataFrame(), study)  # type: ignore[arg-type]
