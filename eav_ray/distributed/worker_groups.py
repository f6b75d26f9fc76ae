"""Groups of Ray Train workers that live as long as there are runs in the queue.

A group whose worker dies is restarted by Ray Train, and takes its run up again from the last checkpoint. Torch is
imported by the workers only: Ray Train's own actors load this module too.
"""

import contextlib
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, get_device
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from eav_ray.config import Experiment, RuntimeConfig
from eav_ray.data.shards.index import ShardIndex
from eav_ray.distributed import cluster
from eav_ray.distributed.ray_workarounds import get_torch_trainer_class
from eav_ray.distributed.run_queue import END, MAX_ATTEMPTS, WAIT, QueueState, RunQueue
from eav_ray.errors import ConfigError, DataError, TrainingInterrupted
from eav_ray.storage import Store
from eav_ray.tracking.mlflow import MLflowTracker
from eav_ray.tracking.progress import ProgressBar, open_progress_bar
from eav_ray.tracking.tensorboard import TensorBoardTracker, open_tensorboard_tracker
from eav_ray.training.run_spec import Progress, Run

POLL_S = 0.2


WAIT_NOTICE_S = 20.0  # without a worker, after which the progress line says what is waited for


STOP_REQUESTED = "the job was told to end"


def train_all_runs(
    experiment: Experiment,
    runs: list[Run],
    shards: Store,
    index: ShardIndex,
    allowed_recordings: tuple[str, ...],
    *,
    title: str,
) -> dict[str, str]:
    """`run_each`, where every run is needed.

    Returns:
        key -> prefix of the finished checkpoint in the results store.
    Raises:
        DataError: A run failed; the others were trained all the same.
        TrainingInterrupted: As `run_each`.
    """
    state = train_runs(experiment, runs, shards, index, allowed_recordings, title=title)
    if state.failed:
        key, reason = next(iter(state.failed.items()))
        total = len(state.done) + len(state.failed)
        raise DataError(f"{len(state.failed)} of {total} runs failed; the first, {key}: {reason}")
    return state.done


def train_runs(
    experiment: Experiment,
    runs: list[Run],
    shards: Store,
    index: ShardIndex,
    allowed_recordings: tuple[str, ...],
    *,
    title: str,
    on_progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[QueueState], bool] = lambda state: False,
) -> QueueState:
    """Train all runs on `runtime.groups` groups of `runtime.workers`; finished ones are skipped.

    Args:
        allowed_recordings: The recordings that the workers may see at all.
        on_progress: Is called with how far each training is, every few seconds and at the end of its epochs; a
            TensorBoard beside the results, and the MLflow of the experiment, if it is not given.
        should_stop: Is called every second with how far all are; where it says True, the runs are saved where they are,
            and left.
    Raises:
        DataError: A group could not start, or ended too often.
        TrainingInterrupted: The job was asked to end (SIGTERM, or Ctrl-C, or by `should_stop`), and the runs were saved
            where they were.
    """
    from eav_ray.training.runner import find_finished_checkpoint

    unique = list({run.key: run for run in runs}.values())
    done: dict[str, str] = {}
    results = experiment.store.results
    for run in unique:
        if not (prefix := find_finished_checkpoint(run, Store(results))):
            break
        done[run.key] = prefix
    else:  # a group would start, find nothing to do and end: half a minute
        return QueueState(done, {}, 0.0, "", False, ())
    if any(run.features_prefix for run in unique):
        from eav_ray.distributed.frozen_features import compute_frozen_features

        compute_frozen_features(
            experiment, [run for run in unique if not find_finished_checkpoint(run, Store(results))], shards, index
        )
    # Where this process is: a node that goes must not take the queue along.
    driver_node: Any = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    queue: Any = ray.remote(num_cpus=0, scheduling_strategy=driver_node)(RunQueue).remote(unique)
    total = sum(run.epochs for run in unique)
    with (
        contextlib.nullcontext(on_progress) if on_progress else _open_trackers(experiment, unique) as log_progress,
        open_progress_bar(title, total, "epochs") as bar,
        _watch_progress(queue, bar, log_progress, should_stop, experiment.runtime),
        _stop_on_sigterm(queue),
    ):
        other_groups = [
            _run_remote_group.options(scheduling_strategy=driver_node).remote(
                experiment, g, queue, str(shards), index, allowed_recordings, len(unique)
            )
            for g in range(1, experiment.runtime.groups)
        ]
        try:
            _run_group(experiment, 0, queue, str(shards), index, allowed_recordings, len(unique))
            ray.get(other_groups)
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
            for board in trackers:
                board.log(progress)

        yield log_progress


