"""Run the Tune trials of a search on the cluster."""

import contextlib
import io
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import ray
from ray import tune
from ray.tune.error import TuneError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from eav_ray.config import Experiment, override
from eav_ray.data.shards.index import ShardIndex
from eav_ray.distributed import cluster
from eav_ray.distributed.capacity import count_concurrent_groups, count_concurrent_workers, read_cluster_capacity
from eav_ray.distributed.ray_errors import explain_error
from eav_ray.distributed.ray_workarounds import tune_settings
from eav_ray.errors import ConfigError, DataError, TrainingInterrupted
from eav_ray.models.encoders.base import DataShapes
from eav_ray.pipelines.search.candidate_searcher import CandidateSearcher, WaitNotifier
from eav_ray.pipelines.search.end_to_end_trial import STUDY_FILE, StopSignal, run_end_to_end_candidate
from eav_ray.pipelines.search.fusion_trial import run_fusion_batch
from eav_ray.pipelines.search.search_plan import SearchPlan, plan_candidate_runs
from eav_ray.pipelines.search.search_store import (
    read_completed_rows,
    upload_journal,
    write_candidates_table,
)
from eav_ray.storage import Store
from eav_ray.tracking.progress import ProgressBar, open_progress_bar
from eav_ray.training.checkpoint import find_finished_prefix
from eav_ray.training.cost import compute_model_cost
from eav_ray.training.embeddings import build_embedding_key, is_embedded
from eav_ray.tuning.study import Candidate, StudyClient, count_candidates


def count_concurrent_trials(experiment: Experiment) -> int:
    """How many trials of a search run at once, on the cluster that this process is connected to.

    Raises:
        ConfigError: The cluster cannot hold that many (`capacity.count_concurrent_groups`).
    """
    e = experiment
    compute_limit = count_concurrent_groups if e.search.mode == "full" else count_concurrent_workers
    return min(compute_limit(e, read_cluster_capacity()), e.search.ask_batch_size, count_candidates(e.search))


def run_candidates(
    e: Experiment, plan: SearchPlan, shards: Store, index: ShardIndex, study: StudyClient, results: Store, folder: str
) -> None:
    left = study.n_candidates - len(study.completed())
    if left <= 0:
        return
    rows = read_completed_rows(results, folder, study)
    if missing := set(study.completed()) - {row["candidate"] for row in rows}:
        raise DataError(
            f"the study {study.name} has {len(missing)} candidates of which {results}/{folder}/candidates.parquet "
            "knows nothing: they were searched with another store.results; use that one, or another search.storage"
        )
    max_concurrent_trials = min(count_concurrent_trials(e), left)
    write_rows, copy_journal = (
        partial(write_candidates_table, results, folder),
        partial(upload_journal, study, results, folder),
    )
    shapes = DataShapes(index.eeg_channels, len(index.classes))

    def estimate_candidate_cost(candidate: Candidate) -> float:
        try:
            return compute_model_cost(override(e, candidate.changes), shapes) if e.search.cost else math.nan
        except ConfigError:  # such a model cannot be built, which its training says
            return math.nan

    with open_progress_bar("search", study.n_candidates, "candidates") as bar:
        parameters = {"experiment": e, "inner_cv": plan.inner_cv, "shards": str(shards), "index": index}
        if e.search.mode == "fusion":
            searcher = CandidateSearcher(
                study,
                -(-e.search.ask_batch_size // max_concurrent_trials),
                rows,
                write_rows,
                bar.set_done,
                upload_study=copy_journal,
                compute_cost=estimate_candidate_cost,
            )
            resources = {"CPU": e.runtime.cpus_per_worker, "GPU": e.runtime.gpus_per_worker}
            trainable = tune.with_parameters(run_fusion_batch, **parameters)
            errors = _run_tuner(
                trainable,
                resources,
                searcher,
                max_concurrent_trials,
                left,
                results,
                [_make_wait_notifier(e, bar)],
                retries=1,
            )
        else:
            with _open_stop_signal(study, bar) as (stop_signal, on_sigterm):
                searcher = CandidateSearcher(
                    study,
                    1,
                    rows,
                    write_rows,
                    lambda count, note: None,  # `_watch_trials` shows it
                    list_needed_keys=partial(list_missing_keys, e, plan, results),
                    upload_study=copy_journal,
                    on_completed=partial(prune_candidate_runs, e, plan, results),
                    compute_cost=estimate_candidate_cost,
                )
                on_sigterm.append(lambda: setattr(searcher, "stopped", True))
                # Beside this process: a node that goes must not take drivers along, and they need no CPU of a worker.
                driver_node = {f"node:{ray.util.get_node_ip_address()}": 0.001, "CPU": 0}
                trainable = tune.with_parameters(
                    run_end_to_end_candidate, **parameters, study_name=plan.study_name, stop_signal=stop_signal
                )
                errors = _run_tuner(trainable, driver_node, searcher, max_concurrent_trials, left, results, [])
    for reason, numbers in searcher.unbatchable.items():
        print(f"not batched: {len(numbers)} candidates, because {reason}", flush=True)
    if searcher.failed:
        number, reason = next(iter(searcher.failed.items()))
        print(f"no score: {len(searcher.failed)} candidates; the first, {number}: {reason}", flush=True)
    progress = f"{len(study.completed())} of {study.n_candidates} candidates"
    if searcher.stopped:
        raise TrainingInterrupted(f"{progress} are finished")
    if searcher.crashed_candidate is not None:
        reason = errors[0] if errors else "it ended without an error message"
        raise DataError(
            f"candidate {searcher.crashed_candidate} could not be tried: {reason}; the same command tries it again"
        )
    if len(study.completed()) < study.n_candidates:
        raise DataError(f"the search ended at {progress}; the same command continues")


def _run_tuner(
    trainable: Any,
    resources: dict[str, float],
    searcher: CandidateSearcher,
    max_concurrent_trials: int,
    num_samples: int,
    results: Store,
    callbacks: list[Any],
    retries: int = 0,
) -> list[str]:
    """Let Tune run trials until the searcher has no more; returns the errors of those that failed, a line each."""
    tuner = tune.Tuner(
        tune.with_resources(trainable, resources),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            num_samples=num_samples,
            max_concurrent_trials=max_concurrent_trials,
            reuse_actors=True,  # a new process per trial would spend seconds on imports
        ),
        run_config=tune.RunConfig(
            name=f"search-{int(time.time())}",
            storage_path=f"{results.resolve_path('ray')}" if results.is_local else f"{results}/ray",
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=retries),
            callbacks=callbacks,
        ),
    )
    # Tune prints where its scratch is, over the progress line.
    with tune_settings(max_concurrent_trials), contextlib.redirect_stdout(io.StringIO()):
        try:
            result_grid = tuner.fit()
        except TuneError as error:  # of ours, in what Tune calls: a store that does not answer
            raise DataError(f"the search ended: {explain_error(error)[0]}; the same command continues") from None
        return [str(error).strip().splitlines()[-1] for error in result_grid.errors]


