"""EAV is read alike in each of its layouts, and a recording that cannot be trusted is named, not used."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import scipy.sparse

from eav_ray.config import DataConfig
from eav_ray.data.datasets import registry
from eav_ray.data.datasets.eav import EAV, EAV_CLASSES
from eav_ray.data.recordings import Listing
from eav_ray.errors import ConfigError, DataError
from tests.helpers.generated_eav import ROWS, SAMPLES, encode_labels, make_signal, save_v73, write_subject


def reported(listing: Listing) -> list[tuple[str, str]]:
    return [(p.recording, p.reason) for p in listing.problems]


def keys(listing: Listing) -> list[str]:
    return [r.recording for r in listing.recordings]


LAYOUTS = [
    {},
    {"folder": "subject01"},
    {"key": "seg1"},
    {"v73": True},
    {"v73": True, "transposed": True, "key": "seg1"},
    {"transposed": True},
    {"suffix": "_aud"},
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_all_layouts_read_alike(tmp_path: Path, layout: dict) -> None:
    write_subject(tmp_path, **layout)
    dataset = EAV(str(tmp_path))
    listing = dataset.scan()
    assert listing.problems == ()
    assert [(r.subject, r.recording, r.order, r.task) for r in listing.recordings] == [
        ("subject1", key, order, "speaking") for key, order in (("001", 0), ("003", 2), ("004", 3), ("006", 5))
    ]
    assert [EAV_CLASSES[r.label] for r in listing.recordings] == ["Neutral", "Sadness", "Anger", "Sadness"]
    for r in listing.recordings:
        assert r.audio is not None and r.video is not None
        assert Path(r.audio).name[:3] == Path(r.video).name[:3] == r.recording
        raw = dataset.read_eeg(r)
        np.testing.assert_array_equal(raw.values_CT, make_signal()[:, :, int(r.recording) - 1].T)
        assert (raw.hz, raw.unit, len(raw.channels)) == (500, "auto", 30)


def test_listening_has_no_audio_and_that_is_no_problem(tmp_path: Path) -> None:
    write_subject(tmp_path)
    listing = EAV(str(tmp_path), tasks=("speaking", "listening")).scan()
    assert listing.problems == ()
    assert [(r.task, r.audio is None) for r in listing.recordings if not int(ROWS[r.order]) % 2] == [
        ("listening", True),
        ("listening", True),
    ]
    assert len(listing.recordings) == 6


@pytest.mark.parametrize("v73", [False, True])
@pytest.mark.parametrize("rows", [(3,), (1, 3, 5, 7, 9, 1, 3, 5, 7, 9)])
@pytest.mark.parametrize("transposed", [False, True])
def test_any_number_of_recordings_will_do(tmp_path: Path, v73: bool, rows: tuple[int, ...], transposed: bool) -> None:
    """One recording loses its axis on the way, and of ten the matrix is square."""
    write_subject(tmp_path, rows=rows, v73=v73, transposed=transposed)
    dataset = EAV(str(tmp_path))
    listing = dataset.scan()
    assert listing.problems == ()
    assert [r.label for r in listing.recordings] == [row // 2 for row in rows]
    np.testing.assert_array_equal(
        dataset.read_eeg(listing.recordings[-1]).values_CT, make_signal(len(rows))[:, :, -1].T
    )


def test_people_are_sorted_by_number(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        write_subject(tmp_path, number=number, folder=f"subject{number}")
    subjects = [r.subject for r in EAV(str(tmp_path)).scan().recordings]
    assert list(dict.fromkeys(subjects)) == ["subject1", "subject2", "subject10"]


def rename(subject: Path, kind: str, start: str, old: str, new: str) -> None:
    path = next((subject / kind).glob(f"{start}*"))
    path.rename(path.with_name(path.name.replace(old, new)))


def copy(subject: Path, kind: str, start: str, new: str) -> None:
    (subject / kind / new).touch()


def remove(subject: Path, kind: str, start: str) -> None:
    for path in (subject / kind).glob(f"{start}*"):
        path.unlink()


DEFECTS: list[tuple[Callable[[Path], None], str, list[str], str]] = [
    (lambda p: rename(p, "Video", "003", "Sadness", "Anger"), "003", ["001", "004", "006"], "label matrix"),
    (lambda p: rename(p, "Audio", "003", "Speaking", "Listening"), "003", ["001", "004", "006"], "label matrix"),
    (lambda p: rename(p, "Video", "002", "Listening", "Speaking"), "002", ["001", "003", "004", "006"], "label matrix"),
    (lambda p: copy(p, "Video", "003", "003_Trial_09_Speaking_Sadness.mp4"), "003", ["001", "004", "006"], "2 files"),
    (lambda p: copy(p, "Audio", "003", "003_Trial_09_Speaking_Sadness_aud.wav"), "003", ["001", "004", "006"], "2 f"),
    (lambda p: remove(p, "Video", "004"), "004", ["001", "003", "004", "006"], "no video"),
    (lambda p: remove(p, "Audio", "004"), "004", ["001", "003", "004", "006"], "no audio"),
    (lambda p: remove(p, "Audio", ""), "", ["001", "003", "004", "006"], "no .wav"),
    (lambda p: remove(p, "EEG", "subject1_eeg.mat"), "", ["001", "003", "004", "006"], "EEG is not used"),
    (lambda p: remove(p, "EEG", "subject1_eeg_label"), "", [], "without labels"),
    (lambda p: copy(p, "Video", "", "notes.mp4"), "", ["001", "003", "004", "006"], "expected a name like"),
    (lambda p: copy(p, "Video", "", "007_Trial_01_Speaking_Anger.mp4"), "007", ["001", "003", "004", "006"], "outside"),
]


@pytest.mark.parametrize(("spoil", "recording", "kept", "words"), DEFECTS)
def test_a_defect_is_named_once_and_costs_no_more_than_it_must(
    tmp_path: Path, spoil: Callable[[Path], None], recording: str, kept: list[str], words: str
) -> None:
    subject = write_subject(tmp_path)
    spoil(subject)
    listing = EAV(str(tmp_path)).scan()
    assert keys(listing) == kept
    assert len(listing.problems) == 1, reported(listing)
    assert listing.problems[0].recording == recording and words in listing.problems[0].reason
    assert listing.problems[0].subject == "subject1"


def test_a_modality_that_is_missing_is_none(tmp_path: Path) -> None:
    subject = write_subject(tmp_path)
    remove(subject, "Video", "004")
    remove(subject, "EEG", "subject1_eeg.mat")
    by_key = {r.recording: r for r in EAV(str(tmp_path)).scan().recordings}
    assert by_key["004"].video is None and by_key["004"].audio and by_key["003"].video
    assert all(r.eeg is None for r in by_key.values())


def test_a_recording_of_which_nothing_is_left_is_left_out(tmp_path: Path) -> None:
    subject = write_subject(tmp_path)
    remove(subject, "EEG", "subject1_eeg.mat")
    remove(subject, "Audio", "004")
    remove(subject, "Video", "004")
    listing = EAV(str(tmp_path)).scan()
    assert keys(listing) == ["001", "003", "006"]
    assert any(key == "004" and "left out" in reason for key, reason in reported(listing))


@pytest.mark.parametrize("shape", [(SAMPLES, 29, 6), (SAMPLES, 30, 5), (30, SAMPLES, 6)])
@pytest.mark.parametrize("v73", [False, True])
def test_eeg_of_the_wrong_shape_is_not_used(tmp_path: Path, shape: tuple[int, ...], v73: bool) -> None:
    path = write_subject(tmp_path) / "EEG" / "subject1_eeg.mat"
    path.unlink()
    if v73:
        save_v73(path, "seg", np.zeros(shape))
    else:
        scipy.io.savemat(path, {"seg": np.zeros(shape)})
    listing = EAV(str(tmp_path)).scan()
    assert len(listing.problems) == 1 and "EEG is not used" in listing.problems[0].reason
    assert len(listing.recordings) == 4 and all(r.eeg is None for r in listing.recordings)


FORMS: dict[str, Callable[[np.ndarray], Any]] = {
    "logical": lambda m: m.astype(bool),
    "int16": lambda m: m.astype(np.int16),
    "single": lambda m: m.astype(np.float32),
    "transposed": lambda m: m.T,
    "sparse": scipy.sparse.csc_matrix,
    "sparse and logical": lambda m: scipy.sparse.csc_matrix(m.astype(bool)),
    "sparse and transposed": lambda m: scipy.sparse.csc_matrix(m.T),
}


@pytest.mark.parametrize("form", FORMS)
def test_labels_are_read_in_every_form_in_which_they_are_clear(tmp_path: Path, form: str) -> None:
    subject = write_subject(tmp_path)
    expected = [(r.recording, r.label) for r in EAV(str(tmp_path)).scan().recordings]
    scipy.io.savemat(subject / "EEG" / "subject1_eeg_label.mat", {"label": FORMS[form](encode_labels())})
    listing = EAV(str(tmp_path)).scan()
    assert listing.problems == ()
    assert [(r.recording, r.label) for r in listing.recordings] == expected


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            np.array([[1, "x"]], object),
            r"label is a cell array; save cell2mat\(label\) or cat\(3, label\{:\}\) instead",
        ),
        ("Neutral", "label is text; save the numbers that it stands for instead"),
        ({"label": 1}, "label is a structure; save the field of it"),
        (np.array([[1.0, 2, 3, 4, 5, 6]]), r"shape \(10, recordings\); it has \(1, 6\)"),
    ],
)
def test_labels_in_another_form_say_how_to_save_them(tmp_path: Path, values: Any, words: str) -> None:
    scipy.io.savemat(write_subject(tmp_path) / "EEG" / "subject1_eeg_label.mat", {"label": values})
    (problem,) = EAV(str(tmp_path)).scan().problems
    assert re.search(words, problem.reason) and "without labels nothing of this person" in problem.reason


@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.float64])
def test_eeg_is_read_in_every_type_of_number(tmp_path: Path, dtype: type) -> None:
    subject = write_subject(tmp_path)
    values = (make_signal() % 30_000).astype(dtype)
    scipy.io.savemat(subject / "EEG" / "subject1_eeg.mat", {"seg": values})
    dataset = EAV(str(tmp_path))
    np.testing.assert_array_equal(dataset.read_eeg(dataset.scan().recordings[1]).values_CT, values[:, :, 2].T)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            make_signal().transpose(1, 0, 2),
            r"it must be \(samples, 30 channels, recordings\): turn its axes with permute",
        ),
        (make_signal() * 1j, r"seg is an array of complex numbers; save real\(seg\) instead"),
        (make_signal()[:0], "seg is empty"),
        (np.array([[make_signal()]], object), r"seg is a cell array; save cell2mat\(seg\)"),
        (scipy.sparse.csc_matrix(make_signal()[:, :, 0]), "holds 1 recording, but the label matrix 6"),
    ],
)
def test_eeg_in_another_form_says_how_to_save_it(tmp_path: Path, values: Any, words: str) -> None:
    scipy.io.savemat(write_subject(tmp_path) / "EEG" / "subject1_eeg.mat", {"seg": values})
    listing = EAV(str(tmp_path)).scan()
    assert len(listing.recordings) == 4 and all(r.eeg is None for r in listing.recordings)
    assert re.search(words, listing.problems[0].reason) and len(listing.problems) == 1


def test_a_label_column_that_is_not_one_hot_costs_its_recording(tmp_path: Path) -> None:
    subject = write_subject(tmp_path)
    labels = encode_labels()
    labels[5, 2] = 1
    scipy.io.savemat(subject / "EEG" / "subject1_eeg_label.mat", {"label": labels})
    listing = EAV(str(tmp_path)).scan()
    assert keys(listing) == ["001", "004", "006"]
    assert reported(listing) == [("003", "column 3 of the label matrix is not one-hot")]


def test_two_folders_of_one_person_are_not_used(tmp_path: Path) -> None:
    write_subject(tmp_path)
    write_subject(tmp_path, folder="subject01")
    write_subject(tmp_path, number=2, folder="subject2")
    listing = EAV(str(tmp_path)).scan()
    assert {r.subject for r in listing.recordings} == {"subject2"}
    assert "name the same person" in listing.problems[0].reason


@pytest.mark.parametrize("v73", [False, True])
@pytest.mark.parametrize("file", ["subject1_eeg.mat", "subject1_eeg_label.mat"])
@pytest.mark.filterwarnings("ignore")  # SciPy warns of duplicate and unknown variables in garbled files
def test_a_damaged_mat_file_is_a_problem_or_a_data_error(tmp_path: Path, file: str, v73: bool) -> None:
    path = write_subject(tmp_path, v73=v73) / "EEG" / file
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    broken = [whole[: int(share * len(whole))] for share in (0, 0.01, 0.25, 0.5, 0.99)] + [rng.bytes(3000)]
    for _ in range(25):
        garbled = bytearray(whole)
        for place in rng.integers(0, min(len(whole), 3000), 8):
            garbled[place] = rng.integers(256)
        broken.append(bytes(garbled))
    for content in broken:
        path.write_bytes(content)
        dataset = EAV(str(tmp_path))
        for recording in dataset.scan().recordings[:1]:
            if recording.eeg is not None:
                try:
                    dataset.read_eeg(recording)
                except DataError as error:
                    assert file in str(error)


def test_a_folder_of_something_else_is_refused_with_what_was_expected(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError, match=r"is not an EAV folder: no subject\*/ inside; expected"):
            EAV(str(root))


def test_the_experiment_chooses_people(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        write_subject(tmp_path, number=number, folder=f"subject{number}")
    data = DataConfig(root=str(tmp_path), subjects=("subject2",))
    dataset, listing = registry.scan_dataset(data)
    assert {r.subject for r in listing.recordings} == {"subject2"}
    assert len(registry.list_eeg_channels(dataset, listing)) == 30
    with pytest.raises(ConfigError, match=r'"subject02"; allowed are subject1, subject2, subject3; did you mean "sub'):
        registry.scan_dataset(DataConfig(root=str(tmp_path), subjects=("subject02",)))


def test_the_experiment_gets_only_recordings_that_it_can_use(tmp_path: Path) -> None:
    remove(write_subject(tmp_path), "Audio", "004")
    _, listing = registry.scan_dataset(
        DataConfig(root=str(tmp_path), modalities=("audio",), tasks=("speaking", "listening"))
    )
    assert keys(listing) == ["001", "003", "006"]
    assert [(p.recording, p.reason) for p in listing.problems][-1] == (
        "004",
        "no audio file begins with 004_; has none of audio; left out",
    )


def test_a_root_and_modalities_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"set data\.root=\.\.\."):
        registry.open_reader(DataConfig())
