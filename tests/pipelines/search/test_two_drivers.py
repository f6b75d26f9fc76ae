"""Two drivers of one search on one S3 store, of which the first stands still at some request and wakes late (R25)."""

import json
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from eav_ray.config import Experiment, SearchConfig
from eav_ray.data.io.parquet import decode_dataframe
from eav_ray.data.shards.tables import decode_parquet, encode_parquet
from eav_ray.errors import DataError
from eav_ray.pipelines.search.candidate_searcher import CandidateSearcher
from eav_ray.pipelines.search.search_store import SearchStore
from eav_ray.storage import Store, lease, object_backend
from eav_ray.training.embeddings import commit_embeddings, find_embeddings, write_embedding_part
from eav_ray.training.run_spec import SELECTION_METRIC
from eav_ray.tuning.best import read_best_record, write_best_record
from tests.helpers.reliability import CHAOS
from tests.helpers.s3_servers import FaultyProxy, open_conditional_server, open_faulty_proxy
from tests.helpers.searches import SPACE

# Optuna calls its journal experimental; the test's server has warnings of its own.
pytestmark = pytest.mark.filterwarnings("ignore")
SEARCH = SearchConfig(candidates=6, ask_batch_size=2, sampler="tpe", space=SPACE)
STUDY, EMBEDDINGS = "study", "embeddings/eeg"
N_PAUSES = 200 if CHAOS else 2


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with open_conditional_server() as address:
        yield address


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(object_backend, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(object_backend, "MISSING_PAUSE_S", 0.01)
    monkeypatch.setattr(lease, "TTL_S", 0.5)
    monkeypatch.chdir(tmp_path)  # where the journal of a search on a bucket is kept


def compute_score(changes: dict[str, Any]) -> float:
    return 0.5 + 0.1 * np.log10(changes["optim.lr"]) / 4 + 0.01 * changes["fusion.heads"]


def drive(url: str, name: str) -> None:
    """Do what a driver does with the store: embed, try all candidates that are left, name the best."""
    results = Store(url)
    with results.lock(f"{EMBEDDINGS}.lock") as guarded:
        for part in ("0", "1"):
            table = pa.table({"embedded_by": [name], "part": [part]})
            write_embedding_part(results, EMBEDDINGS, name, part, table)
        commit_embeddings(guarded, EMBEDDINGS, name, torch.zeros(2))
    with SearchStore(results, STUDY).lock(Experiment()) as store:
        study = store.open_study(SEARCH)
        searcher = CandidateSearcher(study, store, store.read_completed_rows(study), max_candidates=2)
        while isinstance(suggestion := searcher.suggest("trial"), dict):
            summaries = [
                {"candidate": number, SELECTION_METRIC: (score := compute_score(changes)), "pruned": False}
                | {"unbatchable_reason": "", "folds": [{"fold": k, SELECTION_METRIC: score} for k in range(2)]}
                for number, changes in suggestion["candidates"]
            ]
            searcher.on_trial_complete("trial", {"summaries": json.dumps(summaries)})
        best = study.find_best()
        assert best
        write_best_record(store.results, STUDY, [{"candidate": best[0].number, "value": best[1]}])


def read_state(url: str) -> list[Any]:
    """Read what a search has left, after checking that nothing of it is mixed."""
    results = Store(url)
    files = results.read_committed(find_embeddings(results, EMBEDDINGS))
    parts = [decode_parquet(files[n], name=n).to_pylist() for n in sorted(files) if n.endswith(".parquet")]
    assert [[row["part"] for row in part] for part in parts] == [["0"], ["1"]]
    assert len({row["embedded_by"] for part in parts for row in part}) == 1
    store = SearchStore(results, STUDY)
    table = store.read_candidates()
    shown = decode_dataframe(results.read(store.candidates_file), "candidates")
    assert shown.to_dict("records") == table.to_dict("records")
    return [table.to_dict("records"), read_best_record(results, STUDY)]


@pytest.fixture(scope="module")
def expected(server: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], int]:
    """What a search leaves that nobody disturbs, and how many requests it makes."""
    with pytest.MonkeyPatch.context() as patch, open_faulty_proxy(server) as (address, proxy):
        patch.chdir(tmp_path_factory.mktemp("whole"))
        patch.setattr(object_backend, "MISSING_PAUSE_S", 0.01)
        url = f"s3://lab/whole?endpoint={address}"
        drive(url, "only")
        return read_state(url), len(proxy.requests)


