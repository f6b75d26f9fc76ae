"""Groups of Ray Train workers that live as long as there are runs in the queue.

A group whose worker dies is restarted by Ray Train, and takes its run up again from the last checkpoint. How often is
for the queue to say, which counts what is lost. The workers alone import what trains: Ray Train's own actors load this
module too.
"""

import contextlib
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.train
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, UserCallback

from eav_ray.config import Experiment, RuntimeConfig
from eav_ray.data.shards.dataset import Dataset
from eav_ray.distributed import cluster
from eav_ray.distributed.capacity import GROUP_BYTES, check_head_memory
from eav_ray.distributed.heap import limit_heaps, release_heaps
from eav_ray.distributed.machine_limits import measure_free_memory
from eav_ray.distributed.rank_errors import classify_worker_errors, describe_rank_error
from eav_ray.distributed.ray_workarounds import get_trainer_class, make_process_group_config
from eav_ray.distributed.run_queue import END, HOLD_INTERVAL_S, WAIT, QueueActor, QueueState
from eav_ray.distributed.timings import TimingRecorder
from eav_ray.distributed.watchers import poll_in_background
from eav_ray.errors import (
    ConfigError,
    DataError,
    StorageError,
    TrainingInterrupted,
    UnrecoverableError,
    is_lasting,
    make_unrecoverable,
)
from eav_ray.processes import on_signals
from eav_ray.storage import Store
from eav_ray.tracking.mlflow import MLflowTracker
from eav_ray.tracking.progress import ProgressBar, open_progress_bar, write_line
from eav_ray.tracking.tensorboard import TensorBoardTracker, open_tensorboard_tracker
from eav_ray.training.positions import find_newest_position, find_newest_positions
from eav_ray.training.run_spec import Progress, Run, list_needed_recordings
from eav_ray.words import format_count

if TYPE_CHECKING:
    from eav_ray.training.prepared_run import WorkerContext

FIRST_WAIT_S, LONGEST_WAIT_S = 0.2, 5.0  # between two times that a group asks for a run while none can start
# For a group to save and leave: at worst it writes 2 GB at 50 MB/s, and as much is due and waits, 40 s each.
# The same number is in cluster.yaml and under infra/ (docs/cluster.md, "Time to leave").
LEAVE_S = 120.0
WAIT_NOTICE_S = 20.0  # without a worker, after which the progress line says what is waited for
STOP_REQUESTED = "the job was told to end"


def train_all_runs(experiment: Experiment, runs: list[Run], data: Dataset, *, title: str) -> dict[str, str]:
    """Train runs of which every one is needed (`train_runs`).

    Returns:
        key -> prefix of the finished checkpoint in the results store.
    Raises:
        DataError: A run failed; the others were trained all the same.
        TrainingInterrupted: As `train_runs`.
    """
    state = train_runs(experiment, runs, data, title=title)
    if state.failed:
        key, reason = next(iter(state.failed.items()))
        total = len(state.done) + len(state.failed)
        raise DataError(f"{len(state.failed)} of {format_count(total, 'training')} failed; the first, {key}: {reason}")
    return state.done


