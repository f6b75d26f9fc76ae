"""Say what is true of the runs and events of a BIDS data set, by its tables: labels, or numbers that are predicted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from eav_ray.config.data_sections import BIDS_TABLES, NO_TARGETS, BIDSData, TargetData
from eav_ray.data.io.bids_layout import Run
from eav_ray.data.io.bids_tables import BIDSTables, Event, is_mark
from eav_ray.data.io.file_access import is_file
from eav_ray.data.io.numbers import UNKNOWN
from eav_ray.data.recordings import TRUTH_NOTE
from eav_ray.errors import DataError

EVENTS = "events"


@dataclass(frozen=True)
class Truth:
    """What is true of a run or an event.

    Attributes:
        label: Empty where it is not known, or numbers are predicted.
        targets: In the order of `data.targets.columns`; NaN where a number is not known.
    """

    label: str = ""
    targets: tuple[float, ...] = ()


class BIDSTruth:
    """The columns that hold labels, or numbers that are predicted.

    Args:
        needs_truth: Whether everything must have its label, or all its numbers; recordings that are predicted need not.
    Attributes:
        cuts_events: Whether events are recordings, and not whole runs.
    """

    def __init__(
        self, tables: BIDSTables, section: BIDSData, targets: TargetData = NO_TARGETS, *, needs_truth: bool = True
    ) -> None:
        self._tables, self._section, self._needs_truth = tables, section, needs_truth
        self._columns = targets.own_columns
        self.predicts_numbers = bool(targets.columns)
        self._label_table, _, self._label_column = section.label.partition(".")
        self._event_columns = [c.partition(".")[2] for c in self._columns if c.startswith(f"{EVENTS}.")]
        self.cuts_events = self._label_table == EVENTS or bool(self._event_columns)

    def check_columns(self, first_run: Run) -> None:
        """Refuse a label that is not said, with the columns that there are, and `participants.tsv` without a column."""
        if not self._needs_truth:
            return
        if not self._section.label and not self.predicts_numbers:
            raise DataError(
                f"data.bids.label is empty; set it to one of {', '.join(self._tables.list_label_columns(first_run))}; "
                f"{TRUTH_NOTE}"
            )
        for column in self._columns:
            if not column.startswith(tuple(f"{table}." for table in BIDS_TABLES)):
                raise DataError(
                    f"data.targets.columns names {column}, which is no column of a BIDS table; write "
                    f"{', '.join(BIDS_TABLES)}, a point and its name, or set data.targets.path to a table of your own"
                )
        for key, column in (
            ("data.bids.label", self._section.label),
            *(("data.targets.columns", c) for c in self._columns),
        ):
            table, _, name = column.partition(".")
            path = self._tables.root / "participants.tsv"
            if table == "participants":
                if not is_file(path):
                    raise DataError(f"{path} is missing, so there is no {column}; set {key} otherwise")
                self._tables.read(path, "participant_id", name)

    def describe(self) -> str:
        """Name what is looked for, for errors."""
        return " and ".join(filter(None, (self._section.label, ", ".join(self._columns)))) or "a recording"

    def read_run(self, run: Run) -> Truth | None:
        """Read what is true of a whole run; None where it is none of those that are wanted.

        Raises:
            DataError: Its label, or one of its numbers, is missing or cannot be used.
        """
        label = ""
        if self._label_table not in ("", EVENTS):
            try:
                label = self._tables.read_run_label(run, self._section.label)
            except DataError:
                if self._needs_truth:
                    raise
            if self._section.classes and label not in self._section.classes and (label or self._needs_truth):
                return None
        targets = tuple(UNKNOWN if c.startswith(f"{EVENTS}.") else self._read_run_number(run, c) for c in self._columns)
        return Truth("" if self.predicts_numbers else label, targets)

    def _read_run_number(self, run: Run, column: str) -> float:
        try:
            return self._tables.read_run_number(run, column)
        except DataError:
            if self._needs_truth:
                raise
            return UNKNOWN

    def select_events(
        self, path: Path, events: Sequence[Event], run: Truth, report: Callable[[str, object], None]
    ) -> list[tuple[Event, Truth]]:
        """Select the events that are recordings, with what is true of each.

        Args:
            path: Of `events.tsv`.
            run: What is true of their run.
            report: Takes what is wrong with an event, and the file.
        Raises:
            DataError: The table lacks a column.
        """
        wanted = ([self._label_column] if self._label_table == EVENTS else []) + self._event_columns
        table = self._tables.read(path, *(wanted if self._needs_truth else ()))
        columns = [c for c in self._event_columns if c in table.columns]
        stimuli = [event for event in events if not event.is_mark]
        has_labels = self._label_table == EVENTS and self._label_column in table.columns
        if has_labels:
            stimuli = [event for event in stimuli if self._is_wanted(event.cells[self._label_column])]
        numbers = [self._tables.parse_numbers(path, columns, event.cells) for event in stimuli]
        selects_by_numbers = bool(columns) and (self._needs_truth or not has_labels)
        # Of recordings that are predicted nobody may have said anything yet.
        if not self._needs_truth and not any(row.n_stated for row in numbers):
            selects_by_numbers = False
        found: list[tuple[Event, Truth]] = []
        for event, row in zip(stimuli, numbers, strict=True):
            if selects_by_numbers and not row.n_stated:
                if has_labels:
                    names = ", ".join(columns)
                    self._tables.remarks[f"events with a label and without numbers in {names} are not used"] = None
                continue
            if self._needs_truth and row.problem:
                report(f"{path}: row {event.number}: {row.problem}; correct it, or empty its cells", path)
                continue
            values = dict(zip(columns, row.values, strict=True))
            label = event.cells[self._label_column] if has_labels and not self.predicts_numbers else run.label
            found.append((event, Truth(label, self._fill_in(run, values))))
        return found

    def _is_wanted(self, label: str) -> bool:
        if not label or is_mark(label):
            return False
        return not self._section.classes or label in self._section.classes

    def _fill_in(self, run: Truth, values: dict[str, float]) -> tuple[float, ...]:
        """Complete the numbers of a run by those of an event."""
        pairs = zip(self._columns, run.targets, strict=True)
        return tuple(values.get(c.partition(".")[2], UNKNOWN) if c.startswith(f"{EVENTS}.") else x for c, x in pairs)
