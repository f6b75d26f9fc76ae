"""A queue of runs, from which long-lived groups of workers (`distributed/worker_groups.py`) pull.

A protocol is many small runs; starting a group takes seconds, so a group is started once and trains one run after the
other. A run that fails is reported and leaves its neighbours alone. A run that loses its workers is handed out again,
as long as it commits something newer now and then.

Imports no torch: the queue is a process of its own, and loading torch takes seconds.
"""

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import ray

from eav_ray.distributed.rank_errors import NO_MESSAGE, Loss, RankError, find_first_error
from eav_ray.errors import DataError
from eav_ray.storage import Store
from eav_ray.training.positions import find_newest_position
from eav_ray.training.run_spec import SELECTION_METRIC, Position, Progress, Run

WAIT, END = "wait", "end"
HOLD_INTERVAL_S = 2.0  # seconds between two times that a group says what it is training
REJOIN_S = 4 * HOLD_INTERVAL_S  # in which all groups have said so
MAX_ATTEMPTS = 3  # of one run without a newer committed position, and of a group that takes no run
MAX_RESTARTS = 50  # of one run without a newer committed position where nothing was its fault: resizes, lost machines


@dataclass(frozen=True)
class QueueState:
    """What the queue knows of all its runs."""

    done: dict[str, str]  # key -> prefix of the checkpoint
    failed: dict[str, str]  # key -> reason
    epochs_done: float  # over all runs
    note: str
    stopped: bool
    damaged_checkpoints: tuple[str, ...]  # checkpoints that were skipped
    permanent_failures: frozenset[str] = (
        frozenset()
    )  # of those that failed, who would again: what they ask for cannot be had
    has_started: bool = True  # whether a group has ever asked for a run: before that, its workers have not started
    cause: str = ""  # why no run at all can go on, and on which machine
    busy_s: float = 0.0  # from the first time that a group asked for a run to the last time that one was finished


@dataclass
class _Attempts:
    """How a run has fared since it last committed something newer."""

    position: Position | None  # the newest that was committed
    losses: int = 0
    restarts: int = 0  # without a fault of its own
    reason: str = ""  # what the first rank said that ended it


