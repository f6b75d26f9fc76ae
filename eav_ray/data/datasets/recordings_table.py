"""A user's own recordings, listed in a CSV or Parquet file."""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from eav_ray.config import MODALITIES, DataConfig, ModalityName
from eav_ray.config.data_sections import NO_TARGETS, TargetData
from eav_ray.data.io import eeg
from eav_ray.data.io.file_access import is_file
from eav_ray.data.io.numbers import UNKNOWN, RowNumbers, describe_decimal_commas, read_rows
from eav_ray.data.io.tables import EMPTY_CELLS, Table, find_named_file, read_tabular_file
from eav_ray.data.preprocessing.channel_choice import ChannelChoice, choose_channels, collect_channel_remarks
from eav_ray.data.recordings import (
    TRUTH_NOTE,
    UNKNOWN_LABEL,
    DatasetReader,
    Listing,
    Problem,
    RawEEG,
    Recording,
    list_as_left_out,
)
from eav_ray.electrodes import match_channels
from eav_ray.errors import DataError, suggest_nearest

REQUIRED_COLUMNS = ("subject", "recording", "label")
MEDIA_COLUMNS = ("eeg", "audio", "video")
OPTIONAL_COLUMNS = (*MEDIA_COLUMNS, "task", "order")
NAME_COLUMNS = ("subject", "recording")  # parts of file names and of recordings' ids
TAKEN_COLUMNS = (*NAME_COLUMNS, *OPTIONAL_COLUMNS)  # that cannot be numbers to be predicted
LINE_BREAK = re.compile(r"[\r\n]")
NOT_IN_NAMES = re.compile(r"[/\\\x00-\x1f\x7f]")


