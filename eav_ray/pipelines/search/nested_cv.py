"""A protocol whose every fold has a search of its own: chosen on inner folds of its training people, tested once.

One search for all folds would have seen each fold's test people in the inner folds of the others.
"""

import contextlib
from dataclasses import dataclass, replace

from eav_ray.config import Experiment, digest
from eav_ray.data.shards.dataset import Dataset, open_dataset
from eav_ray.data.splits import count_folds, list_labeled_recordings
from eav_ray.distributed.worker_groups import train_runs
from eav_ray.errors import ConfigError, DataError
from eav_ray.pipelines.search.search import announce_search, rank_candidates
from eav_ray.pipelines.search.search_plan import SearchPlan, plan_search
from eav_ray.pipelines.search.search_store import RankedCandidate, lock_search, write_best
from eav_ray.pipelines.train.cross_validation import CVReport, CVResult, PlannedFold, evaluate_folds, load_or_run
from eav_ray.storage import Store

FORMAT_VERSION = 2  # raise when what is kept changes


@dataclass(frozen=True)
class FoldSearch:
    number: int
    experiment: Experiment  # with this fold's index
    plan: SearchPlan


def cross_validate_nested(experiment: Experiment) -> CVReport:
    """Search, refit and test every fold, or what is left of them; `split.index` does not matter.

    Raises:
        ConfigError: A fold that cannot be searched.
        DataError: Not one fold could be scored, or another process is at the same.
    """
    e = experiment
    data, results = open_dataset(e), Store(e.store.results)
    folds = plan_fold_searches(e, data)
    planned_folds = [
        PlannedFold(f.number, f.plan.outer_split, []) for f in folds
    ]  # its runs are known when it is searched
    return load_or_run(
        e, planned_folds, data, make_nested_key(e, folds), lambda: _search_and_evaluate(e, folds, data, results)
    )


def plan_fold_searches(experiment: Experiment, data: Dataset) -> list[FoldSearch]:
    """The search of every fold of the experiment's protocol.

    Raises:
        ConfigError: A fold that cannot be searched, by its number.
    """
    e, fold_searches = experiment, []
    for number in range(count_folds(list_labeled_recordings(data.windows.ids, e.data, e.seed), e.split)):
        fold_experiment = replace(e, split=replace(e.split, index=number))
        try:
            fold_searches.append(FoldSearch(number, fold_experiment, plan_search(fold_experiment, data.windows)))
        except ConfigError as error:
            raise ConfigError(f"fold {number} cannot be searched: {error}") from None
    return fold_searches


def make_nested_key(experiment: Experiment, folds: list[FoldSearch]) -> str:
    """Equal only for equal searches of equal length that are tested on equal recordings."""
    questions = [[f.plan.study_name, sorted(f.plan.outer_split.test)] for f in folds]
    return f"{experiment.name}-nested-{digest(FORMAT_VERSION, questions, experiment.search.candidates)}"


def _search_and_evaluate(
    e: Experiment, folds: list[FoldSearch], data: Dataset, results: Store
) -> tuple[CVResult, dict[int, str]]:
    announce_search(e, [f.plan for f in folds], data)
    chosen, failed = _search_folds(folds, data, _train_encoders(e, folds, data))
    by_number = {f.number: f for f in folds}
    with contextlib.ExitStack() as stack:
        for number in chosen:
            stack.enter_context(lock_search(by_number[number].experiment, by_number[number].plan))
        todo = [run for ranked in chosen.values() for one in ranked for run in one.runs]
        allowed_recordings = tuple(
            sorted({i for number in chosen for i in by_number[number].plan.inner_cv.embedded_recordings})
        )
        state = train_runs(e, todo, data.shards, data.index, allowed_recordings, title="refit the best of each fold")
        for number, some in chosen.items():
            if all(one.runs[-1].key in state.done for one in some):
                write_best(by_number[number].experiment, by_number[number].plan, some, state.done)
    planned_folds = [PlannedFold(n, by_number[n].plan.outer_split, some[0].runs) for n, some in chosen.items()]
    result, not_evaluated = evaluate_folds(e, planned_folds, data, results, state.failed)
    for record in result.fold_records:
        best = chosen[record["fold"]][0]
        record["search"] = {
            "study": by_number[record["fold"]].plan.study_name,
            "candidate": best.candidate.number,
            "changes": best.candidate.changes,
            "inner_score": best.score,
        }
    return result, failed | not_evaluated


def _train_encoders(e: Experiment, folds: list[FoldSearch], data: Dataset) -> dict[str, str]:
    """Train the encoders of all searches by one queue; returns why one, by its key, could not be."""
    allowed_recordings = tuple(sorted({i for f in folds for i in f.plan.inner_cv.embedded_recordings}))
    left = list({(run.key, run.embedded_recordings): run for f in folds for run in f.plan.encoder_runs}.values())
    failed: dict[str, str] = {}
    while left:
        # Equal training rows are trained once; each further fold that shares them embeds its own recordings, and none
        # that it tests.
        now = {run.key: run for run in reversed(left)}
        failed |= train_runs(
            e, list(now.values()), data.shards, data.index, allowed_recordings, title="train encoders"
        ).failed
        left = [run for run in left if run is not now[run.key] and run.key not in failed]
    return failed


def _search_folds(
    folds: list[FoldSearch], data: Dataset, failed_encoders: dict[str, str]
) -> tuple[dict[int, list[RankedCandidate]], dict[int, str]]:
    """The best candidates of each fold, and why another fold has none."""
    chosen: dict[int, list[RankedCandidate]] = {}
    failed: dict[int, str] = {}
    for f in folds:
        if reason := next(
            (f"{run.key}: {failed_encoders[run.key]}" for run in f.plan.encoder_runs if run.key in failed_encoders), ""
        ):
            failed[f.number] = reason
            continue
        try:
            with lock_search(f.experiment, f.plan):
                chosen[f.number] = rank_candidates(f.experiment, f.plan, data.shards, data.index)
        except DataError as error:
            failed[f.number] = str(error)
    return chosen, failed
