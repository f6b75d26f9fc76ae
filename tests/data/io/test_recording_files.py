"""A recording is all the files that it is read from, as MNE finds them; no more, and nothing of them is run."""

from pathlib import Path
from typing import Any

import h5py
import mne
import numpy as np
import pytest
import scipy.io

from eav_ray.data.io.recording_files import find_named_files, list_sibling_files

HEADER = "Brain Vision Data Exchange Header File Version 1.0\n\n[Common Infos]\n{}\nDataFormat=BINARY\n"


def make_raw(n_samples: int = 1000) -> mne.io.RawArray:
    info = mne.create_info(["Fp1", "Fp2"], 100, "eeg")
    return mne.io.RawArray(np.zeros((2, n_samples)), info, verbose="ERROR")


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
@pytest.mark.parametrize("suffix", [".vhdr", ".VHDR", ".ahdr"])
def test_a_brainvision_header_names_its_samples_and_its_markers(tmp_path: Path, suffix: str, encoding: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(HEADER.format("Codepage=x\r\nDataFile=Gefühl 1.eeg\r\nMarkerFile = sub/a.vmrk\r").encode(encoding))
    assert find_named_files(str(path)) == (str(tmp_path / "Gefühl 1.eeg"), str(tmp_path / "sub/a.vmrk"))


def test_an_absolute_name_in_a_header_stays_absolute(tmp_path: Path) -> None:
    path = tmp_path / "a.vhdr"
    path.write_text(HEADER.format("DataFile=/elsewhere/a.eeg"))
    assert find_named_files(str(path)) == ("/elsewhere/a.eeg",)


def test_markers_of_the_same_name_count_where_the_header_names_others(tmp_path: Path) -> None:
    """MNE takes them where those that are named are missing, as after a renaming to BIDS."""
    (tmp_path / "a.vhdr").write_text(HEADER.format("DataFile=a.eeg\nMarkerFile=old.vmrk"))
    (tmp_path / "a.vmrk").touch()
    assert list_sibling_files(str(tmp_path / "a.vhdr")) == (str(tmp_path / "a.vmrk"),)


@pytest.mark.parametrize("as_struct", [True, False])
def test_an_eeglab_file_names_its_samples(tmp_path: Path, as_struct: bool) -> None:
    tree: dict[str, Any] = {"data": "other name.fdt", "nbchan": 2.0}
    scipy.io.savemat(tmp_path / "a.set", {"EEG": tree} if as_struct else tree, do_compression=True, appendmat=False)
    assert find_named_files(str(tmp_path / "a.set")) == (str(tmp_path / "other name.fdt"),)


def test_an_eeglab_file_of_matlab_7_3_names_its_samples(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.set", "w", userblock_size=512) as file:
        file["EEG/data"] = np.array([[ord(c)] for c in "b.fdt"], dtype=np.uint16)
    assert find_named_files(str(tmp_path / "a.set")) == (str(tmp_path / "b.fdt"),)


def test_an_eeglab_file_that_holds_its_samples_names_none(tmp_path: Path) -> None:
    scipy.io.savemat(tmp_path / "a.set", {"EEG": {"data": np.zeros((2, 50))}}, appendmat=False)
    assert find_named_files(str(tmp_path / "a.set")) == ()


@pytest.mark.parametrize("naming", ["neuromag", "bids"])
def test_a_split_fif_goes_on_where_mne_says(tmp_path: Path, naming: str) -> None:
    path = tmp_path / ("a_raw.fif" if naming == "neuromag" else "sub-1_eeg.fif")
    raw = make_raw(600_000)
    raw.save(path, split_size="2MB", split_naming=naming, buffer_size_sec=10, overwrite=True, verbose="ERROR")
    with mne.io.read_raw_fif(
        sorted(tmp_path.iterdir(), key=lambda p: ("-1" in p.name, p.name))[0], verbose="ERROR"
    ) as read:
        expected = [str(p) for p in read.filenames]
    assert len(expected) > 1
    found, pending = [], [expected[0]]
    while pending:
        found += pending
        pending = list(find_named_files(pending[0]))
    assert found == expected


def test_a_gzipped_fif_goes_on_by_number(tmp_path: Path) -> None:
    for name in ("a_raw.fif.gz", "a_raw-1.fif.gz", "a_raw-2.fif.gz", "a_raw-4.fif.gz", "b_split-01_raw.fif.gz"):
        (tmp_path / name).touch()
    (tmp_path / "b_split-02_raw.fif.gz").touch()
    names = [
        [Path(p).name for p in list_sibling_files(str(tmp_path / n))] for n in ("a_raw.fif.gz", "b_split-01_raw.fif.gz")
    ]
    assert names == [["a_raw-1.fif.gz", "a_raw-2.fif.gz"], ["b_split-02_raw.fif.gz"]]


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("a.eeg", ["a.PNT", "a.21E", "a.LOG"]),
        ("a.cdt", ["a.cdt.dpa"]),
        ("a.dap", ["a.dat", "a.rs3"]),
        ("a.data", ["a.head"]),
        ("a.SET", ["a.fdt"]),
    ],
)
def test_files_of_the_same_name_belong_together(tmp_path: Path, name: str, others: list[str]) -> None:
    for one in (name, *others, "b.pnt", "a.txt"):
        (tmp_path / one).touch()
    assert {Path(p).name for p in list_sibling_files(str(tmp_path / name))} == set(others)


def test_a_persyst_layout_names_its_samples_in_its_own_folder(tmp_path: Path) -> None:
    (tmp_path / "a.lay").write_text("[FileInfo]\nFile=C:\\data\\b.dat\nFileType=Interleaved\n")
    assert find_named_files(str(tmp_path / "a.lay")) == (str(tmp_path / "b.dat"),)


def test_a_folder_is_all_that_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "a.mff" / "sub").mkdir(parents=True)
    for name in ("signal1.bin", "sub/info.xml"):
        (tmp_path / "a.mff" / name).touch()
    assert list_sibling_files(str(tmp_path / "a.mff")) == tuple(
        str(tmp_path / "a.mff" / name) for name in ("signal1.bin", "sub/info.xml")
    )


@pytest.mark.parametrize("name", ["a.vhdr", "a.set", "a.fif", "a.lay", "a.ahdr"])
@pytest.mark.parametrize("data", [b"", b"\x00" * 200, b"\xff" * 200, b"\x89HDF\r\n\x1a\n" + b"x" * 600])
def test_a_damaged_file_names_nothing_and_ends_nothing(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    assert find_named_files(str(tmp_path / name)) == ()
    assert find_named_files(str(tmp_path / "missing" / name)) == ()


def test_a_fif_whose_tags_run_in_a_circle_ends(tmp_path: Path) -> None:
    tag = np.array([1, 0, 0, 0], dtype=">i4").tobytes()
    back = np.array([1, 0, 0, 16], dtype=">i4").tobytes()
    (tmp_path / "a.fif").write_bytes(tag + back)
    assert find_named_files(str(tmp_path / "a.fif")) == ()
