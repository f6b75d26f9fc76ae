"""What candidates of a search of whole trainings leave in the results store."""

import contextlib
from collections.abc import Collection, Iterable

from eav_ray.errors import DataError
from eav_ray.pipelines.search.search_plan import SearchPlan, plan_candidate_runs
from eav_ray.storage import LOCK, Store
from eav_ray.training.embeddings import build_embedding_key, delete_embeddings, has_embeddings
from eav_ray.training.run_spec import Run
from eav_ray.training.runner import is_run_finished
from eav_ray.tuning.search_space import apply_candidate
from eav_ray.tuning.study import Candidate

MARKS = "studies"  # beside a run's attempts: a file for each study whose candidates train it
MARK_FORMAT = 1


def mark_run(results: Store, key: str, study_name: str) -> None:
    """Mark a run as trained by candidates of a study, unless another job has begun it, whose own it is."""
    names = [name for name in results.list_files(f"runs/{key}") if name != f"runs/{key}/{LOCK}"]
    if not names or any(name.startswith(f"runs/{key}/{MARKS}/") for name in names):
        results.write_json(_name_mark(key, study_name), {"format": MARK_FORMAT, "study": study_name})


def _name_mark(key: str, study_name: str) -> str:
    return f"runs/{key}/{MARKS}/{study_name}.json"


class CandidateRuns:
    """The runs of the candidates of one driver: planned once, and asked of the store as seldom as can be."""

    def __init__(self, plan: SearchPlan) -> None:
        self._plan, self._results = plan, plan.store.results
        self._shared = {run.key for run in plan.inner_encoder_runs}
        self._folds: dict[int, list[list[Run]]] = {}  # of candidates without a score
        self._unasked = set(self._results.list_folders("runs"))  # begun before this driver; it may be finished
        self._asked_features: set[str] = set()
        self._finished: set[str] = set()

    def list_missing_keys(self, candidate: Candidate) -> frozenset[str]:
        """List the keys of what a candidate will train, as far as it is not there yet."""
        missing: set[str] = set()
        for *encoders, result in self._plan_folds(candidate):
            missing.add(result.key)
            for run in encoders:
                missing |= {run.key} if run.key not in self._shared and not self._is_finished(run) else set()
                missing |= {run.features_prefix} if not self._has_features(run) else set()
        return frozenset(missing)

    def finish(self, candidate: Candidate, trained_folds: Collection[int]) -> list[Run]:
        """Take that a candidate has its score; returns the runs of folds, which nobody will use."""
        folds = self._plan_folds(candidate)
        del self._folds[candidate.number]
        trained = [run for fold in trained_folds for run in folds[fold][:-1]]
        self._finished |= {run.key for run in trained} | {run.features_prefix for run in trained}
        return [fold[-1] for fold in folds]

    def _plan_folds(self, candidate: Candidate) -> list[list[Run]]:
        if candidate.number not in self._folds:
            experiment = apply_candidate(self._plan.experiment, candidate.changes)
            self._folds[candidate.number] = plan_candidate_runs(experiment, self._plan.inner_cv)
        return self._folds[candidate.number]

    def _is_finished(self, run: Run) -> bool:
        if run.key in self._unasked:
            self._unasked.discard(run.key)
            self._finished |= {run.key} if is_run_finished(run, self._results) else set()
        return run.key in self._finished

    def _has_features(self, run: Run) -> bool:
        prefix = run.features_prefix
        if prefix and prefix not in self._asked_features:
            self._asked_features.add(prefix)
            self._finished |= {prefix} if has_embeddings(self._results, prefix) else set()
        return not prefix or prefix in self._finished


def prune_candidate_runs(plan: SearchPlan, candidates: Iterable[Candidate]) -> None:
    """Delete all that candidates have left: their encoders too, which others shared while the search went on."""
    begun = set(plan.store.results.list_folders("runs"))
    experiments = (apply_candidate(plan.experiment, candidate.changes) for candidate in candidates)
    runs = {run.key: run for e in experiments for fold in plan_candidate_runs(e, plan.inner_cv) for run in fold}
    prune_runs(plan, [run for key, run in runs.items() if key in begun])


def prune_runs(plan: SearchPlan, runs: Iterable[Run]) -> None:
    """Delete models of inner folds that candidates of this search began, and that would fill the store.

    Rows are kept.
    """
    results = plan.store.results
    shared = {run.key for run in plan.encoder_runs}
    for run in runs:
        name, mark = f"runs/{run.key}", _name_mark(run.key, plan.study_name)
        if run.key in shared or not results.exists(mark):
            continue
        with contextlib.suppress(DataError), results.lock(f"{name}/lock") as locked:  # somebody else is at it
            if results.list_files(f"{name}/{MARKS}") != [mark]:
                locked.delete(mark)  # another study trains it too
                continue
            if run.kind == "encoder" and run.embedded_recordings:
                delete_embeddings(locked, build_embedding_key(run.key, run.embedded_recordings))
            locked.delete(name, last=f"{MARKS}/{plan.study_name}.json")