class RecordingsTable(DatasetReader):
    """Reader of a table with the columns `subject`, `recording`, `label`, at least one of `eeg`, `audio`, `video`, and
    optionally `task` (default speaking; listening is only ever trained on) and `order` (default the row's position).

    Media are paths, relative to the table's folder or absolute; an empty cell means that the modality does not exist.
    The classes are the sorted different labels, as text; where numbers are predicted (`data.targets`), there are none,
    and `label` is not needed. EEG is any format that `mne.io.read_raw` opens.

    Raises:
        DataError: The file is missing, is no table, or lacks a column.
    """

    name = "recordings_table"
    reads_targets = True

    @classmethod
    def open(cls, data: DataConfig) -> Self:
        return cls(data.root, needs_media=not data.features, targets=data.targets)

    @classmethod
    def open_unlabelled(cls, data: DataConfig) -> Self:
        return cls(data.root, needs_media=not data.features, targets=data.targets, needs_truth=False)

    def __init__(
        self,
        path: str,
        *,
        needs_media: bool = True,
        targets: TargetData = NO_TARGETS,
        needs_truth: bool = True,
    ) -> None:
        """
        Args:
            needs_media: Whether a recording must have a file; where there are given features (`data.features`), it
                may have these alone.
            targets: Numbers that are predicted in place of the label.
            needs_truth: Whether a row must have its label or its numbers.
        """
        self._needs_media, self._needs_truth = needs_media, needs_truth
        self._predicts_numbers, self._targets = bool(targets.columns), targets.own_columns
        self.path = Path(path).expanduser().absolute()
        self._required = NAME_COLUMNS if self._predicts_numbers or not needs_truth else REQUIRED_COLUMNS
        self.table = _read_known_columns(self.path, self._required, self._targets)
        columns = self.table.columns
        for column in self._required:
            if column not in columns:
                required, optional = ", ".join(self._required), ", ".join(OPTIONAL_COLUMNS)
                nearest, way = suggest_nearest(column, columns), f"; {TRUTH_NOTE}" if column == "label" else ""
                raise DataError(
                    f"{self.path} has no column {column}; it has {', '.join(columns)}; required are {required}, "
                    f"optional {optional}{nearest}{way}"
                )
        self.modalities: tuple[ModalityName, ...] = tuple(m for m in MODALITIES if m in columns)
        if not self.modalities and needs_media:
            raise DataError(
                f"{self.path} has none of the columns {', '.join(MEDIA_COLUMNS)}; it has {', '.join(columns)}; add at "
                "least one, or name given features under data.features"
            )
        self._numbers = self._read_targets()
        label = () if self._predicts_numbers else ("label",)
        self._known = (*NAME_COLUMNS, *label, *OPTIONAL_COLUMNS)
        self.rows = _list_rows(self.path, self.table, self._known)
        if not self._predicts_numbers:
            labels = {row.cells.get("label", "") for row in self.rows}
            self.classes = tuple(sorted(x for x in labels if x and not LINE_BREAK.search(x)))
        if not self.classes and needs_truth and not self._predicts_numbers:
            raise DataError(f"{self.path} has no row with a label; label at least one; {TRUTH_NOTE}")
        if self._targets and needs_truth and all(row.problem for row in self._numbers):
            first = f" (row {self.table.numbers[0]}: {self._numbers[0].problem})" if self._numbers else ""
            raise DataError(
                f"{self.path} has no row with all of {', '.join(self._targets)}{first}; fill them in; {TRUTH_NOTE}"
            )
        self._channels: dict[tuple[str, ...], tuple[str, ...]] = {}  # by those that are wanted

    def _read_targets(self) -> list[RowNumbers]:
        """Read the numbers that are predicted, row by row; none where the table holds none."""
        if taken := next((c for c in self._targets if c in TAKEN_COLUMNS), ""):
            raise DataError(
                f"data.targets.columns names {taken}, which means something else in {self.path}; name a column of "
                "numbers"
            )
        columns = [c for c in self._targets if self._needs_truth or c in self.table.columns]
        found = read_rows(self.table, columns, self.path, "data.targets.columns") if columns else []
        if columns == list(self._targets):
            return found
        # Of recordings that are predicted some numbers may be known, and others not.
        values = [dict(zip(columns, row.values, strict=True)) for row in found] or [{}] * len(self.table.numbers)
        return [RowNumbers(tuple(row.get(c, UNKNOWN) for c in self._targets)) for row in values]

    def scan(self) -> Listing:
        """Rows that name a recording twice, or lack a value, are left out; a missing file costs that modality."""
        problems = [Problem("", "", str(self.path), reason) for _, reason in self.table.problems]
        recordings: list[Recording] = []
        rows_by_id: dict[tuple[str, str], list[_Row]] = {}
        for row in self.rows:
            rows_by_id.setdefault((row.cells["subject"], row.cells["recording"]), []).append(row)
        for (subject, name), rows in rows_by_id.items():
            row, where = rows[0].cells, f"row {rows[0].number}"
            media: dict[str, str] = {}
            if reason := self._find_row_problem(rows):
                problems.append(Problem(subject, name, str(self.path), reason))
                continue
            for m in (m for m in self.modalities if row[m]):
                media[m], reason = find_named_file(self.path.parent, row[m], f"{where}: the {m} file")
                if reason:
                    problems.append(Problem(subject, name, media.pop(m), reason))
            if not media and self._needs_media:
                reason = f"{where} has no file of {', '.join(self.modalities)}; left out"
                list_as_left_out(problems, Problem(subject, name, str(self.path), reason))
                continue
            label, task = row.get("label", ""), (row.get("task") or "speaking").lower()
            number = self.classes.index(label) if label in self.classes else UNKNOWN_LABEL
            recording = Recording(subject, name, number, task, int(row.get("order") or rows[0].number - 1))
            recording = replace(recording, targets=self._get_numbers(rows[0]).values)
            recordings.append(replace(recording, **media))
        recordings.sort(key=lambda r: (r.subject, r.order, r.recording))
        return Listing(tuple(recordings), tuple(problems), (*self.table.remarks, *self._describe_rows()))

    def _find_row_problem(self, rows: Sequence["_Row"]) -> str:
        """Say what is wrong with a row; empty where nothing is.

        Args:
            rows: All that name its recording, its own first.
        """
        row, where = rows[0].cells, f"row {rows[0].number}"
        missing = [c for c in self._required if not row[c]]
        if missing:
            why = f": {TRUTH_NOTE}" if missing == ["label"] else ""
            stated = " and ".join(f"{rows[0].stated[c]} means empty" for c in missing if rows[0].stated[c])
            return f"{where} has no {' and no '.join(missing)}{stated and f' ({stated})'}; fill it in{why}"
        if invalid := next((c for c in NAME_COLUMNS if row[c] in (".", "..") or NOT_IN_NAMES.search(row[c])), None):
            return (
                f"{where}: {invalid} is {row[invalid]!r}; it names files, so it must not contain / or \\, nor be . or "
                "..; rename it"
            )
        if "label" in self._required and LINE_BREAK.search(row["label"]):
            return f"{where}: label is {row['label']!r}, with a line break in it; close its quote, or take it out"
        if self._needs_truth and (problem := self._get_numbers(rows[0]).problem):
            return f"{where}: {problem}; correct it, or leave the recording out"
        if len(rows) > 1:
            numbers = ", ".join(str(r.number) for r in rows)
            return f"rows {numbers} name the same recording; keep one, or rename the others"
        order = row.get("order") or "0"
        if not order.isdecimal() or len(order) > 9:
            return f"{where}: order is {order!r}; it must be a whole number from 0"
        return ""

    def _get_numbers(self, row: "_Row") -> RowNumbers:
        return self._numbers[row.position] if self._numbers else RowNumbers(())

    def _describe_rows(self) -> Iterator[str]:
        """What in the rows may not be meant as it stands, a line each."""
        for column in ("subject",) if self._predicts_numbers else ("subject", "label"):
            by_form: dict[str, list[str]] = {}
            for name in filter(None, dict.fromkeys(row.cells.get(column, "") for row in self.rows)):
                by_form.setdefault(name.casefold().lstrip("0") or "0", []).append(name)
            for alike in by_form.values():
                if len(alike) > 1:
                    names = " and ".join(map(repr, alike))
                    yield f"{self.path}: {column} {names} count as different; write them alike if they are not"
        orderless = [row.number for row in self.rows if not row.cells.get("order", "")]
        if 0 < len(orderless) < len(self.rows) and "order" in self.table.columns:
            rows = ", ".join(map(str, orderless[:5]))
            yield f"{self.path}: rows without order ({len(orderless)}: {rows}) take their position in the table for it"
        yield from describe_decimal_commas(self.table, self._targets, self.path)
        known = (*self._known, *self._targets)
        if unused := [name for name in self.table.columns if name not in known]:
            yield f"{self.path}: columns that are not used: {', '.join(unused)}; used are {', '.join(known)}"

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
        with closing(eeg.open_eeg_file(path)) as file:
            choice = self._choose_same_channels(file)
            order = match_channels(choice.spelt, self.channels, path)
            raw = file.read([choice.taken[i] for i in order])
        bad = {choice.spelt[choice.taken.index(name)]: reason for name, reason in raw.bad_channels.items()}
        return replace(raw, channels=self.channels, bad_channels=bad, remarks=(*choice.remarks, *raw.remarks))

    def check_eeg_channels(self, recordings: Sequence[Recording]) -> tuple[tuple[str, ...], tuple[Problem, ...]]:
        """Open each EEG file, and choose its channels; says what is left out, and which files cannot be used."""
        with_eeg = [r for r in recordings if r.eeg is not None]
        return collect_channel_remarks(with_eeg, self._describe_eeg_file, "recordings")

    def _describe_eeg_file(self, path: str) -> tuple[str, ...]:
        with closing(eeg.open_eeg_file(path)) as file:
            self.eeg_durations_s[path] = file.duration_s
            choice = self._choose_same_channels(file)
            match_channels(choice.spelt, self.channels, path)
            return (*choice.remarks, *file.describe_header(choice.taken))

    def _choose_same_channels(self, file: eeg.EEGFile) -> ChannelChoice:
        """Choose the channels of a file, which must be those of the first."""
        choice = choose_channels(file.names, file.types, self.wanted_channels, file.source, file.placed)
        if set(choice.spelt) != set(self.channels):
            differing = ", ".join(sorted(set(choice.spelt) ^ set(self.channels)))
            raise DataError(
                f"{file.source} has other EEG channels than the first file of {self.path} (differing: {differing}): "
                "all need the same; leave it out, or choose channels by preprocessing.eeg.channels"
            )
        return choice


