"""However a unit is written, microvolts come out, or the file is refused; never volts for microvolts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eav_ray.config import EEGPreprocessing
from eav_ray.data.io.eeg import read_eeg_file
from eav_ray.data.io.eeg_units import parse_unit
from eav_ray.data.preprocessing.eeg_clean import PreparedEEG, clean_eeg
from eav_ray.data.preprocessing.eeg_official import filter_official
from eav_ray.data.recordings import RawEEG
from eav_ray.errors import DataError
from tests.helpers.eeg_files import NAMES, make_eeg, make_raw, write_brainvision, write_edf, write_fif, write_set

EEG_CT = make_eeg(20)
PER_MICROVOLT = {"nanovolt": 1e3, "microvolt": 1.0, "millivolt": 1e-3, "volt": 1e-6}
SPELLINGS = {
    "microvolt": ["uV", "UV", "uv", "muV", "microV", "MicroVolt", "microvolts", "uVolt", "\u00b5V", "u V", "uV\0\0"],
    "millivolt": ["mV", "mv", "millivolt"],
    "nanovolt": ["nV", "nanoV"],
    "volt": ["V", "Volt", "Volts", "v"],
}
UNKNOWN = ["", ".V", "?V", "MV", "xyz", "uA", "\ufffdV"]


@pytest.mark.parametrize(("unit", "text"), [(u, t) for u, texts in SPELLINGS.items() for t in texts])
def test_a_unit_is_read_in_any_spelling(tmp_path: Path, unit: str, text: str) -> None:
    assert parse_unit(text) == unit
    scale = PER_MICROVOLT[unit]
    path = tmp_path / "a.edf"
    write_edf(path, EEG_CT * scale, units=text, physical=(-300 * scale, 300 * scale))
    raw = read_eeg_file(path, NAMES)
    assert (raw.unit, raw.stated_unit) == ("microvolt", unit)
    np.testing.assert_allclose(raw.values_CT, EEG_CT, atol=0.02)
    assert (raw.remarks == ()) == (text.strip("\0 ") in ("uV", "\u00b5V", "mV", "nV", "V"))


@pytest.mark.parametrize("text", ["\u03bcV", "\u00c2\u00b5V", "\u00ce\u00bcV", "\x83\u00caV", "mikroVolt"])
def test_a_mu_is_read_in_any_coding(text: str) -> None:
    assert parse_unit(text) == "microvolt"


@pytest.mark.parametrize("text", UNKNOWN)
def test_an_unknown_unit_is_none(text: str) -> None:
    assert parse_unit(text) == "auto"


def clean(raw: RawEEG, unit: Any = "auto") -> PreparedEEG:
    return clean_eeg(raw, EEGPreprocessing(unit=unit, notch_hz=0))


EXPECTED_CT = clean(RawEEG(EEG_CT, 100, NAMES, "microvolt")).x_CT


@pytest.mark.parametrize("text", ["", ".V", "?V"])
@pytest.mark.parametrize("unit", ["nanovolt", "microvolt", "millivolt", "volt"])
@pytest.mark.parametrize("suffix", ["edf", "bdf"])
def test_without_a_known_unit_the_experiment_decides(tmp_path: Path, text: str, unit: str, suffix: str) -> None:
    scale = PER_MICROVOLT[unit]
    path = tmp_path / f"a.{suffix}"
    write_edf(path, EEG_CT * scale, units=text, physical=(-300 * scale, 300 * scale))
    raw = read_eeg_file(path, NAMES)
    assert raw.unit == "auto" and any("is none that is known" in remark for remark in raw.remarks)
    np.testing.assert_allclose(raw.values_CT, EEG_CT * scale, atol=0.02 * scale)
    np.testing.assert_allclose(clean(raw, unit).x_CT, EXPECTED_CT, atol=0.05)
    if unit in ("microvolt", "volt"):  # told by their size
        found = clean(raw)
        assert found.unit == unit
        np.testing.assert_allclose(found.x_CT, EXPECTED_CT, atol=0.05)


@pytest.mark.parametrize(
    ("written", "real", "scale"), [("V", "microvolt", 1.0), ("uV", "volt", 1e-6), ("mV", "microvolt", 1.0)]
)
def test_a_file_that_is_wrong_is_refused_or_overruled(tmp_path: Path, written: str, real: str, scale: float) -> None:
    path = tmp_path / "a.edf"
    write_edf(path, EEG_CT * scale, units=written, physical=(-300 * scale, 300 * scale))
    raw = read_eeg_file(path, NAMES)
    with pytest.raises(DataError, match=r"EEG has an SD of .*; set preprocessing\.eeg\.unit to what they are in"):
        clean(raw)
    found = clean(raw, real)
    np.testing.assert_allclose(found.x_CT, EXPECTED_CT, atol=0.05)
    assert found.unit == real and any("is used" in remark for remark in found.remarks)
    (official,) = filter_official([raw], EEGPreprocessing(kind="official", unit=real))
    assert isinstance(official, PreparedEEG) and 5 < official.x_CT.std() < 50


def test_a_file_that_is_right_is_not_overruled(tmp_path: Path) -> None:
    """Of files in several units, one key is for those that state none."""
    path = tmp_path / "a.edf"
    write_edf(path, EEG_CT * 1e-6, units="V", physical=(-3e-4, 3e-4))
    np.testing.assert_allclose(clean(read_eeg_file(path, NAMES), "microvolt").x_CT, EXPECTED_CT, atol=0.05)


@pytest.mark.parametrize("kind", ["fif", "set"])
def test_microvolts_that_were_saved_as_volts(tmp_path: Path, kind: str) -> None:
    """As whoever forgets the factor of MNE does; and volts where EEGLAB means microvolts."""
    path = tmp_path / f"a_raw.{kind}"
    if kind == "fif":
        write_fif(path, EEG_CT * 1e6)
    else:
        write_set(path, EEG_CT * 1e-6)
    raw = read_eeg_file(path, NAMES)
    with pytest.raises(DataError, match="cannot have"):
        clean(raw)
    real = "microvolt" if kind == "fif" else "volt"
    np.testing.assert_allclose(clean(raw, real).x_CT, EXPECTED_CT, atol=0.01)


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252"])
@pytest.mark.parametrize(
    ("text", "unit"),
    [("\u00b5V", "microvolt"), (None, "microvolt"), ("", "microvolt"), ("UV", "microvolt"), ("muV", "microvolt"),
     ("microV", "microvolt"), ("mV", "millivolt"), ("nV", "nanovolt"), ("V", "volt")],
)  # fmt: skip
def test_units_of_brainvision(tmp_path: Path, text: str | None, unit: str, encoding: str) -> None:
    path = tmp_path / "a.vhdr"
    scale = PER_MICROVOLT[unit]
    write_brainvision(path, EEG_CT * scale, unit=text, encoding=encoding, resolution=0.5)
    raw = read_eeg_file(path, NAMES)
    assert (raw.unit, raw.stated_unit) == ("microvolt", unit)
    np.testing.assert_allclose(raw.values_CT, EEG_CT, rtol=1e-5, atol=1e-4)


def test_units_that_differ_between_channels(tmp_path: Path) -> None:
    path = tmp_path / "a.edf"
    units = ["uV", "mV", "V", "", "nV", "uV", "uV", "uV"]
    scales = np.array([1, 1e-3, 1e-6, 1, 1e3, 1, 1, 1])[:, None]
    low = [f"{-300 * s:g}" for s in scales[:, 0]]
    write_edf(path, EEG_CT, units=units, physical=(-300, 300))
    content = bytearray(path.read_bytes())
    at = 256 + 8 * (16 + 80 + 8)
    for i, text in enumerate(low):
        content[at + i * 8 : at + i * 8 + 8] = text.ljust(8).encode()
        content[at + 64 + i * 8 : at + 64 + i * 8 + 8] = text[1:].ljust(8).encode()
    path.write_bytes(content)
    raw = read_eeg_file(path, NAMES)
    np.testing.assert_allclose(raw.values_CT, EEG_CT, atol=0.02)
    assert raw.unit == "microvolt" and any("taken as microvolt, as the others" in remark for remark in raw.remarks)


@pytest.mark.parametrize(
    ("physical", "digital"), [((3276.7, -3276.7), None), ((-300.0, 300.0), (32767, -32767)), ((-1e3, 500), (0, 4095))]
)
def test_a_gain_may_be_negative_and_a_range_lie_anywhere(tmp_path: Path, physical: Any, digital: Any) -> None:
    path = tmp_path / "a.edf"
    write_edf(path, EEG_CT, physical=physical, digital=digital)
    np.testing.assert_allclose(read_eeg_file(path, NAMES).values_CT, EEG_CT, atol=0.3)


@pytest.mark.parametrize(("field", "text"), [(104, "0"), (112, "-300"), (120, "32767"), (112, "nan"), (120, "inf")])
def test_a_range_of_nothing_is_refused(tmp_path: Path, field: int, text: str) -> None:
    """Physical minimum and maximum, digital minimum and maximum lie 104, 112, 120 and 128 bytes a channel deep."""
    path = tmp_path / "a.edf"
    write_edf(path, EEG_CT, physical=(-300, 0) if text == "0" else (-300, 300))
    content = bytearray(path.read_bytes())
    at = 256 + 8 * field + 3 * 8
    content[at : at + 8] = text.ljust(8).encode()
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.edf: the header gives channel C4 the range .* choose channels without"):
        read_eeg_file(path, NAMES)
    others = [name for name in NAMES if name != "C4"]
    assert read_eeg_file(path, others).values_CT.shape == (7, 2000)


def test_an_object_of_mne_states_volts(tmp_path: Path) -> None:
    from eav_ray.data.io.eeg_file import MNEFile

    raw = MNEFile(make_raw(EEG_CT), "eeg").read(NAMES)
    assert (raw.unit, raw.stated_unit) == ("microvolt", "volt")
    np.testing.assert_allclose(raw.values_CT, EEG_CT, atol=1e-6)


@pytest.mark.parametrize("unit", ["nanovolt", "millivolt"])
def test_numbers_that_nobody_names_are_not_guessed_to_be_off_by_a_thousand(tmp_path: Path, unit: str) -> None:
    scale = PER_MICROVOLT[unit]
    write_edf(tmp_path / "a.edf", EEG_CT * scale, units="", physical=(-300 * scale, 300 * scale))
    with pytest.raises(DataError, match=r"set preprocessing\.eeg\.unit to what they are in \(nanovolt, microvolt"):
        clean(read_eeg_file(tmp_path / "a.edf", NAMES))


@pytest.mark.parametrize("unit", ["microvolt", "auto"])
def test_flat_channels_do_not_decide_on_the_unit(unit: str) -> None:
    """Six of eight electrodes have come off, and rest at an offset of which filters leave traces."""
    values_CT = EEG_CT.copy()
    values_CT[2:] = np.arange(6)[:, None] / 3 + 3.3
    raw = RawEEG(values_CT, 100, NAMES, unit)
    (found,) = filter_official([raw], EEGPreprocessing(kind="official"))
    (expected,) = filter_official([RawEEG(EEG_CT, 100, NAMES, unit)], EEGPreprocessing(kind="official"))
    assert not isinstance(found, DataError) and not isinstance(expected, DataError)
    np.testing.assert_allclose(found.x_CT[:2], expected.x_CT[:2], atol=1e-3)
    with pytest.raises(DataError, match="6 of 8 EEG channels are bad .*flat"):
        clean(raw)
