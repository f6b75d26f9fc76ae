"""A BIDS data set, of any task: EEG, and speech and film beside it, with labels from one of its tables.

A run is what was recorded at one time. Where labels are of people, sessions or scans, a run is a recording; where they
are of events, each labelled event is one, from its onset for its duration, so that one file holds many.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from eav_ray.config import DataConfig, ModalityName
from eav_ray.config.data_sections import NO_TARGETS, BIDSData, TargetData
from eav_ray.data.datasets.bids_truth import BIDSTruth, Truth
from eav_ray.data.io import eeg
from eav_ray.data.io.bids_layout import Run, find_runs, find_sidecar, read_json
from eav_ray.data.io.bids_tables import BIDSTables, Channel, Event
from eav_ray.data.io.bids_units import apply_table_units
from eav_ray.data.io.eeg_marks import JOINED, MARKED_BAD
from eav_ray.data.io.file_access import is_file
from eav_ray.data.io.tables import find_named_file
from eav_ray.data.preprocessing.channel_choice import ChannelChoice, choose_channels, collect_channel_remarks
from eav_ray.data.recordings import (
    MAX_RECORDING_S,
    TRUTH_NOTE,
    UNKNOWN_LABEL,
    DatasetReader,
    Listing,
    Problem,
    RawEEG,
    Recording,
    SignalMarks,
    Span,
    list_as_left_out,
    shift_spans,
)
from eav_ray.electrodes import match_channels
from eav_ray.errors import DataError, suggest_nearest

TASK_PREFIX = "task-"  # a task called listening is none of `recordings.LISTENING`
KINDS: tuple[ModalityName, ...] = ("audio", "eeg", "video")
Report = Callable[[str, object], None]  # takes what is wrong, and the file
EEG_SIDECARS = (("channels", ".tsv"), ("events", ".tsv"), ("eeg", ".json"))


class BIDS(DatasetReader):
    """Reader of a data set in BIDS.

    People are called as in `participants.tsv`, so several sessions of one person are of one person. EEG is what
    `channels.tsv` calls EEG, less the channels that it calls bad, and what `events.tsv` calls `BAD_...` is missing.

    Args:
        root: The folder with `participants.tsv`.
        section: Which columns hold labels, sound and films.
        targets: Which columns hold numbers that are predicted in place of the label.
        needs_truth: Whether a recording must have its label, or its numbers.
    Raises:
        DataError: No BIDS data set; a column of labels or numbers is not there, or is not said.
    """

    name = "bids"
    reads_targets = True

    @classmethod
    def open(cls, data: DataConfig) -> Self:
        return cls(data.root, data.bids, data.targets)

    @classmethod
    def open_unlabelled(cls, data: DataConfig) -> Self:
        return cls(data.root, data.bids, data.targets, needs_truth=False)

    def __init__(
        self, root: str, section: BIDSData, targets: TargetData = NO_TARGETS, *, needs_truth: bool = True
    ) -> None:
        super().__init__(root)
        self._needs_truth = needs_truth
        self.section, self.tables = section, BIDSTables(self.root)
        runs, self._misplaced = find_runs(self.root)
        self.runs = self._choose_runs(runs)
        self._kept_eeg: tuple[tuple[str, tuple[str, ...]], RawEEG] | None = None  # of the file that was read last
        self._channels: dict[tuple[str, ...], tuple[str, ...]] = {}  # by those that are wanted
        self._signal_marks: dict[str, SignalMarks] = {}  # by the path of a file
        self._truth = BIDSTruth(self.tables, section, targets, needs_truth=needs_truth)
        self._truth.check_columns(self.runs[0])
        self._listing, self.classes = self._list_recordings()
        found = {m for r in self._listing.recordings for m in KINDS if r.get_source(m)}
        self.modalities: tuple[ModalityName, ...] = tuple(m for m in KINDS if m in found)

    def scan(self) -> Listing:
        """A run or an event that lacks a label, or a file of it that is not there, is a problem; others are kept."""
        return self._listing

    def _choose_runs(self, runs: list[Run]) -> list[Run]:
        tasks = sorted({run.task for run in runs if run.task})
        for task in self.section.tasks:
            if task not in tasks:
                raise DataError(
                    f"data.bids.tasks: {self.root} has no task {task}; it has {', '.join(tasks) or 'none'}"
                    f"{suggest_nearest(task, tasks)}"
                )
        return [run for run in runs if not self.section.tasks or run.task in self.section.tasks]

    def _list_recordings(self) -> tuple[Listing, tuple[str, ...]]:
        problems: list[Problem] = []
        for path in self._misplaced:
            reason = f"{path.name} says another subject than its folder; rename or move it"
            problems.append(Problem(path.relative_to(self.root).parts[0], "", str(path), reason))
        found: list[tuple[Recording, Truth]] = []
        remarks: dict[str, None] = {}
        for subject in dict.fromkeys(run.subject for run in self.runs):
            own = [run for run in self.runs if run.subject == subject]
            for run in self.tables.sort_by_time(own):
                try:
                    found += self._list_run(run, problems, remarks)
                except DataError as error:
                    problems.append(Problem(run.subject, run.name, str(run.source or ""), str(error)))
        classes = tuple(sorted({truth.label for _, truth in found if truth.label}))
        wanted = () if self._truth.predicts_numbers or not self._needs_truth else self.section.classes
        missing = [name for name in wanted if name not in classes]
        if missing or not found:
            what = f"{self._truth.describe()} {missing[0]}" if missing else self._truth.describe()
            why = f"there are {', '.join(classes)}" if classes else "no label is there"
            if problems and not classes:
                first = problems[0]
                why = f"the first problem: {'' if first.file in first.reason else f'{first.file}: '}{first.reason}"
            note = f"; {TRUTH_NOTE}" if self._needs_truth and not classes else ""
            raise DataError(f"{self.root} has nothing with {what}; {why}{note}")
        orders: dict[str, int] = {}
        recordings = []
        for recording, truth in found:
            order = orders[recording.subject] = orders.get(recording.subject, -1) + 1
            label = classes.index(truth.label) if truth.label else UNKNOWN_LABEL
            recordings.append(replace(recording, label=label, targets=truth.targets, order=order))
        return Listing(tuple(recordings), tuple(problems), (*remarks, *self.tables.remarks)), classes

    def _list_run(self, run: Run, problems: list[Problem], remarks: dict[str, None]) -> list[tuple[Recording, Truth]]:
        """List the recordings of a run with what is true of them; raises DataError where there can be none."""

        def report(reason: str, file: object) -> None:
            problems.append(Problem(run.subject, run.name, str(file or run.source or ""), reason))

        for path in run.unknown:
            report(f"{path.name} is EEG of no format that BIDS has; convert it to EDF or BrainVision", path)
        for path in run.stimuli:
            if not self.section.audio and not self.section.video:
                remarks[f"{path.name.split('_')[-1]} files are what was played to people, and are not used"] = None
        media = self._find_media(run, report)
        if not media:
            reason = "no file of this run can be used; left out"
            list_as_left_out(problems, Problem(run.subject, run.name, str(run.source or ""), reason))
            return []
        base = Recording(run.subject, run.name, 0, f"{TASK_PREFIX}{run.task}", 0)
        base = replace(base, **media)
        truth = self._truth.read_run(run)
        if truth is None:
            return []
        return self._cut_run(run, base, truth, report, remarks) if self._truth.cuts_events else [(base, truth)]

    def _find_media(self, run: Run, report: Report) -> dict[str, str]:
        """Find the files of a run: at most one of each modality."""
        media: dict[str, str] = {}
        for m, paths in run.files.items():
            column = getattr(self.section, m, "")
            if column.startswith("scans."):
                paths = []
                try:
                    row, table = self.tables.read_scan(run, column.partition(".")[2])
                    if cell := row[column.partition(".")[2]]:
                        media |= self._find_named_medium(m, cell, table, f"the {m} file of {column}", report)
                except DataError as error:
                    report(str(error), "")
            elif column:
                paths = []  # each event names its own
            if len(paths) > 1:
                names = ", ".join(path.name for path in paths)
                report(f"{len(paths)} {m} files are of one run ({names}); keep one, or name it in a column", paths[0])
            elif paths and not is_file(paths[0]):
                report(f"{paths[0].name} is a link to a file that is not here; fetch it (datalad get)", paths[0])
            elif paths:
                media[m] = str(paths[0])
        return media

    def _cut_run(
        self, run: Run, base: Recording, truth: Truth, report: Report, remarks: dict[str, None]
    ) -> list[tuple[Recording, Truth]]:
        """Make a recording of each event of a run that is wanted.

        Args:
            truth: What is true of the whole run.
        """
        source = run.source
        path = find_sidecar(self.root, source, "events") if source else None
        if source is None or path is None:
            if not self._needs_truth:
                remarks["runs without events.tsv are predicted as a whole"] = None
                return [(base, truth)]
            raise DataError("this run has no events.tsv; add it, or leave the run out by data.bids.tasks")
        self.tables.read(path, "onset")
        events, wrong = self.tables.read_events(source)
        for reason in wrong:
            report(reason, path)
        selected = self._truth.select_events(path, events, truth, report)
        found: list[tuple[Recording, Truth]] = []
        for i, (event, event_truth) in enumerate(selected):
            later = (other.start_s for other, _ in selected[i + 1 :] if other.start_s > event.start_s)
            next_s = next(later, event.start_s + MAX_RECORDING_S)
            end_s = event.start_s + event.duration_s if event.duration_s > 0 else next_s
            if event.start_s < 0:
                report(f"{path}: row {event.number} begins before the recording; left out", path)
                continue
            if not event.duration_s > 0:
                remarks["events without a duration last to the next one that is a recording"] = None
            elif end_s > next_s + 1e-6:
                remarks["events overlap, so that recordings share signals"] = None
            media = {m: getattr(base, m) for m in ("eeg", "audio", "video") if getattr(base, m) is not None}
            spans = dict.fromkeys(media, (event.start_s, end_s))
            media |= self._find_event_media(event, path, report)
            name = f"{run.name}_event-{event.number:03d}"
            recording = replace(base, recording=name, spans_s=spans)
            found.append((replace(recording, **media), event_truth))
        if not found:
            raise DataError(
                f"{path} has no event with {self._truth.describe()} that is wanted; correct it, or data.bids.classes"
            )
        return found

    def _find_event_media(self, event: Event, path: Path, report: Report) -> dict[str, str]:
        """Find the files that an event itself names."""
        media: dict[str, str] = {}
        for m in ("audio", "video"):
            table, _, column = getattr(self.section, m).partition(".")
            if table != "events":
                continue
            self.tables.read(path, column)
            if cell := event.cells[column]:
                media |= self._find_named_medium(m, cell, path, f"row {event.number}: the {m} file", report)
        return media

    def _find_named_medium(self, m: str, cell: str, table: Path, what: str, report: Report) -> dict[str, str]:
        """Find a file that a table names, from the folder of the table or of the data set on."""
        file, reason = find_named_file(table.parent, cell, what)
        if reason:
            file, reason = find_named_file(self.root, cell, what)
        if reason:
            report(reason, file)
            return {}
        return {m: file}

    # EEG

    @property  # what is known only once a file is opened
    def channels(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Names of the EEG channels, in the order of the first EEG file that can be read; all others must have them.

        Raises:
            DataError: There are EEG files, and not one can be read; says why of the first.
        """
        if self.wanted_channels not in self._channels:
            first: DataError | None = None
            for path in dict.fromkeys(r.eeg for r in self._listing.recordings if r.eeg is not None):
                try:
                    with closing(eeg.open_eeg_file(path)) as file:
                        self._channels[self.wanted_channels] = self._choose_channels(Path(path), file)[0].spelt
                    break
                except DataError as error:  # a damaged file costs its own recordings, not the job
                    first = first or error
            else:
                if first:
                    raise first
                return ()
        return self._channels[self.wanted_channels]

    def check_eeg_channels(self, recordings: Sequence[Recording]) -> tuple[tuple[str, ...], tuple[Problem, ...]]:
        """Open each EEG file, and choose its channels; says what is left out, and which files cannot be used."""
        first_by_path = {r.eeg: r for r in reversed(recordings) if r.eeg is not None}
        return collect_channel_remarks(list(first_by_path.values()), self._describe_eeg_file, "files")

    def _describe_eeg_file(self, path: str) -> tuple[str, ...]:
        with closing(eeg.open_eeg_file(path)) as file:
            self.eeg_durations_s[path] = file.duration_s
            choice, remarks, _ = self._choose_channels(Path(path), file)
            match_channels(choice.spelt, self.channels, path)
            return (*remarks, *file.describe_header(choice.taken))

    def list_companion_files(self, recording: Recording) -> tuple[str, ...]:
        """List the sidecars that `read_eeg` looks at."""
        if recording.eeg is None:
            return ()
        found = (find_sidecar(self.root, Path(recording.eeg), *sidecar) for sidecar in EEG_SIDECARS)
        return tuple(str(path) for path in found if path is not None)

    def find_signal_marks(self, recording: Recording) -> SignalMarks:
        """Find what `events.tsv` and `channels.tsv` say of the signals in a recording's file; each file once."""
        path = recording.get_eeg_file()
        if path not in self._signal_marks:
            try:
                spans_s, joins_s, _ = self.tables.find_marks(Path(path))
                rows = self.tables.read_channels(Path(path))
                marks = SignalMarks(spans_s, joins_s, {name: row.bad for name, row in rows.items() if row.bad})
            except DataError as error:
                marks = SignalMarks(problem=str(error))
            self._signal_marks[path] = marks
        return self._signal_marks[path]

    def read_eeg(self, recording: Recording) -> RawEEG:
        """The channels that `channels.tsv` calls EEG, (channels, samples), microvolts, in the order of `channels`.

        Recordings of one run share a file, so the file that was read last is kept.

        Raises:
            DataError: The file is missing, damaged, or of epochs, its channels are not those of `channels.tsv` or lack
                one of the first recording, or the recording begins after its end.
        """
        path = recording.get_eeg_file()
        key = (path, self.wanted_channels)
        if self._kept_eeg is None or self._kept_eeg[0] != key:
            self._kept_eeg = None  # first let go of the old one
            self._kept_eeg = (key, self._read_file(Path(path)))
        span_s = recording.spans_s.get("eeg")
        return self._kept_eeg[1] if span_s is None else _cut_eeg(self._kept_eeg[1], span_s, f"{path} ({recording.id})")

    def _read_file(self, path: Path) -> RawEEG:
        facts_path = find_sidecar(self.root, path, "eeg", ".json")
        facts = read_json(facts_path) if facts_path else {}
        if facts.get("RecordingType") == "epoched":
            raise DataError(f"{path} holds epochs and no recording, as {facts_path} says; export the whole recording")
        with closing(eeg.open_eeg_file(path)) as file:
            choice, remarks, table = self._choose_channels(path, file)
            order = match_channels(choice.spelt, self.channels, str(path))
            taken = [choice.taken[i] for i in order]
            raw = apply_table_units(path, file.read(taken), [table.get(name) for name in taken])
        if extra := [name for i, name in enumerate(choice.spelt) if i not in order]:
            remarks.append(f"channels that the first recording lacks, left out: {', '.join(extra)}")
        stated_hz = _read_number(facts, "SamplingFrequency")
        if stated_hz and abs(stated_hz - raw.hz) > 1e-3 * raw.hz:
            remarks.append(f"eeg.json states {stated_hz:g} Hz, the file {raw.hz:g} Hz, which is used")
        spans_s, joins_s, wrong = self.tables.find_marks(path)
        said = {MARKED_BAD: spans_s, JOINED: joins_s}
        remarks += [remark for remark, found in said.items() if found and remark not in raw.remarks]
        bad = {
            n: table[name].bad
            for n, name in zip(self.channels, taken, strict=True)
            if name in table and table[name].bad
        }
        marked = {
            n: raw.bad_channels[name] for n, name in zip(self.channels, taken, strict=True) if name in raw.bad_channels
        }
        return replace(
            raw,
            channels=self.channels,
            bad_channels=marked | bad,
            missing_s=(*raw.missing_s, *spans_s),
            joins_s=tuple(sorted({*raw.joins_s, *joins_s})),
            remarks=(*raw.remarks, *remarks, *wrong),
            mains_hz=_read_number(facts, "PowerLineFrequency"),
        )

    def _choose_channels(self, path: Path, file: eeg.EEGFile) -> tuple[ChannelChoice, list[str], dict[str, Channel]]:
        """Choose the EEG channels of a file, what is left out, and the table beside it."""
        table = self.tables.read_channels(path)
        if missing := [name for name, row in table.items() if row.kind == "EEG" and name not in file.names]:
            raise DataError(
                f"{path} has no channel {', '.join(missing)}, which its channels.tsv calls EEG; it has "
                f"{', '.join(file.names)}; correct the names"
            )
        placed = file.placed | self.tables.list_placed_channels(path)
        if not table:
            choice = choose_channels(file.names, file.types, self.wanted_channels, str(path), placed)
            return choice, list(choice.remarks), table
        kinds = [table[name].kind if name in table else "not in channels.tsv" for name in file.names]
        types = ["eeg" if kind == "EEG" else "misc" for kind in kinds]
        choice = choose_channels(file.names, types, self.wanted_channels, str(path), placed)
        left = [f"{name} ({kind})" for name, kind in zip(file.names, kinds, strict=True) if name in choice.left_out]
        reason = choice.reason if choice.is_selected else "not EEG"
        said = [f"{reason}, left out: {', '.join(left)}"] if left else []
        return choice, [*said, *choice.describe_places()], table


