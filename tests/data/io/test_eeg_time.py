"""What lies in a pause is missing and nothing moves; pieces are joined where the file says so; marks are taken."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import mne
import numpy as np
import pytest

from eav_ray.data.io.eeg import open_eeg_file, read_eeg_file
from eav_ray.data.io.eeg_marks import JOINED, MARKED_BAD
from eav_ray.data.recordings import RawEEG
from eav_ray.errors import DataError
from tests.helpers.eeg_files import NAMES, make_eeg, make_raw, write_brainvision, write_edf, write_fif, write_set

HZ = 100
EEG_CT = make_eeg(20)  # 10 s, a pause of 30 s, 10 s
PAUSE_S = (10.0, 40.0)


def write_paused(folder: Path, kind: str) -> Path:
    """A recording in which nothing lies from second 10 to 40."""
    path = folder / f"paused.{kind}"
    onsets_s = [*range(10), *range(40, 50)]
    match kind:
        case "edf" | "bdf":
            write_edf(path, EEG_CT, onsets_s=onsets_s)
        case "vhdr":
            segments = ("New Segment,,1,1,0,20231231235950000000", "New Segment,,1001,1,0,20240101000030000000")
            write_brainvision(path, EEG_CT, markers=segments)
        case "set":
            # EEGLAB: half a sample before the next; a boundary that lasts longer than what is left of the file.
            write_set(path, EEG_CT, events=[("boundary", 1000.5, 3000.0), ("stim", 1200.0, 0.0)])
        case _:
            path = folder / "paused_raw.fif"
            whole_CT = np.concatenate([EEG_CT[:, :1000], np.zeros((8, 3000)), EEG_CT[:, 1000:]], axis=1)
            write_fif(path, whole_CT, annotations=[(10.0, 30.0, "BAD_ACQ_SKIP")], first_sample=300, is_dated=True)
    return path


def check_paused(raw: RawEEG, atol: float = 0.2) -> None:
    assert raw.values_CT.shape == (8, 5000)
    np.testing.assert_allclose(raw.values_CT[:, :1000], EEG_CT[:, :1000], atol=atol)
    assert np.isnan(raw.values_CT[:, 1000:4000]).all()
    np.testing.assert_allclose(raw.values_CT[:, 4000:], EEG_CT[:, 1000:], atol=atol)
    np.testing.assert_allclose(raw.missing_s, [PAUSE_S])
    assert any("paused" in remark for remark in raw.remarks)


@pytest.mark.parametrize("kind", ["edf", "bdf", "vhdr", "set", "fif"])
def test_what_lies_in_a_pause_is_missing_and_nothing_moves(tmp_path: Path, kind: str) -> None:
    check_paused(read_eeg_file(write_paused(tmp_path, kind), NAMES))


@pytest.mark.parametrize("onset_s", [0.0, 0.3, 600.0])
def test_the_clock_of_an_edf_begins_with_its_first_record(tmp_path: Path, onset_s: float) -> None:
    path = tmp_path / "a.edf"
    write_edf(path, EEG_CT, onsets_s=[*np.arange(10) + onset_s, *np.arange(40, 50) + onset_s])
    check_paused(read_eeg_file(path, NAMES))


def test_records_of_half_a_second_and_marks_behind_the_end_of_what_is_stored(tmp_path: Path) -> None:
    path = tmp_path / "a.edf"
    onsets_s = [*np.arange(20) / 2, *np.arange(80, 100) / 2]
    write_edf(path, EEG_CT, onsets_s=onsets_s, record_s=0.5, marks=[(45.0, 2.0, "Bad electrode"), (46, 1, "blink")])
    raw = read_eeg_file(path, NAMES)
    np.testing.assert_allclose(raw.missing_s, [PAUSE_S, (45, 47)])
    assert np.isfinite(raw.values_CT[:, 4500:4700]).all()  # filtered along with the rest


def test_clocks_that_tremble_and_drift_make_no_pause(tmp_path: Path) -> None:
    path = tmp_path / "a.edf"
    onsets_s = np.arange(20) * (1 + 5e-5) + np.random.default_rng(0).uniform(0, 0.004, 20)
    write_edf(path, EEG_CT, onsets_s=np.round(onsets_s, 4).tolist())
    raw = read_eeg_file(path, NAMES)
    assert raw.values_CT.shape == EEG_CT.shape and not raw.missing_s and not raw.joins_s


def test_a_clock_that_loses_more_is_followed(tmp_path: Path) -> None:
    """Each record is 5 ms late: after 1 s of losses the samples lie 95 ms later than they would without."""
    path = tmp_path / "a.edf"
    write_edf(path, EEG_CT, onsets_s=np.round(np.arange(20) * 1.005, 4).tolist())
    raw = read_eeg_file(path, NAMES)
    np.testing.assert_allclose(raw.values_CT[:, -100:], EEG_CT[:, -100:], atol=0.2)
    assert 7 <= raw.values_CT.shape[1] - 2000 <= 10
    assert np.isclose(sum(b - a for a, b in raw.missing_s), (raw.values_CT.shape[1] - 2000) / HZ)


@pytest.mark.parametrize(
    ("onsets_s", "words"),
    [
        ([*range(10), *np.arange(10) + 3.2e7], "pauses last 31999990 s"),
        ([*range(10), *range(5, 15)], "record 11 begins before"),
        ([], "not every record says when it was made"),
    ],
)
def test_times_that_cannot_be_are_refused_in_one_line(tmp_path: Path, onsets_s: Any, words: str) -> None:
    path = tmp_path / "a.edf"
    write_edf(path, EEG_CT, onsets_s=onsets_s, reserved="EDF+D")
    with pytest.raises(DataError, match=words) as caught:
        read_eeg_file(path, NAMES)
    assert "a.edf" in str(caught.value) and "\n" not in str(caught.value)


def test_a_year_between_segments_and_a_clock_that_goes_back(tmp_path: Path) -> None:
    path = tmp_path / "a.vhdr"
    first = "New Segment,,1,1,0,20240101100000000000"
    write_brainvision(path, EEG_CT, markers=(first, "New Segment,,1001,1,0,20250101100000000000"))
    with pytest.raises(DataError, match=r"a\.vhdr: its pauses last 3162\d+ s"):
        read_eeg_file(path, NAMES)
    write_brainvision(path, EEG_CT, markers=(first, "New Segment,,1001,1,0,20240101100001000000"))
    with pytest.raises(DataError, match=r"a\.vhdr: a segment begins 9 s before"):
        read_eeg_file(path, NAMES)


def test_several_pauses_add_up(tmp_path: Path) -> None:
    expected = [(5.0, 7.0), (12.0, 15.5)]  # 5 s, 2 s nothing, 5 s, 3.5 s nothing, 10 s
    events = [("boundary", 500.5, 200.0), ("boundary", 1000.5, 350.0)]
    write_set(tmp_path / "a.set", EEG_CT, events=events)
    write_edf(tmp_path / "a.edf", EEG_CT, onsets_s=[*range(5), *range(7, 12), *np.arange(10) + 15.5])
    segments = [f"New Segment,,{n},1,0,202401011000{s}00000" for n, s in ((1, "000"), (501, "070"), (1001, "155"))]
    write_brainvision(tmp_path / "a.vhdr", EEG_CT, markers=segments)
    for kind in ("set", "edf", "vhdr"):
        raw = read_eeg_file(tmp_path / f"a.{kind}", NAMES)
        np.testing.assert_allclose(raw.missing_s, expected, err_msg=kind)
        np.testing.assert_allclose(raw.values_CT[:, 1550:], EEG_CT[:, 1000:], atol=0.2, err_msg=kind)


def write_joined(folder: Path, kind: str) -> Path:
    path = folder / f"joined.{kind}"
    match kind:
        case "set":
            write_set(path, EEG_CT, events=[("boundary", 1000.5, np.nan)])
        case "set without a duration":
            path = folder / "joined.set"
            write_set(path, EEG_CT, events=[("boundary", 1000.5, 0.0)])
        case "vhdr":
            write_brainvision(path, EEG_CT, markers=("New Segment,,1,1,0", "New Segment,,1001,1,0"))
        case _:
            path = folder / "joined_raw.fif"
            parts = [make_raw(EEG_CT[:, :1000]), make_raw(EEG_CT[:, 1000:])]
            mne.concatenate_raws(parts, verbose="ERROR").save(path, fmt="double", verbose="ERROR")
    return path


@pytest.mark.parametrize("kind", ["set", "set without a duration", "vhdr", "fif"])
def test_pieces_that_were_joined_are_known(tmp_path: Path, kind: str) -> None:
    raw = read_eeg_file(write_joined(tmp_path, kind), NAMES)
    assert raw.joins_s == (10.0,) and not raw.missing_s
    np.testing.assert_allclose(raw.values_CT, EEG_CT, atol=0.2)
    assert any("joined" in remark for remark in raw.remarks)


@pytest.mark.parametrize("first_sample", [0, 700])
@pytest.mark.parametrize("is_dated", [False, True])
def test_marked_spans_are_missing_where_they_are(tmp_path: Path, first_sample: int, is_dated: bool) -> None:
    path = tmp_path / "a_raw.fif"
    marks = [(3.0, 2.0, "BAD_movement"), (8.0, 1.0, "bad"), (12.0, 1.0, "good"), (14.0, 0.0, "BAD_point")]
    write_fif(path, EEG_CT, annotations=marks, bads=["C3"], first_sample=first_sample, is_dated=is_dated)
    raw = read_eeg_file(path, NAMES)
    np.testing.assert_allclose(raw.missing_s, [(3, 5), (8, 9)])
    assert raw.bad_channels == {"C3": "marked bad in the file"} and not raw.joins_s
    np.testing.assert_allclose(raw.values_CT, EEG_CT, atol=1e-6)


def test_bad_intervals_of_brainvision(tmp_path: Path) -> None:
    path = tmp_path / "a.vhdr"
    first = "New Segment,,1,1,0,20240101100000000000"
    write_brainvision(path, EEG_CT, markers=(first, "Stimulus,S  1,201,1,0", "Bad Interval,Bad Min-Max,301,200,0"))
    np.testing.assert_allclose(read_eeg_file(path, NAMES).missing_s, [(3, 5)])


def test_a_bad_interval_of_one_channel_costs_that_channel(tmp_path: Path) -> None:
    path = tmp_path / "a.vhdr"
    markers = ("New Segment,,1,1,0,20240101100000000000", "Bad Interval,Bad Max-Min,301,200,4", "Stimulus,bad,801,1,2")
    write_brainvision(path, EEG_CT, markers=(*markers, "Bad Interval,Userdefined,1001,100,0", "Stimulus,S  1,1,1,0"))
    raw = read_eeg_file(path, NAMES)
    lost = np.isnan(raw.values_CT)
    assert lost[3, 300:500].all() and lost.sum() == 200
    np.testing.assert_allclose(raw.missing_s, [(10, 11)])
    # Left out of what is wanted, it costs nothing.
    assert np.isfinite(read_eeg_file(path, NAMES[:3]).values_CT).all()


@pytest.mark.parametrize(
    ("marker", "missing_s", "words"),
    [
        ("Bad Interval,Gradient,301,200,99", [(3, 5)], "Mk2 of its marker file marks channel 99, which is not there"),
        ("Bad Interval,Gradient,301,long,1", [], "Mk2 of its marker file marks something bad without a place"),
    ],
)
def test_a_bad_interval_that_names_nothing_is_said(tmp_path: Path, marker: str, missing_s: Any, words: str) -> None:
    path = tmp_path / "a.vhdr"
    write_brainvision(path, EEG_CT, markers=("New Segment,,1,1,0,20240101100000000000", marker))
    raw = read_eeg_file(path, NAMES)
    np.testing.assert_allclose(np.reshape(raw.missing_s, (-1, 2)), np.reshape(missing_s, (-1, 2)))
    assert any(words in remark for remark in raw.remarks)


def test_a_bad_interval_after_a_pause_is_of_the_samples_that_it_counts(tmp_path: Path) -> None:
    path = write_paused(tmp_path, "vhdr")
    text = path.with_suffix(".vmrk").read_text()
    bad = "Mk3=Bad Interval,,1101,100,2\nMk4=Bad Interval,,1301,100,0\n"
    path.with_suffix(".vmrk").write_text(f"{text.rstrip()}\n{bad}")
    raw = read_eeg_file(path, NAMES)
    lost = np.isnan(raw.values_CT[:, 4000:])
    assert lost[1, 100:200].all() and lost.sum() == 100
    np.testing.assert_allclose(raw.missing_s, [PAUSE_S, (43, 44)])


def test_a_mark_of_one_channel_costs_that_channel(tmp_path: Path) -> None:
    path = tmp_path / "a.edf"
    write_edf(path, EEG_CT, onsets_s=range(20), marks=[(2.0, 0.5, "bad contact@@C4")])
    raw = read_eeg_file(path, NAMES)
    lost = np.isnan(raw.values_CT)
    assert lost[3, 200:250].all() and lost.sum() == 50 and not raw.missing_s


@pytest.mark.parametrize("first_sample", [0, 700])
@pytest.mark.parametrize("is_dated", [False, True])
def test_marks_keep_their_place_where_nothing_was_saved_at_first(
    tmp_path: Path, first_sample: int, is_dated: bool
) -> None:
    path = tmp_path / "a_raw.fif"
    marks = [(0.0, 2.0, "BAD_ACQ_SKIP"), (5.0, 1.0, "BAD_movement"), (12.0, 1.0, "BAD_ACQ_SKIP")]
    write_fif(path, EEG_CT, annotations=marks, first_sample=first_sample, is_dated=is_dated)
    if not is_dated:
        for look in (read_eeg_file, lambda p, names: open_eeg_file(p).describe_header(names)):
            with pytest.raises(DataError, match=r"has no date, and nothing was saved.*\(raw.set_meas_date\)$"):
                look(path, NAMES)
        return
    raw = read_eeg_file(path, NAMES)
    np.testing.assert_allclose(raw.missing_s, [(3, 4), (10, 11)])
    kept_T = np.isfinite(raw.values_CT).all(0)
    assert raw.values_CT.shape == (8, 1800) and (~kept_T).sum() == 100
    np.testing.assert_allclose(raw.values_CT[:, kept_T], EEG_CT[:, 200:][:, kept_T], atol=1e-6)
    assert any("cut off" in remark for remark in raw.remarks)
    assert set(raw.remarks) == set(open_eeg_file(path).describe_header(NAMES))


def test_a_split_fif_is_read_to_its_end(tmp_path: Path) -> None:
    long_CT = make_eeg(200, hz=500)
    make_raw(long_CT, hz=500).save(tmp_path / "a_raw.fif", fmt="double", split_size="4MB", verbose="ERROR")
    assert len(list(tmp_path.iterdir())) > 1
    np.testing.assert_allclose(read_eeg_file(tmp_path / "a_raw.fif", NAMES).values_CT, long_CT, atol=1e-6)


def write_set_in_hdf5(path: Path) -> None:
    """What EEGLAB writes for large recordings (MATLAB v7.3), paused from second 10 to 40."""
    with h5py.File(path, "w", userblock_size=512) as file:
        references = file.create_group("#refs#")

        def store(group: h5py.Group, name: str, value: Any, kind: str = "double") -> h5py.Reference:
            dataset = group.create_dataset(name, data=value)
            dataset.attrs["MATLAB_class"] = np.bytes_(kind)
            return dataset.ref

        def refer(values: Sequence[Any], kind: str) -> np.ndarray:
            found = []
            for value in values:
                content = np.array([[ord(c)] for c in value], "u2") if kind == "char" else np.array([[float(value)]])
                found.append(store(references, f"r{len(references)}", content, kind))
            return np.array(found, dtype=h5py.ref_dtype).reshape(-1, 1)

        eeg = file.create_group("EEG")
        eeg.attrs["MATLAB_class"] = np.bytes_("struct")
        for name, value in {"nbchan": 8, "trials": 1, "pnts": 2000, "srate": HZ, "xmin": 0, "xmax": 19.99}.items():
            store(eeg, name, np.array([[float(value)]]))
        store(eeg, "data", EEG_CT.T.astype("f4"), "single")
        for name, columns in {
            "chanlocs": {"labels": refer(NAMES, "char")},
            "event": {
                "type": refer(["boundary", "stim"], "char"),
                "latency": refer([1000.5, 1200], "double"),
                "duration": refer([3000, 0], "double"),
            },
        }.items():
            group = eeg.create_group(name)
            group.attrs["MATLAB_class"] = np.bytes_("struct")
            for column, values in columns.items():
                group.create_dataset(column, data=values)
    content = bytearray(path.read_bytes())
    content[:128] = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM"
    path.write_bytes(content)


def test_boundaries_of_a_large_set_file(tmp_path: Path) -> None:
    write_set_in_hdf5(tmp_path / "a.set")
    check_paused(read_eeg_file(tmp_path / "a.set", NAMES))


@pytest.mark.parametrize("is_dated", [False, True])
def test_a_join_of_cropped_pieces_lies_where_they_meet(tmp_path: Path, is_dated: bool) -> None:
    parts = [make_raw(EEG_CT).crop(tmin=5), make_raw(EEG_CT).crop(tmin=3)]
    for part, onset_s in zip(parts, (2.0, 4.0), strict=True):
        part.set_meas_date(1e9 if is_dated else None)
        part.set_annotations(mne.Annotations([onset_s], [1.0], ["BAD_x"]), verbose="ERROR")
    mne.concatenate_raws(parts, verbose="ERROR").save(tmp_path / "a_raw.fif", fmt="double", verbose="ERROR")
    raw = read_eeg_file(tmp_path / "a_raw.fif", NAMES)
    assert raw.joins_s == (15.0,) and raw.values_CT.shape == (8, 3200)
    np.testing.assert_allclose(raw.missing_s, [(2, 3), (19, 20)])


@pytest.mark.parametrize("kind", ["edf", "bdf", "vhdr", "set", "fif"])
def test_what_a_header_says_is_known_without_a_sample_and_is_what_reading_says(tmp_path: Path, kind: str) -> None:
    """Of pauses here; of units and bad channels in files of their own."""
    path = write_paused(tmp_path, kind)
    path = tmp_path / "paused_raw.fif" if kind == "fif" else path
    file = open_eeg_file(path)
    described = file.describe_header(NAMES)
    assert any("paused" in remark for remark in described)
    assert set(file.read(NAMES).remarks) == set(described)
    file.close()


def test_units_records_and_bad_channels_are_known_without_a_sample(tmp_path: Path) -> None:
    write_edf(tmp_path / "a.edf", EEG_CT, units=["uV", ".V", *["uV"] * 6])
    assert open_eeg_file(tmp_path / "a.edf").describe_header(NAMES) == (
        "unit '.V' is none that is known: preprocessing.eeg.unit decides, or the amplitude",
        "channels without a known unit are taken as microvolt, as the others",
    )
    write_fif(tmp_path / "a_raw.fif", EEG_CT, bads=["C3"], annotations=[(2.0, 1.0, "bad jump"), (5.0, 0.0, "EDGE")])
    file = open_eeg_file(tmp_path / "a_raw.fif")
    assert file.describe_header(NAMES) == (JOINED, MARKED_BAD, "marked bad in the file: C3")
    file.close()
