"""Random access to windows, for training: shards turned once per node into memory-mapped, uncompressed Arrow files.

Compressed Parquet can be neither mapped nor read a row at a time. The cache is keyed by the shards' hashes, so runs
share it, and a changed shard never meets an old cache file.
"""

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from eav_ray import errors
from eav_ray.data.io import jpeg, parquet
from eav_ray.data.shards.index import ShardFile, ShardIndex, read_shard
from eav_ray.data.shards.schema import ID_COLUMNS, check_column_types
from eav_ray.data.splits import add_permutation_groups
from eav_ray.errors import DataError
from eav_ray.storage import NodeCache, Store


class WindowCache:
    """All windows of an index, by number: row i is always the same window, on every node and for any world size.

    `ids` is a table with one row a window: subject, recording, window, label, task, order, target_<k> of numbers that
    are predicted, has_<modality>, `id`, which is "subject/recording", and `permutation_index` and
    `permutation_labels` (`splits.add_permutation_groups`), which count all that is stored. `node_cache` is where the
    files lie.
    """

    def __init__(
        self,
        shards: Store,
        index: ShardIndex,
        *,
        cache: str | Path,
        cache_gb: float,
        allowed_recordings: tuple[str, ...] | None = None,
    ) -> None:
        """
        Args:
            allowed_recordings: The recordings that exist for this object, by id; row numbers count these alone. A
                search is given its training recordings, so that no test row can reach it.
        """
        files = list(index.shards)
        if allowed_recordings is not None:
            allowed_subjects = {"", *(recording.split("/")[0] for recording in allowed_recordings)}
            files = [shard for shard in files if shard.subject in allowed_subjects]
        self.index, self.node_cache = index, NodeCache(cache, cache_gb)
        self._tables: list[pa.Table] = []
        self.node_cache.protect([_format_name(shard) for shard in files])
        for shard in files:
            make = partial(_make_table, self.node_cache, shards, shard)
            self._tables.append(self.node_cache.open(_format_name(shard), make, _open_table))
            _check_schema(self._tables[-1].schema, self._tables[0].schema, index, shard.file)
        self._starts = np.cumsum([0, *(t.num_rows for t in self._tables)])
        columns = [*ID_COLUMNS, *index.target_columns, *(f"has_{m}" for m in index.modalities)]
        ids = pd.concat([t.select(columns).to_pandas() for t in self._tables], ignore_index=True)
        ids = add_permutation_groups(ids.assign(id=ids["subject"] + "/" + ids["recording"]))
        is_allowed = ids["id"].isin(ids["id"] if allowed_recordings is None else allowed_recordings).to_numpy()
        self._stored_rows = np.flatnonzero(is_allowed)  # where each row lies among all that the files hold
        self.ids = ids[is_allowed].reset_index(drop=True)

    def __len__(self) -> int:
        return len(self._stored_rows)

    def get(self, rows: np.ndarray, column: str) -> np.ndarray:
        """Windows by number, in the order asked for: (len(rows), *shape of one window)."""
        rows = self._stored_rows[rows]
        table_numbers = np.searchsorted(self._starts, rows, side="right") - 1
        parts = [self._view_column(int(t), column) for t in range(len(self._tables))] if len(rows) else []
        shape = jpeg.read_jpeg_window_shape(self._tables[0].schema.field(column)) if parts else None
        if shape is not None:
            files = (parts[t][int(r - self._starts[t])].as_py() for t, r in zip(table_numbers, rows, strict=True))
            return jpeg.decode_frames(files, shape)
        return np.stack([parts[t][r - self._starts[t]] for t, r in zip(table_numbers, rows, strict=True)])

    def read_columns(self, columns: Sequence[str]) -> pd.DataFrame:
        """Plain columns of the shards, those that all of them have, a row a window in the order of `ids`."""
        shared_columns = [c for c in columns if all(c in t.schema.names for t in self._tables)]
        parts = [t.select(shared_columns).to_pandas() for t in self._tables]
        return pd.concat(parts, ignore_index=True).iloc[self._stored_rows].reset_index(drop=True)

    def compute_digests(self, column: str) -> np.ndarray:
        """(windows,) a hash of what is stored of a modality, for finding equal signals under different names.

        Empty text where the modality is missing, or a signal is the same value throughout, as silence and a covered
        camera are.
        """
        has = self.ids[f"has_{column}"].to_numpy()
        hashes = np.full(len(self), "", dtype=object)
        for row in np.flatnonzero(has):
            table, position = self._locate_row(int(row))
            stored = self._view_column(table, column)[position]
            if not isinstance(stored, np.ndarray):
                files = stored.as_py()
                if len(set(files)) == 1 and self._is_one_color(files[0], column, table):
                    continue
                content = b"".join(files)
            elif stored.min() == stored.max():
                continue
            else:
                content = np.ascontiguousarray(stored).tobytes()
            hashes[row] = hashlib.blake2b(content, digest_size=16).hexdigest()
        return hashes

    def _is_one_color(self, file: bytes, column: str, table: int) -> bool:
        """Whether a picture is one colour."""
        shape = jpeg.read_jpeg_window_shape(self._tables[table].schema.field(column))
        picture = jpeg.decode_frames([[file]], (1, *shape[1:])) if shape else np.zeros(1)
        return bool(picture.min() == picture.max())

    def _locate_row(self, row: int) -> tuple[int, int]:
        """The table of a row, and where it lies in it."""
        stored = int(self._stored_rows[row])
        table = int(np.searchsorted(self._starts, stored, side="right") - 1)
        return table, stored - int(self._starts[table])

    def _view_column(self, number: int, column: str) -> Any:
        array = self._tables[number].column(column).chunk(0)
        if pa.types.is_fixed_size_list(array.type):  # JPEG files: only those that are asked for leave the disk
            return array
        return array.to_numpy_ndarray() if isinstance(array, pa.FixedShapeTensorArray) else array.to_numpy()

    def find_rows(self, recordings: tuple[str, ...]) -> np.ndarray:
        """Row numbers of all windows of these recordings, ascending."""
        return np.flatnonzero(self.ids["id"].isin(recordings).to_numpy())


def _format_name(shard: ShardFile) -> str:
    return f"{shard.sha256}.arrow"


def read_mapped_subjects(path: Path) -> set[str]:
    """Read whose windows a file of the cache holds.

    Raises:
        DataError: It was damaged.
    """
    table = _open_table(path)
    return {str(s) for s in table.column("subject").unique().to_pylist()} if "subject" in table.schema.names else set()


def _make_table(cache: NodeCache, shards: Store, shard: ShardFile, path: Path) -> None:
    table = read_shard(shards, shard)
    cache.reserve(table.nbytes)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())


def _open_table(path: Path) -> pa.Table:
    try:
        return parquet.read_memory_mapped(path)
    except FileNotFoundError:  # it was evicted
        raise
    except parquet.ARROW_READ_ERRORS as error:
        raise DataError(
            f"{path} cannot be read as cached windows ({errors.describe_error(error)}); delete it, it is made anew"
        ) from None


def _check_schema(schema: pa.Schema, first: pa.Schema, index: ShardIndex, file: str) -> None:
    check_column_types(schema, file)
    has_columns = (f"has_{m}" for m in index.modalities)
    for column in (*ID_COLUMNS, *index.target_columns, *index.modalities, *has_columns):
        if column not in schema.names:
            raise DataError(f"shard {file} has no column {column}; preprocess again")
        if schema.field(column).type != first.field(column).type:
            raise DataError(f"shard {file} holds {column} in another shape or type than the first; preprocess again")
