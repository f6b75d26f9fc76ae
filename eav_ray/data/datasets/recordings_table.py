"""A user's own recordings, listed in a CSV or Parquet file."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
from pyarrow import csv

from eav_ray import errors
from eav_ray.config import MODALITIES, DataConfig, ModalityName
from eav_ray.data.io import eeg, parquet
from eav_ray.data.preprocessing.channel_choice import ChannelChoice, choose_channels
from eav_ray.data.preprocessing.electrodes import match_channels
from eav_ray.data.recordings import DatasetReader, Listing, Problem, RawEEG, Recording
from eav_ray.errors import DataError, suggest_nearest

REQUIRED_COLUMNS = ("subject", "recording", "label")
MEDIA_COLUMNS = ("eeg", "audio", "video")
OPTIONAL_COLUMNS = (*MEDIA_COLUMNS, "task", "order")
NAME_COLUMNS = ("subject", "recording")  # parts of file names and of recordings' ids


class RecordingsTable(DatasetReader):
    """Reader of a table with the columns `subject`, `recording`, `label`, at least one of `eeg`, `audio`, `video`, and
    optionally `task` (default speaking; listening is only ever trained on) and `order` (default the row's position).

    Media are paths, relative to the table's folder or absolute; an empty cell means that the modality does not exist.
    The classes are the sorted different labels, as text. EEG is any format that `mne.io.read_raw` opens.

    Raises:
        DataError: The file is missing, is no table, or lacks a column.
    """

    name = "recordings_table"

    @classmethod
    def open(cls, data: DataConfig) -> Self:
        return cls(data.root, needs_media=not data.features)

    def __init__(self, path: str, *, needs_media: bool = True) -> None:
        """
        Args:
            needs_media: Whether a recording must have a file; where there are given features (`data.features`), it
                may have these alone.
        """
        self._needs_media = needs_media
        self.path = Path(path).expanduser().absolute()
        columns = _read_columns(self.path)
        for column in REQUIRED_COLUMNS:
            if column not in columns:
                required, optional = ", ".join(REQUIRED_COLUMNS), ", ".join(OPTIONAL_COLUMNS)
                raise DataError(
                    f"{self.path} has no column {column}; it has {', '.join(columns)}; required are {required}, "
                    f"optional {optional}{suggest_nearest(column, columns)}"
                )
        self.modalities: tuple[ModalityName, ...] = tuple(m for m in MODALITIES if m in columns)
        if not self.modalities and needs_media:
            raise DataError(
                f"{self.path} has none of the columns {', '.join(MEDIA_COLUMNS)}; it has {', '.join(columns)}; add at "
                "least one, or name given features under data.features"
            )
        names = list(columns)
        self.rows = [dict(zip(names, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
        self.classes: tuple[str, ...] = tuple(sorted({row["label"] for row in self.rows if row["label"]}))
        if not self.classes:
            raise DataError(f"{self.path} has no row with a label; add at least one recording")
        self._channels: dict[tuple[str, ...], tuple[str, ...]] = {}  # by those that are wanted

    def scan(self) -> Listing:
        """Rows that name a recording twice, or lack a value, are left out; a missing file costs that modality."""
        problems: list[Problem] = []
        recordings: list[Recording] = []
        rows_by_id: dict[tuple[str, str], list[int]] = {}
        for line, row in enumerate(self.rows):
            rows_by_id.setdefault((row["subject"], row["recording"]), []).append(line)
        for (subject, name), row_numbers in rows_by_id.items():
            row, where = self.rows[row_numbers[0]], f"row {row_numbers[0] + 1}"
            media: dict[str, str] = {}
            if reason := _find_row_problem(row, row_numbers):
                problems.append(Problem(subject, name, str(self.path), reason))
                continue
            for m in (m for m in self.modalities if row[m]):
                media[m] = str(self.path.parent / row[m])
                if not Path(media[m]).is_file():
                    reason = f"{where}: the {m} file does not exist; correct the path or empty the cell"
                    problems.append(Problem(subject, name, media.pop(m), reason))
            if not media and self._needs_media:
                reason = f"{where} has no file of {', '.join(self.modalities)}; left out"
                problems.append(Problem(subject, name, str(self.path), reason))
                continue
            label, task = self.classes.index(row["label"]), (row.get("task") or "speaking").lower()
            recording = Recording(subject, name, label, task, int(row.get("order") or row_numbers[0]))
            recordings.append(replace(recording, **media))
        recordings.sort(key=lambda r: (r.subject, r.order, r.recording))
        return Listing(tuple(recordings), tuple(problems))

    @property  # what is known only once a file is opened
    def channels(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Names of the EEG channels, in the order of the first EEG file that can be read; all others must have them.

        Raises:
            DataError: There are EEG files, and not one can be opened and has EEG channels; says why of the first.
        """
        if self.wanted_channels not in self._channels:
            paths = [r.eeg for r in self.scan().recordings if r.eeg is not None]
            self._channels[self.wanted_channels] = _read_first_channels(paths, self.wanted_channels)
        return self._channels[self.wanted_channels]

    def read_eeg(self, recording: Recording) -> RawEEG:
        """The channels of type EEG, (channels, samples), microvolts, in the order of `channels`.

        Raises:
            DataError: The file is missing, damaged, or its EEG channels are not those of the first recording.
        """
        path = recording.get_eeg_file()
        file = eeg.open_eeg_file(path)
        try:
            choice = self._choose_same_channels(file)
            order = match_channels(choice.spelt, self.channels, path)
            raw = file.read([choice.taken[i] for i in order])
        finally:
            file.close()
        bad = {choice.spelt[choice.taken.index(name)]: reason for name, reason in raw.bad_channels.items()}
        return replace(raw, channels=self.channels, bad_channels=bad, remarks=(*choice.remarks, *raw.remarks))

    def check_eeg_channels(self, recordings: Sequence[Recording]) -> tuple[tuple[str, ...], tuple[Problem, ...]]:
        """Open each EEG file, and choose its channels; says what is left out, and which files cannot be used."""
        counts: Counter[str] = Counter()
        problems: list[Problem] = []
        with_eeg = [r for r in recordings if r.eeg is not None]
        for recording in with_eeg:
            path = recording.get_eeg_file()
            try:
                file = eeg.open_eeg_file(path)
                try:
                    choice = self._choose_same_channels(file)
                    match_channels(choice.spelt, self.channels, path)
                    counts.update(choice.remarks)
                finally:
                    file.close()
            except DataError as error:
                problems.append(Problem(recording.subject, recording.recording, path, str(error)))
        remarks = [f"{remark} ({n} of {len(with_eeg)} recordings)" for remark, n in counts.most_common()]
        return tuple(remarks), tuple(problems)

    def _choose_same_channels(self, file: eeg.EEGFile) -> ChannelChoice:
        """Choose the channels of a file, which must be those of the first."""
        choice = choose_channels(file.names, file.types, self.wanted_channels, file.source)
        if set(choice.spelt) != set(self.channels):
            differing = ", ".join(sorted(set(choice.spelt) ^ set(self.channels)))
            raise DataError(
                f"{file.source} has other EEG channels than the first file of {self.path} (differing: {differing}): "
                "all need the same; leave it out, or choose channels by preprocessing.eeg.channels"
            )
        return choice


def _find_row_problem(row: dict[str, str], row_numbers: list[int]) -> str:
    """Say what is wrong with a row; empty where nothing is.

    Args:
        row_numbers: Of all rows that name its recording, from 0; its own first.
    """
    where = f"row {row_numbers[0] + 1}"
    missing = [c for c in REQUIRED_COLUMNS if not row[c]]
    if missing:
        why = ": training needs it; for prediction alone any text will do" if missing == ["label"] else ""
        return f"{where} has no {' and no '.join(missing)}; fill it in{why}"
    invalid = next((c for c in NAME_COLUMNS if row[c] in (".", "..") or set(row[c]) & set("/\\\0")), None)
    if invalid:
        return (
            f"{where}: {invalid} is {row[invalid]!r}; it names files, so it must not contain / or \\, nor be . or ..; "
            "rename it"
        )
    if len(row_numbers) > 1:
        rows = ", ".join(str(i + 1) for i in row_numbers)
        return f"rows {rows} name the same recording; keep one, or rename the others"
    order = row.get("order") or "0"
    if not order.isdecimal():
        return f"{where}: order is {order!r}; it must be a whole number from 0"
    return ""


def _read_first_channels(paths: Iterable[str], wanted: Sequence[str]) -> tuple[str, ...]:
    first: DataError | None = None
    for path in paths:
        try:
            file = eeg.open_eeg_file(path)
            try:
                return choose_channels(file.names, file.types, wanted, file.source).spelt
            finally:
                file.close()
        except DataError as error:  # a damaged file costs its own recording, not the job
            first = first or error
    if first:
        raise first
    return ()


def _read_columns(path: Path) -> dict[str, list[str]]:
    """Column name -> its cells as stripped text, "" for a null."""
    if not path.is_file():
        raise DataError(f"{path} is missing; set data.root to a CSV or Parquet file with {', '.join(REQUIRED_COLUMNS)}")
    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            table = parquet.read_parquet_table(path)
        else:
            # As text: "01" is the name of a person, not the number 1. pyarrow keeps spaces of the header in its names.
            with csv.open_csv(path) as header:
                names = header.schema.names
            options = csv.ConvertOptions(
                column_types={n: pa.string() for n in names if n.strip() in REQUIRED_COLUMNS + OPTIONAL_COLUMNS}
            )
            table = csv.read_csv(path, convert_options=options)
        table.validate(full=True)  # text that is no UTF-8, offsets beyond the end: what a reader would trust
        cells = [[_cell_to_text(c) for c in column.to_pylist()] for column in table.columns]
    except parquet.ARROW_READ_ERRORS as error:
        raise DataError(f"{path} cannot be read as a CSV or Parquet table ({errors.describe_error(error)})") from None
    names = [name.strip() for name in table.column_names]
    if len(set(names)) < len(names):
        raise DataError(f"{path} names a column twice: {', '.join(names)}; rename one")
    return dict(zip(names, cells, strict=True))


def _cell_to_text(cell: Any) -> str:
    return "" if cell is None else str(cell).strip()
