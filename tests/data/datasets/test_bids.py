"""A BIDS data set is read as its tables say: people, sessions, events, bad channels and spans, and speech beside it."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile

from eav_ray.config import Experiment, Preprocessing, override
from eav_ray.config.data_sections import BIDSData
from eav_ray.data.datasets import registry
from eav_ray.data.datasets.bids import BIDS
from eav_ray.data.preprocessing.eeg import compare_mains, prepare_eeg
from eav_ray.data.preprocessing.windowing import WindowFormat, cut_recording
from eav_ray.data.recordings import Listing
from eav_ray.data.shards.dataset import open_dataset
from eav_ray.data.shards.location import name_index_folder
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
def test_labels_of_people_sessions_and_scans_are_of_whole_runs(tmp_path: Path, label: str, expected: list[str]) -> None:
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


def window_format(**changes: Any) -> WindowFormat:
    return WindowFormat(Preprocessing(window_s=2), ("audio", "eeg"), len(NAMES))


def test_speech_beside_the_eeg_is_cut_by_the_same_events(tmp_path: Path) -> None:
    path = write_sound(write_run(tmp_path))
    reader, listing = read(tmp_path)
    assert reader.modalities == ("audio", "eeg") and listing.problems == ()
    for recording, (start_s, length_s, _) in zip(listing.recordings, EVENTS, strict=True):
        assert recording.audio == str(path)
        prepared = next(prepare_eeg(reader, [recording], Preprocessing().eeg))[1]
        cut = cut_recording(recording, window_format(), prepared)
        assert not cut.problems and len(cut.windows) == length_s / 2
        sound = np.concatenate([w["audio"] for w in cut.windows])
        expected = np.linspace(-0.5, 0.5, 16000 * DURATION_S)[int(start_s * 16000) :][: len(sound)]
        np.testing.assert_allclose(sound, expected, atol=1e-4)
        assert all(w["has_audio"] and w["has_eeg"] for w in cut.windows)


def test_sound_that_ends_before_an_event_is_a_problem_of_that_event(tmp_path: Path) -> None:
    path = write_sound(write_run(tmp_path))
    soundfile.write(path, np.zeros(16000 * 20), 16000)
    _, listing = read(tmp_path)
    cuts = [cut_recording(r, window_format(), None) for r in listing.recordings]
    assert [len(cut.windows) for cut in cuts] == [5, 3, 0]
    assert "lasts 20 s, so nothing of it is of an event at 24 s" in cuts[2].problems[0].reason


@pytest.mark.parametrize("suffix", ["recording-mic_audio", "audio"])
def test_speech_of_whole_runs_is_found_by_its_name(tmp_path: Path, suffix: str) -> None:
    write_labels(tmp_path)
    eeg = tmp_path / "sub-01/ses-a/eeg/sub-01_ses-a_task-film_eeg.vhdr"
    path = write_sound(eeg, suffix=suffix)
    stimulus = write_sound(eeg, suffix="stim")
    _, listing = read(tmp_path, BIDSData(label="participants.group"))
    assert [r.audio for r in listing.recordings] == [str(path), None, None, None]
    assert listing.problems == () and not any(r.spans_s for r in listing.recordings)
    assert listing.remarks == ("stim.wav files are what was played to people, and are not used",)
    assert stimulus.exists()


def test_sound_without_eeg_is_a_recording(tmp_path: Path) -> None:
    eeg = write_run(tmp_path)
    path = write_sound(eeg)
    shutil.rmtree(eeg.parent)
    add_column(tmp_path / "participants.tsv", "group", ["patient"])
    reader, listing = read(tmp_path, BIDSData(label="participants.group"))
    assert reader.modalities == ("audio",) and reader.channels == ()
    assert [(r.id, r.eeg, r.audio) for r in listing.recordings] == [("sub-01/task-film", None, str(path))]


def test_two_files_of_one_kind_are_not_guessed_between(tmp_path: Path) -> None:
    eeg = write_run(tmp_path)
    for suffix in ("recording-mic_audio", "recording-room_audio"):
        write_sound(eeg, suffix=suffix)
    _, listing = read(tmp_path)
    assert len(listing.recordings) == 3 and all(r.audio is None for r in listing.recordings)
    assert [p.reason.split(" (")[0] for p in listing.problems] == ["2 audio files are of one run"]


def test_files_are_named_by_columns_of_scans_and_events(tmp_path: Path) -> None:
    eeg = write_run(tmp_path)
    sound = write_sound(eeg).rename(tmp_path / "speech.wav")
    table = eeg.parent.parent / "sub-01_scans.tsv"
    add_column(table, "voice", ["../speech.wav"])
    _, listing = read(tmp_path, BIDSData(label="events.trial_type", audio="scans.voice"))
    assert [Path(r.audio or "").samefile(sound) for r in listing.recordings] == [True] * 3
    assert [r.spans_s["audio"] for r in listing.recordings] == [(s, s + length) for s, length, _ in EVENTS]
    events = eeg.parent / "sub-01_task-film_events.tsv"
    add_column(events, "voice", ["speech.wav", "n/a", "none.wav"])
    _, listing = read(tmp_path, BIDSData(label="events.trial_type", audio="events.voice"))
    assert [(r.audio, "audio" in r.spans_s) for r in listing.recordings] == [
        (str(sound), False),  # a file of this event alone
        (None, False),
        (None, False),
    ]
    assert [p.reason for p in listing.problems] == [
        "row 3: the audio file does not exist; correct the path or empty the cell"
    ]


def test_events_without_a_duration_last_to_the_next(tmp_path: Path) -> None:
    events = [(2.0, 0.0, "happy"), (5.0, 0.0, "fixation"), (10.0, 4.0, "sad"), (30.0, 0.0, "happy")]
    write_run(tmp_path, events=events)
    section = replace(EVENT_LABEL, classes=("happy", "sad"))
    reader, listing = read(tmp_path, section)
    raws = [reader.read_eeg(r) for r in listing.recordings]
    assert [raw.values_CT.shape[1] / HZ for raw in raws] == [8, 4, 10]
    assert listing.remarks == ("events without a duration last to the next one that is a recording",)
    assert not any("goes on beyond" in remark for raw in raws for remark in raw.remarks)


def test_events_that_overlap_or_lie_outside_are_said(tmp_path: Path) -> None:
    path = write_run(tmp_path).parent / "sub-01_task-film_events.tsv"
    rows = [
        "-1\t3\tsad",
        "2\t6\thappy",
        "6\t4\tsad",
        "38\t5\tsad",
        "50\t1\tsad",
        "x\t1\tsad",
        "9\tn/a\tn/a",
        "1\t-2\tsad",
    ]
    path.write_text("onset\tduration\ttrial_type\n" + "\n".join(rows) + "\n")
    reader, listing = read(tmp_path)
    assert [r.recording[-3:] for r in listing.recordings] == ["002", "003", "004", "005"]
    assert [p.reason.removeprefix(f"{path}: ") for p in listing.problems] == [
        "row 6 has no onset and duration in seconds; correct it",
        "row 8 has no onset and duration in seconds; correct it",
        "row 1 begins before the recording; left out",
    ]
    assert listing.remarks == ("events overlap, so that recordings share signals",)
    raw = reader.read_eeg(listing.recordings[2])
    assert raw.values_CT.shape[1] == 2 * HZ and "an event goes on beyond the end" in raw.remarks[-1]
    with pytest.raises(DataError, match=r"begins at 50 s, after the end of the file \(40 s\)"):
        reader.read_eeg(listing.recordings[3])


def test_marks_are_no_classes(tmp_path: Path) -> None:
    marks = [
        (0.5, 1.0, "bad_segment"),
        (3.0, 0.0, "boundary"),
        (20.0, 0.0, "EDGE boundary"),
        (33.0, 1.0, "BAD boundary"),
    ]
    write_run(tmp_path, events=[*EVENTS, *marks])
    reader, listing = read(tmp_path)
    assert reader.classes == ("happy", "sad") and len(listing.recordings) == 3
    first = reader.read_eeg(listing.recordings[0])
    assert first.joins_s == (1.0,)


def test_tables_and_files_of_only_one_task_are_used(tmp_path: Path) -> None:
    write_run(tmp_path, task="rest", events=())
    write_run(tmp_path, task="film")
    write_run(tmp_path, task="listening")
    _, listing = read(tmp_path, replace(EVENT_LABEL, tasks=("film", "listening")))
    assert {r.task for r in listing.recordings} == {"task-film", "task-listening"} and listing.problems == ()
    with pytest.raises(DataError, match=r'no task films; it has film, listening, rest; did you mean "film"\?'):
        read(tmp_path, replace(EVENT_LABEL, tasks=("films",)))


def test_a_task_that_is_called_listening_is_scored_as_any_other(tmp_path: Path) -> None:
    write_run(tmp_path, task="listening")
    assert len(registry.scan_dataset(experiment(tmp_path, {}).data)[1].recordings) == 3


def test_sidecars_above_the_files_count(tmp_path: Path) -> None:
    """The inheritance principle of BIDS, and not one more file than it says."""
    for subject in ("01", "02"):
        folder = write_run(tmp_path, subject, bads=["O1"]).parent
        for name in ("channels", "events"):
            found = folder / f"sub-{subject}_task-film_{name}.tsv"
            found.rename(tmp_path / f"task-film_{name}.tsv")
    (tmp_path / "task-rest_events.tsv").write_text("onset\tduration\ttrial_type\n0\t1\twrong\n")
    reader, listing = read(tmp_path)
    assert len(listing.recordings) == 6 and reader.classes == ("happy", "sad")
    assert list(reader.read_eeg(listing.recordings[4]).bad_channels) == ["O1"]
    assert reader.list_companion_files(listing.recordings[4]) == (
        str(tmp_path / "task-film_channels.tsv"),
        str(tmp_path / "task-film_events.tsv"),
        str(tmp_path / "sub-02/eeg/sub-02_task-film_eeg.json"),
    )


def change_json(path: Path, **facts: Any) -> None:
    sidecar = path.with_suffix(".json")
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text(encoding="utf-8-sig")) | facts))


def test_what_the_sidecar_says_is_compared(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    change_json(path, SamplingFrequency=500, PowerLineFrequency=60)
    reader, listing = read(tmp_path)
    raw = reader.read_eeg(listing.recordings[0])
    assert raw.mains_hz == 60 and "eeg.json states 500 Hz, the file 250 Hz, which is used" in raw.remarks
    change_json(path, RecordingType="epoched")
    with pytest.raises(DataError, match=r"holds epochs and no recording, as .*eeg\.json says; export the whole"):
        read(tmp_path)[0].read_eeg(listing.recordings[0])
    path.with_suffix(".json").write_text("{")
    with pytest.raises(DataError, match=r"eeg\.json cannot be read as JSON"):
        read(tmp_path)[0].read_eeg(listing.recordings[0])


@pytest.mark.parametrize(("notch_hz", "remarked"), [(50, True), (60, False), (0, False)])
def test_mains_that_are_not_filtered_out_are_remarked_on(tmp_path: Path, notch_hz: float, remarked: bool) -> None:
    change_json(write_run(tmp_path), PowerLineFrequency=60)
    reader, listing = read(tmp_path)
    raw = compare_mains(reader.read_eeg(listing.recordings[0]), replace(Preprocessing().eeg, notch_hz=notch_hz))
    assert ("mains of 60 Hz, but preprocessing.eeg.notch_hz is 50" in raw.remarks) == remarked


@pytest.mark.parametrize(("unit", "scale"), [("V", 1e6), ("mV", 1e3), ("µV", 1), ("n/a", 1)])
def test_units_of_the_table_count_where_the_file_states_none(tmp_path: Path, unit: str, scale: float) -> None:
    path = write_run(tmp_path, kind="EEGLAB")
    add_column(path.parent / "sub-01_task-film_channels.tsv", "units", [unit] * 4)
    reader, listing = read(tmp_path)
    expected = make_signal()[:, 2 * HZ : 12 * HZ] * 1e6 * scale
    np.testing.assert_allclose(reader.read_eeg(listing.recordings[0]).values_CT, expected, rtol=1e-3)


def test_channels_are_matched_by_name_across_files(tmp_path: Path) -> None:
    write_run(tmp_path, "01")
    path = write_run(tmp_path, "02", seed=1)
    table = path.parent / "sub-02_task-film_channels.tsv"
    lines = table.read_text(encoding="utf-8-sig").splitlines()
    table.write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n")
    reader, listing = read(tmp_path)
    raw = reader.read_eeg(listing.recordings[3])
    np.testing.assert_allclose(raw.values_CT, make_signal(1)[:, 2 * HZ : 12 * HZ] * 1e6, atol=0.1)
    assert raw.channels == NAMES


def test_what_channels_tsv_calls_no_eeg_is_left_out(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    add_column(path.parent / "sub-01_task-film_channels.tsv", "type", ["EEG", "MISC", "eeg", "EOG"])
    reader, listing = read(tmp_path)
    raw = reader.read_eeg(listing.recordings[0])
    assert raw.channels == ("Fp1", "O1") and "not EEG, left out: Cz (MISC), HEOG (EOG)" in raw.remarks


def remove(path: Path) -> None:
    path.unlink()


FAULTS: dict[str, tuple[Callable[[Path], object], BIDSData, str]] = {
    "no folder of a person": (lambda r: shutil.rmtree(r / "sub-01"), EVENT_LABEL, "no folder sub-"),
    "nothing inside": (lambda r: shutil.rmtree(r / "sub-01" / "eeg"), EVENT_LABEL, "has no EEG, sound or film"),
    "no label": (
        lambda r: None,
        BIDSData(),
        r"data.bids.label is empty; set it to one of participants.age, .*, events.value; training needs labels",
    ),
    "no participants": (
        lambda r: remove(r / "participants.tsv"),
        BIDSData(label="participants.group"),
        r"participants\.tsv is missing, so there is no participants\.group",
    ),
    "unknown column": (
        lambda r: None,
        BIDSData(label="participants.gender"),
        r"participants\.tsv has no column gender; it has participant_id, age, sex, hand, weight, height",
    ),
    "unknown column of events": (
        lambda r: None,
        BIDSData(label="events.trial_typ"),
        r'nothing with events\.trial_typ; the first problem: .*no column trial_typ; .*did you mean "trial_type"\?',
    ),
    "unknown class": (
        lambda r: None,
        replace(EVENT_LABEL, classes=("happy", "angry")),
        r"nothing with events\.trial_type angry; there are happy",
    ),
    "nobody has a label": (
        lambda r: None,
        BIDSData(label="participants.age"),
        r"nothing with participants\.age; the first problem: .*participants\.tsv: sub-01 has no age; fill it in",
    ),
    "no sessions": (
        lambda r: None,
        BIDSData(label="sessions.mood"),
        r"the first problem: .*sub-01_sessions\.tsv is missing, so sub-01 has no sessions\.mood",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_data_set_is_refused_in_one_line(tmp_path: Path, fault: str) -> None:
    spoil, section, words = FAULTS[fault]
    write_run(tmp_path)
    spoil(tmp_path)
    with pytest.raises(DataError, match=words) as error:
        read(tmp_path, section)
    assert "\n" not in str(error.value)


def unlink_content(folder: Path) -> None:
    path = folder / "eeg" / "sub-01_task-film_eeg.edf"
    path.unlink()
    path.symlink_to(tmp_target(folder))


def tmp_target(folder: Path) -> Path:
    return folder.parent / ".git" / "annex" / "objects" / "MD5E-s1.edf"


def rename_channel(folder: Path) -> None:
    table = folder / "eeg" / "sub-01_task-film_channels.tsv"
    table.write_text(table.read_text(encoding="utf-8-sig").replace("Cz", "CZ1"))


RUN_FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no events": (
        lambda f: remove(f / "eeg/sub-01_task-film_events.tsv"),
        r"this run has no events\.tsv; add it, or leave the run out by data\.bids\.tasks",
    ),
    "no event of a class": (
        lambda f: (f / "eeg/sub-01_task-film_events.tsv").write_text("onset\tduration\ttrial_type\n1\t1\tBAD_x\n"),
        r"events\.tsv has no event with events\.trial_type that is wanted",
    ),
    "a link to nothing": (unlink_content, r"is a link to a file that is not here; fetch it \(datalad get\)"),
    "another format": (
        lambda f: (f / "eeg/sub-01_task-film_eeg.edf").rename(f / "eeg/sub-01_task-film_eeg.cnt"),
        r"sub-01_task-film_eeg\.cnt is EEG of no format that BIDS has; convert it",
    ),
    "two formats": (
        lambda f: shutil.copy(f / "eeg/sub-01_task-film_eeg.edf", f / "eeg/sub-01_task-film_eeg.bdf"),
        r"2 eeg files are of one run \(sub-01_task-film_eeg\.bdf, sub-01_task-film_eeg\.edf\)",
    ),
    "another person's file": (
        lambda f: (f / "eeg/sub-01_task-film_eeg.edf").rename(f / "eeg/sub-09_task-film_eeg.edf"),
        "sub-09_task-film_eeg\\.edf says another subject than its folder",
    ),
    "a table that is none": (
        lambda f: (f / "eeg/sub-01_task-film_events.tsv").write_bytes(b"\xff\x00\x80\x81"),
        r"events\.tsv is neither UTF-8 nor Windows-1252",
    ),
}


@pytest.mark.parametrize("fault", RUN_FAULTS)
def test_a_broken_run_is_named_and_costs_no_other(tmp_path: Path, fault: str) -> None:
    spoil, words = RUN_FAULTS[fault]
    write_run(tmp_path, "01", kind="EDF")
    write_run(tmp_path, "02", kind="EDF")
    spoil(tmp_path / "sub-01")
    _, listing = read(tmp_path)
    assert [r.subject for r in listing.recordings] == ["sub-02"] * 3
    assert {p.subject for p in listing.problems} == {"sub-01"} and "\n" not in listing.problems[0].reason
    assert re.search(words, listing.problems[0].reason)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (rename_channel, "has no channel CZ1, which its channels.tsv calls EEG; it has Fp1, Cz, O1, HEOG"),
        (lambda f: (f / "eeg/sub-01_task-film_eeg.edf").write_bytes(b"0"), r"sub-01_task-film_eeg\.edf"),
        (
            lambda f: (f / "eeg/sub-01_task-film_channels.tsv").write_text("name\ttype\nCz\tEEG\nCz\tEEG\n"),
            "two rows have the name Cz; keep one",
        ),
        (lambda f: (f / "eeg/sub-01_task-film_channels.tsv").write_text("name\nCz\n"), "has no column type"),
    ],
)
def test_a_file_that_cannot_be_read_costs_its_recordings(
    tmp_path: Path, spoil: Callable[[Path], object], words: str
) -> None:
    write_run(tmp_path, "01", kind="EDF")
    write_run(tmp_path, "02", kind="EDF")
    spoil(tmp_path / "sub-01")
    reader, listing = read(tmp_path)
    assert len(listing.recordings) == 6 and reader.channels == NAMES
    with pytest.raises(DataError, match=words):
        reader.read_eeg(listing.recordings[0])
    assert reader.read_eeg(listing.recordings[3]).values_CT.shape == (3, 10 * HZ)


def test_names_of_no_kind_are_passed_over(tmp_path: Path) -> None:
    folder = write_run(tmp_path).parent
    for name in (
        "sub-_eeg.edf",
        "sub-01_eeg",
        "sub-01__eeg.edf.bak",
        "sub-01_task-film_run-_eeg.json",
        ".sub-01_eeg.edf",
    ):
        (folder / name).touch()
    (tmp_path / "derivatives" / "sub-01" / "eeg").mkdir(parents=True)
    (tmp_path / "derivatives" / "sub-01" / "eeg" / "sub-01_task-clean_eeg.edf").touch()
    assert len(read(tmp_path)[1].recordings) == 3


def test_check_opens_each_file_once_and_names_what_differs(tmp_path: Path) -> None:
    write_run(tmp_path, "01", kind="EDF")
    write_run(tmp_path, "02", kind="EDF")
    (tmp_path / "sub-02/eeg/sub-02_task-film_channels.tsv").write_text("name\ttype\nCZ1\tEEG\n")
    found = check_dataset(experiment(tmp_path, {}))
    assert "eeg: not EEG, left out: HEOG (EOG) (1 of 2 files)" in found.remarks
    assert [(p.subject, "has no channel CZ1" in p.reason) for p in found.problems] == [("sub-02", True)]


def test_names_that_bids_does_not_know_end_in_no_traceback(tmp_path: Path) -> None:
    folder = write_run(tmp_path).parent
    rng = np.random.default_rng(0)
    parts = ["sub-01", "ses-", "task-a", "run-1", "run-01", "-", "", "acq-x-y", "proc-a", "é", "sub-", "foo-bar", "run"]
    ends = ["eeg.edf", "audio.wav", "video.mp4", "eeg.json", "eeg", "eeg.vhdr.gz", "stim.wav", "EEG.edf", "eeg.EDF"]
    for _ in range(300):
        name = "_".join(["sub-01", *rng.choice(parts, rng.integers(0, 4)), rng.choice(ends)])
        (folder / name).touch()
    reader, listing = read(tmp_path)
    assert [r.recording for r in listing.recordings if r.recording.startswith("task-film_event")] == [
        f"task-film_event-{k:03d}" for k in (1, 2, 3)
    ]
    assert len({r.recording for r in listing.recordings}) == len(listing.recordings)
    assert reader.channels == NAMES


def test_a_run_without_a_name_has_one(tmp_path: Path) -> None:
    folder = write_run(tmp_path, kind="EDF").parent
    for path in folder.iterdir():
        path.rename(path.with_name(path.name.replace("_task-film", "")))
    reader, listing = read(tmp_path)
    assert [r.id for r in listing.recordings] == [f"sub-01/run_event-{k:03d}" for k in (1, 2, 3)]
    assert list(reader.read_eeg(listing.recordings[0]).channels) == list(NAMES)


def test_a_mark_that_cannot_be_read_is_remarked_on(tmp_path: Path) -> None:
    write_labels(tmp_path)
    table = tmp_path / "sub-01/ses-a/eeg/sub-01_ses-a_task-film_events.tsv"
    table.write_text("onset\tduration\ttrial_type\n-1\t3\tBAD_start\nn/a\t5\tBAD_move\n-4\t2\tBAD_early\n")
    reader, listing = read(tmp_path, BIDSData(label="participants.group"))
    raw = reader.read_eeg(listing.recordings[0])
    assert (0.0, 2.0) in raw.missing_s
    assert f"{table}: row 2 has no onset and duration in seconds; correct it" in raw.remarks


def test_film_beside_the_eeg_is_cut_by_the_same_events(tmp_path: Path) -> None:
    eeg = write_run(tmp_path, events=[(4.0, 6.0, "happy"), (20.0, 4.0, "sad")])
    write_film(eeg.with_name("sub-01_task-film_video.mp4"), DURATION_S)
    reader, listing = read(tmp_path)
    assert reader.modalities == ("eeg", "video")
    for recording, (first_s, n_windows) in zip(listing.recordings, [(4, 3), (20, 2)], strict=True):
        cut = cut_recording(recording, WindowFormat(Preprocessing(window_s=2), ("video",), 0), None)
        assert not cut.problems and len(cut.windows) == n_windows
        grey = np.concatenate([w["video"] for w in cut.windows]).mean(axis=(1, 2, 3))
        expected_s = first_s + np.arange(len(grey)) / 5
        np.testing.assert_allclose(grey, 20 + 5 * expected_s, atol=3)


def write_film(path: Path, duration_s: int) -> None:
    """A film that grows brighter: 5 levels a second."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", 10)
        stream.width = stream.height = 64
        for k in range(10 * duration_s):
            pixels = np.full((64, 64, 3), round(20 + 5 * k / 10), np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode(None))


