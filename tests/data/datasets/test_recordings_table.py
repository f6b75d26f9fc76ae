"""A user's own table is checked row by row, and its EEG has the same channels everywhere."""

import re
import unicodedata
from pathlib import Path
from typing import Any

import mne
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import soundfile
from pyarrow import parquet

from eav_ray.config import DataConfig, Experiment, override
from eav_ray.data.datasets import registry
from eav_ray.data.datasets.recordings_table import RecordingsTable
from eav_ray.data.io.tables import EMPTY_CELLS
from eav_ray.data.recordings import Listing
from eav_ray.errors import ConfigError, DataError
from eav_ray.pipelines.preprocess.dataset_check import check_dataset, format_dataset_check


def write(folder: Path, *rows: str, header: str = "subject,recording,label,audio,video") -> str:
    path = folder / "mine.csv"
    path.write_text("\n".join((header, *rows)) + "\n")
    return str(path)


def save_eeg(path: Path, names: tuple[str, ...] = ("Fp1", "Cz", "O1")) -> np.ndarray:
    values = np.random.default_rng(0).normal(0, 1e-5, (len(names) + 1, 1000))
    info = mne.create_info([*names, "heart"], 250, ["eeg"] * len(names) + ["ecg"], verbose="ERROR")
    mne.io.RawArray(values, info, verbose="ERROR").save(path, fmt="double", verbose="ERROR")
    return values[:-1] * 1e6


@pytest.fixture
def media(tmp_path: Path) -> Path:
    for name in ("a.wav", "b.wav", "a.mp4"):
        (tmp_path / name).touch()
    return tmp_path


def test_rows_become_recordings_sorted_by_person_and_order(media: Path) -> None:
    header = "subject,recording,label,audio,video,order,task,age"
    rows = ("02,x,happy,a.wav,,0,,31", "01,z,sad,,a.mp4,7,Listening,40", f"01,y,3,{media}/b.wav,a.mp4,2,speaking,")
    table = RecordingsTable(write(media, *rows, header=header))
    listing = table.scan()
    assert listing.problems == ()
    assert table.classes == ("3", "happy", "sad") and table.modalities == ("audio", "video")
    assert [(r.id, r.label, r.task, r.order) for r in listing.recordings] == [
        ("01/y", 0, "speaking", 2),
        ("01/z", 2, "listening", 7),
        ("02/x", 1, "speaking", 0),
    ]
    assert listing.recordings[0].audio == str(media / "b.wav") and listing.recordings[1].audio is None


def test_parquet_and_csv_read_alike(media: Path) -> None:
    csv = RecordingsTable(write(media, "1,x,0,a.wav,", "1,y,1,b.wav,a.mp4"))
    columns = {"subject": [1, 1], "recording": ["x", "y"], "label": [0, 1]}
    columns |= {"audio": ["a.wav", "b.wav"], "video": [None, "a.mp4"]}
    parquet.write_table(pa.table(columns), media / "mine.parquet")
    assert RecordingsTable(str(media / "mine.parquet")).scan() == csv.scan()


@pytest.mark.parametrize(
    ("row", "words", "kept"),
    [
        ("1,x,happy,b.wav,", "same recording", ["1/w"]),
        ("1,q,happy,none.wav,a.mp4", "does not exist", ["1/x", "1/w", "1/q"]),
        ("1,q,,a.wav,", "no label", ["1/x", "1/w"]),
        (",q,happy,a.wav,", "no subject", ["1/x", "1/w"]),
        ("1,q,happy,,", "no file of audio, video", ["1/x", "1/w"]),
        ("1,q,happy,none.wav,", "does not exist; .*no file of audio, video; left out", ["1/x", "1/w"]),
        ("1,q,happy,none.wav,b.mp4", "audio file does not exist; .*video file does not exist; .*left", ["1/x", "1/w"]),
        ("lab/P1,q,happy,a.wav,", r"row 3: subject is 'lab/P1'; .* must not contain", ["1/x", "1/w"]),
        ("..,q,happy,a.wav,", r"row 3: subject is '\.\.'; .* must not contain", ["1/x", "1/w"]),
        ("1,a\\b,happy,a.wav,", r"row 3: recording is 'a\\\\b'; .* must not contain", ["1/x", "1/w"]),
        ("1,.,happy,a.wav,", r"row 3: recording is '\.'; .* must not contain", ["1/x", "1/w"]),
    ],
)
def test_a_row_that_cannot_be_used_is_named(media: Path, row: str, words: str, kept: list[str]) -> None:
    listing = RecordingsTable(write(media, "1,x,happy,a.wav,", "1,w,sad,a.wav,", row)).scan()
    assert [r.id for r in listing.recordings] == kept
    assert len(listing.problems) == 1 and re.search(words, listing.problems[0].reason)


