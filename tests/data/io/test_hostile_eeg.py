"""Whatever an EEG file states in its header, the values of whoever wrote it come out, or one of our errors.

`make chaos` draws many more.
"""

import re
import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eav_ray.data.io.eeg import open_eeg_file, read_eeg_file
from eav_ray.data.io.eeg_units import MICROVOLTS
from eav_ray.data.preprocessing.channel_choice import choose_channels
from eav_ray.data.recordings import RawEEG
from eav_ray.errors import DataError
from tests.helpers.damage import DAMAGE, Change, several
from tests.helpers.eeg_files import NAMES, make_eeg, make_raw, write_brainvision, write_edf, write_fif, write_set
from tests.helpers.rare_eeg_files import write_cnt, write_gdf

SECONDS = 4
UNITS = {"uV": "microvolt", "\u00b5V": "microvolt", "UV": "microvolt", "muV": "microvolt", "mV": "millivolt"}
UNITS |= {"nV": "nanovolt", "V": "volt", "": "auto", "?V": "auto", "MV": "auto", "mv": "millivolt"}
RANGES = st.sampled_from([(-500.0, 500.0), (500.0, -500.0), (-400.0, 600.0), (-1000.0, 1000.0)])
DIGITS = {"edf": [(-32768, 32767), (-2048, 2047), (32767, -32768)], "bdf": [(-8388608, 8388607), (-32768, 32767)]}
SPELLINGS = st.sampled_from([str, str.upper, "EEG {}-REF".format, "{}.".format])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("eeg")


def read_all(path: Path) -> RawEEG | None:
    """What `data.dataset=recordings_table` reads of a file; nothing where it refuses it in one line."""
    try:
        file = open_eeg_file(path)
        try:
            return file.read(choose_channels(file.names, file.types, (), str(path)).taken)
        finally:
            file.close()
    except DataError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return None


def check(raw: RawEEG | None, values_CT: np.ndarray, unit: str, atol: float) -> None:
    """Values in microvolts, or in their own unit where it is not known."""
    assert raw is not None
    assert raw.unit == ("auto" if unit == "auto" else "microvolt")
    np.testing.assert_allclose(raw.values_CT, values_CT, atol=atol)


@pytest.mark.parametrize("suffix", ["edf", "bdf"])
@given(data=st.data())
def test_edf(folder: Path, suffix: str, data: st.DataObject) -> None:
    text = data.draw(st.sampled_from([*UNITS]))
    hz, record_s = data.draw(st.sampled_from([(100, 1.0), (250, 1.0), (128, 0.5), (200, 2.0), (100, 4.0)]))
    low, high = data.draw(RANGES)
    digital = data.draw(st.sampled_from(DIGITS[suffix]))
    pauses = data.draw(st.lists(st.sampled_from([0.0, 0.0, 0.004, 0.5, 3.0]), min_size=round(SECONDS / record_s)))
    spell = data.draw(SPELLINGS)
    with_onsets, others = (
        data.draw(st.booleans()),
        data.draw(st.lists(st.sampled_from(["ECG", "Status", "EXG1"]), unique=True)),
    )
    path = folder / f"a.{suffix}"
    scale = {"nanovolt": 1e3, "millivolt": 1e-3, "volt": 1e-6}.get(UNITS[text], 1.0)
    eeg_CT = make_eeg(SECONDS, hz)
    n_records = round(SECONDS / record_s)
    onsets_s = np.arange(n_records) * record_s + np.cumsum(pauses[:n_records])
    write_edf(
        path,
        np.concatenate([eeg_CT, np.zeros((len(others), eeg_CT.shape[1]))]) * scale,
        [*map(spell, NAMES), *others],
        hz=hz,
        units=text,
        onsets_s=onsets_s.tolist() if with_onsets else (),
        record_s=record_s,
        physical=(float(f"{low * scale:g}"), float(f"{high * scale:g}")),
        digital=digital,
        n_records=data.draw(st.sampled_from([None, -1, 100])),
    )
    raw = read_all(path)
    assert raw is not None and raw.hz == hz and len(raw.channels) == 8
    recorded_T = np.isfinite(raw.values_CT).all(axis=0)
    step = abs(high - low) / abs(digital[1] - digital[0])
    unit_scale = scale if UNITS[text] == "auto" else 1.0
    check(RawEEG(raw.values_CT[:, recorded_T], hz, raw.channels, raw.unit), eeg_CT * unit_scale, UNITS[text], step)
    expected_s = SECONDS + (sum(pauses[1:n_records]) if with_onsets else 0.0)
    assert abs(raw.values_CT.shape[1] / hz - expected_s) <= 0.02 + n_records / hz


