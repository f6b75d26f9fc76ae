"""Read and write the records of a search in the results store."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from eav_ray.config import Experiment, to_dict
from eav_ray.data.io import parquet
from eav_ray.pipelines.search.candidate_searcher import Row
from eav_ray.pipelines.search.search_plan import SearchPlan
from eav_ray.storage import Store, list_package_versions, sha256
from eav_ray.training.run_spec import SELECTION_METRIC, Run
from eav_ray.tuning.study import Candidate, StudyClient


@dataclass(frozen=True)
class SearchResult:
    study_name: str
    candidate: Candidate
    inner_score: float
    checkpoint: str  # prefix in the results store


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


def write_best(
    experiment: Experiment, plan: SearchPlan, ranked: list[RankedCandidate], prefixes: dict[str, str]
) -> SearchResult:
    """Write `best.json`.

    Args:
        prefixes: Prefixes of the finished checkpoints of the refit, by key.
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
        f"{get_search_folder(plan)}/best.json", {"study": plan.study_name} | records[0] | {"runners_up": records[1:]}
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


def write_candidates_table(results: Store, folder: str, rows: list[Row]) -> None:
    results.write(f"{folder}/candidates.parquet", parquet.encode_dataframe(build_candidates_table(rows)))


def upload_journal(study: StudyClient, results: Store, folder: str) -> None:
    if not results.is_local and not study.search.storage:
        results.write(f"{folder}/journal.log", get_journal_path(results, folder).read_bytes())


def read_completed_rows(results: Store, folder: str, study: StudyClient) -> list[Row]:
    completed = set(study.completed())
    table = read_candidates_table(results, folder)
    return [{str(k): v for k, v in row.items()} for row in table.to_dict("records") if row["candidate"] in completed]


def read_candidates_table(results: Store, folder: str) -> pd.DataFrame:
    name = f"{folder}/candidates.parquet"
    return parquet.decode_dataframe(results.read(name), f"{results}/{name}") if results.exists(name) else pd.DataFrame()


def build_candidates_table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """`candidates.parquet`: one row per candidate and fold."""
    return pd.DataFrame(rows).sort_values(["candidate", "fold"], ignore_index=True)
