"""The search: Ray Tune runs the candidates that the study suggests, each over all inner folds.

One Tune trial trains one or more candidates; fusions are trained as one batch. What is known of the search lies in the
results store, under `searches/<study>/`: `candidates.parquet` (one row per candidate and fold), `best.json`,
`experiment.json` and the study's journal. Tune's own store is scratch: opening it would unpickle it.
"""

from dataclasses import replace

from eav_ray.config import Experiment
from eav_ray.data.shards.dataset import Dataset, open_dataset
from eav_ray.distributed.connection import connect_experiment
from eav_ray.distributed.worker_groups import train_all_runs
from eav_ray.errors import DataError
from eav_ray.pipelines.inference.checkpoint_names import record_latest
from eav_ray.pipelines.search.candidate_runs import prune_candidate_runs
from eav_ray.pipelines.search.search_plan import SearchPlan, plan_search
from eav_ray.pipelines.search.search_store import RankedCandidate, SearchResult
from eav_ray.pipelines.search.trial_runner import count_concurrent_trials, run_candidates
from eav_ray.pipelines.train.workload import announce_workload
from eav_ray.reporting.search_page import render_search_page
from eav_ray.tuning.search_space import apply_candidate
from eav_ray.tuning.study import Candidate
from eav_ray.words import format_count


def search_experiment(experiment: Experiment) -> SearchResult:
    """Search one outer fold, or continue that search."""
    data = open_dataset(experiment)
    plan = plan_search(experiment, data)
    with connect_experiment(experiment) as experiment:
        plan = replace(plan, experiment=experiment)
        announce_search(experiment, [plan], data)
        return run_search(plan, data)


def announce_search(experiment: Experiment, plans: list[SearchPlan], data: Dataset) -> None:
    """Say what is to do, of one search or several, before anything starts."""
    announce_workload(
        experiment,
        [run for one in plans for run in one.encoder_runs],
        data,
        candidate_runs=[run for one in plans for run in one.list_candidate_runs()],
        refit_runs=[run for one in plans for run in one.list_refit_runs()],
        n_scored=sum(one.store.count_scored() for one in plans),
        max_concurrent_trials=count_concurrent_trials(experiment),
    )


def run_search(plan: SearchPlan, data: Dataset) -> SearchResult:
    """Train the encoders, try the candidates, refit the best one on all training rows.

    Everything that is finished already is skipped, so the same command continues a search that was killed.
    """
    if plan.encoder_runs:
        train_all_runs(plan.experiment, plan.encoder_runs, data, title="train encoders")
    with plan.lock() as plan:
        ranked = rank_candidates(plan, data)
        title = (
            "refit the best candidate"
            if len(ranked) == 1
            else f"refit the best {format_count(len(ranked), 'candidate')}"
        )
        prefixes = train_all_runs(plan.experiment, [run for one in ranked for run in one.runs], data, title=title)
        best = plan.store.write_best(ranked, prefixes)
    record_latest(plan.store.results, "searches", plan.study_name)
    return best


def rank_candidates(plan: SearchPlan, data: Dataset) -> list[RankedCandidate]:
    """Try the candidates that are not tried yet; returns the best of all, as many as are refitted.

    Raises:
        DataError: Not one has a score, or the search could not go on.
    """
    e, store = plan.experiment, plan.store
    study = store.open_study(e.search)
    run_candidates(plan, data, study)
    if e.search.mode == "full":
        prune_candidate_runs(plan, (Candidate(number, changes) for number, changes in study.list_changes().items()))
    # Lists of values are drawn again and again: equal candidates are refitted once.
    ranked: dict[str, RankedCandidate] = {}
    for candidate, score in study.rank():
        runs = plan.inner_cv.plan_runs(apply_candidate(e, candidate.changes), plan.outer_split)
        if runs[-1].key not in ranked and len(ranked) < e.search.refit:
            ranked[runs[-1].key] = RankedCandidate(candidate, score, runs)
    if not ranked:
        raise DataError(
            f"not one of {format_count(study.n_asked, 'candidate')} has a score; see "
            f"{store.results}/{store.candidates_file}"
        )
    html = render_search_page(plan.study_name, store.read_candidates(), study.compute_importances(), e.search)
    store.results.write(f"{store.folder}/search.html", html.encode())
    return list(ranked.values())
