"""A BIDS data set is read as its tables say: people, sessions, events, bad channels and spans, and speech beside it."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mne
import numpy as np
import pytest
import soundfile

from eav_ray.config import Experiment, Preprocessing, override
from eav_ray.config.data_sections import BIDSData
from eav_ray.data.datasets import registry
from eav_ray.data.datasets.bids import BIDS
from eav_ray.data.preprocessing.eeg import prepare_eeg
from eav_ray.data.preprocessing.windowing import WindowFormat, cut_recording
from eav_ray.data.recordings import Listing
from eav_ray.data.shards.dataset import open_dataset
from eav_ray.data.splits import list_labeled_recordings, make_split
from eav_ray.errors import ConfigError, DataError
from eav_ray.pipelines.preprocess.dataset_check import check_dataset, format_dataset_check
from tests.helpers.bids_sets import DURATION_S, EVENTS, HZ, NAMES, add_column, make_signal, write_run, write_sound
from tests.helpers.in_process_shards import write_shards

EVENT_LABEL = BIDSData(label="events.trial_type")


def read(root: Path, section: BIDSData = EVENT_LABEL) -> tuple[BIDS, Listing]:
    reader = BIDS(str(root), section)
    return reader, reader.scan()


def describe(reader: BIDS) -> list[tuple[str, str, int]]:
    return [(r.id, reader.classes[r.label], r.order) for r in reader.scan().recordings]


@pytest.mark.parametrize("kind", ["BrainVision", "EDF", "EEGLAB"])
def test_each_labelled_event_is_a_recording_of_its_span(tmp_path: Path, kind: str) -> None:
    write_run(tmp_path, kind=kind, bads=["Cz"], events=[*EVENTS, (15.0, 2.0, "BAD_move"), (0.0, 1.0, "BAD_start")])
    reader, listing = read(tmp_path)
    assert listing.problems == () and reader.modalities == ("eeg",) and reader.classes == ("happy", "sad")
    assert [(reader.classes[r.label], r.spans_s["eeg"]) for r in listing.recordings] == [
        (label, (start_s, start_s + length_s)) for start_s, length_s, label in EVENTS
    ]
    assert reader.channels == NAMES
    for recording, (start_s, length_s, label) in zip(listing.recordings, EVENTS, strict=True):
        raw = reader.read_eeg(recording)
        expected = make_signal()[:, int(start_s * HZ) : int((start_s + length_s) * HZ)] * 1e6
        np.testing.assert_allclose(raw.values_CT, expected, atol=0.1)
        assert (raw.hz, raw.channels, raw.unit) == (HZ, NAMES, "microvolt")
        assert list(raw.bad_channels) == ["Cz"]
        assert set(raw.missing_s) == ({(1.0, 3.0)} if label == "sad" else set())
        assert "not EEG, left out: HEOG (EOG)" in raw.remarks


def test_sessions_of_one_person_are_one_person_in_the_order_of_their_time(tmp_path: Path) -> None:
    for session in ("2", "10"):
        for run in ("1", "2"):
            write_run(tmp_path, session=session, run=run, events=EVENTS[:1])
    assert [(name, order) for name, _, order in describe(read(tmp_path)[0])] == [
        (f"sub-01/ses-{session}_task-film_run-{run}_event-001", order)
        for order, (session, run) in enumerate([("2", "1"), ("2", "2"), ("10", "1"), ("10", "2")])
    ]
    for session, day in (("2", "05"), ("10", "04")):
        table = tmp_path / "sub-01" / f"ses-{session}" / f"sub-01_ses-{session}_scans.tsv"
        add_column(table, "acq_time", [f"2024-03-{day}T10:00:00", f"2024-03-{day}T09:00:00Z"])
    assert [r.recording for r in read(tmp_path)[1].recordings] == [
        f"ses-{session}_task-film_run-{run}_event-001" for session, run in (("10", 2), ("10", 1), ("2", 2), ("2", 1))
    ]


def test_sessions_of_one_person_are_never_on_two_sides_of_a_split(tmp_path: Path) -> None:
    for subject in ("01", "02", "03"):
        for session in ("a", "b"):
            write_run(tmp_path, subject, session=session)
    e = experiment(tmp_path, {"data.bids": {"label": "events.trial_type"}, "split.protocol": "loso"})
    _, listing = registry.scan_dataset(e.data)
    ids = [(r.subject, r.recording) for r in listing.recordings]
    assert len({subject for subject, _ in ids}) == 3
    assert all(len({r[:5] for s, r in ids if s == subject}) == 2 for subject, _ in ids)


def write_labels(root: Path) -> None:
    for subject in ("01", "02"):
        for session in ("a", "b"):
            write_run(root, subject, session=session)
        (root / f"sub-{subject}" / f"sub-{subject}_sessions.tsv").write_text(
            "session_id\tmood\nses-a\tcalm\nses-b\ttense\n"
        )
        for session, label in (("a", "still"), ("b", "loud")):
            add_column(root / f"sub-{subject}/ses-{session}/sub-{subject}_ses-{session}_scans.tsv", "noise", [label])
    add_column(root / "participants.tsv", "group", ["patient", "control"])


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("participants.group", ["patient", "patient", "control", "control"]),
        ("sessions.mood", ["calm", "tense", "calm", "tense"]),
        ("scans.noise", ["still", "loud", "still", "loud"]),
    ],
)
def test_labels_of_people_sessions_and_scans_are_of_whole_runs(
    tmp_path: Path, label: str, expected: list[str]
) -> None:
    write_labels(tmp_path)
    reader, listing = read(tmp_path, BIDSData(label=label))
    assert listing.problems == ()
    assert [(r.subject, r.recording, reader.classes[r.label]) for r in listing.recordings] == [
        (subject, f"ses-{session}_task-film", text)
        for (subject, session), text in zip(
            [("sub-01", "a"), ("sub-01", "b"), ("sub-02", "a"), ("sub-02", "b")], expected, strict=True
        )
    ]
    np.testing.assert_allclose(reader.read_eeg(listing.recordings[0]).values_CT, make_signal() * 1e6, atol=0.1)


def experiment(root: Path, changes: dict[str, Any]) -> Experiment:
    stores = {f"store.{name}": str(root.parent / f"{root.name}_{name}") for name in ("shards", "results", "cache")}
    defaults = {"data.dataset": "bids", "data.root": str(root), "data.modalities": ["eeg"]}
    return override(Experiment(), defaults | {"data.bids": {"label": "events.trial_type"}} | stores | changes)