@given(data=st.data())
def test_brainvision(folder: Path, data: st.DataObject) -> None:
    text = data.draw(st.sampled_from([u for u in UNITS if UNITS[u] != "auto"] + [None, ""]))
    unit = UNITS[text] if text else "microvolt"  # as the format says
    hz = data.draw(st.sampled_from([100, 250, 1e6 / 3906]))
    resolution = data.draw(st.sampled_from([1.0, 0.1, 0.0488281]))
    binary = data.draw(st.sampled_from(["IEEE_FLOAT_32", "INT_16", "INT_32"]))
    bad_places = st.tuples(st.integers(0, 3), st.sampled_from([10, 40]), st.integers(0, 8))  # second, samples, channel
    bad = data.draw(st.lists(bad_places, max_size=2))
    encoding = data.draw(st.sampled_from(["utf-8", "cp1252"]))
    pause_s = data.draw(st.sampled_from([0.0, 0.004, 1.0, 20.0]))
    eeg_CT = make_eeg(SECONDS, hz)
    n_half = eeg_CT.shape[1] // 2
    second_s = n_half / hz + pause_s
    segments = (
        "New Segment,,1,1,0,20240101100000000000",
        f"New Segment,,{n_half + 1},1,0,202401011000{second_s:09.6f}".replace(".", ""),
    )
    path = folder / "a.vhdr"
    scale = MICROVOLTS[unit]
    resolution = resolution / scale if binary != "IEEE_FLOAT_32" else resolution
    write_brainvision(
        path,
        eeg_CT / scale,
        hz=hz,
        unit=text,
        encoding=encoding,
        resolution=resolution,
        markers=(*segments, *(f"Bad Interval,x,{round(second * hz) + 1},{n},{channel}" for second, n, channel in bad)),
        binary=binary,
        is_vectorized=data.draw(st.booleans()),
    )
    raw = read_all(path)
    assert raw is not None and np.isclose(raw.hz, hz, rtol=1e-5)
    recorded_T = np.isfinite(raw.values_CT).any(axis=0)
    kept_CT = np.ones(eeg_CT.shape, bool)
    for second, n, channel in bad:
        if channel:
            kept_CT[channel - 1, round(second * hz) : round(second * hz) + n] = False
    found_CT = raw.values_CT[:, recorded_T]
    assert np.array_equal(np.isfinite(found_CT), kept_CT)
    step = 0.51 * resolution * scale if binary != "IEEE_FLOAT_32" else 1e-3
    np.testing.assert_allclose(found_CT[kept_CT], eeg_CT[kept_CT], atol=step)
    assert abs((~recorded_T).sum() / hz - (pause_s if pause_s > 0.02 else 0.0)) <= 1 / hz
    n_pauses = int(pause_s > 0.02)
    assert len(raw.missing_s) == n_pauses + sum(channel == 0 for *_, channel in bad)


@given(data=st.data())
def test_eeglab(folder: Path, data: st.DataObject) -> None:
    boundaries = data.draw(st.lists(st.sampled_from([100, 150, 250]), unique=True))
    lasting = {at: data.draw(st.sampled_from([np.nan, 0.0, 50.0, 3000.0])) for at in sorted(boundaries)}
    spell = data.draw(SPELLINGS)
    eeg_CT = make_eeg(SECONDS)
    events = [("boundary", at + 0.5, n) for at, n in lasting.items()] + [("stim", 120.0, 0.0)]
    path = folder / "a.set"
    names = [*map(spell, NAMES)]
    bads = data.draw(st.lists(st.sampled_from(names), unique=True, max_size=3))
    good_T = np.ones(round(SECONDS * 100), bool)
    for first in data.draw(st.lists(st.sampled_from([20, 180, 300]), unique=True)):
        good_T[first : first + 30] = False
    write_set(
        path,
        eeg_CT,
        names,
        events=events if data.draw(st.booleans()) else events[:-1],
        bads=bads,
        fields={"etc": {"clean_sample_mask": good_T.astype(float)}},
    )
    raw = read_all(path)
    assert raw is not None and set(raw.bad_channels) == set(bads)
    n_pauses = sum(n > 0 for n in lasting.values())
    assert len(raw.missing_s) == n_pauses + np.count_nonzero(np.diff(good_T.astype(int)) < 0)
    recorded_T = np.isfinite(raw.values_CT).all(axis=0)
    np.testing.assert_allclose(raw.values_CT[:, recorded_T], eeg_CT, atol=1e-3)
    assert (~recorded_T).sum() == sum(n for n in lasting.values() if n > 0)
    assert len(raw.joins_s) == len(lasting)


