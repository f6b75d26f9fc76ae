"""The search: Ray Tune runs the candidates that the study's owner suggests, each over all inner folds.

One Tune trial is a lease of a few candidates, whose fusions are trained as one batch. What is known of the search lies
in the results store, under `searches/<study>/`: `trials.parquet` (one row per candidate and fold), `best.json`,
`experiment.json` and the study's journal. Tune's own store is scratch: opening it would unpickle it.
"""

import contextlib
import io
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from eav_ray.config import Experiment, digest, override, to_dict
from eav_ray.data import arrow
from eav_ray.data.cache import Windows
from eav_ray.data.shard import Index
from eav_ray.data.split import Split, inner_splits, items_of, make_split
from eav_ray.errors import ConfigError, DataError
from eav_ray.report.progress import stage
from eav_ray.runtime import cluster
from eav_ray.runtime.groups import run_all
from eav_ray.runtime.train import announce, open_data
from eav_ray.search.heads import score_heads, why_alone
from eav_ray.search.study import Candidate, Owner, check_space, count, medians, study_name, trials_table
from eav_ray.storage import Store, sha256, versions
from eav_ray.training.plan import SCORE, Run, encoder_run, fusion_run
from eav_ray.training.run import Place, open_place, score_fold

WAITS_S = 20.0  # without a running trial, after which the progress line says what is waited for


@dataclass(frozen=True)
class Plan:
    """All trainings of a search and of its refit, before anything starts."""

    outer: Split
    inner: list[Split]
    inner_encoders: list[Run]  # equal sets of training rows are trained once
    outer_encoders: list[Run]
    embed: tuple[str, ...]  # recordings that the search may see at all
    data: str
    study: str

    @property
    def encoders(self) -> list[Run]:
        return self.inner_encoders + self.outer_encoders

    def searched(self, experiment: Experiment) -> list[Run]:
        """One fusion training per candidate and inner fold."""
        return [fusion_run(experiment, s, self.data, self.embed) for s in self.inner] * count(experiment.search)


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
    with cluster.session(experiment.runtime):
        announce(experiment, planned.encoders, data, searched=planned.searched(experiment))
        return search(experiment, planned, data.shards, data.index)


def plan(experiment: Experiment, windows: Windows) -> Plan:
    """Which trainings a search needs.

    Raises:
        ConfigError: Nothing to fuse, a protocol without validation rows, a fold that does not exist, or a value of the
            search space that the experiment does not allow.
    """
    e = experiment
    if len(e.data.modalities) < 2 or e.fusion.kind == "late_mean":
        raise ConfigError("a search needs two data.modalities or more, and a fusion.kind that has parameters")
    check_space(e)
    items = items_of(windows.ids, e.data, e.seed)
    inner, outer = inner_splits(items, e.fold), refit_split(make_split(items, e.fold))
    embed = outer.train
    data = digest(windows.index.fingerprint)
    names = sorted(e.data.modalities)
    inner_encoders = [encoder_run(e, m, s, data, embed) for s in inner for m in names]
    outer_encoders = [encoder_run(e, m, outer, data, embed) for m in names]
    study = study_name(e, data, inner, [r.key for r in inner_encoders])
    return Plan(outer, inner, list({r.key: r for r in inner_encoders}.values()), outer_encoders, embed, data, study)


def refit_split(split: Split) -> Split:
    """After the choice, the rows that served it are trained on too."""
    return replace(split, train=tuple(sorted((*split.train, *split.validation))), validation=())


