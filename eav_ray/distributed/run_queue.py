"""A queue of runs, from which long-lived groups of workers (`distributed/worker_groups.py`) pull.

A protocol is many small runs; starting a group takes seconds, so a group is started once and trains one run after the
other. A run that fails is reported and leaves its neighbours alone.

Imports no torch: the queue is a process of its own, and loading torch takes seconds.
"""

from dataclasses import dataclass

from eav_ray.training.run_spec import SELECTION_METRIC, Progress, Run

WAIT, END = "wait", "end"
MAX_ATTEMPTS = 3  # of one run: what ends its workers each time must not keep the runs after it from being trained


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


class RunQueue:
    """Hands out runs whose encoders are trained, in order. `distributed/worker_groups.py` makes it an actor."""

    def __init__(self, runs: list[Run]) -> None:
        self._runs = {run.key: run for run in runs}
        self._running: dict[int, str] = {}
        self._done: dict[str, str] = {}
        self._failed: dict[str, str] = {}
        self._permanent_failures: set[str] = set()
        self._epochs: dict[str, float] = {}
        self._attempts: dict[str, int] = {}
        self._errors: dict[str, str] = {}
        self._note = ""
        self._damaged_checkpoints: list[str] = []
        self._stopped = self._has_started = False
        self._progress: list[Progress] = []

    def pull(self, group: int) -> Run | str:
        self._has_started = True
        if group in self._running:  # the group was restarted in the middle of this run
            key = self._running[group]
            self._attempts[key] = self._attempts.get(key, 1) + 1
            if self._attempts[key] <= MAX_ATTEMPTS:
                return self._runs[key]
            reason = self._errors.get(key, "the workers exited without an error message (possibly out of memory)")
            self.fail(
                group, f"its workers ended {MAX_ATTEMPTS} times: {reason}", permanent="OutOfMemoryError" in reason
            )
        if self._stopped:
            return END
        open_runs = [r for k, r in self._runs.items() if k not in self._done and k not in self._failed]
        for run in open_runs:
            failed_encoder = next((k for k in run.dependencies if k in self._failed), None)
            if failed_encoder:
                self._failed[run.key] = f"its encoder {failed_encoder} failed: {self._failed[failed_encoder]}"
                self._permanent_failures |= {run.key} if failed_encoder in self._permanent_failures else set()
            elif run.key not in self._running.values() and all(
                k in self._done or k not in self._runs for k in run.dependencies
            ):
                self._running[group] = run.key
                return run
        return WAIT if any(r.key not in self._failed for r in open_runs) else END

    def finish(self, group: int, prefix: str) -> None:
        key = self._running.pop(group)
        self._done[key] = prefix
        self._epochs[key] = self._runs[key].epochs

    def fail(self, group: int, reason: str, *, permanent: bool = False) -> None:
        """
        Args:
            permanent: The run would fail again, wherever it is trained.
        """
        key = self._running.pop(group)
        self._failed[key] = reason
        if permanent:
            self._permanent_failures.add(key)

    def stop(self) -> None:
        """Hand out nothing more; groups that ask `stopped` save and leave."""
        self._stopped = True

    def is_stopped(self) -> bool:
        return self._stopped

    def release(self, group: int) -> None:
        """A group has saved its run and left it, through no fault of the run's."""
        self._running.pop(group)

    def report_error(self, group: int, reason: str) -> None:
        """What ended a group's workers, reported by one of them just before."""
        self._errors[self._running[group]] = reason

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
        )


def _format_note(progress: Progress) -> str:
    m = progress.metrics
    note = f" {progress.title} loss {m['train_loss']:.3f}"
    if (score := m.get(SELECTION_METRIC)) is not None:
        note += f" val {score:.1%}"
    if "windows_per_s" in m:
        note += f" {m['windows_per_s']:.0f}/s, data {m['data_wait_fraction']:.0%}"
    return note
