"""Units of a BIDS data set: those of the file, else those of its table of channels; what differs is said."""

from pathlib import Path

import numpy as np
import pytest

from eav_ray.config import EEGPreprocessing
from eav_ray.config.data_sections import BIDSData
from eav_ray.data.datasets.bids import BIDS
from eav_ray.data.preprocessing.eeg_clean import clean_eeg
from eav_ray.data.recordings import RawEEG
from eav_ray.errors import DataError
from tests.helpers.eeg_files import NAMES, make_eeg, write_edf, write_set


def read_eeg(root: Path) -> RawEEG:
    reader = BIDS(str(root), BIDSData(label="participants.group"))
    return reader.read_eeg(reader.scan().recordings[0])


def write_plain_run(
    root: Path, values_CT: np.ndarray, suffix: str, unit: str, *, stated: str = "", physical: float = 500
) -> Path:
    """Write a run of one person whose file states a unit or none, and its table of channels."""
    folder = root / "sub-01" / "eeg"
    folder.mkdir(parents=True)
    (root / "participants.tsv").write_text("participant_id\tgroup\nsub-01\ta\n")
    path = folder / f"sub-01_task-rest_eeg{suffix}"
    if suffix == ".edf":
        write_edf(path, values_CT, units=stated, physical=(-physical, physical))
    else:
        write_set(path, values_CT)
    rows = "".join(f"{name}\tEEG\t{unit}\n" for name in NAMES)
    table = folder / "sub-01_task-rest_channels.tsv"
    table.write_text(f"name\ttype\tunits\n{rows}")
    return table


@pytest.mark.parametrize(("unit", "per_microvolt"), [("mV", 1e-3), ("V", 1e-6), ("microvolts", 1.0)])
@pytest.mark.parametrize("suffix", [".edf", ".set"])
def test_the_table_states_the_unit_where_the_file_does_not(
    tmp_path: Path, unit: str, per_microvolt: float, suffix: str
) -> None:
    values_CT = make_eeg(20) * 20
    table = write_plain_run(tmp_path, values_CT * per_microvolt, suffix, unit, physical=3000 * per_microvolt)
    raw = read_eeg(tmp_path)
    assert table.is_file() and raw.unit == "microvolt"
    np.testing.assert_allclose(raw.values_CT, values_CT, atol=0.1)
    assert not any("preprocessing.eeg.unit" in remark or "not known" in remark for remark in raw.remarks)


def test_a_table_and_a_file_that_differ_in_units_are_said_and_can_be_overruled(tmp_path: Path) -> None:
    values_CT = make_eeg(20)
    write_plain_run(tmp_path / "a", values_CT, ".edf", "V", stated="uV")
    raw = read_eeg(tmp_path / "a")
    assert "channels.tsv says volt, the file microvolt, which is used" in raw.remarks
    np.testing.assert_allclose(raw.values_CT, values_CT, atol=0.1)
    # Microvolts, as EEGLAB writes them, in a file of which the table says volts.
    write_plain_run(tmp_path / "b", values_CT, ".set", "V")
    raw = read_eeg(tmp_path / "b")
    with pytest.raises(DataError, match=r"in volt, which EEG cannot have; set preprocessing.eeg.unit"):
        clean_eeg(raw, EEGPreprocessing())
    found = clean_eeg(raw, EEGPreprocessing(unit="microvolt", notch_hz=0))
    expected = clean_eeg(RawEEG(values_CT, 100, NAMES, "microvolt"), EEGPreprocessing(notch_hz=0))
    np.testing.assert_allclose(found.x_CT, expected.x_CT, atol=0.01)