def test_a_recording_without_a_label_is_told_that_training_needs_one(media: Path) -> None:
    (problem,) = RecordingsTable(write(media, "1,x,happy,a.wav,", "1,q,,a.wav,")).scan().problems
    assert "row 2 has no label" in problem.reason and "training needs labels" in problem.reason


def test_a_missing_table_is_told_which_columns_it_needs(tmp_path: Path) -> None:
    data = DataConfig(dataset="recordings_table", root=str(tmp_path / "none.csv"))
    with pytest.raises(DataError, match="none.csv is missing; set data.root to .* with subject, recording, label$"):
        RecordingsTable.open(data)
    with pytest.raises(DataError, match="none.csv is missing; set data.root to .* with subject, recording$"):
        RecordingsTable.open_unlabelled(data)


def test_a_recording_without_a_file_of_its_modalities_is_one_problem(media: Path) -> None:
    path = write(media, "1,x,happy,a.wav,", "1,w,sad,a.wav,a.mp4", "1,q,happy,none.wav,a.mp4", "1,r,sad,,a.mp4")
    _, listing = registry.scan_dataset(DataConfig(dataset="recordings_table", root=path, modalities=("audio",)))
    assert [r.id for r in listing.recordings] == ["1/x", "1/w"]
    assert [(p.recording, "does not exist" in p.reason) for p in listing.problems] == [("q", True), ("r", False)]
    assert all(p.reason.endswith("has none of audio; left out") for p in listing.problems)


def test_spaces_in_the_header_do_not_make_numbers_of_names(media: Path) -> None:
    header = "subject, recording , label, audio, video"
    listing = RecordingsTable(
        write(media, "01, 001, 1, a.wav,", "01, 1, 2, b.wav,", "1, 001, 1, b.wav,", header=header)
    ).scan()
    assert listing.problems == ()
    assert sorted(r.id for r in listing.recordings) == ["01/001", "01/1", "1/001"]
    with pytest.raises(DataError, match="names a column twice: subject, label, label"):
        RecordingsTable(write(media, "1,2,3", header="subject,label, label"))


