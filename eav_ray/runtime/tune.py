"""The search: Ray Tune runs the candidates that the study's owner suggests, each over all inner folds.

One Tune trial is a lease of a few candidates, whose fusions are trained as one batch. What is known of the search lies
in the results store, under `searches/<study>/`: `trials.parquet` (one row per candidate and fold), `best.json`,
`experiment.json` and the study's journal. Tune's own store is scratch: opening it would unpickle it.
"""

import contextlib
import io
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import ray
from ray import tune
from ray.tune.error import TuneError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from eav_ray.config import Experiment, digest, override, to_dict
from eav_ray.data import arrow
from eav_ray.data.cache import WindowCache
from eav_ray.data.shard import ShardIndex
from eav_ray.data.split import Split, list_labeled_recordings, make_inner_splits, make_split
from eav_ray.errors import ConfigError, DataError, TrainingInterrupted
from eav_ray.models.build import DataShapes
from eav_ray.report.progress import ProgressBar, open_progress_bar
from eav_ray.report.search import render_search_page
from eav_ray.runtime import cluster
from eav_ray.runtime.capacity import count_concurrent_groups, count_concurrent_workers, read_cluster_capacity
from eav_ray.runtime.cli import explain_error
from eav_ray.runtime.groups import train_all_runs
from eav_ray.runtime.protocol import find_finished_prefix
from eav_ray.runtime.searcher import CandidateSearcher, Row, WaitNotifier, skip_pickled_errors
from eav_ray.runtime.train import Dataset, announce_workload, open_dataset, plan_runs
from eav_ray.runtime.trial import (
    STUDY_FILE,
    InnerCV,
    StopSignal,
    plan_candidate_runs,
    run_end_to_end_candidate,
    run_fusion_batch,
)
from eav_ray.search.study import (
    Candidate,
    StudyClient,
    build_candidates_table,
    check_search_space,
    count_candidates,
    is_integer_key,
    make_study_name,
)
from eav_ray.storage import Store, list_package_versions, sha256
from eav_ray.training.embeddings import build_embedding_key
from eav_ray.training.estimate import compute_model_cost
from eav_ray.training.plan import SELECTION_METRIC, Run, plan_encoder_run
from eav_ray.training.run import is_embedded


@dataclass(frozen=True)
class SearchPlan:
    """All trainings of a search and of its refit, before anything starts."""

    outer_split: Split
    inner_cv: InnerCV
    inner_encoder_runs: list[Run]  # equal sets of training rows are trained once; none where candidates train their own
    outer_encoder_runs: list[Run]
    study_name: str

    @property
    def encoder_runs(self) -> list[Run]:
        return self.inner_encoder_runs + self.outer_encoder_runs

    def list_candidate_runs(self, experiment: Experiment) -> list[Run]:
        """What all candidates train on all inner folds, beside those encoders."""
        shared = {run.key for run in self.inner_encoder_runs}
        each = [run for fold in plan_candidate_runs(experiment, self.inner_cv) for run in fold if run.key not in shared]
        return each * count_candidates(experiment.search)

    def list_refit_runs(self, experiment: Experiment) -> list[Run]:
        """What the refit of the best candidates trains, beside those encoders."""
        shared = {run.key for run in self.outer_encoder_runs}
        each = plan_runs(
            experiment,
            self.outer_split,
            self.inner_cv.data_digest,
            embedded_recordings=self.inner_cv.embedded_recordings,
        )
        return [run for run in each if run.key not in shared] * min(
            experiment.search.refit, count_candidates(experiment.search)
        )


@dataclass(frozen=True)
class SearchResult:
    study_name: str
    candidate: Candidate
    inner_score: float
    checkpoint: str  # prefix in the results store


def search_experiment(experiment: Experiment) -> SearchResult:
    """Search one outer fold, or continue that search."""
    data = open_dataset(experiment)
    plan = plan_search(experiment, data.windows)
    with cluster.connect_to_ray(experiment.runtime):
        announce_search(experiment, [plan], data)
        return run_search(experiment, plan, data.shards, data.index)


