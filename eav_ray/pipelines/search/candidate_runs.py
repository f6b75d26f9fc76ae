"""What candidates of a search of whole trainings leave in the results store."""

import contextlib

from eav_ray.errors import DataError
from eav_ray.pipelines.search.search_plan import SearchPlan, plan_candidate_runs
from eav_ray.storage import Store
from eav_ray.training.embeddings import build_embedding_key, delete_embeddings, has_embeddings
from eav_ray.training.runner import is_run_finished
from eav_ray.tuning.search_space import apply_candidate
from eav_ray.tuning.study import Candidate

STUDY_FILE = "search.json"  # beside a run's attempts: the study whose candidate began it
STUDY_FILE_FORMAT = 1


def mark_run(results: Store, key: str, study_name: str) -> None:
    """Mark a run, before it begins, as begun by a candidate of a study."""
    results.write_json(f"runs/{key}/{STUDY_FILE}", {"format": STUDY_FILE_FORMAT, "study": study_name})


def belongs_to_study(results: Store, key: str, study_name: str) -> bool:
    """Tell whether a candidate of this study began a run; what another job or search began is its own."""
    name = f"runs/{key}/{STUDY_FILE}"
    return results.exists(name) and results.read_json(name) == {"format": STUDY_FILE_FORMAT, "study": study_name}


def list_missing_keys(plan: SearchPlan, candidate: Candidate) -> frozenset[str]:
    """List the keys of what a candidate will train, as far as it is not there yet."""
    results = plan.store.results
    folds = plan_candidate_runs(apply_candidate(plan.experiment, candidate.changes), plan.inner_cv)
    shared = {run.key for run in plan.inner_encoder_runs}
    runs = {run.key: run for fold in folds for run in fold}
    result_keys = {fold[-1].key for fold in folds}
    missing = [
        key
        for key, run in runs.items()
        if key not in shared and (key in result_keys or not is_run_finished(run, results))
    ]
    features = {run.features_prefix for run in runs.values()} - {""}
    return frozenset([*missing, *(prefix for prefix in features if not has_embeddings(results, prefix))])


def prune_candidate_runs(plan: SearchPlan, candidate: Candidate, *, include_encoders: bool = False) -> None:
    """Delete a candidate's models of inner folds, which nobody will use and would fill the store; its rows are kept.

    Args:
        include_encoders: The encoders too, which another candidate may share while the search goes on.
    """
    results = plan.store.results
    shared = {run.key for run in plan.encoder_runs}
    for runs in plan_candidate_runs(apply_candidate(plan.experiment, candidate.changes), plan.inner_cv):
        for run in runs if include_encoders else runs[-1:]:
            name = f"runs/{run.key}"
            if run.key in shared or not belongs_to_study(results, run.key, plan.study_name):
                continue
            with contextlib.suppress(DataError), results.lock(f"{name}/lock") as locked:  # somebody else is at it
                if run.kind == "encoder" and run.embedded_recordings:
                    delete_embeddings(locked, build_embedding_key(run.key, run.embedded_recordings))
                locked.delete(name, last=STUDY_FILE)