def search(experiment: Experiment, planned: Plan, shards: Store, index: Index) -> Best:
    """Train the encoders, try the candidates, refit the best one on all training rows.

    Everything that is finished already is skipped, so the same command continues a search that was killed.
    """
    e = experiment
    results = Store(e.store.results)
    folder = f"searches/{planned.study}"
    with results.lock(f"{folder}/lock"):
        results.write_json(f"{folder}/experiment.json", to_dict(e))
        results.write_json(f"{folder}/versions.json", versions())
        run_all(e, planned.encoders, shards, index, planned.embed, title="train encoders")
        owner = Owner(e.search, planned.study, e.search.storage or _open_journal(results, folder))
        _try_candidates(e, planned, shards, index, owner, results, folder)
        # Lists of values are drawn again and again: equal candidates are refitted once.
        ranked: dict[str, tuple[Run, Candidate, float]] = {}
        for candidate, score in owner.ranking():
            run = fusion_run(override(e, candidate.changes), planned.outer, planned.data, planned.embed)
            if run.key not in ranked and len(ranked) < e.search.refit:
                ranked[run.key] = run, candidate, score
        if not ranked:
            raise DataError(f"not one of {owner.asked} candidates has a score; see {results}/{folder}/trials.parquet")
        winners = [run for run, _, _ in ranked.values()]
        title = "refit the best candidate" if len(winners) == 1 else f"refit the best {len(winners)} candidates"
        done = run_all(e, winners, shards, index, planned.embed, title=title)
        kept = [
            {
                "candidate": candidate.number,
                "changes": candidate.changes,
                "metric": SCORE,
                "value": score,
                "checkpoint": done[key],
                "commit_sha256": sha256(results.read(f"{done[key]}/COMMIT")),
                "epoch": run.optim.epochs,
            }
            for key, (run, candidate, score) in ranked.items()
        ]
        results.write_json(f"{folder}/best.json", {"study": planned.study} | kept[0] | {"next": kept[1:]})
        run, candidate, score = next(iter(ranked.values()))
        return Best(planned.study, candidate, score, done[run.key])


def _journal(results: Store, folder: str) -> Path:
    """The study's journal: beside the results on a local disk, else a local file that is copied at every batch."""
    if results.is_local:
        return Path(results.path(f"{folder}/journal.log"))
    return Path("journals") / f"{folder.replace('/', '-')}.log"


def _open_journal(results: Store, folder: str) -> Path:
    path = _journal(results, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not results.is_local and results.exists(f"{folder}/journal.log"):
        # The store's copy counts: a local one may be of a search that was continued elsewhere since.
        path.write_bytes(results.read(f"{folder}/journal.log"))
    return path


def _try_candidates(
    e: Experiment, planned: Plan, shards: Store, index: Index, owner: Owner, results: Store, folder: str
) -> None:
    left = owner.candidates - len(owner.told())
    if left <= 0:
        return
    rows = _earlier_rows(results, folder, owner)
    if missing := set(owner.told()) - {row["candidate"] for row in rows}:
        raise DataError(
            f"the study {owner.name} has {len(missing)} candidates of which {results}/{folder}/trials.parquet knows "
            "nothing: they were searched with another store.results; use that one, or another search.storage"
        )
    at_once = min(e.search.at_once or cluster.room(e.runtime), e.search.batch, left)
    # What a cluster is to grow for must wait in its sight; by default Tune shows it one trial at a time.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(at_once)
    with stage("search", owner.candidates, "candidates") as bar:
        searcher = _Searcher(owner, -(-e.search.batch // at_once), rows, results, folder, bar.to)
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(_lease, experiment=e, planned=planned, shards=str(shards), index=index),
                {"CPU": e.runtime.cpus_per_worker, "GPU": e.runtime.gpus_per_worker},
            ),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                num_samples=left,
                max_concurrent_trials=at_once,
                reuse_actors=True,  # a new process per lease would spend seconds on imports
            ),
            run_config=tune.RunConfig(
                name=f"{planned.study}-{int(time.time())}",
                storage_path=f"{results.path('ray')}" if results.is_local else f"{results}/ray",
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=1),
                callbacks=[
                    _Waiting(
                        lambda waits: bar.to(
                            bar.done, note=f" waits for {cluster.a_worker(e.runtime)}" if waits else " "
                        )
                    )
                ],
            ),
        )
        # Tune would take Ctrl-C as the end of the search, and what is half searched would be refitted as the best.
        os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
        _leave_pickled_errors()
        with contextlib.redirect_stdout(io.StringIO()):  # Tune prints where its scratch is, over the progress line
            results_of = tuner.fit()
        searcher.flush()
    for reason, numbers in searcher.alone.items():
        print(f"trained one by one: {len(numbers)} candidates, because {reason}", flush=True)
    if searcher.broken is not None:
        errors = [str(error).strip().splitlines()[-1] for error in results_of.errors]
        reason = errors[0] if errors else "it ended without a word"
        raise DataError(f"candidate {searcher.broken} could not be tried: {reason}; the same command tries it again")
    if len(owner.told()) < owner.candidates:
        raise DataError(
            f"the search ended at {len(owner.told())} of {owner.candidates} candidates; the same command continues"
        )