def train_runs(
    experiment: Experiment,
    runs: list[Run],
    data: Dataset,
    *,
    title: str,
    on_progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[QueueState], bool] = lambda state: False,
) -> QueueState:
    """Train all runs on `runtime.groups` groups of `runtime.workers`; finished ones are skipped.

    The workers see no other recordings than those that some run trains, validates or embeds.

    Args:
        on_progress: Is called with how far each training is, every few seconds and at the end of its epochs; a
            TensorBoard beside the results, and the MLflow of the experiment, if it is not given.
        should_stop: Is called every second with how far all are; where it says True, the runs are saved where they are,
            and left.
    Raises:
        ConfigError: This node has too little memory for the groups' controllers.
        UnrecoverableError: No run can go on: a machine or the store is at fault, or no group could start.
        DataError: A group ended in a way that Ray Train does not go on from.
        TrainingInterrupted: The job was asked to end (SIGTERM, SIGHUP, Ctrl-C, or by `should_stop`), and the runs were
            saved where they were.
    """
    from eav_ray.training.runner import find_finished_runs

    unique = list({run.key: run for run in runs}.values())
    results = Store(experiment.store.results)
    done = {key: checkpoint.prefix for key, checkpoint in find_finished_runs(unique, results).items()}
    if len(done) == len(unique):  # a group would start, find nothing to do and end: half a minute
        return QueueState(done, {}, 0.0, "", False, ())
    results.require_writable()
    if any(run.features_prefix for run in unique):
        from eav_ray.distributed.frozen_features import compute_frozen_features

        compute_frozen_features(experiment, [run for run in unique if run.key not in done], data)
    release_heaps()  # of what planned, and read data
    groups = experiment.runtime.groups
    check_head_memory("runtime.groups", groups, GROUP_BYTES, measure_free_memory())
    begun = {k: p.epoch for k, p in find_newest_positions(results, [r.key for r in unique]).items() if k not in done}
    queue: Any = cluster.start_actor_here(QueueActor, unique, results, done, begun, restarts=True)
    stop_requested = threading.Event()  # a queue that was started again does not know

    def request_stop() -> None:
        stop_requested.set()
        queue.stop.remote()

    def take_progress(progress: Progress) -> None:
        recorder.note(progress)
        log_progress(progress)

    def stop_or_leave() -> None:
        if stop_requested.is_set():
            raise KeyboardInterrupt
        request_stop()
        write_line("stopping: trainings are being saved; Ctrl-C again leaves at once")

    allowed_recordings = list_needed_recordings(unique)
    holder = secrets.token_hex(8)
    began, recorder = time.monotonic(), TimingRecorder(experiment, [run for run in unique if run.key not in done], data)
    n_epochs_done = sum(run.epochs if run.key in done else begun.get(run.key, 0) for run in unique)
    groups = [
        WorkerGroup(number, experiment, data, allowed_recordings, queue, holder)
        for number in range(experiment.runtime.groups)
    ]
    with (
        contextlib.nullcontext(on_progress) if on_progress else _open_trackers(experiment, unique) as log_progress,
        open_progress_bar(title, sum(run.epochs for run in unique), "epochs", done=n_epochs_done) as bar,
        _watch_progress(
            queue,
            bar,
            take_progress,
            lambda state: stop_requested.is_set() or should_stop(state),
            experiment.runtime,
        ),
        on_signals(request_stop, signal.SIGTERM, signal.SIGHUP),
        on_signals(stop_or_leave, signal.SIGINT),
    ):
        run_elsewhere = _run_group.options(scheduling_strategy=cluster.make_local_strategy())
        others = [run_elsewhere.remote(group) for group in groups[1:]]
        try:
            groups[0].run()
            ray.get(others)
        except (TrainingFailedError, RayError, OSError) as error:
            request_stop()
            if others:
                ray.wait(others, num_returns=len(others), timeout=LEAVE_S)
            _raise_cause(ray.get(queue.get_state.remote()))
            if is_lasting(error):  # Ray Train writes to the store too
                raise make_unrecoverable(error) from None
            reason = str(error).strip().splitlines()[-1]
            raise DataError(
                f"a group of training workers ended: {reason}; rerun the same command to continue"
            ) from None
    state: QueueState = ray.get(queue.get_state.remote())
    ray.kill(queue)
    _raise_cause(state)
    if state.stopped or len(state.done) + len(state.failed) < len(unique):
        raise TrainingInterrupted(f"{len(state.done)} of {format_count(len(unique), 'training')} finished")
    recorder.write(results, state, time.monotonic() - began)
    for line in state.damaged_checkpoints:
        print(f"skipped a damaged checkpoint: {line}", flush=True)
    return state


def _raise_cause(state: QueueState) -> None:
    if state.cause:
        raise UnrecoverableError(f"no training can go on: {state.cause}; correct that, and give the command again")


@contextmanager
def _open_trackers(experiment: Experiment, runs: list[Run]) -> Iterator[Callable[[Progress], None]]:
    """Open the experiment trackers (TensorBoard, MLflow)."""
    store = experiment.store
    with contextlib.ExitStack() as stack:
        folder = Path(store.cache if "://" in store.results else store.results, "tensorboard")
        tensorboard = open_tensorboard_tracker(folder)
        trackers: list[TensorBoardTracker | MLflowTracker] = [tensorboard] if tensorboard else []
        if store.mlflow:
            trackers.append(stack.enter_context(contextlib.closing(MLflowTracker(experiment, runs))))

        def log_progress(progress: Progress) -> None:
            for tracker in trackers:
                tracker.log(progress)

        yield log_progress


