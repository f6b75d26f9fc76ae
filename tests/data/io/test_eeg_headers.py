"""What headers say beside units and marks is used or refused: projections, averages, places, names of files."""

from pathlib import Path
from typing import Any

import mne
import numpy as np
import pytest
from scipy.io import loadmat, savemat

from eav_ray.config import EEGPreprocessing
from eav_ray.data.datasets.recordings_table import RecordingsTable
from eav_ray.data.io.eeg import open_eeg_file, read_eeg_file
from eav_ray.data.preprocessing.eeg import prepare_eeg
from eav_ray.data.preprocessing.eeg_clean import PreparedEEG
from eav_ray.errors import DataError
from tests.helpers.eeg_files import NAMES, make_eeg, make_raw, write_brainvision, write_edf, write_set, write_table

EEG_CT = make_eeg(20)


def write_header(path: Path, *changes: tuple[str, str], names: tuple[str, ...] = NAMES) -> Path:
    """Write a BrainVision recording, and replace words of its header."""
    write_brainvision(path, EEG_CT, names)
    text = path.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("SamplingInterval", "DataType=FREQUENCYDOMAIN\nSamplingInterval", "no samples over time"),
        ("SamplingInterval", "Averaged=YES\nAveragedSegments=20\nSamplingInterval", "an average over segments"),
        ("DataFile=a.eeg", "DataFile=old.eeg", "its samples are in old.eeg, which is not there; if it was renamed"),
    ],
)
def test_what_is_no_recording_is_refused(tmp_path: Path, old: str, new: str, words: str) -> None:
    path = write_header(tmp_path / "a.vhdr", (old, new))
    with pytest.raises(DataError, match=words):
        open_eeg_file(path)


def test_segments_of_a_stated_length_are_filtered_apart(tmp_path: Path) -> None:
    words = "SegmentationType=MARKERBASED\nSegmentDataPoints=500\nSamplingInterval"
    raw = read_eeg_file(write_header(tmp_path / "a.vhdr", ("SamplingInterval", words)), NAMES)
    assert raw.joins_s == (5, 10, 15) and any("pieces were joined" in remark for remark in raw.remarks)
    none = words.replace("MARKERBASED", "NOTSEGMENTED")
    assert read_eeg_file(write_header(tmp_path / "b.vhdr", ("SamplingInterval", none)), NAMES).joins_s == ()


def test_electrodes_without_a_stated_place_are_eeg(tmp_path: Path) -> None:
    names = (*NAMES[:6], "HEOG", "Resp")
    places = "\n[Coordinates]\n" + "\n".join(f"Ch{i + 1}=0,0,0" for i in range(8)) + "\n"
    last = "Ch8=Resp,,0.1,\u00b5V"
    path = write_header(tmp_path / "a.vhdr", (last, last.replace("\u00b5V", "\u00b5S") + places), names=names)
    table = RecordingsTable(write_table(tmp_path, "a.vhdr"))
    assert table.channels == NAMES[:6]
    np.testing.assert_allclose(read_eeg_file(path, NAMES[:6]).values_CT, EEG_CT[:6], atol=1e-3)


def test_projections_that_are_not_applied_are_said(tmp_path: Path) -> None:
    raw = make_raw(EEG_CT)
    data: Any = {"nrow": 1, "ncol": 8, "row_names": None, "col_names": list(NAMES), "data": np.ones((1, 8)) / 8**0.5}
    blinks = mne.Projection(active=False, data=data, desc="blinks", kind=1, explained_var=0.5)
    raw.set_eeg_reference("average", projection=True, verbose="ERROR").save(tmp_path / "a_raw.fif", verbose="ERROR")
    raw.add_proj([blinks], verbose="ERROR").save(tmp_path / "b_raw.fif", verbose="ERROR")
    assert read_eeg_file(tmp_path / "a_raw.fif", NAMES).remarks == ()
    found = read_eeg_file(tmp_path / "b_raw.fif", NAMES)
    assert found.remarks == ("projections that the file states and has not applied are left out: blinks",)
    np.testing.assert_allclose(found.values_CT, EEG_CT, atol=1e-3)
    file = open_eeg_file(tmp_path / "b_raw.fif")
    assert file.describe_header(NAMES) == found.remarks
    file.close()


def prepare(folder: Path, names: tuple[str, ...], values_CT: np.ndarray, **section: Any) -> PreparedEEG:
    """Write one recording, and prepare it as a job does."""
    write_edf(folder / "a.edf", values_CT, names)
    table = RecordingsTable(write_table(folder, "a.edf"))
    preprocessing = EEGPreprocessing(notch_hz=0, **section)
    _, found = next(prepare_eeg(table, table.scan().recordings, preprocessing))
    if isinstance(found, DataError):
        raise found
    return found


