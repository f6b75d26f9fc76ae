"""Failures are counted by progress, told with the error of the rank that raised first, and end at once where no further
attempt can heal them: the queue alone, without Ray."""

import errno
from dataclasses import replace

import pytest
from ray.core.generated.common_pb2 import ActorDiedErrorContext, NodeDeathInfo
from ray.exceptions import ActorDiedError, OutOfMemoryError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from eav_ray.config import load_experiment
from eav_ray.data.splits import Split
from eav_ray.distributed.rank_errors import (
    NO_MESSAGE,
    Loss,
    RankError,
    classify_worker_errors,
    describe_rank_error,
    find_first_error,
)
from eav_ray.distributed.run_queue import END, MAX_ATTEMPTS, MAX_RESTARTS, WAIT, RunQueue
from eav_ray.errors import (
    ConfigError,
    DataError,
    TrainingInterrupted,
    UnrecoverableError,
    is_lasting,
    make_unrecoverable,
)
from eav_ray.storage import Store, io_errors
from eav_ray.training.positions import find_newest_position, make_checkpoint_prefix
from eav_ray.training.run_spec import Position, Run, plan_encoder_run, plan_fusion_run
from tests.helpers.paths import DEMO

LOST, MACHINE_LOST = Loss(), Loss(is_machine_lost=True)
CLOSED = "[/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:9"
ORIGINAL = RankError(1, 10.0, "ValueError: its own")
CONSEQUENCE = RankError(0, 11.0, f"RuntimeError: {CLOSED}", 2, is_consequence=True)


def make_runs(n: int, *, fusion: bool = False) -> list[Run]:
    e = load_experiment(DEMO)
    splits = [Split("subject_kfold", ("a/1", f"b/{k}"), (), ("c/1",)) for k in range(n)]
    runs = [plan_encoder_run(e, "eeg", split, "data", ()) for split in splits]
    return [plan_fusion_run(e, splits[0], "data", ()), *runs] if fusion else runs


class Positions(dict[str, Position]):
    """What runs have committed; called as a queue does that looks for it."""

    def __call__(self, key: str) -> Position | None:
        return self.get(key)


def make_queue(runs: list[Run]) -> tuple[RunQueue, Positions]:
    positions = Positions()
    return RunQueue(runs, find_newest_position=positions), positions


def lose(queue: RunQueue, *errors: RankError, loss: Loss = LOST, group: int = 0) -> str:
    for error in errors:
        queue.report_error(group, error)
    return queue.report_loss(group, loss)


# R22: losses count until something newer is committed


