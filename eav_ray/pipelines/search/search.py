"""The search: Ray Tune runs the candidates that the study's client suggests, each over all inner folds.

One Tune trial trains a few candidates, whose fusions are trained as one batch. What is known of the search lies
in the results store, under `searches/<study>/`: `candidates.parquet` (one row per candidate and fold), `best.json`,
`experiment.json` and the study's journal. Tune's own store is scratch: opening it would unpickle it.
"""

from eav_ray.config import Experiment, override
from eav_ray.data.shards.dataset import Dataset, open_dataset
from eav_ray.data.shards.index import ShardIndex
from eav_ray.distributed import cluster
from eav_ray.distributed.worker_groups import train_all_runs
from eav_ray.errors import DataError
from eav_ray.pipelines.search.search_plan import SearchPlan, plan_search
from eav_ray.pipelines.search.search_store import (
    RankedCandidate,
    SearchResult,
    get_search_folder,
    lock_search,
    prepare_journal,
    read_candidates_table,
    write_best,
)
from eav_ray.pipelines.search.trial_runner import count_concurrent_trials, prune_candidate_runs, run_candidates
from eav_ray.pipelines.train.workload import announce_workload
from eav_ray.reporting.search_page import render_search_page
from eav_ray.storage import Store
from eav_ray.training.run_spec import plan_runs
from eav_ray.tuning.study import Candidate, StudyClient


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
        raise DataError(f"not one of {study.n_asked} candidates has a score; see {results}/{folder}/candidates.parquet")
    html = render_search_page(
        plan.study_name, read_candidates_table(results, folder), study.compute_importances(), e.search
    )
    results.write(f"{folder}/search.html", html.encode())
    return list(ranked.values())