@given(data=st.data())
def test_fif(folder: Path, data: st.DataObject) -> None:
    eeg_CT = make_eeg(SECONDS)
    marks = data.draw(
        st.lists(
            st.tuples(st.floats(0, 3), st.floats(0.01, 1), st.sampled_from(["BAD_x", "bad", "good", "BAD_ACQ_SKIP"])),
            max_size=3,
        )
    )
    first_sample, is_dated = data.draw(st.sampled_from([0, 50, 1000])), data.draw(st.booleans())
    bads = data.draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=3))
    path = folder / "a_raw.fif"
    numbers = data.draw(st.sampled_from(["double", "single"]))
    write_fif(
        path,
        eeg_CT,
        annotations=marks,
        bads=bads,
        first_sample=first_sample,
        is_dated=is_dated,
        numbers=numbers,
    )
    raw = read_all(path)
    # Whole seconds at the beginning that were skipped are not saved, and time begins after them.
    skips = sorted((a, a + n) for a, n, text in marks if text == "BAD_ACQ_SKIP")
    if not is_dated and skips and skips[0][0] < 0.02 and max(b for _, b in skips) > 0.98:
        assert raw is None or raw.values_CT.shape == eeg_CT.shape  # times of marks would not be certain
        return
    assert raw is not None and set(raw.bad_channels) == set(bads)
    n_cut = eeg_CT.shape[1] - raw.values_CT.shape[1]
    assert n_cut % 100 == 0 and any("cut off" in remark for remark in raw.remarks) == (n_cut > 0)
    eeg_CT = eeg_CT[:, n_cut:]
    recorded = np.isfinite(raw.values_CT)
    atol = 1e-4 if numbers == "single" else 1e-6
    np.testing.assert_allclose(raw.values_CT[recorded], eeg_CT[recorded], atol=atol)
    t = (np.arange(n_cut, 400) + 0.5) / 100
    missing_s = [(a + n_cut / 100, b + n_cut / 100) for a, b in raw.missing_s]
    missing_T = np.any([(a <= t) & (t < b) for a, b in missing_s] or [t < 0], axis=0)
    expected_T = np.any([(a <= t) & (t < a + n) for a, n, s in marks if s.lower().startswith("bad")] or [t < 0], axis=0)
    assert (missing_T != expected_T).sum() <= 2 * len(marks)
    skipped_T = np.any([(a <= t) & (t < a + n) for a, n, s in marks if s == "BAD_ACQ_SKIP"] or [t < 0], axis=0)
    assert (recorded.all(axis=0) == skipped_T).sum() <= 2 * len(marks)


NUMBER = re.compile(rb"(?<![A-Za-z0-9.])-?\d+(?:\.\d+)?(?![A-Za-z0-9.])")
OTHER_NUMBERS = st.sampled_from(["0", "1", "2", "7", "9", "16", "99", "100", "-1", "200", "1000", "32767"])


@pytest.mark.parametrize("kind", ["edf", "bdf", "vhdr"])
@given(data=st.data())
def test_another_number_in_a_header(folder: Path, kind: str, data: st.DataObject) -> None:
    """One of our errors, a remark, or each channel as it was but for its scale, which nothing confirms."""
    path = folder / f"c.{kind}"
    if kind == "vhdr":
        write_brainvision(path, make_eeg(SECONDS))
        whole, n_header = path.read_bytes(), path.stat().st_size
    else:
        whole = build(kind)
        n_header = 256 * 10
    fields = [match.span() for match in NUMBER.finditer(whole, 0, n_header)]
    first, last = data.draw(st.sampled_from(fields))
    new = data.draw(OTHER_NUMBERS).encode()
    if kind != "vhdr":  # fields have a width
        new = new.ljust(last - first)
        last = max(last, first + len(new))
        if whole[first:last].strip() != whole[first:last].strip().split(b" ")[0]:
            return  # it would reach into the next field
    path.write_bytes(whole[:first] + new + whole[last:])
    raw = read_all(path)
    if raw is None or raw.remarks != read_whole(kind).remarks:
        return
    true = read_whole(kind)
    assert raw.channels == true.channels and raw.values_CT.shape == true.values_CT.shape
    for x_T, true_T in zip(raw.values_CT, true.values_CT, strict=True):
        known_T = np.isfinite(true_T)
        assert np.array_equal(np.isfinite(x_T), known_T)
        assert abs(np.corrcoef(x_T[known_T], true_T[known_T])[0, 1]) > 0.99 or not x_T[known_T].any()


