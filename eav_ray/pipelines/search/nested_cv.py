"""A protocol whose every fold has a search of its own: chosen on inner folds of its training people, tested once.

One search for all folds would have seen each fold's test people in the inner folds of the others.
"""

import contextlib
from dataclasses import replace

from eav_ray.config import Experiment, digest
from eav_ray.data.shards.dataset import Dataset, open_dataset
from eav_ray.data.splits import count_folds, list_labeled_recordings
from eav_ray.distributed.worker_groups import train_runs
from eav_ray.errors import ConfigError, DataError, UnrecoverableError
from eav_ray.pipelines.search.search import announce_search, rank_candidates
from eav_ray.pipelines.search.search_plan import SearchPlan, plan_search
from eav_ray.pipelines.search.search_store import RankedCandidate
from eav_ray.pipelines.train.cross_validation import CVReport, CVResult, PlannedFold, evaluate_folds, load_or_run
from eav_ray.storage import Store

FORMAT_VERSION = 2  # raise when what is kept changes


def cross_validate_nested(experiment: Experiment) -> CVReport:
    """Search, refit and test every fold, or what is left of them; `split.index` does not matter.

    Raises:
        ConfigError: A fold that cannot be searched.
        DataError: Not one fold could be scored, or another process is at the same.
    """
    e = experiment
    data, results = open_dataset(e), Store(e.store.results)
    plans = plan_fold_searches(e, data)
    # What a fold trains is known when it is searched.
    folds = [PlannedFold(plan.fold, plan.outer_split, []) for plan in plans]

    def search_and_evaluate(connected: Experiment) -> tuple[CVResult, dict[int, str]]:
        return _search_and_evaluate(connected, plans, data, results)

    return load_or_run(e, folds, data, make_nested_key(e, plans), search_and_evaluate)


def plan_fold_searches(experiment: Experiment, data: Dataset) -> list[SearchPlan]:
    """Plan the search of every fold of the experiment's protocol.

    Raises:
        ConfigError: A fold that cannot be searched, by its number.
    """
    e, plans = experiment, []
    for number in range(count_folds(list_labeled_recordings(data.windows.ids, e.data, e.seed), e.split)):
        try:
            plans.append(plan_search(replace(e, split=replace(e.split, index=number)), data))
        except ConfigError as error:
            raise ConfigError(f"fold {number} cannot be searched: {error}") from None
    return plans


def make_nested_key(experiment: Experiment, plans: list[SearchPlan]) -> str:
    """Make a key that is equal only for equal searches of equal length that are tested on equal recordings."""
    questions = [[plan.study_name, sorted(plan.outer_split.test)] for plan in plans]
    return f"{experiment.name}-nested-{digest(FORMAT_VERSION, questions, experiment.search.candidates)}"


def _search_and_evaluate(
    e: Experiment, plans: list[SearchPlan], data: Dataset, results: Store
) -> tuple[CVResult, dict[int, str]]:
    plans = [replace(plan, experiment=replace(plan.experiment, runtime=e.runtime)) for plan in plans]
    announce_search(e, plans, data)
    chosen, failed = _search_folds(plans, data, _train_encoders(e, plans, data))
    chosen_plans = {plan.fold: plan for plan in plans if plan.fold in chosen}
    with contextlib.ExitStack() as stack:
        chosen_plans = {fold: stack.enter_context(plan.lock()) for fold, plan in chosen_plans.items()}
        todo = [run for ranked in chosen.values() for one in ranked for run in one.runs]
        state = train_runs(e, todo, data, title="refit the best of each fold")
        for fold, ranked in chosen.items():
            if all(one.result_key in state.done for one in ranked):
                chosen_plans[fold].store.write_best(ranked, state.done)
    folds = [PlannedFold(fold, plan.outer_split, chosen[fold][0].runs) for fold, plan in chosen_plans.items()]
    result, not_evaluated = evaluate_folds(e, folds, data, results, state.failed)
    for record in result.fold_records:
        best = chosen[record["fold"]][0]
        record["search"] = {
            "study": chosen_plans[record["fold"]].study_name,
            "candidate": best.candidate.number,
            "changes": best.candidate.changes,
            "inner_score": best.score,
        }
    return result, failed | not_evaluated


def _train_encoders(e: Experiment, plans: list[SearchPlan], data: Dataset) -> dict[str, str]:
    """Train the encoders of all searches by one queue; returns why one, by its key, could not be."""
    left = list({(run.key, run.embedded_recordings): run for plan in plans for run in plan.encoder_runs}.values())
    failed: dict[str, str] = {}
    while left:
        # Equal training rows are trained once; each further fold that shares them embeds its own recordings, and none
        # that it tests.
        now = {run.key: run for run in reversed(left)}
        failed |= train_runs(e, list(now.values()), data, title="train encoders").failed
        left = [run for run in left if run is not now[run.key] and run.key not in failed]
    return failed


def _search_folds(
    plans: list[SearchPlan], data: Dataset, failed_encoders: dict[str, str]
) -> tuple[dict[int, list[RankedCandidate]], dict[int, str]]:
    """Search each fold; returns the best candidates of each, and why another has none."""
    chosen: dict[int, list[RankedCandidate]] = {}
    failed: dict[int, str] = {}
    for plan in plans:
        if keys := [run.key for run in plan.encoder_runs if run.key in failed_encoders]:
            failed[plan.fold] = f"{keys[0]}: {failed_encoders[keys[0]]}"
            continue
        try:
            with plan.lock() as locked:
                chosen[plan.fold] = rank_candidates(locked, data)
        except UnrecoverableError:
            raise
        except DataError as error:
            failed[plan.fold] = str(error)
    return chosen, failed