class _Waiting(tune.Callback):
    """Tells when no trial has run for a while, though some are there: nothing has room for them.

    Args:
        tell: Called with True every now and then while that lasts, and with False when it is over.
    """

    def __init__(self, tell: Callable[[bool], None]) -> None:
        self._tell, self._since, self._told = tell, time.monotonic(), False

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        open_trials = [trial for trial in trials if not trial.is_finished()]
        if not open_trials or any(trial.status == Trial.RUNNING for trial in open_trials):
            self._since = time.monotonic()
            if self._told:
                self._told = False
                self._tell(False)
        elif time.monotonic() - self._since > WAITS_S:
            self._told = True
            self._tell(True)


def _leave_pickled_errors() -> None:
    """Tune opens the pickled error of a failed trial, which lies in the results store; its text lies beside it."""
    Trial.get_pickled_error = lambda self: None


def _earlier_rows(results: Store, folder: str, owner: Owner) -> list[dict[str, Any]]:
    name = f"{folder}/trials.parquet"
    if not results.exists(name):
        return []
    told = set(owner.told())
    table = arrow.read_frame(results.read(name), f"{results}/{name}")
    return [{str(k): v for k, v in row.items()} for row in table.to_dict("records") if row["candidate"] in told]


class _Searcher(Searcher):
    """What Tune sees of the study's owner. Runs in the driver, which is the only writer of the results."""

    def __init__(
        self, owner: Owner, most: int, rows: list[dict[str, Any]], results: Store, folder: str, show: Any
    ) -> None:
        super().__init__(metric=SCORE, mode="max")
        self._owner, self._most, self._rows, self._results = owner, most, rows, results
        self._folder, self._show = folder, show
        self._leases: dict[str, dict[int, Candidate]] = {}
        self.broken: int | None = None  # a candidate whose trial ended in an error
        self.alone: dict[str, list[int]] = {}  # why candidates could not be trained with others

    def suggest(self, trial_id: str) -> Any:
        if self.broken is not None:
            return Searcher.FINISHED
        lease: dict[int, Candidate] = {}
        ended = False
        while len(lease) < self._most:
            try:
                candidate = self._owner.ask()
            except StopIteration:
                ended = True
                break
            if candidate is None:
                break
            lease[candidate.number] = candidate
        if not lease:
            return Searcher.FINISHED if ended else None
        self._leases[trial_id] = lease
        bars: dict[int, float] = {}
        if self._owner.search.prune:
            first = min(lease)
            bars = medians(self._rows, SCORE, first - first % self._owner.search.batch)
        return {"candidates": [(c.number, c.changes) for c in lease.values()], "bars": sorted(bars.items())}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Some candidates of a lease are finished."""
        lease = self._leases.get(trial_id, {})
        scores: dict[int, tuple[float, bool]] = {}
        for found in json.loads(result.get("scored", "[]")):
            candidate = lease.pop(found["candidate"], None)
            if candidate is None:
                continue
            scores[candidate.number] = found[SCORE], found["pruned"]
            state = "PRUNED" if found["pruned"] else "COMPLETE"
            if found["alone"]:
                self.alone.setdefault(found["alone"], []).append(candidate.number)
            self._rows += [
                {"study": self._owner.name, "candidate": candidate.number}
                | {"state": state if math.isfinite(found[SCORE]) else "FAIL"}
                | {"changes": json.dumps(candidate.changes, sort_keys=True)}
                | fold
                for fold in found["folds"]
            ]
        if not scores:
            return
        # The rows first: a candidate that is told but has no rows could not be made up for.
        self.flush()
        for number, (score, pruned) in scores.items():
            self._owner.tell(number, score, pruned=pruned)
        self._show(len(self._owner.told()), note=self._note())

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if result and not error:
            self.on_trial_result(trial_id, result)
        for number in self._leases.pop(trial_id, {}):
            # A dead worker or a store that does not answer says nothing of a candidate: it stays open in the study.
            self.broken = number
            return

    def flush(self) -> None:
        if not self._rows:
            return
        self._results.write(f"{self._folder}/trials.parquet", arrow.frame_bytes(trials_table(self._rows)))
        if not self._results.is_local and not self._owner.search.storage:
            self._results.write(f"{self._folder}/journal.log", _journal(self._results, self._folder).read_bytes())

    def _note(self) -> str:
        best = self._owner.best()
        return f" best {best[1]:.3f}" if best else ""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a search is resumed from the study, never from Tune's pickles."""

    def restore(self, checkpoint_path: str) -> None:
        raise ConfigError("a search is resumed by the same command, from its study; Tune's own state is not read")