class RunQueue:
    """Hands out runs whose encoders are trained, in order. `distributed/worker_groups.py` makes it an actor."""

    def __init__(
        self,
        runs: list[Run],
        *,
        done: Mapping[str, str] | None = None,
        begun: Mapping[str, int] | None = None,
        find_newest_position: Callable[[str], Position | None] = lambda key: None,
        rejoin_s: float = 0.0,
    ) -> None:
        """
        Args:
            done: Runs that are finished: key -> prefix of the checkpoint.
            begun: Epochs that were saved of others: key -> epochs. They count before anything is reported.
            find_newest_position: Finds the newest committed position of a run, by its key.
            rejoin_s: Seconds for which nothing is handed out, in which groups say what they are training: for a queue
                that takes the place of another.
        """
        self._runs = {run.key: run for run in runs}
        self._find_newest_position = find_newest_position
        self._rejoin_until = time.monotonic() + rejoin_s
        self._running: dict[int, str] = {}
        self._done: dict[str, str] = {}
        self._failed: dict[str, str] = {}
        self._permanent_failures: set[str] = set()
        self._epochs: dict[str, float] = dict(begun or {})
        self._attempts: dict[str, _Attempts] = {}
        self._errors: dict[int, list[RankError]] = {}  # of the workers that a group has now
        self._losses: dict[int, Loss] = {}  # by group: what ended the workers that it had before
        self._world_sizes: dict[int, int] = {}
        self._groups: set[int] = set()  # that work
        self._has_pulled: set[int] = set()  # groups whose present workers have asked for a run
        self._failed_starts: dict[int, int] = {}  # in a row
        self._changes = 0  # counts what may give a waiting group something to do
        self._nothing_at = -1  # `_changes` when no run could start
        self._n_open = len(runs)  # runs that were neither finished nor failed then
        self._note = self._cause = ""
        self._damaged_checkpoints: list[str] = []
        self._stopped = self._has_started = False
        self._started_at = self._finished_at = 0.0  # by the monotonic clock
        self._progress: list[Progress] = []
        for key, prefix in (done or {}).items():
            self._finish(key, prefix)

    def pull(self, group: int, world_size: int = 0) -> Run | str:
        """Hand out the next run, or the one that the group had when its workers were started anew.

        Args:
            world_size: How many workers the group has now. A group that comes back with another number was resized.
        Returns:
            A run, WAIT, or END: nothing is left for this group.
        """
        if not self._has_started:
            self._started_at = self._finished_at = time.monotonic()
        self._has_started = True
        is_resized = world_size != self._world_sizes.get(group, world_size)
        self._world_sizes[group] = world_size
        if group not in self._groups:
            self._groups.add(group)
            self._changes += 1
        self._has_pulled.add(group)
        self._failed_starts.pop(group, None)
        errors, loss = self._errors.pop(group, []), self._losses.pop(group, None)
        if self._stopped:
            self._running.pop(group, None)
            self._groups.discard(group)
            return END
        if group in self._running and self._may_go_on(group, errors, loss, is_resized):
            return self._runs[self._running[group]]
        if time.monotonic() < self._rejoin_until:
            return WAIT
        if run := self._find_next_run():
            self._running[group] = run.key
            return run
        if self._n_open < len(self._groups):  # however the rest goes, one group too many waits for it
            self._groups.discard(group)
            self._changes += 1
            return END
        return WAIT

    def _find_next_run(self) -> Run | None:
        """Find a run that can start; looked for once after each change, whatever the number of groups that wait."""
        if self._nothing_at == self._changes:
            return None
        open_runs = [r for k, r in self._runs.items() if k not in self._done and k not in self._failed]
        running = set(self._running.values())
        for run in open_runs:
            failed_encoder = next((k for k in run.dependencies if k in self._failed), None)
            if failed_encoder:
                self._failed[run.key] = f"its encoder {failed_encoder} failed: {self._failed[failed_encoder]}"
                self._permanent_failures |= {run.key} if failed_encoder in self._permanent_failures else set()
                self._changes += 1
            elif run.key not in running and all(k in self._done or k not in self._runs for k in run.dependencies):
                return run
        self._n_open = sum(r.key not in self._failed for r in open_runs)
        self._nothing_at = self._changes
        return None

    def _may_go_on(self, group: int, errors: list[RankError], loss: Loss | None, is_resized: bool) -> bool:
        """Count the end of a group's workers in the middle of a run; fails the run where that is enough."""
        key = self._running[group]
        attempts = self._attempts.setdefault(key, _Attempts(None))
        reported = {error.rank for error in errors}
        unreported = [error for error in (loss.errors if loss else ()) if error.rank not in reported]
        first = find_first_error([*errors, *unreported])
        is_lost_attempt = loss is not None and not (first is None and (is_resized or loss.is_machine_lost))
        attempts.reason = first.text if first else attempts.reason
        position = self._read_position(key)
        if position is not None and (attempts.position is None or position > attempts.position):
            attempts.position, attempts.losses, attempts.restarts = position, 0, 0
            return True
        attempts.losses += is_lost_attempt
        attempts.restarts += not is_lost_attempt
        if attempts.losses < MAX_ATTEMPTS and attempts.restarts < MAX_RESTARTS:
            return True
        count, reason = max(attempts.losses, attempts.restarts), attempts.reason or NO_MESSAGE
        if not is_lost_attempt:
            reason = attempts.reason or "its machines went away, or its group was resized"
        self.fail(
            group,
            f"its workers ended {count} times without progress: {reason}",
            permanent="OutOfMemoryError" in reason,
        )
        return False

    def _read_position(self, key: str) -> Position | None:
        try:
            return self._find_newest_position(key)
        except DataError:  # the store does not answer: not known to be newer
            return None

    def get_run(self, key: str) -> Run:
        return self._runs[key]

    def report_start(self, group: int, position: Position | None) -> None:
        """Take where a run stands that a group has pulled: what is committed later is newer."""
        if group in self._running:
            self._attempts.setdefault(self._running[group], _Attempts(position))

    def hold(self, group: int, key: str) -> bool:
        """A group is training this run: a queue that took the place of another does not know it yet.

        Returns:
            Whether it should save and leave.
        """
        if key in self._runs and key not in self._done:
            self._running[group] = key
            if group not in self._groups:
                self._groups.add(group)
                self._has_pulled.add(group)
                self._changes += 1
        return self._stopped

    def finish(self, group: int, prefix: str) -> None:
        if key := self._running.pop(group, None):
            self._finish(key, prefix)
            self._finished_at = time.monotonic()

    def _finish(self, key: str, prefix: str) -> None:
        self._done[key] = prefix
        self._failed.pop(key, None)
        self._epochs[key] = self._runs[key].epochs
        self._changes += 1

    def fail(self, group: int, reason: str, *, permanent: bool = False) -> None:
        """
        Args:
            permanent: The run would fail again, wherever it is trained.
        """
        if key := self._running.pop(group, None):
            self._failed[key] = reason
            self._changes += 1
            if permanent:
                self._permanent_failures.add(key)

    def stop(self) -> None:
        """Hand out nothing more; groups save and leave, as `hold` says."""
        self._stopped = True

    def abort(self, cause: str) -> None:
        """Hand out nothing more, because no run can go on: a machine or the store is at fault."""
        self._cause = self._cause or cause
        self._stopped = True

    def release(self, group: int) -> None:
        """A group has saved its run and left it, through no fault of the run's."""
        self._running.pop(group, None)
        self._changes += 1

    def report_error(self, group: int, error: RankError) -> None:
        """Take what a rank says that is about to end; what no further attempt heals ends all runs."""
        self._errors.setdefault(group, []).append(error)
        if error.is_lasting:
            self.abort(error.text)

    def report_loss(self, group: int, loss: Loss) -> str:
        """Take that a group lost its workers.

        Returns:
            Why they must not be started again; empty if they should be.
        """
        lasting = next((error for error in loss.errors if error.is_lasting), None)
        if lasting:
            self.abort(lasting.text)
        if self._cause:
            return self._cause
        if group in self._has_pulled:
            self._has_pulled.discard(group)
            self._losses[group] = loss  # counted when they come back, with how many they are then
            return ""
        errors = self._errors.pop(group, [])
        if loss.is_machine_lost:
            return ""
        self._failed_starts[group] = self._failed_starts.get(group, 0) + 1
        if self._failed_starts[group] < MAX_ATTEMPTS:
            return ""
        reported = {error.rank for error in errors}
        first = find_first_error([*errors, *(error for error in loss.errors if error.rank not in reported)])
        reason = first.text if first else NO_MESSAGE
        self.abort(f"workers ended {MAX_ATTEMPTS} times before they took a run: {reason}")
        return self._cause

    def report_progress(self, progress: Progress) -> None:
        self._progress.append(progress)
        self._epochs[progress.key] = progress.epoch
        self._damaged_checkpoints += [
            line for line in progress.damaged_checkpoints if line not in self._damaged_checkpoints
        ]
        self._note = _format_note(progress)

    def drain_progress(self) -> list[Progress]:
        """Return what was reported since the last call."""
        progress, self._progress = self._progress, []
        return progress

    def get_state(self) -> QueueState:
        epochs = sum(self._epochs.values())
        return QueueState(
            dict(self._done),
            dict(self._failed),
            epochs,
            self._note,
            self._stopped,
            tuple(self._damaged_checkpoints),
            frozenset(self._permanent_failures),
            self._has_started,
            self._cause,
            self._finished_at - self._started_at,
        )