def announce_search(experiment: Experiment, plans: list[SearchPlan], data: Dataset) -> None:
    """Say what is to do, of one search or several, before anything starts."""
    announce_workload(
        experiment,
        [run for one in plans for run in one.encoder_runs],
        data,
        candidate_runs=[run for one in plans for run in one.list_candidate_runs(experiment)],
        refit_runs=[run for one in plans for run in one.list_refit_runs(experiment)],
        max_concurrent_trials=count_concurrent_trials(experiment),
    )


def plan_search(experiment: Experiment, windows: WindowCache) -> SearchPlan:
    """Which trainings a search needs.

    Raises:
        ConfigError: Nothing to search, a protocol without validation rows, a fold that does not exist, or a value of
            the search space that the experiment does not allow.
    """
    e = experiment
    if e.search.mode == "fusion" and (len(e.data.modalities) < 2 or e.fusion.kind == "late_mean"):
        raise ConfigError(
            "a search of fusions needs two data.modalities or more, and a fusion.kind that has parameters; "
            "search.mode=full searches trainings of everything"
        )
    check_search_space(e)
    items = list_labeled_recordings(windows.ids, e.data, e.seed)
    inner, outer = make_inner_splits(items, e.split), make_refit_split(make_split(items, e.split))
    inner_cv = InnerCV(inner, digest(windows.index.fingerprint), outer.train)
    if e.search.mode == "full":
        _check_effect(e, inner_cv)
    names = sorted(e.data.modalities) if _has_shared_encoders(e) else []
    inner_encoders = [
        plan_encoder_run(e, m, s, inner_cv.data_digest, inner_cv.embedded_recordings) for s in inner for m in names
    ]
    outer_encoders = [plan_encoder_run(e, m, outer, inner_cv.data_digest, inner_cv.embedded_recordings) for m in names]
    # Where candidates train all themselves, what the experiment as it stands would train says what else they have.
    unchanged_runs = (
        [run for fold in plan_candidate_runs(e, inner_cv) for run in fold] if e.search.mode == "full" else []
    )
    study_name = make_study_name(e, inner_cv.data_digest, inner, [r.key for r in (*inner_encoders, *unchanged_runs)])
    return SearchPlan(outer, inner_cv, list({r.key: r for r in inner_encoders}.values()), outer_encoders, study_name)


def _check_effect(e: Experiment, inner_cv: InnerCV) -> None:
    """Refuse a key that changes nothing that a candidate trains: all its values would be trained and compared.

    Raises:
        ConfigError: Naming the key.
    """
    for key, choice in e.search.space.items():
        values = (choice.choice[0], choice.choice[-1]) if choice.choice else (choice.low, choice.high)
        keys_by_value: list[list[list[str]]] = []
        for value in values:
            with contextlib.suppress(ConfigError):  # alone it may not fit the rest, where others of the space do
                typed = int(value) if isinstance(value, float) and value.is_integer() and is_integer_key(key) else value
                runs = plan_candidate_runs(override(e, {key: typed}), inner_cv)
                keys_by_value.append([[run.key for run in fold] for fold in runs])
        if len(keys_by_value) == 2 and values[0] != values[1] and keys_by_value[0] == keys_by_value[1]:
            raise ConfigError(
                f"search.space.{key} changes nothing that train.mode={e.train.mode} trains of "
                f"{', '.join(sorted(e.data.modalities))}; take it out of the space"
            )


def _has_shared_encoders(e: Experiment) -> bool:
    """Whether all candidates have the same encoders, which are then trained before them."""
    trains_own = e.train.mode == "end_to_end" or len(e.data.modalities) == 1
    return not trains_own and all(key.startswith(("fusion.", "optim.")) for key in e.search.space)


def count_concurrent_trials(experiment: Experiment) -> int:
    """How many trials of a search run at once, on the cluster that this process is connected to.

    Raises:
        ConfigError: The cluster cannot hold that many (`capacity.at_once`).
    """
    e = experiment
    compute_limit = count_concurrent_groups if e.search.mode == "full" else count_concurrent_workers
    return min(compute_limit(e, read_cluster_capacity()), e.search.ask_batch_size, count_candidates(e.search))