def test_a_missing_column_is_refused_with_the_nearest(media: Path) -> None:
    with pytest.raises(DataError, match=r'has no column label; it has .*did you mean "labels"\?'):
        RecordingsTable(write(media, "1,x,happy,a.wav", header="subject,recording,labels,audio"))
    with pytest.raises(DataError, match="training needs labels or numbers, `eav predict` does not"):
        RecordingsTable(write(media, "1,x,a.wav", header="subject,recording,audio"))
    with pytest.raises(DataError, match="no row with a label; .*training needs labels or numbers, `eav predict` does"):
        RecordingsTable(write(media, "1,x,,a.wav,"))
    with pytest.raises(DataError, match="none of the columns eeg, audio, video"):
        RecordingsTable(write(media, "1,x,happy,a.wav", header="subject,recording,label,sound"))


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").touch()
    (tmp_path / "noise.csv").write_bytes(b"\xff\x00\x80,\x81\n1,2,3\n")
    (tmp_path / "noise.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "twice.csv").write_text("subject,recording,label,label,audio\n1,2,3,4,5\n")
    (tmp_path / "rowless.csv").write_text("subject,recording,label,audio\n")
    for name in ("none.csv", "empty.csv", "noise.csv", "noise.parquet", "twice.csv", "rowless.csv"):
        with pytest.raises(DataError, match=name):
            RecordingsTable(str(tmp_path / name))


def test_eeg_is_read_in_microvolts_without_other_channels(tmp_path: Path) -> None:
    values = save_eeg(tmp_path / "a_raw.fif")
    table = RecordingsTable(write(tmp_path, "1,x,0,a_raw.fif", header="subject,recording,label,eeg"))
    listing = table.scan()
    raw = table.read_eeg(listing.recordings[0])
    np.testing.assert_allclose(raw.values_CT, values)
    assert (raw.channels, raw.hz, raw.unit) == (("Fp1", "Cz", "O1"), 250, "microvolt")
    assert len(registry.list_eeg_channels(table, listing)) == 3


def test_channels_must_agree_and_come_in_one_order(tmp_path: Path) -> None:
    values = save_eeg(tmp_path / "a_raw.fif")
    save_eeg(tmp_path / "b_raw.fif", ("O1", "Fp1", "Cz"))
    save_eeg(tmp_path / "c_raw.fif", ("Fp1", "Cz", "Oz"))
    rows = [f"1,{n},0,{n}_raw.fif" for n in "abc"]
    table = RecordingsTable(write(tmp_path, *rows, header="subject,recording,label,eeg"))
    _, other_order, other_channels = table.scan().recordings
    np.testing.assert_allclose(table.read_eeg(other_order).values_CT, values[[1, 2, 0]])
    with pytest.raises(DataError, match=r"c_raw.fif has other EEG channels .*differing: O1, Oz"):
        table.read_eeg(other_channels)


@pytest.mark.parametrize("suffix", [".edf", ".fif", ".set", ".vhdr", ".bdf", ".xyz"])
def test_garbage_for_eeg_is_a_data_error(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a{suffix}").write_bytes(np.random.default_rng(0).bytes(3000))
    table = RecordingsTable(write(tmp_path, f"1,x,0,a{suffix}", header="subject,recording,label,eeg"))
    with pytest.raises(DataError, match=f"a{suffix}"):
        table.read_eeg(table.scan().recordings[0])


def test_the_experiment_may_only_ask_for_what_there_is(media: Path) -> None:
    path = write(media, "1,x,0,a.wav,")
    with pytest.raises(
        ConfigError, match=r"asks for eeg, but recordings_table .* offers audio,video; set data.modalities="
    ):
        registry.scan_dataset(DataConfig(dataset="recordings_table", root=path))
    many = write(media, *(f"p{i},x,0,a.wav," for i in range(20)))
    with pytest.raises(ConfigError, match=r'"q1"; allowed are p0, p1, .*\(20 people\)'):
        registry.scan_dataset(
            DataConfig(dataset="recordings_table", root=many, modalities=("audio",), subjects=("q1",))
        )


def test_the_channels_are_those_of_the_first_eeg_that_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "bad.edf").write_bytes(b"no EEG")
    (tmp_path / "worse.edf").touch()
    values = save_eeg(tmp_path / "a_raw.fif")
    header = "subject,recording,label,eeg"
    rows = ["1,x,0,bad.edf", "1,y,0,worse.edf", "1,z,0,a_raw.fif"]
    table = RecordingsTable(write(tmp_path, *rows, header=header))
    listing = table.scan()
    assert len(registry.list_eeg_channels(table, listing)) == 3
    np.testing.assert_allclose(table.read_eeg(listing.recordings[2]).values_CT, values)
    with pytest.raises(DataError, match="bad.edf"):
        table.read_eeg(listing.recordings[0])
    none = RecordingsTable(write(tmp_path, *rows[:2], header=header))
    with pytest.raises(DataError, match="bad.edf"):
        registry.list_eeg_channels(none, none.scan())


def scan_text(folder: Path, text: str, name: str = "mine.csv") -> tuple[RecordingsTable, Listing]:
    (folder / name).write_text(text)
    table = RecordingsTable(str(folder / name))
    return table, table.scan()


def test_floats_of_pandas_stand_for_whole_numbers_in_every_format(media: Path) -> None:
    """One empty cell makes a column of whole numbers floats."""
    frame = pd.DataFrame(
        {"subject": [1.0, 1, 2], "recording": [1, 2, 1], "label": [0.0, 1, np.nan], "order": [3.0, 0, np.nan]}
    ).assign(audio=["a.wav", "b.wav", "a.wav"])
    frame.to_parquet(media / "a.parquet")
    frame.to_csv(media / "a.csv", index=False)
    frame.to_csv(media / "b.csv")
    frame.to_csv(media / "c.csv", index=False, sep=";", decimal=",")
    for name in ("a.parquet", "a.csv", "b.csv", "c.csv"):
        table = RecordingsTable(str(media / name))
        listing = table.scan()
        assert table.classes == ("0", "1"), name
        assert [(r.id, r.label, r.order) for r in listing.recordings] == [("1/2", 1, 0), ("1/1", 0, 3)], name
        assert [(p.subject, p.reason[:18]) for p in listing.problems] == [("2", "row 3 has no label")], name


@pytest.mark.parametrize("order", ["-1", "1.5", "first", "1e3", "9" * 5000, "²"])
def test_an_order_that_is_no_whole_number_is_a_problem(media: Path, order: str) -> None:
    _, listing = scan_text(media, f"subject,recording,label,audio,order\n1,x,a,a.wav,{order}\n1,y,a,a.wav,2.0\n")
    assert [(r.recording, r.order) for r in listing.recordings] == [("y", 2)]
    assert "must be a whole number from 0" in listing.problems[0].reason


@pytest.mark.parametrize("mark", sorted(EMPTY_CELLS - {""}))
def test_marks_of_empty_cells_are_no_class_and_no_file(media: Path, mark: str) -> None:
    text = f"subject,recording,label,audio,video,order\n1,x,calm,a.wav,{mark},{mark}\n1,y,{mark},b.wav,a.mp4,1\n"
    table, listing = scan_text(media, text)
    assert table.classes == ("calm",)
    assert [(r.recording, r.video, r.order) for r in listing.recordings] == [("x", None, 0)]
    assert [p.reason for p in listing.problems] == [
        f"row 2 has no label ({mark} means empty); fill it in: training needs labels or numbers, `eav predict` does not"
    ]


def test_none_in_small_letters_is_a_class(media: Path) -> None:
    assert scan_text(media, "subject,recording,label,audio\n1,x,none,a.wav\n")[0].classes == ("none",)


def test_rows_of_another_length_cost_themselves_and_no_other(media: Path) -> None:
    text = "subject,recording,label,audio\n1,x,calm,a.wav\n\n1,y,b.wav\n1,z,sad, very,b.wav\n1,w,calm,b.wav\n"
    _, listing = scan_text(media, text)
    assert [(r.recording, r.order) for r in listing.recordings] == [("x", 0), ("w", 4)]
    assert [p.reason[:20] for p in listing.problems] == ["row 3 has 3 cells, t", "row 4 has 5 cells, t"]


@pytest.mark.parametrize(
    "cell",
    [r"sub\a b.wav", r".\sub\a b.wav", "./sub/a b.wav", "'sub/a b.wav'", r'"""sub\a b.wav"""', "sub/../sub/a b.wav"],
)
def test_paths_as_other_programs_write_them_are_found(media: Path, cell: str) -> None:
    (media / "sub").mkdir()
    (media / "sub" / "a b.wav").touch()
    _, listing = scan_text(media, f"subject,recording,label,audio\n1,x,calm,{cell}\n")
    (recording,) = listing.recordings
    assert recording.audio is not None and Path(recording.audio).samefile(media / "sub" / "a b.wav")


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("written", ["NFC", "NFD"])
def test_letters_of_a_file_name_are_composed_or_not(media: Path, form: Any, written: Any) -> None:
    (media / unicodedata.normalize(form, "Jörg.wav")).touch()
    _, listing = scan_text(
        media, f"subject,recording,label,audio\n1,x,calm,{unicodedata.normalize(written, 'Jörg.wav')}\n"
    )
    assert listing.problems == () and len(listing.recordings) == 1


def test_a_file_whose_name_has_a_backslash_is_itself(media: Path) -> None:
    (media / r"sub\a.wav").touch()
    _, listing = scan_text(media, "subject,recording,label,audio\n1,x,calm,sub\\a.wav\n")
    assert listing.recordings[0].audio == str(media / r"sub\a.wav")


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        (r"C:\data\a.wav", "the audio file is on a drive of Windows; write its path relative to the table's folder"),
        (r"sub\a.wav", "the audio file does not exist, nor with / for each \\; correct the path"),
        ("D:/data/a.wav", "is on a drive of Windows"),
        (r"\\server\share\a.wav", "is on a drive of Windows"),
        ("https://example.org/a.wav", "the audio file is an address"),
        ("A.WAV", "does not exist, but a.wav does; small and capital letters must agree"),
        ("folder", "is a folder, or no file"),
        ("a" * 5000, "cannot be looked at"),
        ("a.wav/b.wav", "cannot be looked at"),
        ("c.wav", "does not exist; correct the path or empty the cell"),
    ],
)
def test_a_path_that_cannot_be_used_says_why_once_for_its_row(media: Path, cell: str, words: str) -> None:
    (media / "folder").mkdir()
    _, listing = scan_text(media, f"subject,recording,label,audio,video\n1,x,calm,{cell},a.mp4\n")
    assert [(r.recording, r.audio is None, r.video is None) for r in listing.recordings] == [("x", True, False)]
    (problem,) = listing.problems
    assert problem.reason.startswith("row 1: ") and words in problem.reason


