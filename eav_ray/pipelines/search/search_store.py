"""Read and write what the results store keeps of a search, under `searches/<study>/`."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from eav_ray.config import Experiment, SearchConfig, to_dict
from eav_ray.data.io import parquet
from eav_ray.storage import Store, list_package_versions
from eav_ray.training.checkpoint import OpenedCheckpoint
from eav_ray.training.run_spec import SELECTION_METRIC, Run
from eav_ray.tuning.best import write_best_record
from eav_ray.tuning.study import Candidate, StudyClient

VERSIONS_FORMAT = 1  # of `versions.json`

Row = dict[str, Any]  # what is known of a candidate on one fold


def build_candidates_table(rows: list[Row]) -> pd.DataFrame:
    """Build `candidates.parquet`: one row per candidate and fold."""
    return pd.DataFrame(rows).sort_values(["candidate", "fold"], ignore_index=True)


@dataclass(frozen=True)
class SearchResult:
    study_name: str
    candidate: Candidate
    inner_score: float
    checkpoint: str  # prefix in the results store
    path: str  # of that checkpoint


@dataclass(frozen=True)
class RankedCandidate:
    """One of the best candidates, and what its refit trains, last of all the result."""

    candidate: Candidate
    score: float  # mean over the inner folds
    runs: list[Run]

    @property
    def result_key(self) -> str:
        return self.runs[-1].key


@dataclass(frozen=True)
class SearchStore:
    """The folder of a search: `candidates.parquet`, `best.json`, `search.html`, and the study's journal."""

    results: Store
    study_name: str

    @property
    def folder(self) -> str:
        return f"searches/{self.study_name}"

    @property
    def candidates_file(self) -> str:
        """The table that has one row per candidate and fold."""
        return f"{self.folder}/candidates.parquet"

    @contextmanager
    def lock(self, experiment: Experiment) -> Iterator[None]:
        """Hold the folder for this process alone.

        Raises:
            DataError: Another process holds it.
        """
        with self.results.lock(f"{self.folder}/lock"):
            self.results.write_json(f"{self.folder}/experiment.json", to_dict(experiment))
            self.results.write_json(
                f"{self.folder}/versions.json", {"format": VERSIONS_FORMAT, "packages": list_package_versions()}
            )
            yield

    def open_study(self, search: SearchConfig) -> StudyClient:
        """Open the study, in the database that the experiment names, or in its journal."""
        return StudyClient(search, self.study_name, search.storage or self._prepare_journal())

    @property
    def _journal_path(self) -> Path:
        """The study's journal: beside the results on a local disk, else a local file that is copied at every batch."""
        if self.results.is_local:
            return Path(self.results.resolve_path(f"{self.folder}/journal.log"))
        return Path("journals") / f"{self.folder.replace('/', '-')}.log"

    def _prepare_journal(self) -> Path:
        path, name = self._journal_path, f"{self.folder}/journal.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not self.results.is_local and self.results.exists(name):
            # The store's copy counts: a local one may be of a search that was continued elsewhere since.
            path.write_bytes(self.results.read(name))
        return path

    def upload_journal(self, study: StudyClient) -> None:
        """Copy the journal to the results store, where it does not lie there."""
        if not self.results.is_local and not study.search.storage:
            self.results.write(f"{self.folder}/journal.log", self._journal_path.read_bytes())

    def write_candidates(self, rows: list[Row]) -> None:
        self.results.write(self.candidates_file, parquet.encode_dataframe(build_candidates_table(rows)))

    def read_candidates(self) -> pd.DataFrame:
        """Read the table of candidates; empty where there is none yet."""
        if not self.results.exists(self.candidates_file):
            return pd.DataFrame()
        return parquet.decode_dataframe(
            self.results.read(self.candidates_file), self.results.format_path(self.candidates_file)
        )

    def read_completed_rows(self, study: StudyClient) -> list[Row]:
        """Read the rows of the candidates that the study knows the score of."""
        completed = set(study.completed())
        rows = self.read_candidates().to_dict("records")
        return [{str(k): v for k, v in row.items()} for row in rows if row["candidate"] in completed]

    def write_best(self, ranked: list[RankedCandidate], prefixes: dict[str, str]) -> SearchResult:
        """Write `best.json`.

        Args:
            prefixes: Prefixes of the finished checkpoints of the refit, by key.
        """
        records = [
            {
                "candidate": one.candidate.number,
                "changes": one.candidate.changes,
                "metric": SELECTION_METRIC,
                "value": one.score,
                "checkpoint": prefixes[one.result_key],
                "commit_sha256": OpenedCheckpoint(self.results, prefixes[one.result_key]).commit_sha256,
                "epoch": one.runs[-1].epochs,
            }
            for one in ranked
        ]
        write_best_record(self.results, self.study_name, records)
        first, checkpoint = ranked[0], prefixes[ranked[0].result_key]
        return SearchResult(
            self.study_name, first.candidate, first.score, checkpoint, self.results.format_path(checkpoint)
        )
