"""What lies in a folder without rights is one line that says so, and no traceback."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eav_ray.config import DataConfig, FeatureFile, FeaturePreprocessing
from eav_ray.data.datasets import cremad, eav, recordings_table
from eav_ray.data.datasets.bids import BIDS
from eav_ray.data.datasets.features import attach_features
from eav_ray.data.io import audio, eeg, file_access, video
from eav_ray.data.recordings import Listing, SignalMarks
from eav_ray.errors import DataError
from tests.helpers.bids_sets import write_run

LOCKED = "locked"


@pytest.fixture
def lock(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Path]:
    """Take the rights from a folder, also from a superuser: it can be seen, but nothing in it."""

    def lock_folder(folder: Path) -> Path:
        for name in ("stat", "lstat", "listdir", "scandir", "open"):
            monkeypatch.setattr(os, name, refuse(getattr(os, name), folder, is_listing=name.endswith("dir")))
        return folder

    return lock_folder


def refuse(do: Callable[..., Any], folder: Path, *, is_listing: bool) -> Callable[..., Any]:
    def call(path: Any = ".", *args: Any, **options: Any) -> Any:
        is_inside = isinstance(path, str | os.PathLike) and folder in Path(path).parents
        if is_inside or (is_listing and isinstance(path, str | os.PathLike) and Path(path) == folder):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return do(path, *args, **options)

    return call


def test_what_there_is_and_is_not(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "gone").symlink_to(tmp_path / "nothing")
    for name, has_file in {"a": True, "b": False, "a/b": False, "loop": False, "gone": False, "\0": False}.items():
        assert file_access.is_file(tmp_path / name) == has_file and not file_access.is_folder(tmp_path / name)
    assert file_access.is_folder(tmp_path) and not file_access.is_file(tmp_path)
    assert [path.name for path in file_access.list_folder(tmp_path)] == ["a", "gone", "loop"]


READERS: dict[str, Callable[[Path], Any]] = {
    "a file": file_access.is_file,
    "a folder": file_access.is_folder,
    "what is in it": lambda path: file_access.list_folder(path.parent),
    "EEG": eeg.open_eeg_file,
    "BrainVision": lambda path: eeg.open_eeg_file(path.with_suffix(".vhdr")),
    "sound": lambda path: audio.read_audio(path, 16_000),
    "a film": lambda path: video.read_video(path, 5, 16),
    "a table": lambda path: recordings_table.RecordingsTable(str(path)),
    "CREMA-D": lambda path: cremad.CREMAD(str(path.parent)),
    "EAV": lambda path: eav.EAV(str(path.parent)),
}


@pytest.mark.parametrize("what", READERS)
def test_a_folder_without_rights_is_said_in_one_line(tmp_path: Path, lock: Callable[[Path], Path], what: str) -> None:
    folder = tmp_path / LOCKED
    folder.mkdir()
    path = folder / "a.edf"
    path.write_bytes(b"0" * 1000)
    lock(folder)
    with pytest.raises(DataError, match=r"(cannot be looked at|cannot be opened) \(Permission denied\)") as caught:
        READERS[what](path)
    assert "\n" not in str(caught.value)


def test_a_bids_data_set_with_a_folder_without_rights(tmp_path: Path, lock: Callable[[Path], Path]) -> None:
    eeg_file = write_run(tmp_path / "set")
    section = DataConfig(dataset="bids", root=str(tmp_path / "set")).bids
    lock(eeg_file.parent)
    with pytest.raises(DataError, match=r"sub-01/eeg.* cannot be looked at \(Permission denied\); correct its rights"):
        BIDS(str(tmp_path / "set"), section)


def test_features_in_a_folder_without_rights(tmp_path: Path, lock: Callable[[Path], Path]) -> None:
    folder = tmp_path / LOCKED
    folder.mkdir()
    data = DataConfig(modalities=("face",), features={"face": FeatureFile(path=str(folder / "a.csv"))})
    lock(folder)
    with pytest.raises(DataError, match=r"a\.csv cannot be looked at \(Permission denied\)"):
        attach_features(Listing(()), data, {"face": FeaturePreprocessing(width=2)}, lambda _: SignalMarks())