def test_a_column_without_its_table_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"trial_type is no column of a BIDS table; write participants, sessions, "):
        override(Experiment(), {"data.bids": {"label": "trial_type"}})


def test_other_labels_are_other_indexes(tmp_path: Path) -> None:
    write_labels(tmp_path)
    sections = ({"label": "participants.group"}, {"label": "events.trial_type"}, {"label": "sessions.mood"})
    names = {name_index_folder(experiment(tmp_path, {"data.bids": section})) for section in sections}
    assert len(names) == 3


def test_check_and_preprocessing_take_it(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for subject in ("01", "02", "03"):
        write_run(root, subject, session="a", bads=["Cz"], seed=int(subject))
    e = experiment(root, {"preprocessing.window_s": 2, "split.protocol": "loso", "split.index": 1})
    shown = format_dataset_check(check_dataset(e))
    assert "3 subjects, 9 recordings, 0 problems" in shown
    write_shards(e)
    dataset = open_dataset(e)
    assert dataset.index.eeg_channel_names == NAMES and dataset.index.classes == ("happy", "sad")
    items = list_labeled_recordings(dataset.windows.ids, e.data, e.seed)
    split = make_split(items, e.split)
    assert {item.split("/")[0] for item in split.test} == {"sub-02"}
    assert not any(item.startswith("sub-02") for item in split.train)