@pytest.mark.parametrize("header", ["Subject,recording,label,audio", "subject,recording,label,audio,VIDEO"])
def test_a_known_column_in_capitals_is_never_passed_over(media: Path, header: str) -> None:
    with pytest.raises(DataError, match="names of columns are lower case: rename it (subject|video)"):
        scan_text(media, f"{header}\n1,x,calm,a.wav{',a.mp4' * header.count('VIDEO')}\n")


def test_what_may_be_meant_otherwise_is_remarked_on(media: Path) -> None:
    rows = ["Anna,x,calm,a.wav,1,7", "anna,x,Calm,b.wav,,8", "1,x,glad,a.wav,0,9", "01,x,glad,a.wav,0,9"]
    _, listing = scan_text(media, "\n".join(["subject,recording,label,audio,order,age", *rows]))
    assert listing.problems == () and len(listing.recordings) == 4
    assert [remark.split(": ", 1)[1].split(";")[0] for remark in listing.remarks] == [
        "subject 'Anna' and 'anna' count as different",
        "subject '1' and '01' count as different",
        "label 'calm' and 'Calm' count as different",
        "rows without order (1: 2) take their position in the table for it",
        "columns that are not used: age",
    ]


def test_a_label_that_swallowed_a_row_is_no_class(media: Path) -> None:
    text = 'subject,recording,label,audio\n1,x,"calm,a.wav\n1,y,sad",b.wav\n1,z,0,a.wav\n1,w,,a.wav\n'
    table, listing = scan_text(media, text)
    assert table.classes == ("0",) and [r.recording for r in listing.recordings] == ["z"] and listing.remarks == ()
    assert [p.reason.split(";")[0] for p in listing.problems] == [
        r"row 1: label is 'calm,a.wav\n1,y,sad', with a line break in it",
        "row 3 has no label",
    ]


