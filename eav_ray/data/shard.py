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

INDEX = "manifest.json"
ROW_GROUP = 32  # windows: a reader can take a few
# zstd at its fastest level costs less than the disk it saves.
COMPRESSION: dict[str, Any] = {"compression": "zstd", "compression_level": 1}
# Columns that say how good a window is, of each modality.
QUALITY = {
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


def window_shapes(preprocessing: Preprocessing, eeg_channels: int) -> dict[str, tuple[tuple[int, ...], pa.DataType]]:
    """Shape and dtype of one window of each modality: EEG in microvolts, audio in [-1, 1], video in 0-255."""
    count, size = preprocessing.video.fps * preprocessing.window_s, preprocessing.video.size
    return {
        "audio": ((preprocessing.audio.hz * preprocessing.window_s,), pa.float32()),
        "eeg": ((eeg_channels, preprocessing.eeg.hz * preprocessing.window_s), pa.float32()),
        "video": ((count, size, size, 3), pa.uint8()),
    }


def schema(preprocessing: Preprocessing, eeg_channels: int, modalities: Sequence[str]) -> pa.Schema:
    columns = list(ID_FIELDS)
    shapes = window_shapes(preprocessing, eeg_channels)
    for m in sorted(modalities):
        shape, dtype = shapes[m]
        stored = frames.make_video_field(preprocessing.video, preprocessing.window_s)
        columns += [
            stored if m == "video" else pa.field(m, pa.fixed_shape_tensor(dtype, shape)),
            pa.field(f"has_{m}", pa.bool_()),
            pa.field(f"{m}_seconds", pa.float32()),
        ]
        columns += [pa.field(name, pa.float32()) for name in QUALITY[m]]
    return pa.schema(columns)


def as_stored(row: dict[str, Any], preprocessing: Preprocessing) -> dict[str, Any]:
    """A window of `windows.cut` as a shard holds it: its frames encoded."""
    return row | {"video": frames.encode_frames(row["video"], preprocessing.video)} if "video" in row else row


def as_decoded(video: Any, preprocessing: Preprocessing) -> np.ndarray:
    """Video of one window or of several, as `as_stored` made it, as an array."""
    if preprocessing.video.codec == "raw":
        return np.asarray(video)
    shape = window_shapes(preprocessing, eeg_channels=0)["video"][0]
    one = isinstance(video[0], bytes) if len(video) else False
    found = frames.decode_frames([video] if one else video, shape)
    return found[0] if one else found


def to_table(rows: list[dict[str, Any]], of: pa.Schema) -> pa.Table:
    """Windows as `windows.cut` makes them, as one Arrow table."""
    columns = []
    for field in of:
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
    return pa.Table.from_arrays(columns, schema=of)


def to_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=ROW_GROUP, **COMPRESSION)
    return sink.getvalue().to_pybytes()


class Writer:
    """A shard, written while its windows are made. Its file exists from the first window on; use as a context manager.

    Args:
        store: Where it goes, under `name`.
    """

    def __init__(self, store: Store, name: str, of: pa.Schema) -> None:
        self.name, self.sha256, self.rows = "", "", 0  # empty until there is a window
        self._store, self._wanted, self._schema = store, name, of
        self._waiting: list[dict[str, Any]] = []
        self._stack = ExitStack()
        self._stream: HashingWriter | None = None
        self._parquet: pq.ParquetWriter | None = None

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Windows as `as_stored` makes them."""
        self._waiting += rows
        if len(self._waiting) >= ROW_GROUP:
            self._write()

    def _write(self) -> None:
        if self._parquet is None:
            self._stream = self._stack.enter_context(self._store.open_writer(self._wanted))
            self._parquet = self._stack.enter_context(pq.ParquetWriter(self._stream, self._schema, **COMPRESSION))
        self._parquet.write_table(to_table(self._waiting, self._schema))
        self.rows += len(self._waiting)
        self._waiting = []

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *error: Any) -> None:
        if error[0] is None and self._waiting:
            self._write()
        self._stack.__exit__(*error)
        if error[0] is None and self._stream is not None:
            self.name, self.sha256 = self._wanted, self._stream.sha256


def from_bytes(data: bytes, *, name: str, columns: list[str] | None = None) -> pa.Table:
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
class Index:
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


def read_index(store: Store) -> Index:
    """Open the index of one data set's shards.

    Raises:
        DataError: Not preprocessed yet, or damaged.
    """
    if not store.exists(INDEX):
        raise DataError(f"no shards in {store}; run jobs/preprocess.py with the same experiment first")
    tree = store.read_json(INDEX)
    try:
        shards = tuple(
            ShardFile(check_store_name(s["file"]), str(s["sha256"]), int(s["rows"]), str(s["subject"]))
            for s in tree["shards"]
        )
        return Index(
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
        raise DataError(f"{store}/{INDEX} is not an index of shards ({error!r}); preprocess again") from None


def read_shard(store: Store, shard: ShardFile) -> pa.Table:
    """One shard, checked against its hash."""
    data = store.read(shard.file)
    if sha256(data) != shard.sha256:
        raise DataError(
            f"shard {store}/{shard.file} is damaged: not the sha256 of {INDEX}; delete it and preprocess again"
        )
    table = from_bytes(data, name=shard.file)
    if table.num_rows != shard.rows:
        raise DataError(f"shard {store}/{shard.file} has {table.num_rows} rows, {INDEX} says {shard.rows}")
    if not table.num_rows:
        raise DataError(f"shard {store}/{shard.file} has no rows; preprocess again")
    check_types(table.schema, shard.file)
    return table


def check_types(found: pa.Schema, file: str) -> None:
    """Raises DataError where a column that is there does not hold what its name says."""
    wanted = {field.name: field.type for field in ID_FIELDS} | {f"has_{m}": pa.bool_() for m in MODALITIES}
    for field in found:
        signal = field.name in MODALITIES and not (
            isinstance(field.type, pa.FixedShapeTensorType) or frames.read_jpeg_window_shape(field) is not None
        )
        if signal or field.type != wanted.get(field.name, field.type):
            raise DataError(f"shard {file} holds {field.name} as {field.type}, which no shard does; preprocess again")
