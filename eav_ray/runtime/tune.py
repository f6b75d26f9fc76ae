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
from eav_ray.report.progress import Bar, stage
from eav_ray.report.search import page
from eav_ray.runtime import cluster
from eav_ray.runtime.capacity import count_concurrent_groups, count_concurrent_workers, read_cluster_capacity
from eav_ray.runtime.cli import explain_error
from eav_ray.runtime.groups import run_all
from eav_ray.runtime.protocol import finished
from eav_ray.runtime.searcher import CandidateSearcher, Row, Waiting, leave_pickled_errors
from eav_ray.runtime.train import Data, announce, open_data, runs_of
from eav_ray.runtime.trial import STUDY_FILE, Control, Question, candidate_runs, full, run_fusion_batch
from eav_ray.search.study import Candidate, StudyClient, check_space, count, is_whole, study_name, trials_table
from eav_ray.storage import Store, list_package_versions, sha256
from eav_ray.training.embeddings import build_embedding_key
from eav_ray.training.estimate import compute_model_cost
from eav_ray.training.plan import SELECTION_METRIC, Run, plan_encoder_run
from eav_ray.training.run import is_embedded


@dataclass(frozen=True)
class Plan:
    """All trainings of a search and of its refit, before anything starts."""

    outer: Split
    question: Question
    inner_encoders: list[Run]  # equal sets of training rows are trained once; none where candidates train their own
    outer_encoders: list[Run]
    study: str

    @property
    def encoders(self) -> list[Run]:
        return self.inner_encoders + self.outer_encoders

    def searched(self, experiment: Experiment) -> list[Run]:
        """What all candidates train on all inner folds, beside those encoders."""
        shared = {run.key for run in self.inner_encoders}
        each = [run for fold in candidate_runs(experiment, self.question) for run in fold if run.key not in shared]
        return each * count(experiment.search)

    def refitted(self, experiment: Experiment) -> list[Run]:
        """What the refit of the best candidates trains, beside those encoders."""
        shared = {run.key for run in self.outer_encoders}
        each = runs_of(experiment, self.outer, self.question.data, embed=self.question.embed)
        return [run for run in each if run.key not in shared] * min(experiment.search.refit, count(experiment.search))


@dataclass(frozen=True)
class Best:
    study: str
    candidate: Candidate
    inner_score: float
    checkpoint: str  # prefix in the results store


def tune_experiment(experiment: Experiment) -> Best:
    """Search one outer fold, or continue that search."""
    data = open_data(experiment)
    planned = plan(experiment, data.windows)
    with cluster.connect_to_ray(experiment.runtime):
        announce_search(experiment, [planned], data)
        return search(experiment, planned, data.shards, data.index)


def announce_search(experiment: Experiment, planned: list[Plan], data: Data) -> None:
    """Say what is to do, of one search or several, before anything starts."""
    announce(
        experiment,
        [run for one in planned for run in one.encoders],
        data,
        searched=[run for one in planned for run in one.searched(experiment)],
        refitted=[run for one in planned for run in one.refitted(experiment)],
        max_concurrent_trials=side_by_side(experiment),
    )


def plan(experiment: Experiment, windows: WindowCache) -> Plan:
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
    check_space(e)
    items = list_labeled_recordings(windows.ids, e.data, e.seed)
    inner, outer = make_inner_splits(items, e.split), refit_split(make_split(items, e.split))
    question = Question(inner, digest(windows.index.fingerprint), outer.train)
    if e.search.mode == "full":
        _check_effect(e, question)
    names = sorted(e.data.modalities) if _encoders_are_shared(e) else []
    inner_encoders = [plan_encoder_run(e, m, s, question.data, question.embed) for s in inner for m in names]
    outer_encoders = [plan_encoder_run(e, m, outer, question.data, question.embed) for m in names]
    # Where candidates train all themselves, what the experiment as it stands would train says what else they have.
    own = [run for fold in candidate_runs(e, question) for run in fold] if e.search.mode == "full" else []
    study = study_name(e, question.data, inner, [r.key for r in (*inner_encoders, *own)])
    return Plan(outer, question, list({r.key: r for r in inner_encoders}.values()), outer_encoders, study)


