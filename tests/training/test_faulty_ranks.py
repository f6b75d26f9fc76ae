"""A store that fails the requests of one rank of two: all ranks do the same, or fail together (R21, R28)."""

import urllib.request
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from eav_ray.data.shards.index import read_index
from eav_ray.data.shards.window_cache import WindowCache
from eav_ray.data.splits import Split
from eav_ray.errors import StorageError
from eav_ray.storage import Store, object_backend
from eav_ray.training.checkpoint import OpenedCheckpoint
from eav_ray.training.collectives import gather_from_all_ranks
from eav_ray.training.prepared_run import WorkerContext
from eav_ray.training.run_spec import Progress, Run
from eav_ray.training.runner import choose_start, execute_run
from tests.helpers.process_groups import leave_group
from tests.helpers.reliability import CHAOS
from tests.helpers.s3_servers import FaultyProxy, open_conditional_server, open_faulty_proxy
from tests.helpers.trainings import TRAIN, Killed, make_experiment, make_windows

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
FAULTS = ("refuse", "lose", "hide", "cut")
STEP, TRAINING_STEP = (1 if CHAOS else 20), 3  # every so many requests of a resume and of a training are failed
CONTROL = "/control/"


def make_run() -> Run:
    return Run("joint", make_experiment("torch"), Split("within", TRAIN, (), ("subject1/007",)), "data")


def obey(proxy: FaultyProxy) -> None:
    """Let ranks choose what fails: `/control/NUMBER/FAULT` fails the request of this number, `all` it and all after."""
    state = {"number": -1, "fault": "", "all": False}

    def choose_fault(method: str, path: str) -> str:
        if path.startswith(CONTROL):
            number, fault, how_many = path.removeprefix(CONTROL).split("/")
            state.update(number=int(number), fault=fault, all=how_many == "all")
            proxy.requests.clear()
            return "204"
        n = len(proxy.requests) - 1
        is_hit = n >= state["number"] if state["all"] else n == state["number"]
        return str(state["fault"]) if is_hit else ""

    proxy.choose_fault = choose_fault


class Rank:
    """One rank, of which one has a store whose requests fail as it says."""

    def __init__(self, number: int, folder: str, server: str, proxy: str, faulty_rank: int) -> None:
        self.number, self.is_faulty, self._proxy = number, number == faulty_rank, proxy
        self.started = f"started-{faulty_rank}"
        self._address = proxy if self.is_faulty else server
        shards = Store(f"{folder}/shards")
        self._windows = WindowCache(
            shards, read_index(shards), cache=Path(folder, "cache"), cache_gb=1, allowed_recordings=TRAIN
        )

    def open_store(self, folder: str, retry_s: float = 20.0) -> Store:
        return Store(f"s3://lab/{folder}?endpoint={self._address}&retry_s={retry_s}")

    def train(self, store: Store, report: Callable[[Progress], None] = lambda progress: None) -> str:
        return execute_run(make_run(), WorkerContext(self._windows, store, torch.device("cpu"), "one job"), report)

    def fail(self, number: int, fault: str, how_many: str = "one") -> None:
        if self.is_faulty:
            urllib.request.urlopen(f"{self._proxy}{CONTROL}{number}/{fault}/{how_many}").close()
        dist.barrier()


def check_ranks(number: int, folder: str, server: str, proxy: str, faulty_rank: int, totals: list[int]) -> None:
    torch.set_num_threads(1)
    group = {"init_method": f"file://{folder}/group-{faulty_rank}", "rank": number, "world_size": 2}
    dist.init_process_group("gloo", timeout=timedelta(seconds=300), **group)
    object_backend.FIRST_PAUSE_S = object_backend.MISSING_PAUSE_S = 0.01
    rank = Rank(number, folder, server, proxy, faulty_rank)
    check_resumes(rank, totals[0])
    if CHAOS and faulty_rank == 0:  # takes minutes; the other rank makes no request while it trains
        check_trainings(rank, totals[1])
    Path(folder, f"rank-{faulty_rank}-{number}").touch()
    leave_group()


def check_resumes(rank: Rank, total: int) -> None:
    rank.fail(-1, "none")
    expected = choose_start(make_run(), rank.open_store(rank.started))
    assert expected.prefix.endswith("e0003-s000000") and expected.checkpoint
    for number in range(0, total, STEP):
        for fault in FAULTS:
            rank.fail(number, fault)
            found = choose_start(make_run(), rank.open_store(rank.started))
            assert (found.prefix, found.damaged) == (expected.prefix, [])
            assert found.checkpoint and found.checkpoint.state.position == expected.checkpoint.state.position
        rank.fail(number, "refuse", "all")
        try:
            choose_start(make_run(), rank.open_store(rank.started, 0.1))
        except StorageError as error:
            assert all(gather_from_all_ranks("503" in str(error)))
        else:  # the rank that fails makes fewer requests than that
            assert not any(gather_from_all_ranks(False))


def check_trainings(rank: Rank, total: int) -> None:
    rank.fail(-1, "none")
    store = rank.open_store("whole")
    expected = OpenedCheckpoint(store, rank.train(store)).weights
    for number in range(2, total, TRAINING_STEP):
        fault = FAULTS[number // TRAINING_STEP % len(FAULTS)]
        rank.fail(number, fault)
        store = rank.open_store(f"{number}-once")
        weights = OpenedCheckpoint(store, rank.train(store)).weights
        assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items()), (number, fault)
        # A store that stays away ends the attempt of all ranks alike, and the next one goes on.
        rank.fail(number, "refuse", "all")
        try:
            rank.train(rank.open_store(f"{number}-away", 0.1))
            has_ended = True
        except StorageError:
            has_ended = False
        assert len(set(gather_from_all_ranks(has_ended))) == 1, number
        rank.fail(-1, "none")
        store = rank.open_store(f"{number}-away")
        weights = OpenedCheckpoint(store, rank.train(store)).weights
        assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items()), number


@pytest.mark.slow
@pytest.mark.parametrize("faulty_rank", [0, 1])
def test_a_store_that_fails_one_rank_fails_or_serves_both(faulty_rank: int, tmp_path: Path) -> None:
    windows = make_windows(tmp_path)

    def stop(progress: Progress) -> None:
        if progress.epoch == 3:
            raise Killed

    with open_conditional_server() as server, open_faulty_proxy(server) as (address, proxy):
        store = Store(f"s3://lab/started-{faulty_rank}?endpoint={address}")
        with pytest.raises(Killed):
            execute_run(make_run(), WorkerContext(windows, store, torch.device("cpu")), stop)
        totals = [count_requests(proxy, lambda: choose_start(make_run(), store))]
        place = WorkerContext(windows, Store(f"s3://lab/count-{faulty_rank}?endpoint={address}"), torch.device("cpu"))
        totals.append(count_requests(proxy, lambda: execute_run(make_run(), place, lambda progress: None)))
        obey(proxy)
        mp.spawn(check_ranks, args=(str(tmp_path), server, address, faulty_rank, totals), nprocs=2)
    assert len(list(tmp_path.glob(f"rank-{faulty_rank}-*"))) == 2


def count_requests(proxy: FaultyProxy, action: Callable[[], object]) -> int:
    proxy.requests.clear()
    action()
    return len(proxy.requests)
