"""Groups of Ray Train workers that live as long as there are runs in the queue.

A group whose worker dies is restarted by Ray Train, and takes its run up again from the last checkpoint. The workers
alone import what trains: Ray Train's own actors load this module too.
"""

import contextlib
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import get_device

from eav_ray.config import Experiment, RuntimeConfig
from eav_ray.data.shards.dataset import Dataset
from eav_ray.distributed import cluster
from eav_ray.distributed.ray_workarounds import get_torch_trainer_class, make_torch_config
from eav_ray.distributed.run_queue import END, MAX_ATTEMPTS, WAIT, QueueState, RunQueue
from eav_ray.distributed.watchers import on_signals, poll_in_background
from eav_ray.errors import ConfigError, DataError, TrainingInterrupted
from eav_ray.storage import Store
from eav_ray.tracking.mlflow import MLflowTracker
from eav_ray.tracking.progress import ProgressBar, open_progress_bar
from eav_ray.tracking.tensorboard import TensorBoardTracker, open_tensorboard_tracker
from eav_ray.training.run_spec import Progress, Run, list_needed_recordings

POLL_S = 0.2
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
        raise DataError(f"{len(state.failed)} of {total} runs failed; the first, {key}: {reason}")
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
        DataError: A group could not start, or ended too often.
        TrainingInterrupted: The job was asked to end (SIGTERM, or Ctrl-C, or by `should_stop`), and the runs were saved
            where they were.
    """
    from eav_ray.training.runner import find_finished_run, is_run_finished

    unique = list({run.key: run for run in runs}.values())
    results = Store(experiment.store.results)
    done: dict[str, str] = {}
    for run in unique:
        if not (finished := find_finished_run(run, results)):
            break
        done[run.key] = finished.prefix
    else:  # a group would start, find nothing to do and end: half a minute
        return QueueState(done, {}, 0.0, "", False, ())
    if any(run.features_prefix for run in unique):
        from eav_ray.distributed.frozen_features import compute_frozen_features

        compute_frozen_features(experiment, [run for run in unique if not is_run_finished(run, results)], data)
    queue: Any = cluster.start_actor_here(RunQueue, unique)
    allowed_recordings = list_needed_recordings(unique)
    groups = [
        WorkerGroup(number, experiment, data, allowed_recordings, len(unique), queue)
        for number in range(experiment.runtime.groups)
    ]
    with (
        contextlib.nullcontext(on_progress) if on_progress else _open_trackers(experiment, unique) as log_progress,
        open_progress_bar(title, sum(run.epochs for run in unique), "epochs") as bar,
        _watch_progress(queue, bar, log_progress, should_stop, experiment.runtime),
        on_signals(queue.stop.remote, signal.SIGTERM),
    ):
        run_elsewhere = _run_group.options(scheduling_strategy=cluster.make_local_strategy())
        others = [run_elsewhere.remote(group) for group in groups[1:]]
        try:
            groups[0].run()
            ray.get(others)
        except (TrainingFailedError, RayError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise DataError(f"a group of training workers ended: {reason}; the same command continues") from None
    state: QueueState = ray.get(queue.get_state.remote())
    ray.kill(queue)
    if state.stopped or len(state.done) + len(state.failed) < len(unique):
        raise TrainingInterrupted(f"{len(state.done)} of {len(unique)} trainings are finished")
    for line in state.damaged_checkpoints:
        print(f"skipped a damaged checkpoint: {line}", flush=True)
    return state


@contextmanager
def _open_trackers(experiment: Experiment, runs: list[Run]) -> Iterator[Callable[[Progress], None]]:
    """Open the experiment trackers (TensorBoard, MLflow)."""
    store = experiment.store
    with contextlib.ExitStack() as stack:
        folder = Path(store.cache if "://" in store.results else store.results, "tensorboard")
        trackers: list[TensorBoardTracker | MLflowTracker] = []
        if tensorboard := open_tensorboard_tracker(folder):
            trackers.append(stack.enter_context(contextlib.closing(tensorboard)))
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
            state = replace(state, note=f" waits for {cluster.describe_group_needs(runtime)}")
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
    n_runs: int  # that the queue hands out
    queue: Any  # a RunQueue, which is an actor

    def run(self) -> None:
        """Start the workers, and wait for them."""
        runtime, results = self.experiment.runtime, self.experiment.store.results
        storage = results if "://" in results else str(Path(results).absolute())
        trainer = get_torch_trainer_class()(
            _run_worker,
            train_loop_config={"group": self},
            scaling_config=ScalingConfig(
                num_workers=(runtime.min_workers, runtime.workers) if runtime.min_workers else runtime.workers,
                use_gpu=runtime.gpus > 0,
                resources_per_worker=cluster.get_worker_resources(runtime),
            ),
            # NCCL refuses two ranks on one GPU.
            torch_config=make_torch_config("nccl" if runtime.gpus >= 1 else "gloo"),
            run_config=RunConfig(
                # Candidates of a search start groups side by side.
                name=f"group-{self.number}-{int(time.time())}-{secrets.token_hex(4)}",
                storage_path=f"{storage}/ray",
                # Each run has its own few attempts, which the queue counts; a group that cannot even start ends at
                # last.
                failure_config=FailureConfig(max_failures=MAX_ATTEMPTS * (self.n_runs + 1)),
                # Ray Train asks torch for GPUs before `_run_worker` is called.
                worker_runtime_env={"env_vars": cluster.list_worker_variables(runtime)},
            ),
        )
        trainer.fit()

    def pull(self) -> Run | str:
        return ray.get(self.queue.pull.remote(self.number))

    def finish(self, prefix: str) -> None:
        ray.get(self.queue.finish.remote(self.number, prefix))

    def fail(self, error: ConfigError | DataError) -> None:
        """Report a run's own fault; a request that cannot be met would fail again wherever it is trained."""
        ray.get(self.queue.fail.remote(self.number, str(error), permanent=isinstance(error, ConfigError)))

    def release(self) -> None:
        ray.get(self.queue.release.remote(self.number))

    def report_error(self, error: Exception) -> None:
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        ray.get(self.queue.report_error.remote(self.number, text))


