"""Windows as Ray Data hands them to a model: of raw recordings, and of shards."""

from typing import Any

import pyarrow as pa

from eav_ray.config import Experiment, ModalityName, Preprocessing, get_modality_info
from eav_ray.data.modalities.registry import make_empty_window
from eav_ray.data.preprocessing.windowing import WindowedRecording, WindowFormat, cut_recording
from eav_ray.data.recordings import Recording, list_target_columns
from eav_ray.data.shards.index import ShardFile, read_shard
from eav_ray.data.shards.tables import encode_window
from eav_ray.evaluation.window_predictor import ID_COLUMNS
from eav_ray.models.encoders.base import DataShapes
from eav_ray.pipelines.preprocess import eeg_stage
from eav_ray.storage import Store


def read_shard_windows(
    row: dict[str, Any],
    *,
    files: list[ShardFile],
    shards: Store,
    experiment: Experiment,
    modalities: tuple[ModalityName, ...],
    n_channels: int,
    channel_order: list[int],
) -> list[dict[str, Any]]:
    """Read the windows of one shard, as `cut_raw_windows` makes those of raw files.

    Args:
        n_channels: EEG channels of the checkpoint.
        channel_order: The index in the shard of each of them.
    """
    table = read_shard(shards, files[row["shard"]])
    columns: dict[str, Any] = {
        c: table.column(c).to_pylist() for c in (*ID_COLUMNS, *list_target_columns(table.column_names))
    }
    for m in modalities:
        if m not in experiment.data.modalities:
            empty = encode_window(
                {m: make_empty_window(m, experiment.preprocessing, n_channels)}, experiment.preprocessing
            )[m]
            columns |= {m: [empty] * len(table), f"has_{m}": [False] * len(table)}
            continue
        array = table.column(m).combine_chunks()
        tensor = isinstance(array, pa.FixedShapeTensorArray)
        columns[m] = list(array.to_numpy_ndarray()) if tensor else array.to_pylist()
        if get_modality_info(m).has_named_channels and channel_order != list(range(n_channels)):
            columns[m] = [x_CT[channel_order] for x_CT in columns[m]]
        columns[f"has_{m}"] = table.column(f"has_{m}").to_pylist()
    reason = f"this window has no {' and no '.join(experiment.data.modalities)}"
    rows = []
    for i in range(len(table)):
        window_row = {name: values[i] for name, values in columns.items()}
        rows.append(window_row | {"reason": "" if any(window_row[f"has_{m}"] for m in modalities) else reason})
    return rows


def cut_raw_windows(
    row: dict[str, Any],
    *,
    units: list[eeg_stage.RecordingUnit],
    preprocessing: Preprocessing,
    modalities: tuple[ModalityName, ...],
    shapes: DataShapes,
) -> list[dict[str, Any]]:
    """Raw recordings to windows, as a shard would hold them. What cannot be read becomes a row that says why."""
    prepared, rows = eeg_stage.unpack_eeg(row), []
    for recording in units[row["unit"]]:
        eeg = prepared.get(recording.recording)
        windowed = cut_recording(recording, WindowFormat(preprocessing, modalities, shapes.eeg_channels), eeg)
        rows += make_rows(recording, windowed, preprocessing, modalities, shapes)
    return rows


def make_rows(
    recording: Recording,
    windowed: WindowedRecording,
    preprocessing: Preprocessing,
    modalities: tuple[ModalityName, ...],
    shapes: DataShapes,
) -> list[dict[str, Any]]:
    """Make a row of each window to be predicted, and of each file that cannot be used one that says why."""
    targets = recording.name_targets()
    names = [*ID_COLUMNS, *targets, *modalities, *(f"has_{m}" for m in modalities)]
    stored = [encode_window(window, preprocessing) for window in windowed.windows]
    rows = [{name: window[name] for name in names} | {"reason": ""} for window in stored]
    # What has nothing to predict from is a row too: it is waited for, and told, and not left out in silence.
    for reason in [p.reason for p in windowed.problems] or ([] if rows else ["it has none of the modalities"]):
        empty: dict[str, Any] = {"subject": recording.subject, "recording": recording.recording, "window": 0}
        for m in modalities:
            empty |= {m: make_empty_window(m, preprocessing, shapes.eeg_channels), f"has_{m}": False}
        rows.append(encode_window(empty, preprocessing) | {"label": recording.label, "reason": reason} | targets)
    return rows