def _read_number(facts: dict[str, Any], name: str) -> float:
    """Read a number above 0 that a sidecar states; 0 where there is none."""
    value: Any = facts.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
        return 0.0
    return float(value)


def _cut_eeg(raw: RawEEG, span_s: Span, where: str) -> RawEEG:
    """Cut a part out of the EEG of a file; raises DataError where it begins after the end."""
    n_samples = raw.values_CT.shape[1]
    first, last = (round(time_s * raw.hz) for time_s in span_s)
    if first >= n_samples:
        raise DataError(f"{where} begins at {span_s[0]:g} s, after the end of the file ({n_samples / raw.hz:g} s)")
    remarks = raw.remarks
    if last > n_samples + 1 and span_s[1] - span_s[0] < MAX_RECORDING_S:
        remarks = (*remarks, "an event goes on beyond the end of the file: what there is of it is used")
    last = min(last, n_samples)
    start_s, end_s = first / raw.hz, last / raw.hz
    joins_s = tuple(join_s - start_s for join_s in raw.joins_s if start_s < join_s < end_s)
    missing_s = shift_spans(raw.missing_s, start_s, end_s)
    return replace(raw, values_CT=raw.values_CT[:, first:last], missing_s=missing_s, joins_s=joins_s, remarks=remarks)