def test_rows_of_nobody_are_shown_for_any_choice_of_people(media: Path) -> None:
    path = write(media, "1,x,calm,a.wav,", "1,y", "2,x,glad,b.wav,")
    data = DataConfig(dataset="recordings_table", root=path, modalities=("audio",), subjects=("1",))
    _, listing = registry.scan_dataset(data)
    assert [r.id for r in listing.recordings] == ["1/x"] and listing.problems[0].reason.startswith("row 2 has 2 cells")


def test_remarks_are_shown_by_check(media: Path) -> None:
    path = write(media, "1,x,calm,a.wav,,7", header="subject,recording,label,audio,video,age")
    changes = {"data.dataset": "recordings_table", "data.root": path, "data.modalities": ["audio"]}
    shown = format_dataset_check(check_dataset(override(Experiment(), changes)))
    assert f"  {path}: columns that are not used: age; used are" in shown


def test_check_names_recordings_whose_files_differ_in_length(tmp_path: Path) -> None:
    save_eeg(tmp_path / "a_raw.fif")  # 4 s
    for name, seconds in (("a", 4.0), ("b", 20.0)):
        soundfile.write(tmp_path / f"{name}.wav", np.zeros(int(8000 * seconds)), 8000)
    rows = ("1,x,calm,a.wav,a_raw.fif", "1,y,glad,b.wav,a_raw.fif", "1,z,glad,b.wav,")
    path = write(tmp_path, *rows, header="subject,recording,label,audio,eeg")
    changes = {"data.dataset": "recordings_table", "data.root": path, "data.modalities": ["audio", "eeg"]}
    (line,) = [r for r in check_dataset(override(Experiment(), changes)).remarks if "differ in length" in r]
    assert "window of 5 s: 1/y (audio 20.0 s, eeg 4.0 s); where" in line


def test_a_column_of_lists_is_refused_by_name(media: Path) -> None:
    columns = {"subject": [["a"]], "recording": ["x"], "label": ["calm"], "audio": ["a.wav"]}
    parquet.write_table(pa.table(columns), media / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: column subject cannot be read \(a cell holds a list"):
        RecordingsTable(str(media / "a.parquet"))