def _lease(config: dict[str, Any], experiment: Experiment, planned: Plan, shards: str, index: Index) -> None:
    """Some candidates over their inner folds; told, a few at a time, with the mean over these."""
    torch.set_num_threads(max(1, int(experiment.runtime.cpus_per_worker)))
    device = torch.device("cuda" if cluster.has_gpu(experiment.runtime) else "cpu")
    place = open_place(experiment, Store(shards), index, device, only=planned.embed)
    candidates = {number: override(experiment, changes) for number, changes in config["candidates"]}
    bars, folds = dict(config["bars"]), range(len(planned.inner))
    found: dict[int, list[dict[str, Any]]] = {number: [] for number in candidates}
    # Without a bar all folds are trained at once.
    for part in [[fold] for fold in folds] if bars else [list(folds)]:
        jobs = [(number, fold) for number in found for fold in part]
        runs = [fusion_run(candidates[n], planned.inner[fold], planned.data, planned.embed) for n, fold in jobs]
        reasons = [why_alone(run) for run in runs]
        alone = {number: reason for (number, _), reason in zip(jobs, reasons, strict=True)}
        began = time.perf_counter()
        for numbers, metrics in _scored(runs, reasons, place, experiment.search.together):
            seconds = (time.perf_counter() - began) / len(numbers)
            for n, scored in zip(numbers, metrics, strict=True):
                number, fold = jobs[n]
                found[number].append({"fold": fold, "seconds": seconds, "together": len(numbers)} | scored)
            told = [_told(n, f, alone[n], len(folds), bars) for n, f in found.items() if len(f) > part[-1]]
            told = [candidate for candidate in told if candidate]
            if told:
                tune.report({SCORE: told[0][SCORE], "scored": json.dumps(told)})
            for candidate in told:
                del found[candidate["candidate"]]
            began = time.perf_counter()


def _told(number: int, scored: list[dict[str, Any]], alone: str, folds: int, bars: dict[int, float]) -> dict[str, Any]:
    """A candidate that has its last fold behind it, or a mean below the bar; empty for any other."""
    mean = sum(fold[SCORE] for fold in scored) / len(scored)
    ended, pruned = len(scored) == folds, mean < bars.get(len(scored), -math.inf)
    if not ended and not pruned and math.isfinite(mean):
        return {}
    whole = sorted(scored, key=lambda fold: fold["fold"])
    return {"candidate": number, SCORE: mean, "folds": whole, "alone": alone, "pruned": pruned and not ended}


def _scored(
    runs: list[Run], reasons: list[str], place: Place, together: int
) -> Iterator[tuple[list[int], list[dict[str, float]]]]:
    """Numbers of runs and their scores, as they come."""
    batched = [n for n, reason in enumerate(reasons) if not reason]
    for numbers, metrics in score_heads([runs[n] for n in batched], place, at_once=together):
        yield [batched[n] for n in numbers], metrics
    for n in (n for n, reason in enumerate(reasons) if reason):
        try:
            metrics = score_fold(runs[n], place)
        except torch.cuda.OutOfMemoryError:
            metrics = {SCORE: float("nan")}  # the candidate's own fault: it fails, and the search goes on
        yield [n], [metrics]
