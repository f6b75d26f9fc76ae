"""What a data set holds, and what of it cannot be used."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from eav_ray.config import MODALITIES, Experiment, order_modalities
from eav_ray.data.datasets import registry
from eav_ray.data.io.stated_durations import describe_long_clips, describe_unequal_lengths, read_some_durations_s
from eav_ray.data.preprocessing.signals import check_signals
from eav_ray.data.recordings import DatasetReader, Problem, Recording
from eav_ray.errors import DataError
from eav_ray.pipelines.preprocess.duplicates import find_duplicate_files, format_duplicates
from eav_ray.pipelines.preprocess.near_duplicates import find_near_duplicates, format_near_duplicates
from eav_ray.reporting.html import Table
from eav_ray.reporting.tables import format_table
from eav_ray.reporting.target_tables import build_target_table
from eav_ray.words import format_count

SHALLOW = (
    "only decoding shows what is damaged, lost or silent (`eav preprocess`), and what is the same but encoded anew, "
    "louder or begun later (`eav check --deep`)"
)


@dataclass(frozen=True)
class DatasetCheck:
    classes: tuple[str, ...]
    recordings: tuple[Recording, ...]
    problems: tuple[Problem, ...]
    modalities: tuple[str, ...]  # recorded ones, and given features that the experiment uses
    notes: tuple[str, ...] = ()  # lines on recordings that are used, and that somebody should look at
    remarks: tuple[str, ...] = ()  # how tables were understood, and what is odd but used, a line each
    targets: tuple[str, ...] = ()  # names of the numbers that are predicted in place of classes


def check_dataset(experiment: Experiment, *, deep: bool = False) -> DatasetCheck:
    """List a data set, what cannot be used of it, and recordings that are one signal.

    Args:
        deep: Decode all recordings, and compare what they hold.
    """
    dataset, listing = registry.scan_dataset(experiment.data, experiment.preprocessing.features)
    modalities = order_modalities({*MODALITIES, *experiment.data.modalities})
    remarks, problems = listing.remarks, listing.problems
    if "eeg" in experiment.data.modalities:
        dataset.wanted_channels = experiment.preprocessing.eeg.channels
        said, unusable = dataset.check_eeg_channels(listing.recordings)
        remarks, problems = (*remarks, *(f"eeg: {remark}" for remark in said)), (*problems, *unusable)
    durations_s = _read_durations_s(listing.recordings, dataset)
    remarks = (*remarks, *_describe_durations(durations_s, listing.recordings, experiment.preprocessing.window_s))
    problems = (*problems, *_find_signal_problems(experiment, listing.recordings))
    duplicates = find_duplicate_files(listing.recordings, experiment.data.modalities)
    classes, targets = registry.list_classes(experiment.data, dataset), experiment.data.targets.names
    notes = format_duplicates(duplicates, classes, targets)
    if deep:
        found = find_near_duplicates(experiment, dataset, listing, duplicates)
        notes += format_near_duplicates(found, listing.recordings, classes, targets)
        problems += found.problems
    else:
        notes.append(SHALLOW)
    return DatasetCheck(classes, listing.recordings, problems, tuple(modalities), tuple(notes), remarks, targets)


def _find_signal_problems(experiment: Experiment, recordings: Sequence[Recording]) -> Iterator[Problem]:
    """Open each file of signals other than EEG once for each modality; yields those that cannot be used."""
    for m, section in experiment.preprocessing.features.items():
        if m not in experiment.data.modalities or not section.signals:
            continue
        first_by_path = {r.features[m].path: r for r in reversed(recordings) if m in r.features}
        for path, recording in first_by_path.items():
            try:
                check_signals(path, section)
            except DataError as error:
                yield Problem(recording.subject, recording.recording, path, str(error))


def _read_durations_s(recordings: Sequence[Recording], dataset: DatasetReader) -> dict[str, dict[str, float]]:
    """Read how long files last by their headers: modality -> recording -> seconds.

    Of sounds and films some are looked at (`read_some_durations_s`), of EEG what its channels were looked at for.
    """
    found: dict[str, dict[str, float]] = {}
    for modality in ("audio", "video"):
        paths = {r.id: path for r in recordings if (path := r.get_source(modality)) is not None}
        found[modality] = read_some_durations_s(paths)
    eeg_s = dataset.eeg_durations_s
    return found | {"eeg": {r.id: s for r in recordings if r.eeg is not None and (s := eeg_s.get(r.eeg, 0.0))}}


def _describe_durations(
    durations_s: Mapping[str, Mapping[str, float]], recordings: Sequence[Recording], window_s: float
) -> list[str]:
    """Describe files that last far longer than the others, and recordings whose modalities differ, a line each."""
    lines = [describe_long_clips(durations_s[modality], modality) for modality in ("audio", "video")]
    by_recording: dict[str, dict[str, float]] = {}
    for r in recordings:
        known = {m: s for m, each in durations_s.items() if (s := each.get(r.id)) is not None}
        spans = {m: min(s, r.spans_s[m][1]) - r.spans_s[m][0] for m, s in known.items() if m in r.spans_s}
        by_recording[r.id] = known | spans
    lines.append(describe_unequal_lengths(by_recording, window_s))
    return [line for line in lines if line]


def format_dataset_check(result: DatasetCheck) -> str:
    """A line a subject: recordings per class and modality; then a line a problem and a remark.

    Where numbers are predicted, mean, SD, minimum and maximum of each stand in place of the counts per class.
    """
    by_subject: dict[str, list[Recording]] = {}
    for recording in result.recordings:
        by_subject.setdefault(recording.subject, []).append(recording)
    lines = _format_numbers(result, by_subject) if result.targets else _format_classes(result, by_subject)
    totals = ((len(by_subject), "subject"), (len(result.recordings), "recording"), (len(result.problems), "problem"))
    lines.append(", ".join(format_count(n, noun) for n, noun in totals))
    remarks = [f"  {remark}" for remark in result.remarks]
    return "\n".join([*lines, *format_problems(result.problems), *remarks, *result.notes])


def _format_numbers(result: DatasetCheck, by_subject: dict[str, list[Recording]]) -> list[str]:
    if not by_subject:
        return []
    table = build_target_table(
        result.targets, {subject: np.array([r.targets for r in own]) for subject, own in by_subject.items()}
    )
    rows = []
    for row in table.rows:
        own = by_subject.get(row[0], result.recordings) if len(rows) < len(by_subject) else result.recordings
        rows.append([*row, *(str(sum(r.get_source(m) is not None for r in own)) for m in result.modalities)])
    return format_table(Table([*table.head, *result.modalities], rows)).splitlines()


def _format_classes(result: DatasetCheck, by_subject: dict[str, list[Recording]]) -> list[str]:
    rows = []
    for subject, recordings in by_subject.items():
        classes = Counter(r.label for r in recordings)
        counts = [len(recordings), *(classes[k] for k in range(len(result.classes)))]
        counts += [sum(r.get_source(m) is not None for r in recordings) for m in result.modalities]
        rows.append([subject, *map(str, counts)])
    return format_table(Table(["subject", "recordings", *result.classes, *result.modalities], rows)).splitlines()


def format_problems(problems: tuple[Problem, ...]) -> list[str]:
    """A line each: whose, and why; the file where the reason does not name it already."""
    lines = []
    for p in problems:
        where = " ".join(w for w in (p.subject, p.recording, "" if p.file and p.file in p.reason else p.file) if w)
        lines.append(f"  {where}: {p.reason}")
    return lines
