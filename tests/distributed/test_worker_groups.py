"""A group of one rank in this process, on real trainings and a store: Ray Train is played, all else is ours."""

import errno
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.exceptions import ActorDiedError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from eav_ray.config import override
from eav_ray.data.shards.window_cache import WindowCache
from eav_ray.data.splits import Split
from eav_ray.distributed import worker_groups
from eav_ray.distributed.rank_errors import NO_MESSAGE
from eav_ray.distributed.run_queue import RunQueue
from eav_ray.errors import DataError
from eav_ray.storage import Store
from eav_ray.training import checkpoint as ckpt
from eav_ray.training.positions import find_newest_position
from eav_ray.training.run_spec import Progress, Run
from tests.helpers.reliability import CHAOS
from tests.helpers.trainings import TRAIN, Killed, make_experiment, make_windows, train

SIGKILLED = WorkerHealthCheckFailedError("a worker ended", ActorDiedError(ActorDiedErrorContext(actor_id=bytes(16))))
N_LOSSES = 50 if CHAOS else 5


class Handle:
    """Stands for the handle of a queue that is an actor."""

    def __init__(self, queue: RunQueue, on_progress: Callable[[Progress], None]) -> None:
        self._queue, self._on_progress = queue, on_progress

    def __getattr__(self, name: str) -> Any:
        if name == "report_progress":
            return SimpleNamespace(remote=self._on_progress)
        return SimpleNamespace(remote=getattr(self._queue, name))


@dataclass
class PlayedGroup:
    """One rank, which is started again until it ends by itself or its callback ends it."""

    group: worker_groups.WorkerGroup
    starts: int = 0

    def run(self) -> str:
        """Return why the group was ended; empty if it ended by itself."""
        reporter = worker_groups.LossReporter(self.group)
        while self.starts < 4 * N_LOSSES:
            self.starts += 1
            error: Exception = SIGKILLED
            try:
                worker_groups.run_worker({"group": self.group})
                return ""
            except Killed:
                pass
            except Exception as raised:
                error = raised
            try:
                reporter.after_exception(None, {0: error})
            except RuntimeError as cause:
                return str(cause)
        raise AssertionError("the group is started again without end")