def test_a_run_that_commits_something_before_each_loss_goes_on() -> None:
    (run,) = make_runs(1)
    queue, positions = make_queue([run])
    assert queue.pull(0) == run
    for step in range(1, 51):
        positions[run.key] = Position(step // 7, step % 7)
        assert not lose(queue, CONSEQUENCE)
        assert queue.pull(0) == run
    queue.finish(0, "prefix")
    assert queue.pull(0) == END and queue.get_state().done == {run.key: "prefix"}


def test_three_losses_without_progress_fail_a_run_and_leave_the_others() -> None:
    runs = make_runs(3)
    queue, positions = make_queue(runs)
    assert queue.pull(0) == runs[0]
    positions[runs[0].key] = Position(2, 0)
    for _ in range(MAX_ATTEMPTS):  # the first of four comes after something newer
        lose(queue, ORIGINAL, CONSEQUENCE)
        assert queue.pull(0) == runs[0]
    lose(queue, ORIGINAL, CONSEQUENCE)
    assert queue.pull(0) == runs[1]
    state = queue.get_state()
    assert state.failed == {runs[0].key: "its workers ended 3 times without progress: ValueError: its own"}
    assert not state.cause and not state.permanent_failures
    queue.finish(0, "prefix")
    assert queue.pull(0) == runs[2]


def test_what_was_committed_before_a_run_was_taken_up_is_no_progress() -> None:
    runs = make_runs(2)
    queue, positions = make_queue(runs)
    positions[runs[0].key] = Position(2, 0)
    queue.pull(0)
    queue.report_start(0, Position(2, 0))
    for _ in range(MAX_ATTEMPTS - 1):
        lose(queue)
        assert queue.pull(0) == runs[0]
        queue.report_start(0, Position(2, 0))
    lose(queue)
    assert queue.pull(0) == runs[1]
    assert NO_MESSAGE in queue.get_state().failed[runs[0].key]


def test_progress_between_losses_starts_the_count_anew() -> None:
    runs = make_runs(2)
    queue, positions = make_queue(runs)
    queue.pull(0)
    for step in (0, 0, 1, 1, 1, 2, 2, 2):
        if step:
            positions[runs[0].key] = Position(0, step)
        lose(queue)
        assert queue.pull(0) == runs[0]
    lose(queue)
    assert queue.pull(0) == runs[1]


def test_a_store_that_does_not_answer_shows_no_progress() -> None:
    def refuse(key: str) -> Position | None:
        raise DataError("away")

    runs = make_runs(2)
    queue = RunQueue(runs, find_newest_position=refuse)
    queue.pull(0)
    for _ in range(MAX_ATTEMPTS):
        lose(queue)
        task = queue.pull(0)
    assert task == runs[1]


def test_the_newest_position_is_found_by_names(tmp_path: pytest.TempPathFactory) -> None:
    store = Store(str(tmp_path))
    assert find_newest_position(store, "run") is None
    for attempt, position in (("a0000-01", Position(3, 2)), ("a0001-02", Position(3, 0)), ("a0002-03", Position(1, 9))):
        store.commit(make_checkpoint_prefix("run", attempt, position), {"file": b"x"})
    store.write(f"{make_checkpoint_prefix('run', 'a0003-04', Position(9, 0))}/file", b"not committed")
    assert find_newest_position(store, "run") == Position(3, 2)


@pytest.mark.parametrize("errors", [(ORIGINAL, CONSEQUENCE), (CONSEQUENCE, ORIGINAL)])
def test_the_first_original_error_wins(errors: tuple[RankError, ...]) -> None:
    later = RankError(0, 12.0, "KeyError: later")
    assert find_first_error([*errors, later]) == ORIGINAL
    assert find_first_error([replace(later, timestamp=10.0), ORIGINAL]) == replace(later, timestamp=10.0)
    assert find_first_error([CONSEQUENCE]) is None  # the other rank said nothing: it was killed


def test_connections_are_the_cause_where_every_rank_has_lost_them() -> None:
    both = [CONSEQUENCE, replace(CONSEQUENCE, rank=1, timestamp=9.0)]
    assert find_first_error(both) == both[1]


@pytest.mark.parametrize(
    "text", [CLOSED, "NCCL communicator was aborted on rank 1", "[gloo] timed out waiting 1800000ms for recv operation"]
)
def test_an_error_of_the_connection_is_a_consequence(text: str) -> None:
    assert describe_rank_error(RuntimeError(text), 0).is_consequence
    assert not describe_rank_error(ValueError("the signal is closed"), 0).is_consequence


def test_torchs_errors_of_process_groups_are_consequences() -> None:
    import torch.distributed as dist

    for kind in (dist.DistBackendError, dist.DistNetworkError, dist.DistStoreError):
        assert describe_rank_error(kind("any text"), 0).is_consequence


def test_an_error_that_no_rank_could_report_is_taken_from_the_controller() -> None:
    killed = WorkerHealthCheckFailedError("a worker ended", OutOfMemoryError("the node ran out of memory"))
    runs = make_runs(2)
    queue, _ = make_queue(runs)
    queue.pull(0)
    for _ in range(MAX_ATTEMPTS):
        loss = classify_worker_errors({0: RuntimeError(CLOSED), 1: killed})
        assert loss
        lose(queue, CONSEQUENCE, loss=loss)
        queue.pull(0)
    state = queue.get_state()
    assert "OutOfMemoryError: the node ran out of memory" in state.failed[runs[0].key]
    assert state.permanent_failures == {runs[0].key}


# R23: a resize is no lost attempt


def test_a_group_that_is_resized_loses_no_attempt() -> None:
    (run,) = make_runs(1)
    queue, _ = make_queue([run])
    for _ in range(10):
        assert queue.pull(0, 2) == run
        # A machine goes, which Ray Train does not know yet: the rank that is left has lost its connection.
        lose(queue, CONSEQUENCE)
        assert queue.pull(0, 1) == run
        # Another comes: Ray Train starts the group anew, and there is no error.
    assert queue.pull(0, 2) == run
    queue.finish(0, "prefix")
    assert queue.pull(0, 2) == END and queue.get_state().done


def test_a_machine_that_went_away_costs_no_attempt() -> None:
    (run,) = make_runs(1)
    queue, _ = make_queue([run])
    for _ in range(10):
        assert queue.pull(0, 2) == run
        lose(queue, loss=MACHINE_LOST)
    assert queue.pull(0, 2) == run


def test_an_error_of_the_runs_own_counts_whatever_the_size() -> None:
    runs = make_runs(2)
    queue, _ = make_queue(runs)
    for size in (2, 1, 2):
        assert queue.pull(0, size) == runs[0]
        lose(queue, ORIGINAL, loss=MACHINE_LOST)
    assert queue.pull(0, 1) == runs[1]


def test_resizes_without_end_and_without_progress_end() -> None:
    runs = make_runs(2)
    queue, _ = make_queue(runs)
    for _ in range(MAX_RESTARTS):
        assert queue.pull(0) == runs[0]
    assert queue.pull(0) == runs[1]
    assert "its machines went away, or its group was resized" in queue.get_state().failed[runs[0].key]


def make_death(text: str, reason: "NodeDeathInfo.Reason" = NodeDeathInfo.UNSPECIFIED) -> Exception:
    context = ActorDiedErrorContext(
        error_message=text, actor_id=bytes(16), node_death_info=NodeDeathInfo(reason=reason)
    )
    return WorkerHealthCheckFailedError("a worker ended", ActorDiedError(context))


def test_what_ray_says_of_a_group_is_classified() -> None:
    announced = make_death("its node has died", NodeDeathInfo.AUTOSCALER_DRAIN_PREEMPTED)
    assert classify_worker_errors({0: RuntimeError(CLOSED), 1: announced}) is None
    assert classify_worker_errors({0: TrainingInterrupted("its node is about to go")}) is None
    gone = classify_worker_errors({0: make_death("The actor died because its node has died. Node Id: 0")})
    assert gone == Loss((), is_machine_lost=True)
    killed = classify_worker_errors({0: make_death("The process receives a SIGKILL.")})
    assert killed == LOST
    own = classify_worker_errors({1: KeyError("own"), 0: RuntimeError(CLOSED)})
    assert own and [(error.rank, error.is_consequence) for error in own.errors] == [(1, False), (0, True)]


# R26: what cannot heal


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC])
def test_what_a_file_system_refuses_for_good_is_lasting(number: int) -> None:
    with pytest.raises(DataError) as raised, io_errors("write x"):
        raise OSError(number, "as it says")
    assert is_lasting(raised.value) and is_lasting(OSError(number, "bare"))
    text = str(make_unrecoverable(raised.value))
    assert text.startswith("cannot write x: as it says (on the machine ") and "\n" not in text
    assert make_unrecoverable(UnrecoverableError("known (on the machine a)")).args == ("known (on the machine a)",)


