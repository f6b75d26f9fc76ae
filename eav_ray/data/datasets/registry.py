"""From the section `data` of an experiment to a reader and its recordings."""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

from eav_ray.config import DataConfig, FeaturePreprocessing
from eav_ray.config.kinds import (
    DATASETS_PACKAGE,
    check_dataset_name,
    index_kinds,
    list_package_datasets,
    list_subclasses,
)
from eav_ray.data.datasets.features import attach_features
from eav_ray.data.datasets.targets import attach_targets, check_targets_are_no_inputs, check_targets_vary
from eav_ray.data.recordings import LISTENING, DatasetReader, Listing, Problem
from eav_ray.electrodes import canonicalize_channel_name, match_channels
from eav_ray.errors import ConfigError, suggest_nearest
from eav_ray.words import format_count

# Of which every user has another: people of the same name in two of them are not the same.
GENERIC_DATASETS = ("recordings_table", "bids")


def find_reader(name: str) -> type[DatasetReader]:
    """Find the reader that `data.dataset` names: in the module of that name here, or from outside the package.

    Raises:
        ConfigError: There is no such data set.
    """
    check_dataset_name(name)
    if name in list_package_datasets():
        importlib.import_module(f"{DATASETS_PACKAGE}.{name}")
    return index_kinds(list_subclasses(DatasetReader), "name")[name]


def open_reader(data: DataConfig, *, needs_truth: bool = True) -> DatasetReader:
    """The reader that `data.dataset` names.

    Args:
        needs_truth: Whether labels or numbers must be known; they need not be of recordings that are predicted.
    Raises:
        ConfigError: `data.root` is empty.
        DataError: `data.root` is not such a data set.
    """
    if not data.root:
        raise ConfigError(
            f"data.root is empty; set data.root=... to the folder (recordings_table: the file) of {data.dataset}"
        )
    reader = find_reader(data.dataset)
    return reader.open(data) if needs_truth else reader.open_unlabelled(data)


def list_classes(data: DataConfig, reader: DatasetReader) -> tuple[str, ...]:
    """List the classes that are told apart; none where numbers are predicted."""
    return () if data.predicts_numbers else reader.classes


def scan_dataset(
    data: DataConfig, features: Mapping[str, FeaturePreprocessing] | None = None, *, needs_truth: bool = True
) -> tuple[DatasetReader, Listing]:
    """Open and list, keeping `data.subjects`, and of their recordings those with any of `data.modalities`.

    Listening recordings are kept only where `data.tasks` names them.

    Args:
        features: The modalities of given features, by name (`preprocessing.features`).
        needs_truth: As of `open_reader`; without it all recordings count, whatever is known of them.

    Raises:
        ConfigError: As `open_reader`; a modality is asked for that the set does not offer; or `data.subjects` names
            someone whom it does not have.
        DataError: As `open_reader`; or numbers that are predicted are not there, are inputs too, or never differ.
    """
    reader = open_reader(data, needs_truth=needs_truth)
    _check_modalities(data, reader, features or {})
    if needs_truth:
        check_targets_are_no_inputs(data, features or {})
    listing = attach_features(reader.scan(), data, features or {}, reader.find_signal_marks)
    listing = attach_targets(listing, data, reader, needs_truth=needs_truth)
    subjects = {r.subject for r in listing.recordings} | {p.subject for p in listing.problems}
    if not subjects.issuperset(data.subjects):
        _, full_listing = scan_dataset(replace(data, subjects=()), features, needs_truth=needs_truth)
        _check_subjects(data.subjects, [r.subject for r in full_listing.recordings])
    # Only listening is ever unwanted: other sets have tasks of their own, which data.tasks does not name.
    excluded_tasks = {LISTENING} - set(data.tasks)
    recordings = []
    # A row that cannot be read may be of anybody.
    problems = [p for p in listing.problems if not data.subjects or p.subject in ("", *data.subjects)]
    rows = {(p.subject, p.recording): row for row, p in enumerate(problems)}
    for r in listing.recordings:
        if (data.subjects and r.subject not in data.subjects) or r.task in excluded_tasks:
            continue
        if any(r.get_source(m) is not None for m in data.modalities):
            recordings.append(r)
        elif r.task != LISTENING:  # a listening recording has no audio, which is no defect
            reason = f"has none of {', '.join(data.modalities)}; left out"
            if (row := rows.get((r.subject, r.recording))) is None:
                problems.append(Problem(r.subject, r.recording, "", reason))
            else:
                problems[row] = replace(problems[row], reason="; ".join((problems[row].reason, reason)))
    if needs_truth:
        check_targets_vary(recordings, data)
    return reader, Listing(tuple(recordings), tuple(problems), listing.remarks)


def _check_modalities(data: DataConfig, reader: DatasetReader, features: Mapping[str, FeaturePreprocessing]) -> None:
    given = list(data.features)
    if "eeg" in reader.modalities:  # signals are read from the same files, where no other is named
        given += [name for name, section in features.items() if section.signals and name not in given]
    missing = [m for m in data.modalities if m not in reader.modalities and m not in given]
    if missing:
        offered = ",".join([*reader.modalities, *given])
        raise ConfigError(
            f"data.modalities asks for {', '.join(missing)}, but {data.dataset} in {data.root} offers {offered}; "
            f"set data.modalities=[{offered}] or fewer"
        )


def list_eeg_channels(reader: DatasetReader, listing: Listing, wanted: Sequence[str] = ()) -> tuple[str, ...]:
    """List a data set's EEG channels, as its first recording has them; empty where it has no EEG.

    Reads no signals where the reader knows.

    Args:
        wanted: Those that are wanted, in order (`preprocessing.eeg.channels`); all where none are named.

    Raises:
        DataError: Not one EEG file of a user's table can be opened, or a wanted channel is not there.
    """
    reader.wanted_channels = tuple(wanted)
    names = reader.channels
    if not names and (first := next((r for r in listing.recordings if r.eeg is not None), None)):
        names = reader.read_eeg(first).channels
    if wanted and names:
        names = [names[i] for i in match_channels(names, wanted, f"preprocessing.eeg.channels: {reader.name}")]
    return tuple(map(canonicalize_channel_name, names))


def _check_subjects(requested: tuple[str, ...], subjects: list[str]) -> None:
    known = list(dict.fromkeys(subjects))
    shown = (
        ", ".join(known)
        if len(known) <= 8
        else f"{', '.join(known[:4])}, ..., {known[-1]} ({format_count(len(known), 'person')})"
    )
    for name in requested:
        if name not in known:
            raise ConfigError(
                f'data.subjects: nobody is called "{name}"; allowed are {shown}{suggest_nearest(name, known)}'
            )
