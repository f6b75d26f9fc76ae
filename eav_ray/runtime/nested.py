"""A protocol whose every fold has a search of its own: chosen on inner folds of its training people, tested once.

One search for all folds would have seen each fold's test people in the inner folds of the others.
"""

import contextlib
from dataclasses import dataclass, replace

from eav_ray.config import Experiment, digest
from eav_ray.data.split import count_folds, list_labeled_recordings
from eav_ray.errors import ConfigError, DataError
from eav_ray.runtime.groups import run_each
from eav_ray.runtime.protocol import CVReport, CVResult, Planned, evaluate_folds, load_or_run
from eav_ray.runtime.train import Data, open_data
from eav_ray.runtime.tune import Plan, RankedCandidate, announce_search, choose, lock_search, plan, write_best
from eav_ray.storage import Store

FORMAT = 2  # raise when what is kept changes


@dataclass(frozen=True)
class FoldSearch:
    number: int
    experiment: Experiment  # with this fold's index
    search: Plan


def run_nested(experiment: Experiment) -> CVReport:
    """Search, refit and test every fold, or what is left of them; `fold.index` does not matter.

    Raises:
        ConfigError: A fold that cannot be searched.
        DataError: Not one fold could be scored, or another process is at the same.
    """
    e = experiment
    data, results = open_data(e), Store(e.store.results)
    folds = plan_folds(e, data)
    planned = [Planned(f.number, f.search.outer, []) for f in folds]  # its runs are known when it is searched
    return load_or_run(e, planned, data, nested_key(e, folds), lambda: _searched_and_tested(e, folds, data, results))


def plan_folds(experiment: Experiment, data: Data) -> list[FoldSearch]:
    """The search of every fold of the experiment's protocol.

    Raises:
        ConfigError: A fold that cannot be searched, by its number.
    """
    e, found = experiment, []
    for number in range(count_folds(list_labeled_recordings(data.windows.ids, e.data, e.seed), e.split)):
        of_fold = replace(e, fold=replace(e.split, index=number))
        try:
            found.append(FoldSearch(number, of_fold, plan(of_fold, data.windows)))
        except ConfigError as error:
            raise ConfigError(f"fold {number} cannot be searched: {error}") from None
    return found


def nested_key(experiment: Experiment, folds: list[FoldSearch]) -> str:
    """Equal only for equal searches of equal length that are tested on equal recordings."""
    asked = [[f.search.study, sorted(f.search.outer.test)] for f in folds]
    return f"{experiment.name}-searched-{digest(FORMAT, asked, experiment.search.candidates)}"


def _searched_and_tested(
    e: Experiment, folds: list[FoldSearch], data: Data, results: Store
) -> tuple[CVResult, dict[int, str]]:
    announce_search(e, [f.search for f in folds], data)
    chosen, failed = _searched(folds, data, _encoders(e, folds, data))
    by_number = {f.number: f for f in folds}
    with contextlib.ExitStack() as stack:
        for number in chosen:
            stack.enter_context(lock_search(by_number[number].experiment, by_number[number].search))
        todo = [run for some in chosen.values() for one in some for run in one.runs]
        seen = tuple(sorted({i for number in chosen for i in by_number[number].search.question.embed}))
        state = run_each(e, todo, data.shards, data.index, seen, title="refit the best of each fold")
        for number, some in chosen.items():
            if all(one.runs[-1].key in state.done for one in some):
                write_best(by_number[number].experiment, by_number[number].search, some, state.done)
    planned = [Planned(n, by_number[n].search.outer, some[0].runs) for n, some in chosen.items()]
    result, untested = evaluate_folds(e, planned, data, results, state.failed)
    for fact in result.folds:
        best = chosen[fact["fold"]][0]
        fact["search"] = {
            "study": by_number[fact["fold"]].search.study,
            "candidate": best.candidate.number,
            "changes": best.candidate.changes,
            "inner": best.score,
        }
    return result, failed | untested


def _encoders(e: Experiment, folds: list[FoldSearch], data: Data) -> dict[str, str]:
    """Train the encoders of all searches by one queue; returns why one, by its key, could not be."""
    seen = tuple(sorted({i for f in folds for i in f.search.question.embed}))
    left = list({(run.key, run.embedded_recordings): run for f in folds for run in f.search.encoders}.values())
    failed: dict[str, str] = {}
    while left:
        # Equal training rows are trained once; each further fold that shares them embeds its own recordings, and none
        # that it tests.
        now = {run.key: run for run in reversed(left)}
        failed |= run_each(e, list(now.values()), data.shards, data.index, seen, title="train encoders").failed
        left = [run for run in left if run is not now[run.key] and run.key not in failed]
    return failed


def _searched(
    folds: list[FoldSearch], data: Data, broken: dict[str, str]
) -> tuple[dict[int, list[RankedCandidate]], dict[int, str]]:
    """The best candidates of each fold, and why another fold has none."""
    chosen: dict[int, list[RankedCandidate]] = {}
    failed: dict[int, str] = {}
    for f in folds:
        if reason := next((f"{run.key}: {broken[run.key]}" for run in f.search.encoders if run.key in broken), ""):
            failed[f.number] = reason
            continue
        try:
            with lock_search(f.experiment, f.search):
                chosen[f.number] = choose(f.experiment, f.search, data.shards, data.index)
        except DataError as error:
            failed[f.number] = str(error)
    return chosen, failed
