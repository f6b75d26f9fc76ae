"""A table of recordings with numbers in place of classes, and given features in place of media."""

from pathlib import Path
from typing import Any

import pandas as pd

from tests.helpers.given_features import write_tables

TARGETS = ("valence", "arousal")


def write_target_tables(folder: Path) -> dict[str, Any]:
    """Write such tables; returns the changes of an experiment on them."""
    changes = write_tables(folder)
    table = read_recordings(folder)
    number = table["recording"].str[1:].astype(int)
    subject = table["subject"].str[1:].astype(int)
    numbers = {"valence": subject + number / 8, "arousal": 2.0 - (7 * number + subject) % 5}
    write_recordings(folder, table.drop(columns="label").assign(**numbers))
    return changes | {"data.targets": {"columns": list(TARGETS)}}


def read_recordings(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "recordings.csv")


def write_recordings(folder: Path, table: pd.DataFrame) -> None:
    table.to_csv(folder / "recordings.csv", index=False)


def list_targets(table: pd.DataFrame) -> dict[str, tuple[float, ...]]:
    """List what a table of recordings says of each: id -> its numbers."""
    ids = table["subject"].astype(str) + "/" + table["recording"].astype(str)
    return dict(zip(ids, map(tuple, table[list(TARGETS)].to_numpy(float).tolist()), strict=True))