def _check_effect(e: Experiment, question: Question) -> None:
    """Refuse a key that changes nothing that a candidate trains: all its values would be trained and compared.

    Raises:
        ConfigError: Naming the key.
    """
    for key, choice in e.search.space.items():
        values = (choice.choice[0], choice.choice[-1]) if choice.choice else (choice.low, choice.high)
        found: list[list[list[str]]] = []
        for value in values:
            with contextlib.suppress(ConfigError):  # alone it may not fit the rest, where others of the space do
                whole = int(value) if isinstance(value, float) and value.is_integer() and is_whole(key) else value
                runs = candidate_runs(override(e, {key: whole}), question)
                found.append([[run.key for run in fold] for fold in runs])
        if len(found) == 2 and values[0] != values[1] and found[0] == found[1]:
            raise ConfigError(
                f"search.space.{key} changes nothing that train.mode={e.train.mode} trains of "
                f"{', '.join(sorted(e.data.modalities))}; take it out of the space"
            )


def _encoders_are_shared(e: Experiment) -> bool:
    """Whether all candidates have the same encoders, which are then trained before them."""
    own = e.train.mode == "end_to_end" or len(e.data.modalities) == 1
    return not own and all(key.startswith(("fusion.", "optim.")) for key in e.search.space)


def side_by_side(experiment: Experiment) -> int:
    """How many trials of a search run at once, on the cluster that this process is connected to.

    Raises:
        ConfigError: The cluster cannot hold that many (`capacity.at_once`).
    """
    e = experiment
    most = count_concurrent_groups if e.search.mode == "full" else count_concurrent_workers
    return min(most(e, read_cluster_capacity()), e.search.ask_batch_size, count(e.search))


def refit_split(split: Split) -> Split:
    """After the choice, the rows that served it are trained on too."""
    return replace(split, train=tuple(sorted((*split.train, *split.validation))), validation=())


def search(experiment: Experiment, planned: Plan, shards: Store, index: ShardIndex) -> Best:
    """Train the encoders, try the candidates, refit the best one on all training rows.

    Everything that is finished already is skipped, so the same command continues a search that was killed.
    """
    if planned.encoders:
        run_all(experiment, planned.encoders, shards, index, planned.question.embed, title="train encoders")
    with lock_search(experiment, planned):
        ranked = choose(experiment, planned, shards, index)
        title = "refit the best candidate" if len(ranked) == 1 else f"refit the best {len(ranked)} candidates"
        todo = [run for one in ranked for run in one.runs]
        done = run_all(experiment, todo, shards, index, planned.question.embed, title=title)
        return write_best(experiment, planned, ranked, done)


@dataclass(frozen=True)
class RankedCandidate:
    """One of the best candidates, and what its refit trains, last of all the result."""

    candidate: Candidate
    score: float  # mean over the inner folds
    runs: list[Run]


@contextmanager
def lock_search(experiment: Experiment, planned: Plan) -> Iterator[None]:
    """The folder of a search in the results store, for this process alone."""
    results, folder = Store(experiment.store.results), _folder(planned)
    with results.lock(f"{folder}/lock"):
        results.write_json(f"{folder}/experiment.json", to_dict(experiment))
        results.write_json(f"{folder}/versions.json", list_package_versions())
        yield


def choose(experiment: Experiment, planned: Plan, shards: Store, index: ShardIndex) -> list[RankedCandidate]:
    """Try the candidates that are not tried yet; returns the best of all, as many as are refitted.

    Raises:
        DataError: Not one has a score, or the search could not go on.
    """
    e, question = experiment, planned.question
    results, folder = Store(e.store.results), _folder(planned)
    study = StudyClient(e.search, planned.study, e.search.storage or _open_journal(results, folder))
    _try_candidates(e, planned, shards, index, study, results, folder)
    if e.search.mode == "full":
        for number, changes in study.changes().items():
            prune_candidate_runs(e, planned, results, Candidate(number, changes), whole=True)
    # Lists of values are drawn again and again: equal candidates are refitted once.
    ranked: dict[str, RankedCandidate] = {}
    for candidate, score in study.ranking():
        runs = runs_of(override(e, candidate.changes), planned.outer, question.data, embed=question.embed)
        if runs[-1].key not in ranked and len(ranked) < e.search.refit:
            ranked[runs[-1].key] = RankedCandidate(candidate, score, runs)
    if not ranked:
        raise DataError(f"not one of {study.asked} candidates has a score; see {results}/{folder}/trials.parquet")
    shown = page(planned.study, _rows(results, folder), study.importances(), e.search)
    results.write(f"{folder}/search.html", shown.encode())
    return list(ranked.values())


def write_best(experiment: Experiment, planned: Plan, ranked: list[RankedCandidate], prefixes: dict[str, str]) -> Best:
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
    results.write_json(f"{_folder(planned)}/best.json", {"study": planned.study} | records[0] | {"next": records[1:]})
    return Best(planned.study, ranked[0].candidate, ranked[0].score, prefixes[ranked[0].runs[-1].key])