def _make_wait_notifier(e: Experiment, bar: ProgressBar) -> WaitNotifier:
    return WaitNotifier(
        lambda waits: bar.set_done(
            bar.done, note=f" waits for {cluster.describe_worker_needs(e.runtime)}" if waits else " "
        )
    )


@contextmanager
def _open_stop_signal(study: StudyClient, bar: ProgressBar) -> Iterator[tuple[Any, list[Callable[[], None]]]]:
    """An actor that speaks with the drivers of candidates; while it lives, the bar shows how far they are.

    SIGTERM makes them save and leave.

    Yields:
        The actor, and what else is called on SIGTERM.
    """
    driver_node: Any = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    stop_signal: Any = ray.remote(num_cpus=0, scheduling_strategy=driver_node)(StopSignal).remote()
    on_sigterm: list[Callable[[], None]] = [lambda: stop_signal.stop.remote()]
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(1.0):
            progress: dict[int, tuple[float, str]] = ray.get(stop_signal.get_progress.remote())
            completed = study.completed()
            running = {number: share for number, (share, _) in progress.items() if number not in completed}
            notes = [note for number, (_, note) in progress.items() if number in running and note.strip()]
            best = study.find_best()
            bar.set_done(
                round(len(completed) + sum(running.values()), 2),
                note=(f" best {best[1]:.3f}" if best else "") + (notes[-1] if notes else " "),
            )

    thread = threading.Thread(target=watch, daemon=True)
    previous_handler: Any = None
    main = threading.current_thread() is threading.main_thread()
    if main:
        previous_handler = signal.signal(signal.SIGTERM, lambda number, frame: [end() for end in on_sigterm])
    thread.start()
    try:
        yield stop_signal, on_sigterm
    finally:
        stop.set()
        thread.join()
        if main:
            signal.signal(signal.SIGTERM, previous_handler)
        ray.kill(stop_signal)


def list_missing_keys(e: Experiment, plan: SearchPlan, results: Store, candidate: Candidate) -> frozenset[str]:
    """What a candidate will train, as far as it is not there yet."""
    runs = plan_candidate_runs(override(e, candidate.changes), plan.inner_cv)
    shared = {run.key for run in plan.inner_encoder_runs}
    result_keys = {fold[-1].key for fold in runs}
    keys = {run.key for fold in runs for run in fold} - shared
    features = {run.features_prefix for fold in runs for run in fold} - {""}
    finished_keys = {
        run.key for fold in runs for run in fold if is_embedded(run, results) and find_finished_prefix(results, run.key)
    }
    return frozenset(
        [key for key in keys if key in result_keys or key not in finished_keys]
        + [key for key in features if not results.is_committed(key)]
    )


def prune_candidate_runs(
    e: Experiment, plan: SearchPlan, results: Store, candidate: Candidate, *, include_encoders: bool = False
) -> None:
    """Its rows are kept; models of inner folds, which nobody will use, would fill the store.

    Args:
        include_encoders: The encoders too, which another candidate may share while the search goes on.
    """
    shared = {run.key for run in plan.encoder_runs}
    for runs in plan_candidate_runs(override(e, candidate.changes), plan.inner_cv):
        for run in runs if include_encoders else runs[-1:]:
            name = f"runs/{run.key}"
            # What another job or search began is its own.
            if run.key in shared or not results.exists(f"{name}/{STUDY_FILE}"):
                continue
            if results.read_json(f"{name}/{STUDY_FILE}") != plan.study_name:
                continue
            with contextlib.suppress(DataError), results.lock(f"{name}/lock"):  # somebody else is at it
                if run.kind == "encoder" and run.embedded_recordings:
                    results.delete(build_embedding_key(run.key, run.embedded_recordings))
                results.delete(name)