@pytest.mark.parametrize(
    ("error", "lasting"),
    [
        (OSError("AWS Error ACCESS_DENIED during PutObject operation: Access Denied"), True),
        (OSError("AWS Error NO_SUCH_BUCKET during HeadBucket: the bucket"), True),
        (OSError("AWS Error SLOW_DOWN during PutObject: 503"), False),
        (ConnectionResetError(errno.ECONNRESET, "reset"), False),
        (FileNotFoundError(errno.ENOENT, "no such file"), False),
        (ConfigError("a wrong key"), False),
        (RuntimeError("permission denied"), False),
    ],
)
def test_only_what_stays_refused_is_lasting(error: Exception, lasting: bool) -> None:
    assert is_lasting(error) is lasting


def test_a_lasting_error_of_one_rank_ends_all_runs_and_starts_no_group_again() -> None:
    runs = make_runs(40)
    queue, _ = make_queue(runs)
    for group in range(3):
        queue.pull(group)
    refused = describe_rank_error(PermissionError(errno.EACCES, "Permission denied", "/cache/a.arrow"), 1)
    assert lose(queue, refused, CONSEQUENCE, group=2) == queue.get_state().cause
    assert queue.get_state().stopped and all(queue.pull(group) == END for group in range(4))
    cause = queue.get_state().cause
    assert cause.startswith("/cache/a.arrow: Permission denied (on the machine ") and "\n" not in cause
    queue.abort("a later one")
    assert queue.get_state().cause == cause


def test_a_lasting_error_that_only_the_controller_saw_ends_all_runs() -> None:
    queue, _ = make_queue(make_runs(4))
    loss = classify_worker_errors({0: OSError(errno.ENOSPC, "No space left on device", "/cache/x")})
    assert loss and "No space left on device" in lose(queue, loss=loss)
    assert queue.pull(0) == END


