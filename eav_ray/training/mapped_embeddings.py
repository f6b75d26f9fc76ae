"""Open embeddings as a node maps them: raw arrays, made once from what the store holds, and copied by nobody."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from eav_ray.data.io.parquet import ARROW_READ_ERRORS, iterate_parquet_tables
from eav_ray.errors import DataError, describe_error
from eav_ray.storage import Commit, NodeCache, Store, check_format
from eav_ray.training.metrics import WINDOW_COLUMNS

EMBEDDING_ARRAYS = ("tokens", "mask", "pooled", "logits")
EMBEDDINGS_FORMAT = 2  # raise when the arrays or the places change
TIMES, CONTENTS = "times.json", "contents.json"  # in the store, and beside the arrays of the cache
WINDOW_TYPES = dict(zip(WINDOW_COLUMNS, (pa.string(), pa.string(), pa.int64()), strict=True))
MAX_ROWS = 32  # that are in memory at once while the arrays are made


@dataclass(frozen=True)
class MappedEmbeddings:
    windows: list[tuple[Any, ...]]  # of each row, its `WINDOW_COLUMNS`
    times_s: list[float]  # of the tokens, on the window's clock
    arrays: dict[str, np.ndarray]  # by name, a row a window; on the disk until they are looked at


def open_embeddings(store: Store, prefix: str, cache: NodeCache) -> MappedEmbeddings:
    """Map committed embeddings; one process of a node fetches them, if none has yet.

    Raises:
        DataError: They are not committed, damaged, or of another format.
        ConfigError: The cache has no room for them.
    """
    commit = store.read_commit(prefix)
    # The hash of COMMIT names the content, wherever it lies.
    return cache.open(f"{commit.sha256}.embeddings", partial(_make_arrays, store, prefix, commit, cache), _map_arrays)


def _make_arrays(store: Store, prefix: str, commit: Commit, cache: NodeCache, folder: Path) -> None:
    times_s = _read_times(store, prefix, commit)
    folder.mkdir()
    windows: list[tuple[Any, ...]] = []
    writers: dict[str, _ArrayWriter] = {}
    with ExitStack() as stack:
        for file in sorted(name for name in commit.files if name.endswith(".parquet")):
            data = store.read_committed_file(prefix, file, commit)
            for rows, arrays in _iterate_parts(data, store.format_path(f"{prefix}/{file}")):
                cache.reserve(sum(values.nbytes for values in arrays.values()))
                windows += rows
                if set(arrays) - set(EMBEDDING_ARRAYS) or (writers and set(arrays) != set(writers)):
                    path = store.format_path(prefix)
                    raise DataError(f"{path} is damaged (the columns of {file}); delete it and train again")
                for name, values in arrays.items():
                    if name not in writers:
                        writers[name] = _ArrayWriter(stack.enter_context(open(folder / f"{name}.npy", "wb")), values)
                    writers[name].append(values)
        for writer in writers.values():
            writer.finish()
    tree = {"times_s": times_s, "windows": windows, "arrays": list(writers)}
    (folder / CONTENTS).write_text(json.dumps(tree))


def read_mapped_subjects(folder: Path) -> set[str]:
    """Read whose windows an entry of the cache holds.

    Raises:
        DataError: It was damaged.
    """
    return {str(window[0]) for window in _map_arrays(folder).windows}


def _read_times(store: Store, prefix: str, commit: Commit) -> list[float]:
    name = store.format_path(prefix)
    try:
        times = json.loads(store.read_committed_file(prefix, TIMES, commit))
        number, times_s = times.get("format"), [float(t) for t in times["times_s"]]
    except DataError:
        raise
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{name} is damaged ({describe_error(error)}); delete it and train again") from None
    check_format(number, EMBEDDINGS_FORMAT, name, "delete it and train again")
    return times_s


def _iterate_parts(data: bytes, name: str) -> Iterator[tuple[list[tuple[Any, ...]], dict[str, np.ndarray]]]:
    """Yields windows and arrays of a few rows each."""
    try:
        for table in iterate_parquet_tables(pa.BufferReader(data), MAX_ROWS):
            arrays = [column for column in table.schema.names if column not in WINDOW_COLUMNS]
            yield (
                list(zip(*(table.column(c).cast(t).to_pylist() for c, t in WINDOW_TYPES.items()), strict=True)),
                {array: table.column(array).chunk(0).to_numpy_ndarray() for array in arrays},
            )
    except ARROW_READ_ERRORS as error:
        raise DataError(f"{name} is damaged ({describe_error(error)}); delete it and train again") from None


class _ArrayWriter:
    """Appends rows to a file of NumPy's, whose header says how many they are when all are there."""

    def __init__(self, file: BinaryIO, first: np.ndarray) -> None:
        self._file, self._dtype, self._shape, self._n_rows = file, first.dtype, first.shape[1:], 0
        self._write_header()

    def append(self, values: np.ndarray) -> None:
        if (values.dtype, values.shape[1:]) != (self._dtype, self._shape):
            raise DataError(
                f"{self._file.name} is of windows of {self._shape} and of {values.shape[1:]}; delete the embeddings "
                "and train again"
            )
        self._file.write(np.ascontiguousarray(values).data)
        self._n_rows += len(values)

    def finish(self) -> None:
        self._file.seek(0)
        self._write_header()

    def _write_header(self) -> None:
        """Write it as long as it is for any number of rows."""
        shape = (self._n_rows, *self._shape)
        header = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)


def _map_arrays(folder: Path) -> MappedEmbeddings:
    try:
        tree = json.loads((folder / CONTENTS).read_text())
        arrays = {
            str(n): np.lib.format.open_memmap(folder / f"{n}.npy", mode="r").view(np.ndarray) for n in tree["arrays"]
        }
        return MappedEmbeddings([tuple(window) for window in tree["windows"]], tree["times_s"], arrays)
    except FileNotFoundError:  # they were evicted
        raise
    except ARROW_READ_ERRORS as error:
        raise DataError(
            f"{folder} cannot be read as cached embeddings ({describe_error(error)}); delete it, it is made anew"
        ) from None