@contextmanager
def _watch_progress(
    queue: Any,
    bar: ProgressBar,
    on_progress: Callable[[Progress], None],
    should_stop: Callable[[QueueState], bool],
    runtime: RuntimeConfig,
) -> Iterator[None]:
    """Keep the bar up to date, and who listens, while this process waits for its own group."""
    started = time.monotonic()

    def poll_queue() -> None:
        state: QueueState = ray.get(queue.get_state.remote())
        if not state.has_started and time.monotonic() - started > WAIT_NOTICE_S:
            state = replace(state, note=f" starting workers, which wants {cluster.describe_group_needs(runtime)}")
        bar.set_done(state.epochs_done, note=state.note or " ")
        for progress in ray.get(queue.drain_progress.remote()):
            on_progress(progress)
        if should_stop(state) and not state.stopped:
            queue.stop.remote()

    with poll_in_background(poll_queue):
        yield
    poll_queue()


@ray.remote(num_cpus=0, max_retries=0)
def _run_group(group: "WorkerGroup") -> None:
    group.run()


@dataclass(frozen=True)
class WorkerGroup:
    """One Ray Train worker group, for as long as there are runs in the queue."""

    number: int
    experiment: Experiment
    data: Dataset
    allowed_recordings: tuple[str, ...]  # that its workers may see at all
    queue: Any  # a QueueActor
    holder: str = (
        ""  # of the locks of its runs, one for all groups of a job: workers that are started anew take them over
    )

    def run(self) -> None:
        """Start the workers, and wait for them."""
        runtime = self.experiment.runtime
        trainer = get_trainer_class()(
            run_worker,
            train_loop_config={"group": self},
            scaling_config=ScalingConfig(
                num_workers=(runtime.min_workers, runtime.workers) if runtime.min_workers else runtime.workers,
                use_gpu=runtime.gpus > 0,
                resources_per_worker=cluster.get_worker_resources(runtime),
            ),
            # NCCL refuses two ranks on one GPU.
            backend_config=make_process_group_config("nccl" if runtime.gpus >= 1 else "gloo"),
            run_config=RunConfig(
                # Candidates of a search start groups side by side.
                name=f"group-{self.number}-{int(time.time())}-{secrets.token_hex(4)}",
                storage_path=cluster.find_scratch_folder(self.experiment.store),
                # Without end: the queue counts, and `LossReporter` ends the group.
                failure_config=FailureConfig(max_failures=-1),
                callbacks=[LossReporter(self)],
                # Ray Train asks torch for GPUs before `run_worker` is called.
                worker_runtime_env={"env_vars": cluster.list_worker_variables(runtime)},
            ),
        )
        trainer.fit()

    def pull(self, results: Store) -> Run | str:
        """Take a run from the queue, and report where it stands. On the first rank alone."""
        task: Run | str = ray.get(self.queue.pull.remote(self.number, ray.train.get_context().get_world_size()))
        if isinstance(task, Run):
            with contextlib.suppress(DataError):  # the run itself meets a store that does not answer
                self.queue.report_start.remote(self.number, find_newest_position(results, task.key))
        return task

    def get_run(self, key: str) -> Run:
        return ray.get(self.queue.get_run.remote(key))

    def hold(self, run: Run) -> bool:
        """Say what this group is training; a queue that was started again has forgotten it."""
        return ray.get(self.queue.hold.remote(self.number, run.key))

    def finish(self, run: Run, prefix: str) -> None:
        self.hold(run)
        ray.get(self.queue.finish.remote(self.number, prefix))

    def fail(self, run: Run, error: ConfigError | DataError) -> None:
        """Report a run's own fault; a request that cannot be met would fail again wherever it is trained."""
        self.hold(run)
        ray.get(self.queue.fail.remote(self.number, str(error), permanent=isinstance(error, ConfigError)))

    def release(self) -> None:
        ray.get(self.queue.release.remote(self.number))

    def abort(self, error: UnrecoverableError) -> None:
        """Report what no run can go on with."""
        ray.get(self.queue.abort.remote(str(error)))

    def report_error(self, error: Exception) -> None:
        """Report what ends this rank."""
        context = ray.train.get_context()
        described = describe_rank_error(error, context.get_world_rank(), context.get_world_size())
        ray.get(self.queue.report_error.remote(self.number, described))


