"""Places of electrodes that files and tables state are not used, and where names mean none, that is said."""

from pathlib import Path

import mne
import numpy as np
import pytest

from eav_ray.config.data_sections import BIDSData
from eav_ray.data.datasets.bids import BIDS
from eav_ray.data.datasets.recordings_table import RecordingsTable
from eav_ray.data.recordings import DatasetReader
from tests.helpers.eeg_files import NAMES, make_eeg, make_raw, write_edf, write_table

EEG_CT = make_eeg(4)
NUMBERED = tuple(f"E{i}" for i in range(1, 9))
WORDS = "places of electrodes are stated and not used, and 8 names (E1, E2, E3, ...) mean none"


def list_remarks(reader: DatasetReader) -> tuple[list[str], list[str]]:
    """What `eav check` and the quality table say of places."""
    recordings = reader.scan().recordings
    checked, problems = reader.check_eeg_channels(recordings)
    assert not problems
    said = [[line for line in lines if "places" in line] for lines in (checked, reader.read_eeg(recordings[0]).remarks)]
    return said[0], said[1]


@pytest.mark.parametrize(("names", "is_said"), [(NUMBERED, True), (NAMES, False)])
def test_places_in_a_file(tmp_path: Path, names: tuple[str, ...], is_said: bool) -> None:
    raw = make_raw(EEG_CT, names)
    places = dict(zip(names, np.random.default_rng(0).normal(0, 0.05, (8, 3)), strict=True))
    raw.set_montage(mne.channels.make_dig_montage(places, coord_frame="head"), verbose="ERROR")
    raw.save(tmp_path / "a_raw.fif", fmt="double", verbose="ERROR")
    checked, read = list_remarks(RecordingsTable(write_table(tmp_path, "a_raw.fif")))
    assert len(checked) == len(read) == is_said and all(WORDS in line for line in (*checked, *read))


@pytest.mark.parametrize("space", ["", "space-CapTrak_"])
@pytest.mark.parametrize(("names", "is_said"), [(NUMBERED, True), (NAMES, False)])
@pytest.mark.parametrize("with_channels", [False, True])
def test_places_in_a_table(
    tmp_path: Path, space: str, names: tuple[str, ...], is_said: bool, with_channels: bool
) -> None:
    folder = tmp_path / "sub-01" / "eeg"
    folder.mkdir(parents=True)
    write_edf(folder / "sub-01_task-film_eeg.edf", EEG_CT, names)
    rows = ["name\tx\ty\tz", *(f"{name}\t{i}\t0.5\t1" for i, name in enumerate(names)), "GND\tn/a\tn/a\tn/a", ""]
    (folder / f"sub-01_{space}electrodes.tsv").write_text("\n".join(rows))
    if with_channels:
        rows = ["name\ttype\tunits", *(f"{name}\tEEG\tuV" for name in names), ""]
        (folder / "sub-01_task-film_channels.tsv").write_text("\n".join(rows))
    (tmp_path / "participants.tsv").write_text("participant_id\tgroup\nsub-01\tpatient\n")
    reader = BIDS(str(tmp_path), BIDSData(label="participants.group"))
    checked, read = list_remarks(reader)
    assert len(checked) == len(read) == is_said and all(WORDS in line for line in (*checked, *read))
