"""Read and write what the results store keeps of a search, under `searches/<study>/`."""

import secrets
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
from eav_ray.tuning.best import read_best_record, write_best_record
from eav_ray.tuning.study import Candidate, StoreIdentity, StudyClient, count_candidates

VERSIONS_FORMAT = 1  # of `versions.json`
OWNER_FORMAT = 1  # of `owner.json`, which tells this folder from that of any other results store

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
    """The folder of a search: `candidates.parquet`, `best.json`, `search.html`, and the study's journal.

    Each driver keeps its own rows and its own copy of a journal, so that none can lose another's.
    """

    results: Store
    study_name: str
    driver: str = ""  # the name of a process that holds the lock; sorts after those of all that held it before

    @property
    def folder(self) -> str:
        return f"searches/{self.study_name}"

    @property
    def candidates_file(self) -> str:
        """The table that has one row per candidate and fold."""
        return f"{self.folder}/candidates.parquet"

    @contextmanager
    def lock(self, experiment: Experiment) -> Iterator["SearchStore"]:
        """Hold the folder for this process alone; returns what it may write.

        Raises:
            DataError: Another process holds it.
        """
        with self.results.lock(f"{self.folder}/lock") as results:
            results.write_json(f"{self.folder}/experiment.json", to_dict(experiment))
            results.write_json(
                f"{self.folder}/versions.json", {"format": VERSIONS_FORMAT, "packages": list_package_versions()}
            )
            # A server that cannot write conditionally counts no holders.
            number = results.fence or 1 + max((_parse_number(name) for name in self._list_journals()), default=0)
            locked = SearchStore(results, self.study_name, f"{number:06d}-{secrets.token_hex(4)}")
            try:
                yield locked
            finally:
                if not results.is_local:
                    locked._journal_path.unlink(missing_ok=True)

    def check_lock(self) -> None:
        """Check that no other driver has taken the search over.

        Raises:
            DataError: One has.
        """
        self.results.check_lock()

    def open_study(self, search: SearchConfig) -> StudyClient:
        """Open the study, in the database that the experiment names, or in its journal."""
        if not search.storage:
            return StudyClient(search, self.study_name, self._prepare_journal())
        name = f"{self.folder}/owner.json"
        if not self.results.exists(name):
            self.results.write_json(name, {"format": OWNER_FORMAT, "id": secrets.token_hex(8)})
        owner = StoreIdentity(self.results.read_json(name)["id"], str(self.results))
        return StudyClient(search, self.study_name, search.storage, owner)

    @property
    def _journal_path(self) -> Path:
        """The study's journal: beside the results on a local disk, else a local file that is copied at every batch."""
        if self.results.is_local:
            return Path(self.results.resolve_path(f"{self.folder}/journal.log"))
        return Path("journals") / f"{self.study_name}-{self.driver}.log"

    def _list_journals(self) -> list[str]:
        """List the copies that drivers have made, the newest last."""
        return self.results.list_files(f"{self.folder}/journals")

    def _prepare_journal(self) -> Path:
        path = self._journal_path
        path.parent.mkdir(parents=True, exist_ok=True)
        is_here = self.results.is_local and path.exists()
        if not is_here and (copies := self._list_journals()):
            path.write_bytes(self.results.read(copies[-1]))
        return path

    def upload_journal(self, study: StudyClient) -> None:
        """Copy the journal to the results store, where it does not lie there."""
        if not self.results.is_local and not study.search.storage:
            self.results.write(f"{self.folder}/journals/{self.driver}.log", self._journal_path.read_bytes())

    def write_candidates(self, own_rows: list[Row], rows: list[Row]) -> None:
        """Write the rows that this driver has made, and `candidates.parquet`, in which are all.

        Raises:
            DataError: Another driver has taken the search over.
        """
        own = parquet.encode_dataframe(build_candidates_table(own_rows))
        self.results.write(f"{self.folder}/candidates/{self.driver}.parquet", own)
        is_whole = len(own_rows) == len(rows)  # no other driver was there before
        data = own if is_whole else parquet.encode_dataframe(build_candidates_table(rows))
        self.results.write(self.candidates_file, data)

    def read_candidates(self) -> pd.DataFrame:
        """Read the rows of all drivers, of each candidate those of the last; empty where there are none yet."""
        tables: list[pd.DataFrame] = []
        for name in reversed(self.results.list_files(f"{self.folder}/candidates")):
            table = parquet.decode_dataframe(self.results.read(name), self.results.format_path(name))
            known = [number for later in tables for number in later["candidate"]]
            tables.append(table[~table["candidate"].isin(known)])
        if not tables:
            return pd.DataFrame()
        return pd.concat(tables).sort_values(["candidate", "fold"], ignore_index=True)

    def count_scored(self) -> int:
        """Count the candidates that have rows: they are not tried again."""
        table = self.read_candidates()
        return int(table["candidate"].nunique()) if len(table) else 0

    def is_finished(self, search: SearchConfig) -> bool:
        """Tell whether as many candidates as are wanted were scored, and as many of the best kept."""
        best, table = read_best_record(self.results, self.study_name), self.read_candidates()
        if best is None or not len(table) or table["candidate"].nunique() < count_candidates(search):
            return False
        return 1 + len(best.get("runners_up", [])) >= min(search.refit, table["changes"].nunique())  # equal ones: once

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


def _parse_number(name: str) -> int:
    return int(Path(name).name.partition("-")[0])
