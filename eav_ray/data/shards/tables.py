"""Convert windows to Parquet tables and back."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from eav_ray import errors
from eav_ray.config import Preprocessing
from eav_ray.data.io import jpeg, parquet
from eav_ray.data.shards.schema import compute_window_shapes
from eav_ray.errors import DataError

ROW_GROUP_SIZE = 32  # windows: a reader can take a few


# zstd at its fastest level costs less than the disk it saves.
COMPRESSION: dict[str, Any] = {"compression": "zstd", "compression_level": 1}


def encode_window(row: dict[str, Any], preprocessing: Preprocessing) -> dict[str, Any]:
    """A window of `windowing.cut_recording` as a shard holds it: its frames encoded."""
    return row | {"video": jpeg.encode_frames(row["video"], preprocessing.video)} if "video" in row else row


def decode_video(video: Any, preprocessing: Preprocessing) -> np.ndarray:
    """Video of one window or of several, as `encode_window` made it, as an array."""
    if preprocessing.video.codec == "raw":
        return np.asarray(video)
    shape = compute_window_shapes(preprocessing, eeg_channels=0)["video"][0]
    is_single = isinstance(video[0], bytes) if len(video) else False
    decoded = jpeg.decode_frames([video] if is_single else video, shape)
    return decoded[0] if is_single else decoded


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


def decode_parquet(data: bytes, *, name: str, columns: list[str] | None = None) -> pa.Table:
    """Raises DataError, naming the shard, for whatever is not one."""
    try:
        return parquet.read_parquet_table(pa.BufferReader(data), columns)
    except parquet.ARROW_READ_ERRORS as error:
        raise DataError(f"shard {name} cannot be read: {errors.describe_error(error)}; preprocess again") from None
