"""Shards: the only contract between preprocessing and training. One window a row, in Parquet, with an Arrow schema.

Signals are columns of Arrow's canonical fixed-shape tensor type, which Ray Data, pyarrow and pandas all read; frames of
video may be JPEG files (`data/io/jpeg.py`).
"""

from collections.abc import Sequence

import pyarrow as pa

from eav_ray.config import MODALITIES, Preprocessing
from eav_ray.data.io import jpeg
from eav_ray.data.modalities.registry import get_modality
from eav_ray.data.recordings import TARGET_PREFIX, name_target_columns
from eav_ray.errors import DataError

ID_COLUMNS = ("subject", "recording", "window", "label", "task", "order")
ID_FIELDS = tuple(pa.field(c, pa.int32() if c in ("window", "label", "order") else pa.string()) for c in ID_COLUMNS)


def make_schema(
    preprocessing: Preprocessing, eeg_channels: int, modalities: Sequence[str], n_targets: int = 0
) -> pa.Schema:
    """Make the schema of a shard.

    Args:
        n_targets: Numbers that are predicted in place of a class.
    """
    columns = [*ID_FIELDS, *(pa.field(name, pa.float64()) for name in name_target_columns(n_targets))]
    for m in map(get_modality, sorted(modalities)):
        columns += [
            m.make_field(preprocessing, eeg_channels),
            pa.field(f"has_{m.name}", pa.bool_()),
            pa.field(f"{m.name}_seconds", pa.float32()),
            *(pa.field(name, pa.float32()) for name in m.quality_columns),
        ]
    return pa.schema(columns)


def check_column_types(schema: pa.Schema, file: str) -> None:
    """Raises DataError where a column that is there does not hold what its name says."""
    # A column without `has_` beside it is none of a modality, unless it should be.
    modalities = {*MODALITIES, *(name.removeprefix("has_") for name in schema.names if name.startswith("has_"))}
    expected_types = {field.name: field.type for field in ID_FIELDS} | {f"has_{m}": pa.bool_() for m in modalities}
    for field in schema:
        is_bad_signal = field.name in modalities and not (
            isinstance(field.type, pa.FixedShapeTensorType) or jpeg.read_jpeg_window_shape(field) is not None
        )
        is_target = field.name.startswith(TARGET_PREFIX) and field.name.removeprefix(TARGET_PREFIX).isdecimal()
        if is_target:
            expected_types[field.name] = pa.float64()
        if is_bad_signal or field.type != expected_types.get(field.name, field.type):
            raise DataError(f"shard {file} holds {field.name} as {field.type}, which no shard does; preprocess again")
