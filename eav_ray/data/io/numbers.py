"""Read the numbers in cells of tables, strictly where they are to be predicted: a wrong one would be learnt."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from eav_ray.data.io.tables import EMPTY_CELLS, Table
from eav_ray.errors import DataError, suggest_nearest

NUMBER_PATTERN = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
MAX_NUMBER = 1e30  # no measurement is beyond; what programs write for a missing one is, as SPSS does (-1.8e308)
UNKNOWN = math.nan  # one object, as equal recordings must be equal


@dataclass(frozen=True)
class RowNumbers:
    """The numbers of a row, NaN where there is none, and why they cannot all be used; empty where they can."""

    values: tuple[float, ...]
    problem: str = ""
    n_stated: int = 0  # cells that hold something, be it a number or not


def parse_number(cell: Any, *, decimal_comma: bool = False) -> float:
    """Parse a cell of a table; NaN where it holds nothing.

    Args:
        cell: Text, or what a Parquet file holds.
        decimal_comma: Whether numbers in text may have a comma.
    Raises:
        ValueError: It is no number, infinite, or beyond `MAX_NUMBER`; says which.
    """
    if cell is None or cell != cell:  # NaN, which is not itself
        return UNKNOWN
    value = cell
    if isinstance(cell, str):
        value = cell.replace(",", ".") if decimal_comma else cell
        if value in EMPTY_CELLS:
            return UNKNOWN
        if not NUMBER_PATTERN.fullmatch(value):
            has_comma = NUMBER_PATTERN.fullmatch(value.replace(",", ".", 1))
            raise ValueError(f"{cell!r}, which is no number{' (write a point for the comma)' if has_comma else ''}")
    elif isinstance(cell, bool) or not isinstance(cell, int | float | Decimal):
        raise ValueError(f"{cell!r}, which is no number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{cell!r}, which is infinite")
    if abs(number) > MAX_NUMBER:
        raise ValueError(f"{cell!r}, which is beyond {MAX_NUMBER:g}, as marks of missing numbers are")
    return number


def parse_row(cells: Sequence[Any], columns: Sequence[str], *, decimal_comma: bool = False) -> RowNumbers:
    """Parse the cells of a row that should all be numbers."""
    values: list[float] = []
    faults: list[str] = []
    n_empty = 0
    for cell, column in zip(cells, columns, strict=True):
        try:
            values.append(parse_number(cell, decimal_comma=decimal_comma))
        except ValueError as error:
            values.append(UNKNOWN)
            faults.append(f"{column} is {error}")
            continue
        if math.isnan(values[-1]):
            stated = f" ({cell} means empty)" if isinstance(cell, str) and cell else ""
            faults.append(f"{column} is empty{stated}")
            n_empty += 1
    return RowNumbers(tuple(values), " and ".join(faults), len(values) - n_empty)


def read_rows(table: Table, columns: Sequence[str], path: Path, setting: str) -> list[RowNumbers]:
    """Read columns of numbers, row by row.

    Args:
        path: Of the table.
        setting: The key that names the columns.
    Raises:
        DataError: A column is not there, or has numbers with points and with commas.
    """
    for column in columns:
        if column not in table.columns:
            raise DataError(
                f"{path} has no column {column}, which {setting} names; it has {', '.join(table.columns)}"
                f"{suggest_nearest(column, table.columns)}"
            )
        check_decimal_marks(table, column, path)
    rows = zip(*(table.columns[column] for column in columns), strict=True)
    return [parse_row(cells, columns, decimal_comma=table.decimal_comma) for cells in rows]


def check_decimal_marks(table: Table, column: str, path: Path) -> None:
    """Raise DataError where both `.` and `,` are in the numbers of a column: one of them parts thousands then."""
    if not table.decimal_comma:
        return
    texts = [cell for cell in table.columns[column] if isinstance(cell, str)]
    point, comma = (next((t for t in texts if mark in t), "") for mark in ".,")
    if point and comma:
        raise DataError(
            f"{path}: column {column} has numbers with a point ({point}) and with a comma ({comma}); use one"
        )


def describe_decimal_commas(table: Table, columns: Sequence[str], path: Path) -> list[str]:
    """Write a line for each column in which commas were read as decimal ones."""
    lines = []
    for column in columns if table.decimal_comma else ():
        cell = next((c for c in table.columns.get(column, ()) if isinstance(c, str) and "," in c), "")
        if cell:
            lines.append(f"{path}: {column} has decimal commas; {cell!r} is read as {cell.replace(',', '.')}")
    return lines
