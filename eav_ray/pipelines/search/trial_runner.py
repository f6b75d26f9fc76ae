"""Run the Tune trials of a search on the cluster."""

import contextlib
import io
import math
import signal
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune
from ray.tune.error import TuneError

from eav_ray.config import Experiment
from eav_ray.data.shards.dataset import Dataset
from eav_ray.distributed import cluster
from eav_ray.distributed.capacity import count_concurrent_groups, count_concurrent_workers, read_cluster_capacity
from eav_ray.distributed.ray_errors import explain_error
from eav_ray.distributed.ray_workarounds import tune_settings
from eav_ray.distributed.timings import make_search_key, read_timings, write_timings
from eav_ray.distributed.watchers import poll_in_background
from eav_ray.errors import ConfigError, DataError, TrainingInterrupted
from eav_ray.pipelines.search.candidate_runs import CandidateRuns, prune_runs
from eav_ray.pipelines.search.candidate_searcher import CandidateSearcher, WaitNotifier
from eav_ray.pipelines.search.end_to_end_trial import StopSignal, run_end_to_end_candidate
from eav_ray.pipelines.search.fusion_trial import run_fusion_batch
from eav_ray.pipelines.search.search_plan import SearchPlan
from eav_ray.pipelines.search.search_store import Row
from eav_ray.processes import TERMINAL_SIGNALS, on_signals
from eav_ray.tracking.progress import ProgressBar, open_progress_bar
from eav_ray.training.cost import compute_model_cost
from eav_ray.training.prepared_run import describe_shapes
from eav_ray.tuning.search_space import apply_candidate
from eav_ray.tuning.study import Candidate, StudyClient, count_candidates
from eav_ray.words import format_count


def count_concurrent_trials(experiment: Experiment) -> int:
    """How many trials of a search run at once, on the cluster that this process is connected to.

    Raises:
        ConfigError: The cluster cannot hold that many (`capacity.count_concurrent_groups`).
    """
    e = experiment
    compute_limit = count_concurrent_groups if e.search.mode == "full" else count_concurrent_workers
    return min(compute_limit(e, read_cluster_capacity()), e.search.ask_batch_size, count_candidates(e.search))


def run_candidates(plan: SearchPlan, data: Dataset, study: StudyClient) -> None:
    """Try the candidates that the study has no score of yet.

    Raises:
        DataError: The search could not go on.
        TrainingInterrupted: The job was told to end.
    """
    e, store = plan.experiment, plan.store
    rows = store.read_completed_rows(study)
    if missing := set(study.completed()) - {row["candidate"] for row in rows}:
        raise DataError(
            f"the study {study.name} has {format_count(len(missing), 'candidate')} of which {store.results}/"
            f"{store.candidates_file} knows nothing: they were searched with another store.results; use that one, or "
            "another search.storage"
        )
    left = study.n_candidates - len(study.completed())
    if left <= 0:
        return
    tuner = CandidateTuner(cluster.find_scratch_folder(e.store), min(count_concurrent_trials(e), left), left)
    search = _search_fusions if e.search.mode == "fusion" else _search_trainings
    began = time.monotonic()
    with open_progress_bar("search", study.n_candidates, "candidates", done=study.n_candidates - left) as bar:
        searcher, errors = search(plan, data, study, rows, tuner, bar)
    if e.search.mode == "fusion" and len(study.completed()) == study.n_candidates:
        _keep_search_time(plan, data, tuner.max_concurrent_trials * (time.monotonic() - began) / left)
    _report_outcome(study, searcher, errors)


def _keep_search_time(plan: SearchPlan, data: Dataset, candidate_s: float) -> None:
    """Keep how many worker-seconds a candidate took, for the next estimate."""
    e, splits, results = plan.experiment, plan.inner_cv.splits, plan.store.results
    timings = read_timings(results, e.runtime)
    n_windows = sum(len(data.windows.find_rows(split.train)) for split in splits)
    timings.candidate_fold_s[make_search_key(e, e.runtime, n_windows)] = candidate_s / len(splits)
    write_timings(results, e.runtime, timings)