def _folder(planned: Plan) -> str:
    return f"searches/{planned.study}"


def _journal(results: Store, folder: str) -> Path:
    """The study's journal: beside the results on a local disk, else a local file that is copied at every batch."""
    if results.is_local:
        return Path(results.resolve_path(f"{folder}/journal.log"))
    return Path("journals") / f"{folder.replace('/', '-')}.log"


def _open_journal(results: Store, folder: str) -> Path:
    path = _journal(results, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not results.is_local and results.exists(f"{folder}/journal.log"):
        # The store's copy counts: a local one may be of a search that was continued elsewhere since.
        path.write_bytes(results.read(f"{folder}/journal.log"))
    return path


def _try_candidates(
    e: Experiment, planned: Plan, shards: Store, index: ShardIndex, study: StudyClient, results: Store, folder: str
) -> None:
    left = study.candidates - len(study.completed())
    if left <= 0:
        return
    rows = earlier_rows(results, folder, study)
    if missing := set(study.completed()) - {row["candidate"] for row in rows}:
        raise DataError(
            f"the study {study.name} has {len(missing)} candidates of which {results}/{folder}/trials.parquet knows "
            "nothing: they were searched with another store.results; use that one, or another search.storage"
        )
    max_concurrent_trials = min(side_by_side(e), left)
    # What a cluster is to grow for must wait in its sight; by default Tune shows it one trial at a time.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(max_concurrent_trials)
    keep, copy = partial(_keep, results, folder), partial(_copy_journal, study, results, folder)
    shapes = DataShapes(index.eeg_channels, len(index.classes))

    def price(candidate: Candidate) -> float:
        try:
            return compute_model_cost(override(e, candidate.changes), shapes) if e.search.cost else math.nan
        except ConfigError:  # such a model cannot be built, which its training says
            return math.nan

    with stage("search", study.candidates, "candidates") as bar:
        known = {"experiment": e, "question": planned.question, "shards": str(shards), "index": index}
        if e.search.mode == "fusion":
            searcher = CandidateSearcher(
                study, -(-e.search.ask_batch_size // max_concurrent_trials), rows, keep, bar.to, copy=copy, cost=price
            )
            needs = {"CPU": e.runtime.cpus_per_worker, "GPU": e.runtime.gpus_per_worker}
            trial = tune.with_parameters(run_fusion_batch, **known)
            found = _run(trial, needs, searcher, max_concurrent_trials, left, results, [_waits(e, bar)], retries=1)
        else:
            with _control(study, bar) as (control, stopped):
                searcher = CandidateSearcher(
                    study,
                    1,
                    rows,
                    keep,
                    lambda count, note: None,  # `_control` shows it
                    needs=partial(_needs, e, planned, results),
                    copy=copy,
                    on_completed=partial(prune_candidate_runs, e, planned, results),
                    cost=price,
                )
                stopped.append(lambda: setattr(searcher, "stopped", True))
                # Beside this process: a node that goes must not take drivers along, and they need no CPU of a worker.
                here = {f"node:{ray.util.get_node_ip_address()}": 0.001, "CPU": 0}
                trial = tune.with_parameters(full, **known, study=planned.study, control=control)
                found = _run(trial, here, searcher, max_concurrent_trials, left, results, [])
    for reason, numbers in searcher.alone.items():
        print(f"trained one by one: {len(numbers)} candidates, because {reason}", flush=True)
    if searcher.failed:
        number, reason = next(iter(searcher.failed.items()))
        print(f"no score: {len(searcher.failed)} candidates; the first, {number}: {reason}", flush=True)
    progress = f"{len(study.completed())} of {study.candidates} candidates"
    if searcher.stopped:
        raise TrainingInterrupted(f"{progress} are finished")
    if searcher.broken is not None:
        reason = found[0] if found else "it ended without a word"
        raise DataError(f"candidate {searcher.broken} could not be tried: {reason}; the same command tries it again")
    if len(study.completed()) < study.candidates:
        raise DataError(f"the search ended at {progress}; the same command continues")


def _run(
    trial: Any,
    needs: dict[str, float],
    searcher: CandidateSearcher,
    max_concurrent_trials: int,
    most: int,
    results: Store,
    callbacks: list[Any],
    retries: int = 0,
) -> list[str]:
    """Let Tune run trials until the searcher has no more; returns the errors of those that failed, a line each."""
    tuner = tune.Tuner(
        tune.with_resources(trial, needs),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            num_samples=most,
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
    leave_pickled_errors()
    with contextlib.redirect_stdout(io.StringIO()):  # Tune prints where its scratch is, over the progress line
        try:
            found = tuner.fit()
        except TuneError as error:  # of ours, in what Tune calls: a store that does not answer
            raise DataError(f"the search ended: {explain_error(error)[0]}; the same command continues") from None
    return [str(error).strip().splitlines()[-1] for error in found.errors]


def _waits(e: Experiment, bar: Bar) -> Waiting:
    return Waiting(
        lambda waits: bar.to(bar.done, note=f" waits for {cluster.describe_worker_needs(e.runtime)}" if waits else " ")
    )


@contextmanager
def _control(study: StudyClient, bar: Bar) -> Iterator[tuple[Any, list[Callable[[], None]]]]:
    """An actor that speaks with the drivers of candidates; while it lives, the bar shows how far they are.

    SIGTERM makes them save and leave.

    Yields:
        The actor, and what else is called on SIGTERM.
    """
    here: Any = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    control: Any = ray.remote(num_cpus=0, scheduling_strategy=here)(Control).remote()
    ends: list[Callable[[], None]] = [lambda: control.stop.remote()]
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(1.0):
            progress: dict[int, tuple[float, str]] = ray.get(control.told.remote())
            completed = study.completed()
            running = {number: share for number, (share, _) in progress.items() if number not in completed}
            notes = [note for number, (_, note) in progress.items() if number in running and note.strip()]
            best = study.best()
            bar.to(
                round(len(completed) + sum(running.values()), 2),
                note=(f" best {best[1]:.3f}" if best else "") + (notes[-1] if notes else " "),
            )

    thread = threading.Thread(target=watch, daemon=True)
    before: Any = None
    main = threading.current_thread() is threading.main_thread()
    if main:
        before = signal.signal(signal.SIGTERM, lambda number, frame: [end() for end in ends])
    thread.start()
    try:
        yield control, ends
    finally:
        stop.set()
        thread.join()
        if main:
            signal.signal(signal.SIGTERM, before)
        ray.kill(control)


def _needs(e: Experiment, planned: Plan, results: Store, candidate: Candidate) -> frozenset[str]:
    """What a candidate will train, as far as it is not there yet."""
    runs = candidate_runs(override(e, candidate.changes), planned.question)
    shared = {run.key for run in planned.inner_encoders}
    last = {fold[-1].key for fold in runs}
    keys = {run.key for fold in runs for run in fold} - shared
    features = {run.features_prefix for fold in runs for run in fold} - {""}
    there = {run.key for fold in runs for run in fold if is_embedded(run, results) and finished(results, run.key)}
    return frozenset(
        [key for key in keys if key in last or key not in there]
        + [key for key in features if not results.is_committed(key)]
    )


def prune_candidate_runs(
    e: Experiment, planned: Plan, results: Store, candidate: Candidate, *, whole: bool = False
) -> None:
    """Its rows are kept; models of inner folds, which nobody will use, would fill the store.

    Args:
        whole: The encoders too, which another candidate may share while the search goes on.
    """
    shared = {run.key for run in planned.encoders}
    for runs in candidate_runs(override(e, candidate.changes), planned.question):
        for run in runs if whole else runs[-1:]:
            name = f"runs/{run.key}"
            # What another job or search began is its own.
            if run.key in shared or not results.exists(f"{name}/{STUDY_FILE}"):
                continue
            if results.read_json(f"{name}/{STUDY_FILE}") != planned.study:
                continue
            with contextlib.suppress(DataError), results.lock(f"{name}/lock"):  # somebody else is at it
                if run.kind == "encoder" and run.embedded_recordings:
                    results.delete(build_embedding_key(run.key, run.embedded_recordings))
                results.delete(name)


def _keep(results: Store, folder: str, rows: list[Row]) -> None:
    results.write(f"{folder}/trials.parquet", arrow.encode_dataframe(trials_table(rows)))


def _copy_journal(study: StudyClient, results: Store, folder: str) -> None:
    if not results.is_local and not study.search.storage:
        results.write(f"{folder}/journal.log", _journal(results, folder).read_bytes())


def earlier_rows(results: Store, folder: str, study: StudyClient) -> list[Row]:
    completed = set(study.completed())
    table = _rows(results, folder)
    return [{str(k): v for k, v in row.items()} for row in table.to_dict("records") if row["candidate"] in completed]


def _rows(results: Store, folder: str) -> pd.DataFrame:
    name = f"{folder}/trials.parquet"
    return arrow.decode_dataframe(results.read(name), f"{results}/{name}") if results.exists(name) else pd.DataFrame()