def test_a_group_that_cannot_start_ends_all_runs_after_three_starts() -> None:
    queue, _ = make_queue(make_runs(40))
    own = RankError(1, 5.0, "ImportError: no module named x")
    assert [bool(lose(queue, own, CONSEQUENCE)) for _ in range(MAX_ATTEMPTS)] == [False, False, True]
    cause = queue.get_state().cause
    assert cause == "workers ended 3 times before they took a run: ImportError: no module named x"
    assert queue.pull(0) == END


def test_starts_that_failed_before_a_run_was_taken_are_forgotten() -> None:
    queue, _ = make_queue(make_runs(4))
    for _ in range(4):
        for _ in range(MAX_ATTEMPTS - 1):
            assert not lose(queue)
        assert isinstance(queue.pull(0), Run)
        queue.finish(0, "prefix")
        assert not lose(queue)  # between two runs: no start that failed, and no run's loss
    assert not queue.get_state().failed and not queue.get_state().cause
    for _ in range(10):
        assert not lose(queue, loss=MACHINE_LOST)  # which is no fault of what starts


# R27: a queue that takes the place of another


def test_a_queue_that_was_started_again_knows_what_is_finished_and_hands_out_nothing_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [100.0]
    monkeypatch.setattr("eav_ray.distributed.run_queue.time.monotonic", lambda: clock[0])
    runs = make_runs(4)
    queue = RunQueue(runs, done={runs[0].key: "prefix 0"}, rejoin_s=8.0)
    assert queue.pull(1) == WAIT  # runs[1] is in the hands of a group that has not said so yet
    queue.hold(0, runs[1].key)
    clock[0] += 9.0
    assert queue.pull(1) == runs[2]
    queue.finish(0, "prefix 1")
    assert queue.pull(0) == runs[3]
    for group in (0, 1):
        queue.finish(group, f"prefix {group}")
    assert queue.pull(0) == END and len(queue.get_state().done) == 4


def test_a_group_that_ends_while_the_queue_forgets_is_counted_as_its_last_report_says() -> None:
    (run,) = make_runs(1)
    queue = RunQueue([run], rejoin_s=100.0)
    queue.hold(0, run.key)
    assert not lose(queue, CONSEQUENCE)
    assert queue.pull(0) == run
    queue.finish(1, "of a group that it does not know")
    queue.fail(1, "nor this")
    queue.release(1)
    assert not queue.get_state().failed


# Groups that wait in vain


def test_groups_end_when_fewer_runs_are_left_than_groups() -> None:
    queue, _ = make_queue(make_runs(2))
    tasks = [queue.pull(group) for group in range(5)]
    assert [isinstance(task, Run) for task in tasks] == [True, True, False, False, False]
    assert tasks[2:] == [END] * 3
    queue.finish(0, "prefix")
    assert queue.pull(0) == END  # the other trains the last one
    assert not lose(queue, group=1)
    assert isinstance(queue.pull(1), Run)


def test_as_many_groups_wait_as_may_have_something_to_do() -> None:
    e = load_experiment(DEMO)
    split = Split("subject_kfold", ("a/1",), (), ("c/1",))
    encoders = [plan_encoder_run(e, m, split, "data", ()) for m in ("audio", "eeg", "video")]
    queue, _ = make_queue([plan_fusion_run(e, split, "data", ()), *encoders])
    for group in range(3):
        assert isinstance(queue.pull(group), Run)
    assert [queue.pull(3), queue.pull(4), queue.pull(3)] == [WAIT, END, WAIT]
    queue.finish(0, "prefix")
    assert queue.pull(0) == END  # the fusion and two encoders are left, for three groups
    for group in (1, 2):
        queue.finish(group, "prefix")
    assert isinstance(queue.pull(3), Run)
    assert [queue.pull(1), queue.pull(2)] == [END, END]


def test_a_failure_reaches_what_depends_on_it_over_two_steps() -> None:
    runs = make_runs(1, fusion=True)
    joint = replace(runs[0], kind="joint", encoder_keys={}, init_from=runs[0].key)
    e = load_experiment(DEMO)
    encoders = [plan_encoder_run(e, m, runs[0].split, "data", ()) for m in ("audio", "eeg", "video")]
    queue, _ = make_queue([joint, runs[0], *encoders])
    queue.pull(0)
    queue.fail(0, "no good")
    for _ in range(2):
        assert isinstance(queue.pull(0), Run)
        queue.finish(0, "prefix")
    while (task := queue.pull(0)) == WAIT:
        pass
    assert task == END and len(queue.get_state().failed) == 3