@cache
def read_whole(kind: str) -> RawEEG:
    """What is read of an undamaged file."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / f"c.{kind}"
        if kind == "vhdr":
            write_brainvision(path, make_eeg(SECONDS))
        else:
            path.write_bytes(build(kind))
        raw = read_all(path)
        assert raw is not None
        return raw


@cache
def build(kind: str) -> bytes:
    eeg_CT = make_eeg(SECONDS)
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / f"a_raw.{kind}"
        match kind:
            case "edf" | "bdf":
                write_edf(path, eeg_CT, onsets_s=[0, 1, 5, 6], marks=[(1.0, 0.5, "bad")])
            case "vhdr" | "vmrk":
                write_brainvision(path.with_suffix(".vhdr"), eeg_CT)
            case "set":
                flags = {"etc": {"clean_sample_mask": np.arange(SECONDS * 100) > 30.0}, "reject": {"rejmanualE": []}}
                write_set(path, eeg_CT, events=[("boundary", 100.5, 50.0)], bads=["C3"], fields=flags)
            case "gdf":
                write_gdf(path, eeg_CT, NAMES, events=[(100, 0x03FF, 0, 50), (200, 0x7FFE, 0, 0)])
            case "cnt":
                write_cnt(path, eeg_CT, NAMES, bads=["C3"], rejected=[(100, 150)])
            case _:
                write_fif(path, eeg_CT, annotations=[(1.0, 1.0, "BAD_x")], bads=["C3"])
        return path.read_bytes()


@pytest.mark.parametrize("kind", ["edf", "bdf", "vhdr", "vmrk", "set", "fif", "gdf", "cnt"])
@given(damage=DAMAGE)
def test_damage(folder: Path, kind: str, damage: list[Change]) -> None:
    """One of our errors, or samples of one rate on one clock; and no warning that reaches a user."""
    path = folder / f"b_raw.{kind}"
    path.write_bytes(several(build(kind), damage))
    if kind in ("vhdr", "vmrk"):
        header = folder / "b_raw.vhdr"
        write_brainvision(folder / "a_raw.vhdr", make_eeg(SECONDS))
        for suffix in {"vhdr", "vmrk"} - {kind}:
            path.with_suffix(f".{suffix}").write_bytes(build(suffix))
        path = header
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        raw = read_all(path)
    if raw is not None:
        assert raw.values_CT.ndim == 2 and len(raw.values_CT) == len(raw.channels) and raw.hz > 0
        assert raw.values_CT.shape[1] / raw.hz < 4000
        assert all(0 <= a <= b for a, b in raw.missing_s)


@pytest.mark.parametrize("kind", ["set", "fif"])
def test_epochs_are_refused_with_the_way_out(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a-epo.fif"
    if kind == "set":
        path = tmp_path / "a.set"
        write_set(path, make_eeg(SECONDS), trials=4)
    else:
        import mne

        epochs = mne.make_fixed_length_epochs(make_raw(make_eeg(SECONDS)), 1.0, preload=True, verbose="ERROR")
        epochs.save(path, verbose="ERROR")
    with pytest.raises(DataError, match=r"a.*: it holds epochs and no recording; export the continuous recording"):
        read_eeg_file(path, NAMES)


@pytest.mark.parametrize("change", [{"n_records": -1}, {"n_records": 0}, {"n_records": 3}, {"n_records": 9}])
def test_records_that_are_counted_wrongly_are_used(tmp_path: Path, change: Any) -> None:
    eeg_CT = make_eeg(SECONDS)
    path = tmp_path / "a.edf"
    write_edf(path, eeg_CT, **change)
    path.write_bytes(path.read_bytes() + b"\0" * 100)  # of a record that was not finished
    raw = read_eeg_file(path, NAMES)
    np.testing.assert_allclose(raw.values_CT, eeg_CT, atol=0.1)
    assert len(raw.remarks) == 1 and "those that are there are used" in raw.remarks[0]


def test_samples_of_brainvision_that_end_within_one_were_not_copied_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.vhdr"
    write_brainvision(path, make_eeg(SECONDS))
    samples = path.with_suffix(".eeg").read_bytes()
    path.with_suffix(".eeg").write_bytes(samples[:-6])
    with pytest.raises(DataError, match=r"a\.vhdr breaks off within a sample; copy it again"):
        read_eeg_file(path, NAMES)


def test_tags_of_fif_that_lead_in_a_circle_are_not_followed(tmp_path: Path) -> None:
    path = tmp_path / "a_raw.fif"
    content = bytearray(build("fif"))
    second = 16 + int.from_bytes(content[8:12], "big")
    content[second + 12 : second + 16] = second.to_bytes(4, "big")
    path.write_bytes(content)
    with pytest.raises(DataError, match="its tags lead in a circle"):
        read_eeg_file(path, NAMES)
