"""Shards: the only contract between preprocessing and training. One window a row, in Parquet, with an Arrow schema.

Signals are columns of Arrow's canonical fixed-shape tensor type, which Ray Data, pyarrow and pandas all read; frames of
video may be JPEG files (`data/io/jpeg.py`).
"""

from collections.abc import Sequence

import pyarrow as pa

from eav_ray.config import MODALITIES, Preprocessing
from eav_ray.data.io import jpeg
from eav_ray.errors import DataError

# Columns that say how good a window is, of each modality.
QUALITY_COLUMNS = {
    "audio": ("audio_db", "audio_clipped"),  # RMS level, dB of full scale; share of samples at full scale
    "eeg": ("eeg_bad_channels",),
    # mean brightness, 0 to 255; share of frames equal to the one before; share without a face, null if not looked for
    "video": ("video_luma", "video_repeated", "video_faceless"),
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
        video_field = jpeg.make_video_field(preprocessing.video, preprocessing.window_s)
        columns += [
            video_field if m == "video" else pa.field(m, pa.fixed_shape_tensor(dtype, shape)),
            pa.field(f"has_{m}", pa.bool_()),
            pa.field(f"{m}_seconds", pa.float32()),
        ]
        columns += [pa.field(name, pa.float32()) for name in QUALITY_COLUMNS[m]]
    return pa.schema(columns)


def check_column_types(schema: pa.Schema, file: str) -> None:
    """Raises DataError where a column that is there does not hold what its name says."""
    expected_types = {field.name: field.type for field in ID_FIELDS} | {f"has_{m}": pa.bool_() for m in MODALITIES}
    for field in schema:
        is_bad_signal = field.name in MODALITIES and not (
            isinstance(field.type, pa.FixedShapeTensorType) or jpeg.read_jpeg_window_shape(field) is not None
        )
        if is_bad_signal or field.type != expected_types.get(field.name, field.type):
            raise DataError(f"shard {file} holds {field.name} as {field.type}, which no shard does; preprocess again")
