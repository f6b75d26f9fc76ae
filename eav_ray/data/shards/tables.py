"""Convert windows to Parquet tables and back."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from eav_ray import errors
from eav_ray.config import Preprocessing
from eav_ray.data.io import parquet
from eav_ray.data.modalities.registry import get_modality
from eav_ray.errors import DataError

ROW_GROUP_SIZE = 32  # windows: a reader can take a few


# zstd at its fastest level costs less than the disk it saves.
COMPRESSION: dict[str, Any] = {"compression": "zstd", "compression_level": 1}


def encode_window(row: dict[str, Any], preprocessing: Preprocessing) -> dict[str, Any]:
    """Encode a window of `windowing.cut_recording` as a shard holds it: video frames become JPEG files."""
    names = [name.removeprefix("has_") for name in row if name.startswith("has_")]
    return row | {m: get_modality(m).encode(row[m], preprocessing) for m in names if m in row}


def build_window_table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Windows as `windowing.cut_recording` makes them, as one Arrow table."""
    columns = []
    for field in schema:
        values = [row[field.name] for row in rows]
        if isinstance(field.type, pa.FixedShapeTensorType):
            stacked = np.stack(values)
            if stacked.shape[1:] != tuple(field.type.shape):
                raise DataError(f"a window's {field.name} has shape {stacked.shape[1:]}, not {field.type.shape}")
            flat = pa.array(stacked.reshape(-1), type=field.type.value_type)
            lists = pa.FixedSizeListArray.from_arrays(flat, int(np.prod(field.type.shape)))
            columns.append(pa.ExtensionArray.from_storage(field.type, lists))
        else:
            columns.append(pa.array(values, type=field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def encode_parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=ROW_GROUP_SIZE, **COMPRESSION)
    return sink.getvalue().to_pybytes()


def decode_parquet(data: bytes, *, name: str) -> pa.Table:
    """Raises DataError, naming the shard, for whatever is not one."""
    try:
        return parquet.read_parquet_table(pa.BufferReader(data))
    except parquet.ARROW_READ_ERRORS as error:
        raise DataError(f"shard {name} cannot be read: {errors.describe_error(error)}; preprocess again") from None
