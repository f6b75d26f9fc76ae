"""Read the tables of a BIDS data set: people, sessions, scans, events and channels."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from eav_ray.data.io.bids_layout import Run, find_electrodes, find_sidecar
from eav_ray.data.io.file_access import is_file
from eav_ray.data.io.numbers import RowNumbers, check_decimal_marks, describe_decimal_commas, parse_row
from eav_ray.data.io.tables import EMPTY_CELLS, Table, read_tabular_file
from eav_ray.data.recordings import Span
from eav_ray.errors import DataError, suggest_nearest

KEY_COLUMNS = ("participant_id", "session_id", "filename", "onset", "name")  # by which headers are found
NO_LABEL_COLUMNS = (*KEY_COLUMNS, "duration", "sample", "acq_time")
BAD_PREFIX, BOUNDARY = "bad", "boundary"  # of events that are no stimulus, in small letters


@dataclass(frozen=True)
class Event:
    """A row of `events.tsv`."""

    number: int  # of the row, from 1
    start_s: float
    duration_s: float  # NaN where the table does not say
    cells: Mapping[str, str]

    @property
    def is_mark(self) -> bool:
        """Whether it marks what is not to be used, or where a recording was joined, and is no stimulus."""
        return is_mark(self.cells.get("trial_type", ""))


def is_mark(kind: str) -> bool:
    """Whether a type of event says what is not to be used, or where a recording was joined."""
    return kind.lower().startswith((BAD_PREFIX, f"edge {BOUNDARY}")) or kind.lower() == BOUNDARY


@dataclass(frozen=True)
class Channel:
    """A row of `channels.tsv`."""

    kind: str  # in capital letters: EEG, EOG, MISC, ...
    unit: str
    bad: str  # why it is bad; empty where it is not


class BIDSTables:
    """The tables of a data set, each read once.

    Args:
        root: Of the data set.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._tables: dict[Path, Table | DataError] = {}
        self._rows: dict[Path, dict[str, dict[str, str]]] = {}
        self._checked_columns: set[tuple[Path, str]] = set()  # of numbers
        self.remarks: dict[str, None] = {}  # how numbers were understood, a line each

    def read(self, path: Path, *names: str) -> Table:
        """Read a table once; raises DataError where it cannot be, or has none of the columns."""
        if path not in self._tables:
            try:
                self._tables[path] = read_tabular_file(path, {*names, *KEY_COLUMNS})
            except DataError as error:
                self._tables[path] = error
        table = self._tables[path]
        if isinstance(table, DataError):
            raise table
        for name in names:
            if name not in table.columns:
                found = ", ".join(table.columns)
                raise DataError(f"{path} has no column {name}; it has {found}{suggest_nearest(name, table.columns)}")
        return table

    def _read_rows(self, path: Path, key: str, *names: str) -> dict[str, dict[str, str]]:
        """Read the rows of a table, once, by the cells of a column; raises DataError where two rows have one."""
        table = self.read(path, key, *names)
        if path in self._rows:
            return self._rows[path]
        columns = {name: table.read_names(name) for name in table.columns}
        rows: dict[str, dict[str, str]] = {}
        for i, name in enumerate(columns[key]):
            if name in rows:
                raise DataError(f"{path}: two rows have the {key} {name}; keep one")
            rows[name] = {column: "" if cells[i] in EMPTY_CELLS else cells[i] for column, cells in columns.items()}
        self._rows[path] = rows
        return rows

    def _find_scans_table(self, run: Run) -> Path:
        folder = self.root / run.subject / (f"ses-{run.session}" if run.session else "")
        return folder / f"{run.subject}{f'_ses-{run.session}' if run.session else ''}_scans.tsv"

    def read_scan(self, run: Run, *names: str) -> tuple[dict[str, str], Path]:
        """Read the row of a run in its `scans.tsv`, which may be that of any of its files."""
        path = self._find_scans_table(run)
        if not is_file(path):
            raise DataError(f"{path} is missing; it should name {run.name}")
        rows = {
            Path(name).with_suffix("").as_posix(): row
            for name, row in self._read_rows(path, "filename", *names).items()
        }
        for file in (file for files in run.files.values() for file in files):
            name = file.relative_to(path.parent) if file.is_relative_to(path.parent) else file
            if (row := rows.get(name.with_suffix("").as_posix())) is not None:
                return row, path
        raise DataError(f"{path} has no row for {run.source} that can be used; add one, or correct its cells")

    def list_label_columns(self, run: Run) -> list[str]:
        """List the columns that may hold labels, by the tables of the first run."""
        paths = {
            "participants": self.root / "participants.tsv",
            "sessions": self.root / run.subject / f"{run.subject}_sessions.tsv",
            "scans": self._find_scans_table(run),
            "events": find_sidecar(self.root, run.source, "events") if run.source else None,
        }
        found = []
        for table, path in paths.items():
            if path is not None and is_file(path):
                found += [f"{table}.{name}" for name in self.read(path).columns if name not in NO_LABEL_COLUMNS]
        return found or ["participants.<column>", "events.trial_type"]

    def read_run_label(self, run: Run, label: str) -> str:
        """Read the label of a whole run; raises DataError where there is none."""
        cell, path, where = self._read_run_cell(run, label)
        if not cell:
            raise DataError(f"{path}: {where} has no {label.partition('.')[2]}; fill it in")
        return cell

    def read_run_number(self, run: Run, column: str) -> float:
        """Read a number of a whole run, such as `participants.score`; raises DataError where there is none."""
        cell, path, where = self._read_run_cell(run, column)
        row = self.parse_numbers(path, (column.partition(".")[2],), {column.partition(".")[2]: cell})
        if row.problem:
            raise DataError(f"{path}: {where}: {row.problem}; correct it, or leave its recordings out")
        return row.values[0]

    def parse_numbers(self, path: Path, columns: Sequence[str], cells: Mapping[str, str]) -> RowNumbers:
        """Parse the numbers in a row of a table; raises DataError where a column has two kinds of decimal marks."""
        table = self.read(path, *columns)
        for column in columns:
            if (path, column) not in self._checked_columns:
                check_decimal_marks(table, column, path)
                self._checked_columns.add((path, column))
                self.remarks |= dict.fromkeys(describe_decimal_commas(table, (column,), path))
        return parse_row([cells[column] for column in columns], columns, decimal_comma=table.decimal_comma)

    def _read_run_cell(self, run: Run, column: str) -> tuple[str, Path, str]:
        """Read a cell that is of a whole run, where it is, and whose row; raises DataError where there is no row."""
        table, _, name = column.partition(".")
        if table == "scans":
            row, path = self.read_scan(run, name)
            return row[name], path, run.name
        is_of_subject = table == "participants"
        path = (
            self.root / "participants.tsv" if is_of_subject else self.root / run.subject / f"{run.subject}_sessions.tsv"
        )
        where, key = (run.subject, "participant_id") if is_of_subject else (f"ses-{run.session}", "session_id")
        if not is_file(path):
            raise DataError(f"{path} is missing, so {run.subject} has no {column}; add it")
        rows = self._read_rows(path, key, name)
        row = rows.get(where) or rows.get(where.split("-", 1)[1])
        if row is None:
            raise DataError(f"{path} has no row for {where} that can be used; add one, or correct its cells")
        return row[name], path, where

    def read_events(self, source: Path) -> tuple[list[Event], list[str]]:
        """Read the events beside a file, by onset, and what is wrong with others; none where there is no table."""
        path = find_sidecar(self.root, source, "events")
        if path is None:
            return [], []
        table = self.read(path, "onset")
        texts = {name: table.read_names(name) for name in table.columns}
        events, wrong = [], [f"{path}: {reason}" for _, reason in table.problems]
        for i, number in enumerate(table.numbers):
            cells = {name: "" if column[i] in EMPTY_CELLS else column[i] for name, column in texts.items()}
            try:
                start_s = float(cells["onset"].replace(",", "."))
                duration_s = float((cells.get("duration") or "nan").replace(",", "."))
                if not math.isfinite(start_s) or duration_s < 0 or math.isinf(duration_s):
                    raise ValueError
            except ValueError:
                reason = f"{path}: row {number} has no onset and duration in seconds; correct it"
                wrong.append(reason)
                continue
            events.append(Event(number, start_s, duration_s, cells))
        return sorted(events, key=lambda event: (event.start_s, event.number)), wrong

    def sort_by_time(self, runs: list[Run]) -> list[Run]:
        """Sort the runs of a subject by when they were recorded, where `scans.tsv` says so of all; else by name."""
        times = []
        for run in runs:
            try:
                row, _ = self.read_scan(run, "acq_time")
                times.append(datetime.fromisoformat(row["acq_time"]).replace(tzinfo=None))
            except (DataError, ValueError):
                return runs
        return [run for _, run in sorted(zip(times, runs, strict=True), key=lambda pair: pair[0])]

    def find_marks(self, source: Path) -> tuple[tuple[Span, ...], tuple[float, ...], list[str]]:
        """Find what `events.tsv` says is not to be used, where the recording was joined, and what is wrong in it.

        Returns:
            Spans in seconds, times of joins, and a line for each row that cannot be used.
        """
        events, wrong = self.read_events(source)
        marks = [(e.start_s, e.start_s + (e.duration_s if e.duration_s > 0 else 0.0)) for e in events if e.is_mark]
        spans_s = tuple((max(0.0, first_s), last_s) for first_s, last_s in marks if last_s > max(0.0, first_s))
        return spans_s, tuple(first_s for first_s, last_s in marks if first_s == last_s > 0), wrong

    def read_channels(self, source: Path) -> dict[str, Channel]:
        """Read the channels beside a file, by name, in order; none where there is no table.

        Raises:
            DataError: The table has no `name` or `type`, a row that cannot be used, or one name twice.
        """
        path = find_sidecar(self.root, source, "channels")
        if path is None:
            return {}
        if problems := self.read(path, "name", "type").problems:
            raise DataError(f"{path} has rows that cannot be used ({problems[0][1]})")
        channels: dict[str, Channel] = {}
        for name, row in self._read_rows(path, "name", "type").items():
            bad = ""
            if row.get("status", "").lower() == "bad":
                bad = f"bad in channels.tsv ({row.get('status_description') or 'no reason'})"
            channels[name] = Channel(row["type"].upper(), row.get("units", ""), bad)
        return channels

    def list_placed_channels(self, source: Path) -> frozenset[str]:
        """List the channels of which the table of electrodes beside a file states a place; none where it has none."""
        path = find_electrodes(source)
        if path is None:
            return frozenset()
        rows = self._read_rows(path, "name", "x", "y", "z")
        return frozenset(name for name, row in rows.items() if row["x"] and row["y"] and row["z"])