class QueueActor(RunQueue):
    """The queue as an actor that Ray starts again when its process ends, rebuilt from the results store.

    What it forgets is why runs have failed: they are tried again.
    """

    def __init__(self, runs: list[Run], results: Store, done: Mapping[str, str], begun: Mapping[str, int]) -> None:
        """
        Args:
            done: Runs that were finished when the job began: key -> prefix of the checkpoint.
            begun: Epochs that were saved of others then: key -> epochs.
        """
        is_rebuilt = ray.get_runtime_context().was_current_actor_reconstructed
        super().__init__(
            runs,
            done=_find_finished_runs(runs, results) if is_rebuilt else done,
            begun=begun,
            find_newest_position=partial(find_newest_position, results),
            rejoin_s=REJOIN_S if is_rebuilt else 0.0,
        )


def _find_finished_runs(runs: list[Run], results: Store) -> dict[str, str]:
    from eav_ray.training.runner import find_finished_runs  # loads torch

    with contextlib.suppress(DataError):  # whoever trains a run finds it finished, or says what is wrong
        return {key: checkpoint.prefix for key, checkpoint in find_finished_runs(runs, results).items()}
    return {}


def _format_note(progress: Progress) -> str:
    m = progress.metrics
    note = f" {progress.title} loss {m['train_loss']:.3f}"
    if (score := m.get(SELECTION_METRIC)) is not None:
        note += f" CCC {score:.3f}" if "validation_recording_ccc" in m else f" val {score:.1%}"
    if "windows_per_s" in m:
        note += f" {m['windows_per_s']:.0f}/s, data {m['data_wait_fraction']:.0%}"
    return note
