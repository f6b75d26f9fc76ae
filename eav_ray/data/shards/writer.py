"""Write the windows of recordings into a shard."""

from contextlib import ExitStack
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from eav_ray.data.shards.tables import COMPRESSION, ROW_GROUP_SIZE, build_window_table
from eav_ray.storage import HashingWriter, Store


class ShardWriter:
    """A shard, written while its windows are made. Its file exists from the first window on; use as a context manager.

    Args:
        store: Where it goes, under `name`.
    """

    def __init__(self, store: Store, name: str, schema: pa.Schema) -> None:
        self.name, self.sha256, self.rows = "", "", 0  # empty until there is a window
        self._store, self._target_name, self._schema = store, name, schema
        self._pending: list[dict[str, Any]] = []
        self._stack = ExitStack()
        self._stream: HashingWriter | None = None
        self._parquet: pq.ParquetWriter | None = None

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Windows as `encode_window` makes them."""
        self._pending += rows
        if len(self._pending) >= ROW_GROUP_SIZE:
            self._flush()

    def _flush(self) -> None:
        if self._parquet is None:
            self._stream = self._stack.enter_context(self._store.open_writer(self._target_name))
            self._parquet = self._stack.enter_context(pq.ParquetWriter(self._stream, self._schema, **COMPRESSION))
        self._parquet.write_table(build_window_table(self._pending, self._schema))
        self.rows += len(self._pending)
        self._pending = []

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        with ExitStack() as stack:
            stack.push(self._stack)  # which also explains an error of the last windows, and leaves no part of a file
            if error is not None:
                raise error
            if self._pending:
                self._flush()
        if self._stream is not None:
            self.name, self.sha256 = self._target_name, self._stream.sha256
