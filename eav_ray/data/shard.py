"""Shards: the only contract between preprocessing and training. One window a row, in Parquet, with an Arrow schema.

Signals are columns of Arrow's canonical fixed-shape tensor type, which Ray Data, pyarrow and pandas all read; frames of
video may be JPEG files (`frames.py`).
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from eav_ray.config import MODALITIES, Preprocessing
from eav_ray.data import arrow, frames
from eav_ray.errors import DataError
from eav_ray.storage import HashingWriter, Store, check_store_name, sha256

INDEX_FILE = "manifest.json"
ROW_GROUP_SIZE = 32  # windows: a reader can take a few
# zstd at its fastest level costs less than the disk it saves.
COMPRESSION: dict[str, Any] = {"compression": "zstd", "compression_level": 1}
# Columns that say how good a window is, of each modality.
QUALITY_COLUMNS = {
    "audio": ("audio_db", "audio_clipped"),  # RMS level, dB of full scale; share of samples at full scale
    "eeg": ("eeg_bad_channels",),
    # mean brightness, 0 to 255; share of frames equal to the one before; share without a face, null if not looked for
    "video": ("video_luma", "video_held", "video_faceless"),
}
ID_FIELDS = (
    pa.field("subject", pa.string()),
    pa.field("recording", pa.string()),
    pa.field("window", pa.int32()),
    pa.field("label", pa.int32()),
    pa.field("task", pa.string()),
    pa.field("order", pa.int32()),
)
ID_COLUMNS = tuple(field.name for field in ID_FIELDS)


def compute_window_shapes(
    preprocessing: Preprocessing, eeg_channels: int
) -> dict[str, tuple[tuple[int, ...], pa.DataType]]:
    """Shape and dtype of one window of each modality: EEG in microvolts, audio in [-1, 1], video in 0-255."""
    n_frames, size = preprocessing.video.fps * preprocessing.window_s, preprocessing.video.size
    return {
        "audio": ((preprocessing.audio.hz * preprocessing.window_s,), pa.float32()),
        "eeg": ((eeg_channels, preprocessing.eeg.hz * preprocessing.window_s), pa.float32()),
        "video": ((n_frames, size, size, 3), pa.uint8()),
    }


def make_schema(preprocessing: Preprocessing, eeg_channels: int, modalities: Sequence[str]) -> pa.Schema:
    columns = list(ID_FIELDS)
    shapes = compute_window_shapes(preprocessing, eeg_channels)
    for m in sorted(modalities):
        shape, dtype = shapes[m]
        video_field = frames.make_video_field(preprocessing.video, preprocessing.window_s)
        columns += [
            video_field if m == "video" else pa.field(m, pa.fixed_shape_tensor(dtype, shape)),
            pa.field(f"has_{m}", pa.bool_()),
            pa.field(f"{m}_seconds", pa.float32()),
        ]
        columns += [pa.field(name, pa.float32()) for name in QUALITY_COLUMNS[m]]
    return pa.schema(columns)


def encode_window(row: dict[str, Any], preprocessing: Preprocessing) -> dict[str, Any]:
    """A window of `windows.cut` as a shard holds it: its frames encoded."""
    return row | {"video": frames.encode_frames(row["video"], preprocessing.video)} if "video" in row else row


def decode_video(video: Any, preprocessing: Preprocessing) -> np.ndarray:
    """Video of one window or of several, as `as_stored` made it, as an array."""
    if preprocessing.video.codec == "raw":
        return np.asarray(video)
    shape = compute_window_shapes(preprocessing, eeg_channels=0)["video"][0]
    is_single = isinstance(video[0], bytes) if len(video) else False
    decoded = frames.decode_frames([video] if is_single else video, shape)
    return decoded[0] if is_single else decoded


def build_window_table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Windows as `windows.cut` makes them, as one Arrow table."""
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
        """Windows as `as_stored` makes them."""
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

    def __exit__(self, *error: Any) -> None:
        if error[0] is None and self._pending:
            self._flush()
        self._stack.__exit__(*error)
        if error[0] is None and self._stream is not None:
            self.name, self.sha256 = self._target_name, self._stream.sha256


def decode_parquet(data: bytes, *, name: str, columns: list[str] | None = None) -> pa.Table:
    """Raises DataError, naming the shard, for whatever is not one."""
    try:
        return arrow.read_parquet_table(pa.BufferReader(data), columns)
    except arrow.ARROW_READ_ERRORS as error:
        raise DataError(f"shard {name} cannot be read: {arrow.describe_error(error)}; preprocess again") from None


@dataclass(frozen=True)
class ShardFile:
    file: str  # relative to the index
    sha256: str
    rows: int
    subject: str = ""  # whose recordings these are


@dataclass(frozen=True)
class ShardIndex:
    """What preprocessing finished: the shards of one data set under one profile."""

    key: str  # hash of the profile, the data set and its modalities
    classes: tuple[str, ...]
    modalities: tuple[str, ...]
    eeg_channels: int
    shards: tuple[ShardFile, ...]
    versions: dict[str, str]

    @property
    def fingerprint(self) -> tuple[str, ...]:
        """Content of all shards; equal for equal data, wherever they lie."""
        return tuple(sorted(shard.sha256 for shard in self.shards))


def read_index(store: Store) -> ShardIndex:
    """Open the index of one data set's shards.

    Raises:
        DataError: Not preprocessed yet, or damaged.
    """
    if not store.exists(INDEX_FILE):
        raise DataError(f"no shards in {store}; run jobs/preprocess.py with the same experiment first")
    tree = store.read_json(INDEX_FILE)
    try:
        shards = tuple(
            ShardFile(check_store_name(s["file"]), str(s["sha256"]), int(s["rows"]), str(s["subject"]))
            for s in tree["shards"]
        )
        return ShardIndex(
            key=str(tree["key"]),
            classes=tuple(map(str, tree["classes"])),
            modalities=tuple(map(str, tree["modalities"])),
            eeg_channels=int(tree["eeg_channels"]),
            shards=shards,
            versions={str(k): str(v) for k, v in tree["versions"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{store}/{INDEX_FILE} is not an index of shards ({error!r}); preprocess again") from None


def read_shard(store: Store, shard: ShardFile) -> pa.Table:
    """One shard, checked against its hash."""
    data = store.read(shard.file)
    if sha256(data) != shard.sha256:
        raise DataError(
            f"shard {store}/{shard.file} is damaged: not the sha256 of {INDEX_FILE}; delete it and preprocess again"
        )
    table = decode_parquet(data, name=shard.file)
    if table.num_rows != shard.rows:
        raise DataError(f"shard {store}/{shard.file} has {table.num_rows} rows, {INDEX_FILE} says {shard.rows}")
    if not table.num_rows:
        raise DataError(f"shard {store}/{shard.file} has no rows; preprocess again")
    check_column_types(table.schema, shard.file)
    return table


def check_column_types(schema: pa.Schema, file: str) -> None:
    """Raises DataError where a column that is there does not hold what its name says."""
    expected_types = {field.name: field.type for field in ID_FIELDS} | {f"has_{m}": pa.bool_() for m in MODALITIES}
    for field in schema:
        is_bad_signal = field.name in MODALITIES and not (
            isinstance(field.type, pa.FixedShapeTensorType) or frames.read_jpeg_window_shape(field) is not None
        )
        if is_bad_signal or field.type != expected_types.get(field.name, field.type):
            raise DataError(f"shard {file} holds {field.name} as {field.type}, which no shard does; preprocess again")