def make_refit_split(split: Split) -> Split:
    """After the choice, the rows that served it are trained on too."""
    return replace(split, train=tuple(sorted((*split.train, *split.validation))), validation=())


def run_search(experiment: Experiment, plan: SearchPlan, shards: Store, index: ShardIndex) -> SearchResult:
    """Train the encoders, try the candidates, refit the best one on all training rows.

    Everything that is finished already is skipped, so the same command continues a search that was killed.
    """
    if plan.encoder_runs:
        train_all_runs(
            experiment, plan.encoder_runs, shards, index, plan.inner_cv.embedded_recordings, title="train encoders"
        )
    with lock_search(experiment, plan):
        ranked = rank_candidates(experiment, plan, shards, index)
        title = "refit the best candidate" if len(ranked) == 1 else f"refit the best {len(ranked)} candidates"
        todo = [run for one in ranked for run in one.runs]
        done = train_all_runs(experiment, todo, shards, index, plan.inner_cv.embedded_recordings, title=title)
        return write_best(experiment, plan, ranked, done)


@dataclass(frozen=True)
class RankedCandidate:
    """One of the best candidates, and what its refit trains, last of all the result."""

    candidate: Candidate
    score: float  # mean over the inner folds
    runs: list[Run]


@contextmanager
def lock_search(experiment: Experiment, plan: SearchPlan) -> Iterator[None]:
    """The folder of a search in the results store, for this process alone."""
    results, folder = Store(experiment.store.results), get_search_folder(plan)
    with results.lock(f"{folder}/lock"):
        results.write_json(f"{folder}/experiment.json", to_dict(experiment))
        results.write_json(f"{folder}/versions.json", list_package_versions())
        yield


def rank_candidates(
    experiment: Experiment, plan: SearchPlan, shards: Store, index: ShardIndex
) -> list[RankedCandidate]:
    """Try the candidates that are not tried yet; returns the best of all, as many as are refitted.

    Raises:
        DataError: Not one has a score, or the search could not go on.
    """
    e, inner_cv = experiment, plan.inner_cv
    results, folder = Store(e.store.results), get_search_folder(plan)
    study = StudyClient(e.search, plan.study_name, e.search.storage or prepare_journal(results, folder))
    run_candidates(e, plan, shards, index, study, results, folder)
    if e.search.mode == "full":
        for number, changes in study.list_changes().items():
            prune_candidate_runs(e, plan, results, Candidate(number, changes), include_encoders=True)
    # Lists of values are drawn again and again: equal candidates are refitted once.
    ranked: dict[str, RankedCandidate] = {}
    for candidate, score in study.rank():
        runs = plan_runs(
            override(e, candidate.changes),
            plan.outer_split,
            inner_cv.data_digest,
            embedded_recordings=inner_cv.embedded_recordings,
        )
        if runs[-1].key not in ranked and len(ranked) < e.search.refit:
            ranked[runs[-1].key] = RankedCandidate(candidate, score, runs)
    if not ranked:
        raise DataError(f"not one of {study.n_asked} candidates has a score; see {results}/{folder}/trials.parquet")
    html = render_search_page(
        plan.study_name, read_candidates_table(results, folder), study.compute_importances(), e.search
    )
    results.write(f"{folder}/search.html", html.encode())
    return list(ranked.values())


def write_best(
    experiment: Experiment, plan: SearchPlan, ranked: list[RankedCandidate], prefixes: dict[str, str]
) -> SearchResult:
    """Write `best.json`.

    Args:
        done: Prefixes of the finished checkpoints of the refit, by key.
    """
    results = Store(experiment.store.results)
    records = [
        {
            "candidate": one.candidate.number,
            "changes": one.candidate.changes,
            "metric": SELECTION_METRIC,
            "value": one.score,
            "checkpoint": prefixes[one.runs[-1].key],
            "commit_sha256": sha256(results.read(f"{prefixes[one.runs[-1].key]}/COMMIT")),
            "epoch": one.runs[-1].epochs,
        }
        for one in ranked
    ]
    results.write_json(
        f"{get_search_folder(plan)}/best.json", {"study": plan.study_name} | records[0] | {"next": records[1:]}
    )
    return SearchResult(plan.study_name, ranked[0].candidate, ranked[0].score, prefixes[ranked[0].runs[-1].key])


