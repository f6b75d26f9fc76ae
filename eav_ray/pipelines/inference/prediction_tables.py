"""Predictions in a file: one row a window and one a recording, as Parquet or CSV."""

import errno
import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from eav_ray.config.paths import retarget_experiment
from eav_ray.errors import ConfigError, DataError
from eav_ray.evaluation.compatibility import describe_training_recordings
from eav_ray.evaluation.predicted_numbers import name_numbers
from eav_ray.evaluation.probabilities import RecordingAverager, add_probabilities
from eav_ray.pipelines.inference.predict import predict_recordings, predict_shards
from eav_ray.storage import io_errors, replace_file
from eav_ray.training.checkpoint import open_finished_checkpoint
from eav_ray.words import format_count, format_recordings_or_files

OUTPUT_SUFFIXES = (".parquet", ".csv")
MAX_PRINTED_FAILURES = 20  # recordings that could not be used, of those that are printed


@dataclass(frozen=True)
class PredictionTables:
    recordings: pd.DataFrame
    text: str


def predict_to_file(path: str, changes: dict[str, Any], out: str, *, shards: bool = False) -> PredictionTables:
    """Predict, and write one table with a row a recording, `out`, and one with a row a window, `<out>-windows`.

    Columns: `subject, recording, window` (a recording: `windows`, their number), `label`, the class that the data say;
    `predicted`; `probability.<class>` of the fusion and `<modality>.probability.<class>` of each modality, NaN where it
    was not there; of several modalities also `<rule>.probability.<class>` of the rules of fusion, `mean_probability`
    and `product`; the logits that these are of, `logit.<class>` and so on; `weight.<modality>` and
    `corrected.<modality>`, the modality weights as they are and with the length of values considered. A recording has
    the means of its windows' logits and weights, and the softmax of these means.

    Of a checkpoint that predicts numbers: `<target>`, what the data say, `predicted.<target>` of the fusion,
    `<modality>.predicted.<target>` and, of several modalities, `mean.predicted.<target>` in place of classes,
    probabilities and logits.

    Args:
        changes: Of the checkpoint's experiment: `data.root` and what else differs.
        out: Its ending says the kind of file. Windows are written as they come, so that many need no memory.
        shards: Predict the windows in `store.shards` instead of raw recordings.
    Raises:
        ConfigError: Another ending, or changes that do not fit the checkpoint.
        DataError: Nothing to predict, a damaged checkpoint, or no place to write to.
    """
    target = Path(out)
    if target.suffix not in OUTPUT_SUFFIXES:
        raise ConfigError(f"--out is {target.name}; give a name that ends in {' or '.join(OUTPUT_SUFFIXES)}")
    checkpoint = open_finished_checkpoint(path)
    experiment = retarget_experiment(checkpoint.experiment, changes, used_stores=("shards",) if shards else ())
    targets, classes = checkpoint.experiment.data.targets.names, checkpoint.state.classes

    def name_outputs(table: pd.DataFrame) -> pd.DataFrame:
        return name_numbers(table, targets) if targets else add_probabilities(table, classes)

    windows_path = target.with_name(f"{target.stem}-windows{target.suffix}")
    recordings = RecordingAverager()
    with TableWriter(target) as recording_writer, TableWriter(windows_path) as window_writer:

        def write_windows(windows: pd.DataFrame) -> None:
            recordings.add(windows)
            window_writer.add(name_outputs(windows))

        failed = (predict_shards if shards else predict_recordings)(experiment, checkpoint, write_windows)
        if not recordings.n_windows:
            what = format_recordings_or_files(len(failed))
            raise DataError(f"none of {what} can be predicted; the first: {failed[0]}")
        recording_table = name_outputs(recordings.compute_means())
        recording_writer.add(recording_table)
    n_windows = recordings.n_windows
    counts = f"{format_count(len(recording_table), 'recording')} ({format_count(n_windows, 'window')})"
    lines = [f"{counts} predicted: {target}, {windows_path}"]
    ids = recording_table["subject"].astype(str) + "/" + recording_table["recording"].astype(str)
    if note := describe_training_recordings(experiment, checkpoint, ids):
        lines.append(f"warning: {note}")
    if failed:
        what = format_recordings_or_files(len(failed))
        lines += [f"{what} could not be used:", *(f"  {line}" for line in failed[:MAX_PRINTED_FAILURES])]
        lines += [f"  and {len(failed) - MAX_PRINTED_FAILURES} more"] if len(failed) > MAX_PRINTED_FAILURES else []
    return PredictionTables(recording_table, "\n".join(lines))


class TableWriter:
    """A table of numbers and text that grows block by block; its file appears under its name when the block ends.

    Raises:
        DataError: There cannot be such a file, which is said before anything is added, or the disk is full.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._stack = path, ExitStack()
        self._parquet: pq.ParquetWriter | None = None

    def add(self, rows: pd.DataFrame) -> None:
        with io_errors(f"write {self._path}"):
            if self._path.suffix == ".csv":
                first = not self._partial.stat().st_size
                rows.to_csv(self._partial, mode="a", header=first, index=False)
                return
            table = pa.Table.from_pandas(rows, preserve_index=False).replace_schema_metadata()
            if self._parquet is None:
                self._parquet = self._stack.enter_context(pq.ParquetWriter(self._partial, table.schema))
            self._parquet.write_table(table.cast(self._parquet.schema))

    def __enter__(self) -> "TableWriter":
        with io_errors(f"write {self._path}"):
            if self._path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._partial = self._stack.enter_context(replace_file(self._path))
            self._partial.touch()
        return self

    def __exit__(self, *error: Any) -> None:
        with io_errors(f"write {self._path}"):
            self._stack.__exit__(*error)
