"""Read features that somebody else has computed: tables with one row a recording, and files with rows over time.

Nothing that is read here can run code: CSV, Parquet without types of other libraries, npy without objects, safetensors.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from eav_ray.config import FeaturePreprocessing
from eav_ray.data.io import parquet
from eav_ray.data.io.numbers import check_decimal_marks
from eav_ray.data.io.row_keys import SUBJECT_NAME, RowKeys, read_row_keys
from eav_ray.data.io.tables import EMPTY_CELLS, Table, read_tabular_file
from eav_ray.errors import DataError, describe_error, suggest_nearest

PARQUET_SUFFIXES, ARRAY_SUFFIXES = (".parquet", ".pq"), (".npy", ".safetensors")
FILE_SUFFIXES = (*ARRAY_SUFFIXES, *PARQUET_SUFFIXES)  # of a file of one recording
TIME_NAME, VALUES_NAME = "time_s", "values"  # a column or tensor with times, and the tensor with features
READ_ERRORS = (*parquet.ARROW_READ_ERRORS, SafetensorError)


@dataclass(frozen=True)
class FeatureTable:
    """A table with one row a recording."""

    rows: RowKeys  # what each row names
    values: np.ndarray  # (rows, features) float32, NaN where a cell is empty
    problems: tuple[str, ...] = ()  # rows that were left out, and why
    remarks: tuple[str, ...] = ()  # as of `tables.Table`


def read_feature_table(path: Path, key: str, name: str, section: FeaturePreprocessing) -> FeatureTable:
    """Read a CSV or Parquet table.

    Args:
        key: The column that names recordings.
        name: Of the modality, for errors.
    Raises:
        DataError: No such table or column, a cell that is no number, or another number of features.
    """
    table = read_tabular_file(path, {key, SUBJECT_NAME, *section.columns})
    rows = read_row_keys(table, path, key, f"data.features.{name}")
    if not section.columns:
        found = ", ".join(n for n in table.columns if n not in (key, SUBJECT_NAME))
        raise DataError(f"{path} is a table; choose its columns: preprocessing.features.{name}.columns=[{found}]")
    problems = tuple(reason for _, reason in table.problems)
    return FeatureTable(rows, _stack_columns(table, path, name, section), problems, table.remarks)


def read_feature_file(
    path: Path, name: str, section: FeaturePreprocessing, hz: float
) -> tuple[np.ndarray | None, np.ndarray]:
    """Read the features of one recording.

    Args:
        hz: Rows per second of a file that holds no times.
    Returns:
        ((rows,) seconds since the recording began, ascending; (rows, features) float32). A single row that does not say
        when it is has no times: it is of the whole recording.
    Raises:
        DataError: It cannot be read, has another width, or nothing says when its rows are.
    """
    try:
        times_s, values = _read_rows(path, name, section)
    except READ_ERRORS as error:
        raise DataError(f"{path} cannot be read as features ({describe_error(error)}); replace it") from None
    if values.ndim == 1:
        values = values[None]
    if values.ndim != 2 or values.shape[1] != section.n_features:
        raise DataError(
            f"{path} has an array of {' x '.join(map(str, values.shape))}; preprocessing.features.{name} wants rows of "
            f"{section.n_features} features; correct width"
        )
    values = np.where(np.isfinite(values), values, np.nan).astype(np.float32)
    if times_s is None and not hz and len(values) == 1:
        return None, values
    if times_s is None:
        if not hz:
            raise DataError(
                f"{path} does not say when its {len(values)} rows are; give their rate (data.features.{name}.hz; hz, "
                f"where they are sent), or {TIME_NAME} in seconds"
            )
        times_s = (np.arange(len(values)) + 0.5) / hz
    if times_s.shape != (len(values),) or not np.isfinite(times_s).all() or (np.diff(times_s) < 0).any():
        raise DataError(f"{path}: {TIME_NAME} must be one ascending number of seconds for each of {len(values)} rows")
    return times_s.astype(np.float64), values


def _read_rows(path: Path, name: str, section: FeaturePreprocessing) -> tuple[np.ndarray | None, np.ndarray]:
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return None, np.load(path, allow_pickle=False)
    if suffix == ".safetensors":
        tensors = safetensors.numpy.load(path.read_bytes())
        if VALUES_NAME not in tensors:
            raise DataError(f"{path} has no tensor {VALUES_NAME}; it has {', '.join(tensors) or 'none'}; name it so")
        return tensors.get(TIME_NAME), tensors[VALUES_NAME]
    rows = parquet.read_parquet_table(path)
    times_s = rows.column(TIME_NAME).to_numpy() if TIME_NAME in rows.column_names else None
    if not section.columns:
        found = ", ".join(n for n in rows.column_names if n != TIME_NAME)
        raise DataError(f"{path} is a table; choose its columns: preprocessing.features.{name}.columns=[{found}]")
    table = Table(
        {n: rows.column(n).to_pylist() for n in section.columns if n in rows.column_names}, range(1, len(rows) + 1)
    )
    return times_s, _stack_columns(table, path, name, section)


def _stack_columns(table: Table, path: Path, name: str, section: FeaturePreprocessing) -> np.ndarray:
    """Stack the columns that are wanted, in their order: (rows, features) float32."""
    parts: list[np.ndarray] = []
    for column in section.columns:
        if column not in table.columns:
            raise DataError(
                f"{path} has no column {column}, which preprocessing.features.{name}.columns names"
                f"{suggest_nearest(column, table.columns)}"
            )
        cells = table.columns[column]
        check_decimal_marks(table, column, path)
        try:
            rows = [_parse_cell(cell, table.decimal_comma) for cell in cells]
            parts.append(np.array(rows, np.float32).reshape(len(cells), -1))
        except (TypeError, ValueError) as error:
            raise DataError(
                f"{path}: column {column} does not hold one number, or one list of as many, in each row "
                f"({describe_error(error)})"
            ) from None
    values = np.concatenate(parts, 1)
    if values.shape[1] != section.n_features:
        raise DataError(
            f"{path}: the columns hold {values.shape[1]} features, preprocessing.features.{name} says "
            f"{section.n_features}; correct width"
        )
    return np.where(np.isfinite(values), values, np.nan).astype(np.float32)


def _parse_cell(cell: Any, decimal_comma: bool) -> Any:
    if isinstance(cell, list):
        return [np.nan if value is None else float(value) for value in cell]
    if cell is None or cell in EMPTY_CELLS:
        return np.nan
    return float(cell.replace(",", ".") if decimal_comma and isinstance(cell, str) else cell)