class LossReporter(UserCallback):
    """Tells the queue, from a group's controller, that the group lost its workers."""

    def __init__(self, group: WorkerGroup) -> None:
        self._queue, self._number = group.queue, group.number

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Report a loss.

        Raises:
            RuntimeError: The group must not be started again: this is how a callback ends it.
        """
        loss = classify_worker_errors(worker_exceptions)
        if loss and (cause := ray.get(self._queue.report_loss.remote(self._number, loss))):
            raise RuntimeError(cause)


def run_worker(config: dict[str, Any]) -> None:
    """Run every run on every rank, until the queue is empty."""
    group: WorkerGroup = config["group"]
    try:
        _run_rank(group)
    except TrainingInterrupted:
        raise
    except Exception as error:  # ends the group, which Ray Train starts again
        group.report_error(error)
        raise


def _run_rank(group: WorkerGroup) -> None:
    import torch

    from eav_ray.training.collectives import broadcast_object, run_on_all_ranks
    from eav_ray.training.runner import execute_run

    limit_heaps()
    is_first = ray.train.get_context().get_world_rank() == 0
    torch.set_num_threads(max(1, int(group.experiment.runtime.cpus_per_worker)))
    try:
        context = run_on_all_ranks(partial(_open_context, group))
    except UnrecoverableError as error:
        if is_first:
            group.abort(error)
        return

    stop_requested = threading.Event()

    def find_stop_reason() -> str:
        if broadcast_object(stop_requested.is_set()):
            return STOP_REQUESTED
        # A node that is drained says when it goes. Who raises on all ranks is started again elsewhere at once.
        return "" if ray.train.get_preemption_info() is None else "its node is about to go"

    wait_s = FIRST_WAIT_S
    while True:
        task = group.pull(context.results) if is_first else ""
        key = broadcast_object(task.key if isinstance(task, Run) else task)
        if key == END:
            return
        if key == WAIT:
            time.sleep(wait_s)
            wait_s = min(1.5 * wait_s, LONGEST_WAIT_S)
            continue
        wait_s = FIRST_WAIT_S
        task = task if isinstance(task, Run) else group.get_run(key)
        try:
            hold = poll_in_background(partial(_hold, group, task, stop_requested), HOLD_INTERVAL_S)
            with hold if is_first else contextlib.nullcontext():
                prefix = execute_run(task, context, group.queue.report_progress.remote, find_stop_reason)
        except UnrecoverableError as error:
            if is_first:
                group.abort(error)
            return
        except (ConfigError, DataError) as error:
            # A remote store that did not answer for minutes says nothing of the run: another attempt, as after a loss.
            if isinstance(error, StorageError) and not context.results.is_local:
                raise
            # On every rank (`run_on_all_ranks`). Anything else ends the group, which Ray Train restarts.
            if is_first:
                group.fail(task, error)
            continue
        except TrainingInterrupted as error:
            if is_first:
                group.release()
            if str(error) == STOP_REQUESTED:
                return
            raise
        if is_first:
            group.finish(task, prefix)
        release_heaps()  # the next training needs other blocks, and the last one may wait for long


def _hold(group: WorkerGroup, run: Run, stop_requested: threading.Event) -> None:
    if group.hold(run):
        stop_requested.set()


def _open_context(group: WorkerGroup) -> "WorkerContext":
    """Open what this rank needs for any run.

    Raises:
        UnrecoverableError: Its GPU is not there, or the cache does not fit: it would be so again.
    """
    import torch
    from ray.train.torch import get_device

    from eav_ray.training.prepared_run import open_worker_context

    try:
        device = get_device() if cluster.has_gpu(group.experiment.runtime) else torch.device("cpu")
        return open_worker_context(group.experiment, group.data, device, group.allowed_recordings, group.holder)
    except ConfigError as error:
        raise make_unrecoverable(error) from None
