"""Read which recording each row of a table names, where there is one row a recording."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eav_ray.data.io.tables import EMPTY_CELLS, Table
from eav_ray.errors import DataError, describe_error

SUBJECT_NAME = "subject"  # the column of a table that says whose recording a row is of


@dataclass(frozen=True)
class RowKeys:
    """What the rows of a table name.

    Attributes:
        setting: The section of the experiment that names the table, for errors.
        column: That names recordings.
        keys: What each row names.
        subjects: Whose recording; none where there is no such column.
        numbers: Of the rows, from 1 below the header.
    """

    path: Path
    setting: str
    column: str
    keys: tuple[str, ...]
    subjects: tuple[str, ...]
    numbers: Sequence[int]

    def get_subject(self, row: int) -> str:
        """Return whose recording a row is of; empty where it does not say."""
        return "" if not self.subjects or self.subjects[row] in EMPTY_CELLS else self.subjects[row]

    def list_names(self, row: int) -> list[str]:
        """List what a row may call its recording, the fullest name first."""
        subject, key = self.get_subject(row), self.keys[row]
        return [*([f"{subject}/{key}"] if subject else []), key]

    def describe(self, row: int) -> str:
        """Write what a row names, for errors."""
        subject = self.get_subject(row)
        return f"{self.keys[row]!r}{f' of subject {subject!r}' if subject else ''}"


def read_row_keys(table: Table, path: Path, column: str, setting: str) -> RowKeys:
    """Read the columns that name recordings; raises DataError where they are not there, or hold no names."""
    if column not in table.columns:
        available = ", ".join(list(table.columns)[:8])
        raise DataError(
            f"{path} has no column {column}; it begins with {available}; set {setting}.key to the column that names "
            "recordings"
        )
    try:
        keys = tuple(table.read_names(column))
        has_subjects = SUBJECT_NAME in table.columns and column != SUBJECT_NAME
        subjects = tuple(table.read_names(SUBJECT_NAME)) if has_subjects else ()
    except ValueError as error:
        raise DataError(f"{path}: the columns that name recordings cannot be read ({describe_error(error)})") from None
    return RowKeys(path, setting, column, keys, subjects, table.numbers)
