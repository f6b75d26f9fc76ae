"""Numbers in place of classes are read from every table of a BIDS data set, and from several at once; recordings are
predicted where nobody has said anything of them."""

import math
from pathlib import Path
from typing import Any

import pytest

from eav_ray.config import Experiment, override
from eav_ray.config.data_sections import BIDSData, TargetData
from eav_ray.data.datasets import registry
from eav_ray.data.datasets.bids import BIDS
from eav_ray.data.recordings import Listing
from eav_ray.errors import DataError
from tests.helpers.bids_sets import EVENTS, add_column, write_run

SPANS = [(start_s, start_s + length_s) for start_s, length_s, _ in EVENTS]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two subjects with two sessions of three events."""
    for subject in ("01", "02"):
        for session in ("a", "b"):
            write_run(tmp_path, subject, session=session)
        sessions = "session_id\tmood\nses-a\t1,5\nses-b\t-2\n"
        (tmp_path / f"sub-{subject}" / f"sub-{subject}_sessions.tsv").write_text(sessions)
        for session, noise in (("a", "10"), ("b", "20.5")):
            path = tmp_path / f"sub-{subject}/ses-{session}/sub-{subject}_ses-{session}_scans.tsv"
            add_column(path, "noise", [f"{noise}"])
    add_column(tmp_path / "participants.tsv", "bdi", ["7", "31"])
    for number, path in enumerate(list_events(tmp_path)):
        add_column(path, "valence", [f"{number}.{k}" for k in range(len(EVENTS))])
        add_column(path, "arousal", [f"{-number}.{k}" for k in range(len(EVENTS))])
    return tmp_path


def list_events(root: Path) -> list[Path]:
    return sorted(root.rglob("*_events.tsv"))


def read(root: Path, *columns: str, needs_truth: bool = True, **section: Any) -> Listing:
    reader = BIDS(str(root), BIDSData(**section), TargetData(columns=columns), needs_truth=needs_truth)
    return reader.scan()


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ("participants.bdi", [7, 7, 31, 31]),
        ("sessions.mood", [1.5, -2, 1.5, -2]),
        ("scans.noise", [10, 20.5, 10, 20.5]),
    ],
)
def test_numbers_of_subjects_sessions_and_scans_are_of_whole_runs(
    root: Path, column: str, expected: list[float]
) -> None:
    listing = read(root, column)
    assert [(r.subject, r.recording, r.targets) for r in listing.recordings] == [
        (f"sub-0{subject}", f"ses-{session}_task-film", (value,))
        for (subject, session), value in zip([(1, "a"), (1, "b"), (2, "a"), (2, "b")], expected, strict=True)
    ]
    assert not listing.problems and all(not r.spans_s for r in listing.recordings)
    assert any("mood has decimal commas; '1,5' is read as 1.5" in r for r in listing.remarks) == (
        column == "sessions.mood"
    )


def test_numbers_of_events_make_a_recording_of_each(root: Path) -> None:
    listing = read(root, "events.arousal", "events.valence")
    assert [(r.targets, r.spans_s["eeg"]) for r in listing.recordings] == [
        ((float(f"{-run}.{k}"), float(f"{run}.{k}")), span) for run in range(4) for k, span in enumerate(SPANS)
    ]
    assert not listing.problems


def test_numbers_of_several_tables_are_of_one_recording(root: Path) -> None:
    listing = read(root, "events.valence", "participants.bdi", "sessions.mood", "scans.noise")
    assert len(listing.recordings) == 12 and not listing.problems
    assert [r.targets for r in listing.recordings[6:9]] == [(2.0 + k / 10, 31.0, 1.5, 10.0) for k in range(3)]


def test_an_event_without_numbers_is_no_recording_and_one_with_some_is_a_problem(root: Path) -> None:
    path = list_events(root)[0]
    add_column(path, "valence", ["n/a", "0.1", "0.2"])
    add_column(path, "arousal", ["n/a", "n/a", "0.2"])
    listing = read(root, "events.valence", "events.arousal")
    assert [r.recording for r in listing.recordings if "ses-a" in r.recording and r.subject == "sub-01"] == [
        "ses-a_task-film_event-003"
    ]
    assert [p.reason for p in listing.problems] == [f"{path}: row 2: arousal is empty; correct it, or empty its cells"]
    add_column(path, "valence", ["n/a", "0.1", "good"])
    reasons = [p.reason for p in read(root, "events.valence", "events.arousal").problems]
    assert reasons[1] == f"{path}: row 3: valence is 'good', which is no number; correct it, or empty its cells"


def test_labels_choose_events_and_runs_whose_numbers_are_predicted(root: Path) -> None:
    chosen = {"label": "events.trial_type", "classes": ("happy",)}
    listing = read(root, "participants.bdi", **chosen)
    assert [(r.targets, r.spans_s["eeg"]) for r in listing.recordings] == [
        ((bdi,), span) for bdi in (7.0, 7.0, 31.0, 31.0) for span in (SPANS[0], SPANS[2])
    ]
    listing = read(root, "events.valence", **chosen)
    assert [r.targets for r in listing.recordings[:4]] == [(0.0,), (0.2,), (1.0,), (1.2,)]
    add_column(root / "participants.tsv", "group", ["patient", "control"])
    listing = read(root, "events.valence", label="participants.group", classes=("control",))
    assert {r.subject for r in listing.recordings} == {"sub-02"} and len(listing.recordings) == 6
    add_column(list_events(root)[0], "valence", ["n/a", "0.1", "0.2"])
    listing = read(root, "events.valence", **chosen)
    assert len(listing.recordings) == 7 and not listing.problems
    assert "events with a label and without numbers in valence are not used" in listing.remarks


def test_a_run_without_its_number_is_left_out_and_said(root: Path) -> None:
    add_column(root / "participants.tsv", "bdi", ["n/a", "31"])
    listing = read(root, "participants.bdi", "events.valence")
    assert {r.subject for r in listing.recordings} == {"sub-02"}
    assert [p.reason for p in listing.problems] == [
        f"{root / 'participants.tsv'}: sub-01: bdi is empty; correct it, or leave its recordings out"
    ] * 2
    add_column(root / "participants.tsv", "bdi", ["severe", "31"])
    assert "bdi is 'severe', which is no number" in read(root, "participants.bdi").problems[0].reason


def lose_participants(root: Path) -> TargetData:
    (root / "participants.tsv").unlink()
    return TargetData(columns=("participants.bdi",))


def empty_column(root: Path) -> TargetData:
    for path in list_events(root):
        add_column(path, "valence", ["n/a"] * 3)
    return TargetData(columns=("events.valence",))


def mix_marks(root: Path) -> TargetData:
    add_column(root / "participants.tsv", "bdi", ["7.5", "31,2"])
    return TargetData(columns=("participants.bdi",))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda _: TargetData(columns=("bdi",)), "columns names bdi, which is no column of a BIDS table; write part"),
        (lambda _: TargetData(columns=("participants.bid",)), 'no column bid; it has .*; did you mean "bdi"'),
        (lambda _: TargetData(columns=("events.valance",)), 'no column valance; it has .*; did you mean "valence"'),
        (lose_participants, "is missing, so there is no participants.bdi; set data.targets.columns otherwise"),
        (empty_column, "has nothing with events.valence; the first problem: .* has no event with events.valence"),
        (mix_marks, r"column bdi has numbers with a point \(7.5\) and with a comma \(31,2\)"),
    ],
)
def test_a_column_that_cannot_be_predicted_is_refused(root: Path, damage: Any, message: str) -> None:
    targets = damage(root)
    with pytest.raises(DataError, match=message) as caught:
        BIDS(str(root), BIDSData(), targets)
    assert "\n" not in str(caught.value)


def experiment(root: Path, **targets: Any) -> Experiment:
    data = {"data.dataset": "bids", "data.root": str(root), "data.modalities": ["eeg"], "data.targets": targets}
    return override(Experiment(), data)


def test_a_table_of_ones_own_is_joined_to_runs(root: Path) -> None:
    (root / "scores.csv").write_text("run,bdi\nsub-02/ses-a_task-film,3\nsub-01/ses-a_task-film,4\n")
    e = experiment(root, columns=["bdi"], path=str(root / "scores.csv"), key="run")
    _, listing = registry.scan_dataset(e.data)
    assert [(r.id, r.targets) for r in listing.recordings] == [
        ("sub-01/ses-a_task-film", (4.0,)),
        ("sub-02/ses-a_task-film", (3.0,)),
    ]
    assert [p.recording for p in listing.problems] == ["ses-b_task-film"] * 2


def test_a_table_of_the_set_cannot_be_input_too(root: Path) -> None:
    e = experiment(root, columns=["participants.bdi"])
    features = {"face": {"path": str(root / "participants.tsv"), "key": "participant_id"}}
    changed = override(
        e,
        {"preprocessing.features": {"face": {"columns": ["bdi"]}}, "data.features": features}
        | {"data.modalities": ["eeg", "face"]},
    )
    with pytest.raises(DataError, match="bdi is to be predicted .data.targets.columns., and is an input too"):
        registry.scan_dataset(changed.data, changed.preprocessing.features)


# Recordings that are predicted


def test_runs_are_predicted_without_labels_or_numbers(root: Path) -> None:
    for path in list_events(root):
        path.unlink()
    (root / "participants.tsv").unlink()
    for section, columns in (
        (BIDSData(), ()),
        (BIDSData(label="participants.group", classes=("patient",)), ()),
        (BIDSData(), ("participants.bdi", "sessions.nothing")),
        (BIDSData(label="events.trial_type"), ("events.valence",)),
    ):
        reader = BIDS(str(root), section, TargetData(columns=columns), needs_truth=False)
        listing = reader.scan()
        assert len(listing.recordings) == 4 and not listing.problems and reader.classes == ()
        assert {r.label for r in listing.recordings} == {-1}
        assert all(len(r.targets) == len(columns) and all(map(math.isnan, r.targets)) for r in listing.recordings)


def test_events_are_predicted_without_labels_or_numbers(root: Path) -> None:
    paths = list_events(root)
    add_column(paths[0], "valence", ["n/a", "n/a", "0.2"])  # rated in part
    add_column(paths[1], "valence", ["n/a", "n/a", "n/a"])  # not yet
    paths[2].write_text("onset\tduration\n2\t10\n14\t8\n")  # nobody says anything
    listing = read(root, "events.valence", needs_truth=False)
    assert not listing.problems
    assert [(r.subject, r.recording[4:5], r.recording[-1]) for r in listing.recordings] == [
        ("sub-01", "a", "3"),
        *(("sub-01", "b", str(k)) for k in (1, 2, 3)),
        *(("sub-02", "a", str(k)) for k in (1, 2)),
        *(("sub-02", "b", str(k)) for k in (1, 2, 3)),
    ]
    known = [not math.isnan(r.targets[0]) for r in listing.recordings]
    assert known == [True, False, False, False, False, False, True, True, True]
    # Labels say which events are stimuli, rated or not.
    listing = read(root, "events.valence", needs_truth=False, label="events.trial_type", classes=("happy",))
    assert [r.recording[-1] for r in listing.recordings] == ["1", "3", "1", "3", "1", "2", "1", "3"]
    reader = BIDS(str(root), BIDSData(label="events.trial_type", classes=("happy",)), needs_truth=False)
    assert [r.label for r in reader.scan().recordings] == [0, 0, 0, 0, -1, -1, 0, 0]