def test_one_electrode_is_not_referred_to_itself(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"one good channel \(Cz\).*set preprocessing.eeg.reference=none"):
        prepare(tmp_path, ("Cz",), EEG_CT[:1])
    assert prepare(tmp_path, ("Cz",), EEG_CT[:1], reference="none").x_CT.std() == pytest.approx(
        EEG_CT[:1].std(), rel=0.15
    )


@pytest.mark.parametrize("kind", ["clean", "official"])
def test_silence_is_no_eeg(tmp_path: Path, kind: str) -> None:
    with pytest.raises(DataError, match="flat"):
        prepare(tmp_path, NAMES, 0 * EEG_CT + 3, kind=kind)


@pytest.mark.parametrize(("written", "wanted"), [("EXG1", "exg1"), ("EXG1", "EXG1"), ("Fp2", "FP2"), ("E12", "e12")])
def test_wanted_channels_are_found_in_any_spelling(tmp_path: Path, written: str, wanted: str) -> None:
    names = ("Fp1", written, *NAMES[2:])
    found = prepare(tmp_path, names, EEG_CT, channels=(wanted, "c3"), reference="none")
    expected = prepare(tmp_path, names, EEG_CT[[1, 2, 0, 3, 4, 5, 6, 7]], channels=(), reference="none")
    np.testing.assert_allclose(found.x_CT[0], expected.x_CT[0], atol=0.05)
    left = [
        remark for remark in found.remarks if remark.startswith("left out, as not among preprocessing.eeg.channels")
    ]
    assert len(left) == 1 and not any("no EEG of the scalp" in remark for remark in found.remarks)


def test_a_channel_that_is_wanted_twice_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"preprocessing.eeg.channels names Fp1 .* twice"):
        prepare(tmp_path, NAMES, EEG_CT, channels=("Fp1", "C3", "EEG FP1-REF"))


@pytest.mark.parametrize("suffix", ["-Gnd", "-REF1", "-A1+A2", "-CLE", "-Org", " - Ref", "-(A1+A2)/2", "_a1a2"])
def test_what_a_channel_is_referred_to_does_not_change_its_place(tmp_path: Path, suffix: str) -> None:
    write_edf(tmp_path / "a.edf", EEG_CT, [f"{name}{suffix}" for name in NAMES])
    assert RecordingsTable(write_table(tmp_path, "a.edf")).channels == NAMES


def test_a_net_whose_names_begin_at_e_is_none_of_biosemi(tmp_path: Path) -> None:
    names = tuple(f"E{i}" for i in range(1, 33))
    write_edf(tmp_path / "a.edf", make_eeg(2, channels=32), names)
    assert RecordingsTable(write_table(tmp_path, "a.edf")).channels == names


@pytest.mark.parametrize(("written", "named"), [("bdf", "edf"), ("edf", "bdf")])
def test_a_suffix_that_contradicts_the_header_is_refused(tmp_path: Path, written: str, named: str) -> None:
    write_edf(tmp_path / f"a.{written}", EEG_CT)
    (tmp_path / f"a.{written}").rename(tmp_path / f"a.{named}")
    with pytest.raises(DataError, match=f"begins as an? {written.upper()} file.*rename it to .{written}$"):
        open_eeg_file(tmp_path / f"a.{named}")


@pytest.mark.parametrize("change", [-800, 3200])
def test_samples_beside_a_header_are_as_many_as_it_states(tmp_path: Path, change: int) -> None:
    write_set(tmp_path / "a.set", EEG_CT)
    tree = loadmat(tmp_path / "a.set", simplify_cells=True)["EEG"] | {"data": "a.fdt"}
    tree["chanlocs"] = np.array([(name,) for name in NAMES], dtype=[("labels", object)])
    savemat(tmp_path / "a.set", {"EEG": tree})
    content = EEG_CT.T.astype("<f4").tobytes()
    (tmp_path / "a.fdt").write_bytes(content)
    np.testing.assert_allclose(read_eeg_file(tmp_path / "a.set", NAMES).values_CT, EEG_CT, atol=1e-3)
    (tmp_path / "a.fdt").write_bytes(content + bytes(change) if change > 0 else content[:change])
    with pytest.raises(DataError, match=f"states 64000 bytes of samples, and .*a.fdt has {64000 + change}"):
        open_eeg_file(tmp_path / "a.set")
