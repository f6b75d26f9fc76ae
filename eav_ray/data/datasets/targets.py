"""Attach the numbers that are predicted in place of classes to the recordings of a data set, whichever reader lists
them."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from eav_ray.config import DataConfig, FeaturePreprocessing
from eav_ray.data.datasets.joining import RecordingNames, describe_unmatched_rows, match_rows
from eav_ray.data.io.file_access import is_file
from eav_ray.data.io.numbers import UNKNOWN, describe_decimal_commas, read_rows
from eav_ray.data.io.row_keys import SUBJECT_NAME, read_row_keys
from eav_ray.data.io.tables import read_tabular_file
from eav_ray.data.recordings import DatasetReader, Listing, Problem, Recording
from eav_ray.errors import DataError
from eav_ray.words import format_count


def attach_targets(listing: Listing, data: DataConfig, reader: DatasetReader, *, needs_truth: bool) -> Listing:
    """Attach what `data.targets` names; recordings that lack a number are problems, and left out.

    Args:
        needs_truth: Whether recordings without all their numbers are left out; otherwise these are NaN.
    Raises:
        DataError: There is no such table or column, its rows do not name recordings of the data set, or no recording
            has all numbers.
    """
    if not data.predicts_numbers:
        return listing
    unknown = (UNKNOWN,) * len(data.targets.columns)
    if not data.targets.path:
        if not reader.reads_targets and needs_truth:
            raise DataError(
                f"data.targets.path is empty, and data.dataset={data.dataset} has no columns of numbers of its own; "
                "set data.targets.path to a CSV or Parquet table with one row a recording"
            )
        with_targets = [replace(r, label=0, targets=r.targets or unknown) for r in listing.recordings]
        return replace(listing, recordings=tuple(with_targets))
    try:
        return _attach_rows(listing, data, needs_truth=needs_truth)
    except DataError as error:
        if needs_truth:
            raise
        # A table of the recordings that were trained on says nothing of others.
        recordings = tuple(replace(r, label=0, targets=unknown) for r in listing.recordings)
        return replace(listing, recordings=recordings, remarks=(*listing.remarks, f"no true numbers: {error}"))


def _attach_rows(listing: Listing, data: DataConfig, *, needs_truth: bool) -> Listing:
    """Attach the rows of `data.targets.path`."""
    targets, path = data.targets, Path(data.targets.path).expanduser().absolute()
    if not is_file(path):
        raise DataError(
            f"data.targets.path is {targets.path!r}, which is no file; give a CSV or Parquet table, one row a recording"
        )
    table = read_tabular_file(path, {targets.key, SUBJECT_NAME, *targets.columns})
    keys, names = read_row_keys(table, path, targets.key, "data.targets"), RecordingNames(listing.recordings)
    numbers = read_rows(table, targets.columns, path, "data.targets.columns")
    rows = match_rows(keys, names)
    problems = [Problem("", "", str(path), reason) for _, reason in table.problems]
    remarks = [
        *table.remarks,
        *describe_unmatched_rows(keys, names),
        *describe_decimal_commas(table, targets.columns, path),
    ]
    recordings: list[Recording] = []
    for r in listing.recordings:
        values, reason = (UNKNOWN,) * len(targets.columns), ""
        if r.id in rows:
            row = numbers[rows[r.id]]
            values = row.values
            if row.problem:
                reason = f"row {keys.numbers[rows[r.id]]}: {row.problem}; correct it, or leave the recording out"
        else:
            reason = f"no row of {path} names it by {targets.key}; add one, or leave the recording out"
        if reason and needs_truth:
            problems.append(Problem(r.subject, r.recording, str(path), reason))
        else:
            recordings.append(replace(r, label=0, targets=values))
    if listing.recordings and not recordings:
        first = next(p.reason for p in problems if p.recording)
        raise DataError(f"{path}: no recording has all of {', '.join(targets.columns)}; the first: {first}")
    return Listing(tuple(recordings), (*listing.problems, *problems), (*listing.remarks, *remarks))


def check_targets_vary(recordings: Sequence[Recording], data: DataConfig) -> None:
    """Raise DataError where a number is the same in all recordings: there is nothing to predict."""
    for number, name in enumerate(data.targets.names):
        values = {r.targets[number] for r in recordings}
        if len(values) == 1 and len(recordings) > 1:
            raise DataError(
                f"data.targets.columns: {name} is {values.pop():g} in all "
                f"{format_count(len(recordings), 'recording')}: there is "
                "nothing to predict; name another column, or take more recordings"
            )


def check_targets_are_no_inputs(data: DataConfig, formats: Mapping[str, FeaturePreprocessing]) -> None:
    """Raise DataError where a number that is to be predicted is a given feature too: it would be read, not predicted.

    Args:
        formats: How the features of each name are stored (`preprocessing.features`).
    """
    for name in (m for m in data.modalities if m in formats and m in data.features):
        path, root = (Path(p).expanduser().absolute() for p in (data.features[name].path, data.root))
        for column in data.targets.columns:
            table, _, own_name = column.partition(".")
            is_same = _is_same_file(path, Path(data.targets.path).expanduser() if data.targets.path else root)
            if data.dataset == "bids" and not data.targets.path:
                is_same = path.name.endswith(f"{table}.tsv") and path.is_relative_to(root)
                column = own_name
            if is_same and column in formats[name].columns:
                raise DataError(
                    f"{path}: {column} is to be predicted (data.targets.columns), and is an input too "
                    f"(preprocessing.features.{name}.columns); take it out of one of them"
                )


def _is_same_file(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False
