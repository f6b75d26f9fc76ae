"""Read which recording each row of a table names, where there is one row a recording."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eav_ray.data.io.tables import Table
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

    def list_names(self, row: int) -> list[str]:
        """List what a row may call its recording, the fullest name first."""
        key = self.keys[row]
        return [*([f"{self.subjects[row]}/{key}"] if self.subjects else []), key]


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
        subjects = tuple(table.read_names(SUBJECT_NAME)) if SUBJECT_NAME in table.columns else ()
    except ValueError as error:
        raise DataError(f"{path}: the columns that name recordings cannot be read ({describe_error(error)})") from None
    return RowKeys(path, setting, column, keys, subjects, table.numbers)