@dataclass(frozen=True)
class CandidateTuner:
    """Ray Tune, which runs trials until a searcher has no more."""

    scratch: str  # where Tune keeps what is of no use later
    max_concurrent_trials: int
    n_trials: int

    def run(
        self,
        trainable: Any,
        resources: dict[str, float],
        searcher: CandidateSearcher,
        *,
        callbacks: Sequence[tune.Callback] = (),
        retries: int = 0,
    ) -> list[str]:
        """Run the trials; returns the errors of those that failed, a line each."""
        tuner = tune.Tuner(
            tune.with_resources(trainable, resources),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                num_samples=self.n_trials,
                max_concurrent_trials=self.max_concurrent_trials,
                reuse_actors=True,  # a new process per trial would spend seconds on imports
            ),
            run_config=tune.RunConfig(
                name=f"search-{int(time.time())}",
                storage_path=self.scratch,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=retries),
                callbacks=list(callbacks),
            ),
        )
        # Tune prints where its scratch is, over the progress line.
        with tune_settings(self.max_concurrent_trials), contextlib.redirect_stdout(io.StringIO()):
            try:
                result_grid = tuner.fit()
            except TuneError as error:  # of ours, in what Tune calls: a store that does not answer
                raise DataError(
                    f"the search ended: {explain_error(error)[0]}; rerun the same command to continue"
                ) from None
            return [str(error).strip().splitlines()[-1] for error in result_grid.errors]