@pytest.fixture(autouse=True)
def rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is the only rank of a group."""
    context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
    monkeypatch.setattr(worker_groups.ray, "get", lambda value: value)
    monkeypatch.setattr(worker_groups.ray.train, "get_context", lambda: context)
    monkeypatch.setattr(worker_groups.ray.train, "get_preemption_info", lambda: None)


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> WindowCache:
    return make_windows(tmp_path_factory.mktemp("windows"))


def make_runs(results: Path, n: int, **changes: Any) -> list[Run]:
    changes_of_all = {"store.results": str(results), "runtime.cpus_per_worker": 1, "runtime.gpus_per_worker": 0}
    e = override(make_experiment("torch"), changes_of_all)
    e = override(e, {key.replace("__", "."): value for key, value in changes.items()})
    test = ("subject1/007",)
    return [Run("joint", e, Split("within", TRAIN[: len(TRAIN) - k], (), test), "data") for k in range(n)]


def play(
    runs: list[Run],
    open_windows: Callable[[Any], WindowCache],
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> tuple[PlayedGroup, RunQueue, str]:
    """Let a group train all runs; returns the group, its queue, and why the group was ended."""
    e = runs[0].experiment
    store = Store(e.store.results)
    queue = RunQueue(runs, find_newest_position=lambda key: find_newest_position(store, key))
    data: Any = SimpleNamespace(open_windows=open_windows)
    played = PlayedGroup(worker_groups.WorkerGroup(0, e, data, TRAIN, Handle(queue, on_progress)))
    return played, queue, played.run()


def test_a_training_that_loses_its_workers_after_each_committed_epoch_ends_bit_identical(
    windows: WindowCache, tmp_path: Path
) -> None:
    (run,) = make_runs(tmp_path / "lost", 1, optim__epochs=N_LOSSES + 1)
    losses: set[float] = set()

    def kill(progress: Progress) -> None:
        if progress.epoch in range(1, run.epochs) and progress.epoch not in losses:
            losses.add(progress.epoch)
            raise Killed

    group, queue, cause = play([run], lambda allowed: windows, kill)
    assert not cause and not queue.get_state().failed
    assert group.starts == N_LOSSES + 1 == len(losses) + 1
    whole = train(windows, tmp_path / "whole", "torch", run=run)
    lost = ckpt.OpenedCheckpoint(Store(tmp_path / "lost"), queue.get_state().done[run.key]).weights
    assert whole.keys() == lost.keys()
    assert all(torch.equal(tensor, lost[name]) for name, tensor in whole.items())


@pytest.mark.parametrize("error", [Killed(), KeyError("its own")])
def test_a_training_that_never_gets_further_fails_after_three_attempts(
    windows: WindowCache, tmp_path: Path, error: BaseException
) -> None:
    changes = {"optim__epochs": 3, "train__checkpoint_epochs": 9, "train__validate_epochs": 0}
    runs = make_runs(tmp_path, 2, **changes)

    def kill(progress: Progress) -> None:
        if progress.key == runs[0].key and progress.epoch == 2:  # nothing is committed yet
            raise error

    group, queue, cause = play(runs, lambda allowed: windows, kill)
    state = queue.get_state()
    reason = NO_MESSAGE if isinstance(error, Killed) else "KeyError: 'its own'"
    assert state.failed == {runs[0].key: f"its workers ended 3 times without progress: {reason}"}
    assert set(state.done) == {runs[1].key} and group.starts == 4 and not cause


REFUSED = [
    PermissionError(errno.EACCES, "Permission denied", "/cache/a.arrow"),
    OSError(errno.ENOSPC, "No space left on device", "/cache/a.arrow"),
]


@pytest.mark.parametrize("error", REFUSED, ids=["unreadable", "full"])
def test_a_cache_that_cannot_be_used_ends_all_runs_at_once(tmp_path: Path, error: OSError) -> None:
    def open_windows(allowed: Any) -> WindowCache:
        raise error

    group, queue, _ = play(make_runs(tmp_path, 5), open_windows)
    cause = queue.get_state().cause
    assert group.starts == 1 and "\n" not in cause
    assert cause.startswith(f"/cache/a.arrow: {error.strerror} (on the machine ")


def test_a_gpu_that_is_not_there_ends_all_runs_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("EAV_RAY_FAKE_GPUS", raising=False)
    monkeypatch.setattr(worker_groups.ray.util, "get_node_ip_address", lambda: "10.0.0.9")
    runs = make_runs(tmp_path, 5, runtime__gpus_per_worker=1)
    group, queue, _ = play(runs, lambda allowed: pytest.fail("no window is needed"))
    cause = queue.get_state().cause
    assert group.starts == 1 and "Ray counts a GPU on node 10.0.0.9" in cause and "\n" not in cause


def test_a_store_without_rights_ends_all_runs_at_once(
    windows: WindowCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(store: Store, name: str, data: bytes) -> None:
        reason = "AWS Error ACCESS_DENIED during PutObject operation: Access Denied"
        try:
            raise OSError(reason)
        except OSError:
            raise DataError(f"cannot write {store}/{name}: {reason}") from None

    monkeypatch.setattr(Store, "write", refuse)
    group, queue, _ = play(make_runs(tmp_path, 5), lambda allowed: windows)
    state = queue.get_state()
    assert group.starts == 1 and not state.done and not state.failed
    assert "ACCESS_DENIED" in state.cause and "(on the machine " in state.cause


def test_a_cache_file_that_becomes_unreadable_ends_all_runs(windows: WindowCache, tmp_path: Path) -> None:
    def fail(progress: Progress) -> None:  # where nothing tells the other ranks
        raise PermissionError(errno.EACCES, "Permission denied", "/cache/a.arrow")

    group, queue, cause = play(make_runs(tmp_path, 5), lambda allowed: windows, fail)
    assert group.starts == 1 and cause == queue.get_state().cause
    assert cause.startswith("/cache/a.arrow: Permission denied (on the machine ")


def test_a_group_whose_workers_cannot_start_ends_after_three_starts(tmp_path: Path) -> None:
    def open_windows(allowed: Any) -> WindowCache:
        raise KeyError("a fault of the program")

    group, _, cause = play(make_runs(tmp_path, 5), open_windows)
    assert group.starts == 3
    assert cause == "workers ended 3 times before they took a run: KeyError: 'a fault of the program'"