@dataclass(frozen=True)
class _Row:
    position: int  # among those that can be read
    number: int  # from 1, below the header
    cells: dict[str, str]  # of the known columns; "" where there is nothing
    stated: dict[str, str]  # as they stand


def _read_known_columns(path: Path, required: Sequence[str], targets: Sequence[str]) -> Table:
    """Read the table; raises DataError where it is missing, or a column is called nearly as one that is known."""
    known = (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS)
    if not is_file(path):
        raise DataError(f"{path} is missing; set data.root to a CSV or Parquet file with {', '.join(required)}")
    table = read_tabular_file(path, {*known, *targets})
    for name in table.columns:
        if name not in (*known, *targets) and name.lower() in known:
            raise DataError(f"{path} has a column {name}; names of columns are lower case: rename it {name.lower()}")
    return table


def _list_rows(path: Path, table: Table, known: Sequence[str]) -> list[_Row]:
    columns: dict[str, list[str]] = {}
    for name in known:
        if name in table.columns:
            try:
                columns[name] = (table.read_text if name in MEDIA_COLUMNS else table.read_names)(name)
            except ValueError as error:
                raise DataError(f"{path}: column {name} cannot be read ({error}); write text or numbers") from None
    rows = []
    for position, cells in enumerate(zip(*columns.values(), strict=True)):
        stated = dict(zip(columns, cells, strict=True))
        filled = {c: "" if cell in EMPTY_CELLS else cell for c, cell in stated.items()}
        rows.append(_Row(position, table.numbers[position], filled, stated))
    return rows


def _read_first_channels(paths: Iterable[str], wanted: Sequence[str]) -> tuple[str, ...]:
    first: DataError | None = None
    for path in paths:
        try:
            with closing(eeg.open_eeg_file(path)) as file:
                return choose_channels(file.names, file.types, wanted, file.source).spelt
        except DataError as error:  # a damaged file costs its own recording, not the job
            first = first or error
    if first:
        raise first
    return ()