class FusionSearcher(CandidateSearcher):
    """Hands out batches of fusions, and shows how many are tried."""

    def __init__(self, bar: ProgressBar, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._bar = bar

    def on_progress(self, n_completed: int, note: str) -> None:
        self._bar.set_done(n_completed, note=note)


class TrainingSearcher(CandidateSearcher):
    """Hands out whole trainings, what each needs to one trial alone; deletes their models when they are scored."""

    def __init__(
        self, plan: SearchPlan, study: StudyClient, rows: list[Row], compute_cost: Callable[[Candidate], float]
    ) -> None:
        super().__init__(study, plan.store, rows, 1, compute_cost)
        self._plan, self._runs = plan, CandidateRuns(plan)
        self._deleter = ThreadPoolExecutor(1)  # to delete takes a store many requests

    def list_needed_keys(self, candidate: Candidate) -> frozenset[str]:
        return self._runs.list_missing_keys(candidate)

    def on_completed(self, candidate: Candidate, trained_folds: Collection[int]) -> None:
        runs = self._runs.finish(candidate, trained_folds)
        claim = f"deletion of {candidate.number}"
        self._claimed[claim] = frozenset(run.key for run in runs)  # no trial begins what is being deleted
        deletion = self._deleter.submit(prune_runs, self._plan, runs)
        deletion.add_done_callback(lambda _: self._claimed.pop(claim))

    def close(self) -> None:
        """Wait until all is deleted; what a store refused is deleted at the end of the search."""
        self._deleter.shutdown()


def _make_cost_estimator(e: Experiment, data: Dataset) -> Callable[[Candidate], float]:
    shapes = describe_shapes(data.index)

    def estimate_cost(candidate: Candidate) -> float:
        try:
            return compute_model_cost(apply_candidate(e, candidate.changes), shapes) if e.search.cost else math.nan
        except ConfigError:  # such a model cannot be built, which its training says
            return math.nan

    return estimate_cost


def _search_fusions(
    plan: SearchPlan, data: Dataset, study: StudyClient, rows: list[Row], tuner: CandidateTuner, bar: ProgressBar
) -> tuple[CandidateSearcher, list[str]]:
    """Train batches of fusions, each on one worker."""
    e = plan.experiment
    batch_size = -(-e.search.ask_batch_size // tuner.max_concurrent_trials)
    searcher = FusionSearcher(bar, study, plan.store, rows, batch_size, _make_cost_estimator(e, data))
    trainable = tune.with_parameters(run_fusion_batch, experiment=e, inner_cv=plan.inner_cv, data=data)
    needs = f" waits for {cluster.describe_worker_needs(e.runtime)}"
    notifier = WaitNotifier(lambda waits: bar.set_done(bar.done, note=needs if waits else " "))
    resources = {"CPU": e.runtime.cpus_per_worker, "GPU": e.runtime.gpus}
    return searcher, tuner.run(trainable, resources, searcher, callbacks=[notifier], retries=1)


def _search_trainings(
    plan: SearchPlan, data: Dataset, study: StudyClient, rows: list[Row], tuner: CandidateTuner, bar: ProgressBar
) -> tuple[CandidateSearcher, list[str]]:
    """Train everything of each candidate, each by a group of workers whose driver runs on this node."""
    e = plan.experiment
    searcher = TrainingSearcher(plan, study, rows, _make_cost_estimator(e, data))
    # Beside this process: a node that goes must not take drivers along, and they need no CPU of a worker.
    driver_node = {f"node:{ray.util.get_node_ip_address()}": 0.001, "CPU": 0}
    with contextlib.closing(searcher), _open_stop_signal(searcher, study, bar) as stop_signal:
        trainable = tune.with_parameters(
            run_end_to_end_candidate,
            experiment=e,
            inner_cv=plan.inner_cv,
            data=data,
            study_name=plan.study_name,
            stop_signal=stop_signal,
        )
        return searcher, tuner.run(trainable, driver_node, searcher)


def _report_outcome(study: StudyClient, searcher: CandidateSearcher, errors: list[str]) -> None:
    for reason, numbers in searcher.unbatchable.items():
        print(f"not batched: {format_count(len(numbers), 'candidate')}, because {reason}", flush=True)
    if searcher.failed:
        number, reason = next(iter(searcher.failed.items()))
        print(f"no score: {format_count(len(searcher.failed), 'candidate')}; the first, {number}: {reason}", flush=True)
    progress = f"{len(study.completed())} of {format_count(study.n_candidates, 'candidate')}"
    if searcher.stopped:
        raise TrainingInterrupted(f"{progress} finished")
    if searcher.crashed_candidate is not None:
        reason = errors[0] if errors else "it ended without an error message"
        raise DataError(
            f"candidate {searcher.crashed_candidate} could not be tried: {reason}; rerun the same command to try it "
            "again"
        )
    if len(study.completed()) < study.n_candidates:
        raise DataError(f"the search ended at {progress}; rerun the same command to continue")


@contextmanager
def _open_stop_signal(searcher: CandidateSearcher, study: StudyClient, bar: ProgressBar) -> Iterator[Any]:
    """Start an actor that speaks with the drivers of candidates; while it lives, the bar shows how far they are.

    SIGTERM, SIGHUP and Ctrl-C make them save and leave.
    """
    stop_signal: Any = cluster.start_actor_here(StopSignal)

    def stop() -> None:
        searcher.stopped = True
        stop_signal.stop.remote()

    def show_progress() -> None:
        progress: dict[int, tuple[float, str]] = ray.get(stop_signal.get_progress.remote())
        completed = study.completed()
        running = {number: share for number, (share, _) in progress.items() if number not in completed}
        notes = [note for number, (_, note) in progress.items() if number in running and note.strip()]
        best = study.find_best()
        bar.set_done(
            round(len(completed) + sum(running.values()), 2),
            note=(f" best {best[1]:.3f}" if best else "") + (notes[-1] if notes else " "),
        )

    with on_signals(stop, signal.SIGTERM, *TERMINAL_SIGNALS), poll_in_background(show_progress):
        try:
            yield stop_signal
        finally:
            ray.kill(stop_signal)