def _run_worker(config: dict[str, Any]) -> None:
    """Run every run on every rank, until the queue is empty."""
    import torch

    from eav_ray.training.collectives import broadcast_object, gather_from_all_ranks
    from eav_ray.training.prepared_run import open_worker_context
    from eav_ray.training.runner import execute_run

    group: WorkerGroup = config["group"]
    runtime = group.experiment.runtime
    is_first = ray.train.get_context().get_world_rank() == 0
    torch.set_num_threads(max(1, int(runtime.cpus_per_worker)))
    device_error, device = "", torch.device("cpu")
    try:
        device = get_device() if cluster.has_gpu(runtime) else device
    except ConfigError as error:
        device_error = str(error)  # raised for each run: an error here would only start the group again
    device_error = next((reason for reason in gather_from_all_ranks(device_error) if reason), "")
    context = open_worker_context(group.experiment, group.data, device, group.allowed_recordings)

    def find_stop_reason() -> str:
        if broadcast_object(ray.get(group.queue.is_stopped.remote()) if is_first else None):
            return STOP_REQUESTED
        # A node that is drained says when it goes. Who raises on all ranks is started again elsewhere at once.
        return "" if ray.train.get_preemption_info() is None else "its node is about to go"

    while (task := broadcast_object(group.pull() if is_first else None)) != END:
        if task == WAIT:
            time.sleep(POLL_S)
            continue
        assert isinstance(task, Run)
        try:
            if device_error:
                raise ConfigError(device_error)
            prefix = execute_run(task, context, group.queue.report_progress.remote, find_stop_reason)
        except (ConfigError, DataError) as error:
            # On every rank (`run_on_all_ranks`). Anything else ends the group, which Ray Train restarts.
            if is_first:
                group.fail(error)
            continue
        except TrainingInterrupted as error:
            if is_first:
                group.release()
            if str(error) == STOP_REQUESTED:
                return
            raise
        except Exception as error:
            group.report_error(error)
            raise
        if is_first:
            group.finish(prefix)