def test_a_driver_that_stands_still_and_wakes_late_harms_nothing(server: str, expected: tuple[list[Any], int]) -> None:
    state, total = expected
    assert len({row["candidate"] for row in state[0]}) == 6 and total > 50
    for number in random.Random(0).choices(range(total), k=N_PAUSES):
        stand_still_at(server, number, state)


def stand_still_at(server: str, number: int, expected: list[Any]) -> None:
    folder = f"paused-{random.randbytes(4).hex()}"
    with open_faulty_proxy(server) as (address, proxy):
        paused_at(proxy, number)
        errors: list[str] = []

        def drive_first() -> None:
            try:
                drive(f"s3://lab/{folder}?endpoint={address}&retry_s=60", "first")
            except DataError as error:
                errors.append(str(error))

        first = threading.Thread(target=drive_first)
        first.start()
        wait_for(proxy, number, first)
        url = f"s3://lab/{folder}?endpoint={server}"
        drive(url, "second")
        assert read_state(url) == expected
        proxy.is_open.set()
        first.join()
        assert all("taken over by process" in error or "another process" in error for error in errors), errors
        assert read_state(url) == expected
        drive(url, "third")  # and nothing is stuck
        assert read_state(url) == expected


def paused_at(proxy: FaultyProxy, number: int) -> None:
    proxy.choose_fault = lambda method, path: "hold" if len(proxy.requests) > number else ""


def wait_for(proxy: FaultyProxy, number: int, first: threading.Thread) -> None:
    while len(proxy.requests) <= number and first.is_alive():
        first.join(0.01)


def test_what_is_written_under_a_lease_is_not_overwritten_by_an_earlier_holder(server: str) -> None:
    """The write itself is on its way when the lease is taken over."""
    with open_faulty_proxy(server) as (address, proxy):
        url = f"s3://lab/late-write?endpoint={server}"
        caught: list[Exception] = []

        def write_late() -> None:
            with Store(f"s3://lab/late-write?endpoint={address}&retry_s=60").lock("lock") as guarded:
                guarded.write("best.json", b"of the first")
                proxy.choose_fault = lambda method, path: "hold" if method == "PUT" else ""
                try:
                    guarded.write("best.json", b"late")
                except DataError as error:
                    caught.append(error)

        first = threading.Thread(target=write_late)
        first.start()
        while ("PUT", "/lab/late-write/best.json") not in proxy.requests[:-1] and first.is_alive():
            first.join(0.01)
        with Store(url).lock("lock") as guarded:
            assert guarded.fence == 2
            guarded.write("best.json", b"of the second")
            proxy.is_open.set()
            first.join()
            assert guarded.read("best.json") == b"of the second"
        assert caught and "taken over by process" in str(caught[0])


def test_parts_of_an_attempt_that_died_are_not_mixed_with_those_of_the_next(tmp_path: Path) -> None:
    """The first had more ranks."""
    store = Store(tmp_path)
    for part in ("0000", "0001", "0002"):
        write_embedding_part(store, EMBEDDINGS, "a0000-dead", part, pa.table({"rank": [part]}))
    write_embedding_part(store, EMBEDDINGS, "a0001-next", "0000", pa.table({"rank": ["0"]}))
    commit_embeddings(store, EMBEDDINGS, "a0001-next", torch.zeros(1))
    files = store.read_committed(find_embeddings(store, EMBEDDINGS))
    assert sorted(files) == ["part-0000.parquet", "times.json"]
    assert files["part-0000.parquet"] == encode_parquet(pa.table({"rank": ["0"]}))
    assert store.list_folders(EMBEDDINGS) == ["a0001-next"]
    # One that comes later still is told by the name that counts.
    write_embedding_part(store, EMBEDDINGS, "a0000-late", "0000", pa.table({"rank": ["late"]}))
    commit_embeddings(store, EMBEDDINGS, "a0000-late", torch.zeros(1))
    assert find_embeddings(store, EMBEDDINGS) == f"{EMBEDDINGS}/a0001-next"
    assert store.list_folders(EMBEDDINGS) == ["a0001-next"]
