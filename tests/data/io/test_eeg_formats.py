"""Formats of EEG that laboratories have: each opens with the values that were written, or says how to convert it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eav_ray.data.io.eeg import open_eeg_file, read_eeg_file
from eav_ray.errors import DataError
from tests.helpers.eeg_files import NAMES, make_eeg, write_brainvision
from tests.helpers.rare_eeg_files import write_cnt, write_gdf

EEG_CT = make_eeg(20)
REJECTED, NEW_RUN, BLINK = 0x03FF, 0x7FFE, 0x0101


@pytest.mark.parametrize("version", ["1.25", "2.20"])
@pytest.mark.parametrize("unit", ["uV", "mV", "V", "nV"])
def test_gdf(tmp_path: Path, version: str, unit: str) -> None:
    scale = {"uV": 1.0, "mV": 1e-3, "V": 1e-6, "nV": 1e3}[unit]
    write_gdf(tmp_path / "a.gdf", EEG_CT * scale, NAMES, version=version, unit=unit)
    raw = read_eeg_file(tmp_path / "a.gdf", NAMES)
    assert (raw.hz, raw.unit, raw.remarks) == (100, "microvolt", ())
    np.testing.assert_allclose(raw.values_CT, EEG_CT, atol=0.06)


@pytest.mark.parametrize("version", ["1.25", "2.20"])
@pytest.mark.parametrize("record", [(1, 250), (2, 1), (1, 2)])
def test_gdf_of_records_of_any_length(tmp_path: Path, version: str, record: tuple[int, int]) -> None:
    events = [(250, REJECTED, 0, 500)]
    write_gdf(tmp_path / "a.gdf", EEG_CT, NAMES, hz=250, version=version, record=record, events=events)
    raw = read_eeg_file(tmp_path / "a.gdf", NAMES)
    assert raw.hz == pytest.approx(250) and raw.values_CT.shape == EEG_CT.shape
    np.testing.assert_allclose(raw.values_CT, EEG_CT, atol=0.06)
    np.testing.assert_allclose(raw.missing_s, [(1, 3)])


@pytest.mark.parametrize(("version", "unit"), [("1.25", ""), ("2.20", ""), ("2.20", "no dimension")])
def test_gdf_without_a_unit_has_the_numbers_of_the_file(tmp_path: Path, version: str, unit: str) -> None:
    write_gdf(tmp_path / "a.gdf", EEG_CT, NAMES, version=version, unit=unit)
    raw = read_eeg_file(tmp_path / "a.gdf", NAMES)
    assert raw.unit == "auto" and "preprocessing.eeg.unit decides" in raw.remarks[0]
    np.testing.assert_allclose(raw.values_CT, EEG_CT, atol=0.06)


def test_gdf_of_a_temperature_is_no_eeg(tmp_path: Path) -> None:
    write_gdf(tmp_path / "a.gdf", EEG_CT, NAMES, unit="degC")
    assert set(open_eeg_file(tmp_path / "a.gdf").types) == {"misc"}


@pytest.mark.parametrize(("version", "event_hz"), [("1.25", 100), ("2.20", 100), ("2.20", 50), ("1.25", 200)])
def test_events_of_gdf_are_at_their_own_rate(tmp_path: Path, version: str, event_hz: int) -> None:
    """Trials that were rejected, one of them in a single channel, a new run, and blinks."""
    events = [(5, REJECTED, 0, 2), (10, NEW_RUN, 0, 0), (12, REJECTED, 4, 1), (15, BLINK, 0, 1), (16, 769, 0, 1)]
    events = [(onset * event_hz, code, channel, n * event_hz) for onset, code, channel, n in events]
    write_gdf(tmp_path / "a.gdf", EEG_CT, NAMES, version=version, events=events, event_hz=event_hz)
    raw = read_eeg_file(tmp_path / "a.gdf", NAMES)
    np.testing.assert_allclose(raw.missing_s, [(5, 7)])
    assert raw.joins_s == (10.0,)
    lost = np.isnan(raw.values_CT)
    assert lost[3, 1200:1300].all() and lost.sum() == 100
    assert sum("calls artefacts" in remark for remark in raw.remarks) == 1
    assert set(raw.remarks) == set(open_eeg_file(tmp_path / "a.gdf").describe_header(NAMES))


def test_rejected_trials_of_no_stated_length_are_said(tmp_path: Path) -> None:
    write_gdf(tmp_path / "a.gdf", EEG_CT, NAMES, events=[(500, REJECTED, 0, 0)], has_durations=False)
    raw = read_eeg_file(tmp_path / "a.gdf", NAMES)
    assert not raw.missing_s and raw.remarks == (
        "trials are marked as rejected without saying how long they are: they are kept",
    )


@pytest.mark.parametrize(
    ("at", "new", "words"),
    [
        (236, (30).to_bytes(8, "little"), r"breaks off: \d+ of \d+ bytes are there"),
        (244, bytes(8), "does not state how long its records last"),
        (0, b"GDF x.yz", "cannot be read as EEG"),
        (256 + 104 * 8, np.full(8, 3276.7).tobytes(), "from which no amplitude follows"),
    ],
)
def test_gdf_that_cannot_be_is_refused_in_one_line(tmp_path: Path, at: int, new: bytes, words: str) -> None:
    write_gdf(tmp_path / "a.gdf", EEG_CT, NAMES)
    content = bytearray((tmp_path / "a.gdf").read_bytes())
    content[at : at + len(new)] = new
    (tmp_path / "a.gdf").write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        read_eeg_file(tmp_path / "a.gdf", NAMES)
    assert "a.gdf" in str(caught.value) and "\n" not in str(caught.value)


def test_gdf_of_two_rates_is_refused(tmp_path: Path) -> None:
    write_gdf(tmp_path / "a.gdf", EEG_CT, NAMES, n_samples=[50, *[100] * 7])
    with pytest.raises(DataError, match="sampled at 50, 100 Hz, which a GDF file is not read with; export those"):
        read_eeg_file(tmp_path / "a.gdf", NAMES)


@pytest.mark.parametrize("is_wide", [False, True])
def test_cnt_of_neuroscan(tmp_path: Path, is_wide: bool) -> None:
    names = (*NAMES[:6], "REF-CP3", "VEOG1")  # longer names are no mark
    write_cnt(tmp_path / "a.cnt", EEG_CT, names, is_wide=is_wide, bads=["C3"], rejected=[(300, 500)])
    raw = read_eeg_file(tmp_path / "a.cnt", names)
    np.testing.assert_allclose(raw.values_CT, EEG_CT, atol=0.06)
    assert raw.hz == 100 and raw.unit == "microvolt"
    assert dict(raw.bad_channels) == {"C3": "marked bad in the file"}
    np.testing.assert_allclose(raw.missing_s, [(3, 5)])


@pytest.mark.parametrize("share", [0.3, 0.99])
def test_cnt_that_breaks_off_is_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "a.cnt"
    write_cnt(path, EEG_CT, NAMES)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(DataError, match=r"a\.cnt cannot be read as EEG") as caught:
        read_eeg_file(path, NAMES)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.mff", None, "a recording of EGI, which is not read; export it from Net Station"),
        ("a.nwb", b"\x89HDF\r\n\x1a\n", "Neurodata Without Borders, which is not read; read its .* by pynwb"),
        ("a.xdf", b"XDF:", "Lab Streaming Layer.*load it by pyxdf or MNELAB"),
        ("a.xdfz", b"", "Lab Streaming Layer"),
        ("a.avg", b"Version 3.0", "an average of Neuroscan"),
        ("a.eeg", b"Version 3.0" + bytes(2000), "epochs of Neuroscan and no recording.*give the .cnt file"),
        ("a.cnt", b"RIFF\0\0\0\0CNT ", "a recording of ANT Neuro.*export it as EDF or BrainVision"),
    ],
)
def test_formats_that_are_not_read_say_how_to_convert(tmp_path: Path, name: str, content: Any, words: str) -> None:
    path = tmp_path / name
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        open_eeg_file(path)
    assert "\n" not in str(caught.value) and name in str(caught.value)


def test_samples_of_brainvision_name_their_header(tmp_path: Path) -> None:
    write_brainvision(tmp_path / "a.vhdr", EEG_CT)
    with pytest.raises(DataError, match=r"a\.eeg is the samples of a BrainVision recording.*give its header, a\.vhdr"):
        open_eeg_file(tmp_path / "a.eeg")