@contextmanager
def _stop_on_sigterm(queue: Any) -> Iterator[None]:
    """While this lasts, SIGTERM makes the groups save and leave. `ray job stop` sends it before it kills."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous_handler = signal.signal(signal.SIGTERM, lambda number, frame: queue.stop.remote())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous_handler)


@contextmanager
def _watch_progress(
    queue: Any,
    bar: ProgressBar,
    on_progress: Callable[[Progress], None],
    should_stop: Callable[[QueueState], bool],
    runtime: RuntimeConfig,
) -> Iterator[None]:
    """Keep the bar up to date, and who listens, while this process waits for its own group."""
    stop, started = threading.Event(), time.monotonic()

    def poll_queue() -> None:
        state: QueueState = ray.get(queue.get_state.remote())
        if not state.has_started and time.monotonic() - started > WAIT_NOTICE_S:
            state = replace(state, note=f" waits for {cluster.describe_group_needs(runtime)}")
        bar.set_done(state.epochs_done, note=state.note or " ")
        for progress in ray.get(queue.drain_progress.remote()):
            on_progress(progress)
        if should_stop(state) and not state.stopped:
            queue.stop.remote()

    def watch() -> None:
        while not stop.wait(1.0):
            with contextlib.suppress(DataError, RayError):  # a store that was away is asked again
                poll_queue()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    poll_queue()


@ray.remote(num_cpus=0, max_retries=0)
def _run_remote_group(
    experiment: Experiment,
    group: int,
    queue: Any,
    shards: str,
    index: ShardIndex,
    allowed_recordings: tuple[str, ...],
    n_runs: int,
) -> None:
    _run_group(experiment, group, queue, shards, index, allowed_recordings, n_runs)


def _run_group(
    experiment: Experiment,
    group: int,
    queue: Any,
    shards: str,
    index: ShardIndex,
    allowed_recordings: tuple[str, ...],
    n_runs: int,
) -> None:
    """Own one Ray Train worker group for as long as there are runs."""
    runtime = experiment.runtime
    results = experiment.store.results
    storage = results if "://" in results else str(Path(results).absolute())
    resources: dict[str, float] = {"CPU": runtime.cpus_per_worker}
    if runtime.gpus_per_worker:
        resources["GPU"] = runtime.gpus_per_worker
    trainer = get_torch_trainer_class()(
        _run_worker,
        train_loop_config={
            "experiment": experiment,
            "group": group,
            "queue": queue,
            "shards": shards,
            "index": index,
            "allowed_recordings": allowed_recordings,
        },
        scaling_config=ScalingConfig(
            num_workers=(runtime.min_workers, runtime.workers) if runtime.min_workers else runtime.workers,
            use_gpu=runtime.gpus_per_worker > 0,
            resources_per_worker=resources,
        ),
        # NCCL refuses two ranks on one GPU.
        torch_config=TorchConfig(backend="nccl" if runtime.gpus_per_worker >= 1 else "gloo"),
        run_config=RunConfig(
            # Candidates of a search start groups side by side.
            name=f"group-{group}-{int(time.time())}-{secrets.token_hex(4)}",
            storage_path=f"{storage}/ray",
            # Each run has its own few attempts, which the queue counts; a group that cannot even start ends at last.
            failure_config=FailureConfig(max_failures=MAX_ATTEMPTS * n_runs + MAX_ATTEMPTS),
        ),
    )
    trainer.fit()


def _run_worker(config: dict[str, Any]) -> None:
    """A worker of a group: every rank runs every run, until the queue is empty."""
    import torch

    from eav_ray.training.collectives import broadcast_object, gather_from_all_ranks
    from eav_ray.training.prepared_run import open_worker_context
    from eav_ray.training.runner import execute_run

    experiment: Experiment = config["experiment"]
    queue, group = config["queue"], config["group"]
    rank = ray.train.get_context().get_world_rank()
    torch.set_num_threads(max(1, int(experiment.runtime.cpus_per_worker)))
    device_error, device = "", torch.device("cpu")
    try:
        device = get_device() if cluster.has_gpu(experiment.runtime) else device
    except ConfigError as error:
        device_error = str(error)  # raised for each run: an error here would only start the group again
    device_error = next((reason for reason in gather_from_all_ranks(device_error) if reason), "")
    context = open_worker_context(
        experiment, Store(config["shards"]), config["index"], device, allowed_recordings=config["allowed_recordings"]
    )

    def report(progress: Progress) -> None:
        queue.report_progress.remote(progress)

    def find_stop_reason() -> str:
        if broadcast_object(ray.get(queue.is_stopped.remote()) if rank == 0 else None):
            return STOP_REQUESTED
        # A node that is drained says when it goes. Who raises on all ranks is started again elsewhere at once.
        return "" if ray.train.get_preemption_info() is None else "its node is about to go"

    while True:
        task = broadcast_object(ray.get(queue.pull.remote(group)) if rank == 0 else None)
        if task == END:
            return
        if task == WAIT:
            time.sleep(POLL_S)
            continue
        assert isinstance(task, Run)
        try:
            if device_error:
                raise ConfigError(device_error)
            prefix = execute_run(task, context, report, find_stop_reason)
        except (ConfigError, DataError) as error:
            # A run's own fault, on every rank (`collectives.run_on_all_ranks`). Anything else ends the group, which Ray
            # Train restarts.
            if rank == 0:
                ray.get(queue.fail.remote(group, str(error), permanent=isinstance(error, ConfigError)))
            continue
        except TrainingInterrupted as error:
            if rank == 0:
                ray.get(queue.release.remote(group))
            if str(error) == STOP_REQUESTED:
                return
            raise
        except Exception as error:
            ray.get(queue.report_error.remote(group, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"))
            raise
        if rank == 0:
            ray.get(queue.finish.remote(group, prefix))