def get_search_folder(plan: SearchPlan) -> str:
    return f"searches/{plan.study_name}"


def get_journal_path(results: Store, folder: str) -> Path:
    """The study's journal: beside the results on a local disk, else a local file that is copied at every batch."""
    if results.is_local:
        return Path(results.resolve_path(f"{folder}/journal.log"))
    return Path("journals") / f"{folder.replace('/', '-')}.log"


def prepare_journal(results: Store, folder: str) -> Path:
    path = get_journal_path(results, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not results.is_local and results.exists(f"{folder}/journal.log"):
        # The store's copy counts: a local one may be of a search that was continued elsewhere since.
        path.write_bytes(results.read(f"{folder}/journal.log"))
    return path


def run_candidates(
    e: Experiment, plan: SearchPlan, shards: Store, index: ShardIndex, study: StudyClient, results: Store, folder: str
) -> None:
    left = study.n_candidates - len(study.completed())
    if left <= 0:
        return
    rows = read_completed_rows(results, folder, study)
    if missing := set(study.completed()) - {row["candidate"] for row in rows}:
        raise DataError(
            f"the study {study.name} has {len(missing)} candidates of which {results}/{folder}/trials.parquet knows "
            "nothing: they were searched with another store.results; use that one, or another search.storage"
        )
    max_concurrent_trials = min(count_concurrent_trials(e), left)
    # What a cluster is to grow for must wait in its sight; by default Tune shows it one trial at a time.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(max_concurrent_trials)
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
        parameters = {"experiment": e, "question": plan.inner_cv, "shards": str(shards), "index": index}
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
                    lambda count, note: None,  # `_control` shows it
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
        print(f"trained one by one: {len(numbers)} candidates, because {reason}", flush=True)
    if searcher.failed:
        number, reason = next(iter(searcher.failed.items()))
        print(f"no score: {len(searcher.failed)} candidates; the first, {number}: {reason}", flush=True)
    progress = f"{len(study.completed())} of {study.n_candidates} candidates"
    if searcher.stopped:
        raise TrainingInterrupted(f"{progress} are finished")
    if searcher.crashed_candidate is not None:
        reason = errors[0] if errors else "it ended without a word"
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
    # Tune would take Ctrl-C as the end of the search, and what is half searched would be refitted as the best.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    skip_pickled_errors()
    with contextlib.redirect_stdout(io.StringIO()):  # Tune prints where its scratch is, over the progress line
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
            progress: dict[int, tuple[float, str]] = ray.get(stop_signal.told.remote())
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
        whole: The encoders too, which another candidate may share while the search goes on.
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


def write_candidates_table(results: Store, folder: str, rows: list[Row]) -> None:
    results.write(f"{folder}/trials.parquet", arrow.encode_dataframe(build_candidates_table(rows)))


def upload_journal(study: StudyClient, results: Store, folder: str) -> None:
    if not results.is_local and not study.search.storage:
        results.write(f"{folder}/journal.log", get_journal_path(results, folder).read_bytes())


def read_completed_rows(results: Store, folder: str, study: StudyClient) -> list[Row]:
    completed = set(study.completed())
    table = read_candidates_table(results, folder)
    return [{str(k): v for k, v in row.items()} for row in table.to_dict("records") if row["candidate"] in completed]


def read_candidates_table(results: Store, folder: str) -> pd.DataFrame:
    name = f"{folder}/trials.parquet"
    return arrow.decode_dataframe(results.read(name), f"{results}/{name}") if results.exists(name) else pd.DataFrame()
