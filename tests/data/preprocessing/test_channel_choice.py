"""Channels of the scalp are taken, whatever they are called; what is no EEG is left out by name, and a key chooses."""

from pathlib import Path

import numpy as np
import pytest

from eav_ray.config import EEGPreprocessing
from eav_ray.data.datasets import registry
from eav_ray.data.datasets.recordings_table import RecordingsTable
from eav_ray.data.preprocessing.channel_choice import choose_channels
from eav_ray.data.preprocessing.eeg import PreparedEEG, prepare_eeg
from eav_ray.data.recordings import TransformedReader
from eav_ray.electrodes import resolve_electrodes
from eav_ray.errors import DataError
from tests.helpers.eeg_files import NAMES, make_eeg, write_brainvision, write_edf, write_fif, write_set, write_table

LAB = ("EXG1", "EXG2", "GSR1", "Erg1", "Resp", "Plet", "Temp", "Status")
EMOTIV = ("COUNTER", "INTERPOLATED", "GYROX", "GYROY", "MARKER", "CQ_AF3", "RAW_CQ", "TIMESTAMP_MS", "ES_TIMESTAMP")
OTHERS = (
    "ECG", "EKG", "EKG1", "HEOG", "VEOG", "EOG1", "EOG-L", "EMG chin", "M1", "M2", "A1", "A2", "EEG A2-A1", "STI 014",
    "TRIG", "TRIGGER", "target", "label", "class", "event", "time", "ACC_X", "AUX1", "SpO2", "GSR", "EDA", "Photic",
    "ref", "Audio", "mic", "SaO2", "PULSE", "BVP", "SKT", "valence", "HR", "DC1", "X1", "Sync",
)  # fmt: skip


def choose(names, types=None, wanted=()):
    return choose_channels(names, types or ["eeg"] * len(names), wanted, "a.edf")


@pytest.mark.parametrize("others", [LAB, EMOTIV, OTHERS])
def test_scalp_positions_are_taken_and_the_rest_is_named(others: tuple[str, ...]) -> None:
    found = choose([*others, *NAMES])
    assert found.taken == found.spelt == NAMES and found.left_out == others
    assert found.remarks == (f"left out, as no EEG of the scalp: {', '.join(others)}",)
    assert choose(NAMES).remarks == ()


@pytest.mark.parametrize(
    "spelling",
    [str.upper, str.lower, "EEG {}-REF".format, "EEG {}".format, "{}-A1".format, "{}-LE".format, "POL {}".format,
     "{}.".format, "{}..".format, " {} ".format, "EEG {}-Ref".format, "{}-M2".format, "{} - Avg".format,
     "{}_REF".format],
)  # fmt: skip
def test_equal_positions_are_one_montage(spelling) -> None:
    names = ("Fp1", "Fp2", "T7", "T8", "P7", "P8", "Cz", "AFF1h", "O1", "FCz")
    assert choose([spelling(name) for name in names]).spelt == names


def test_older_names_are_the_same_positions() -> None:
    assert choose(["T3", "T4", "T5", "T6", "Cz"]).spelt == ("T7", "T8", "P7", "P8", "Cz")


@pytest.mark.parametrize(
    ("names", "others"),
    [
        ([f"E{i}" for i in range(1, 129)], ["ECG", "EMG"]),
        ([*(f"E{i}" for i in range(1, 129)), "Cz"], ["STI 014"]),
        ([f"EEG {i:03d}" for i in range(1, 65)], ["EOG 061", "STI101"]),
        ([str(i) for i in range(1, 33)], ["Status"]),
        ([f"Ch{i}" for i in range(1, 9)], ["MARKER", "ACC1"]),
        (["left frontal", "right frontal", "left temporal"], ["label", "GSR"]),
        (["Fp1-F7", "F7-T7", "T7-P7", "P7-O1"], ["ECG", "VNS"]),
        (
            ["EEG Fpz-Cz", "EEG Pz-Oz"],
            ["EOG horizontal", "Resp oro-nasal", "EMG submental", "Temp rectal", "Event marker"],
        ),
        (["EEG F4-M1 x", "EEG C4-Cz"], ["LOC-A2", "ROC-A1", "Chin 1-Chin 2", "ECG 1-ECG 2", "EMG1-EMG2", "SpO2 BB"]),
        (["E1-REF", "E2-REF", "E3-REF"], ["leftEOG", "VEOGu", "ECGL", "x_ACC", "left eye"]),
    ],
)
def test_montages_of_their_own_names_are_taken_whole(names: list[str], others: list[str]) -> None:
    found = choose([*names, *others])
    assert found.taken == tuple(names) and found.left_out == tuple(others)


@pytest.mark.parametrize("groups", ["A", "AB", "ABCD", "ABCDEFGH"])
def test_names_of_biosemi_are_no_positions(groups: str) -> None:
    """C3 of its 128 channels lies elsewhere than C3 of the 10-20 system, and A1 is no ear."""
    names = [f"{group}{i}" for group in groups for i in range(1, 33)]
    found = choose([*names, "EXG1", "Status"])
    assert found.taken == tuple(names) and found.left_out == ("EXG1", "Status")
    assert not any(resolve_electrodes(found.spelt))
    assert choose(names, wanted=("a2", "A1")).taken == ("A2", "A1")


def test_a_bipolar_channel_beside_positions_is_none() -> None:
    assert choose([*NAMES, "Fp1-F7", "F7-T3"]).left_out == ("Fp1-F7", "F7-T3")


def test_types_of_the_file_win_over_names() -> None:
    types = ["eeg", "eog", "stim", "eeg", "misc"]
    found = choose(["Fp1", "Fp2", "C3", "C4", "O1"], types)
    assert found.taken == ("Fp1", "C4") and found.left_out == ("Fp2", "C3", "O1")


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (("Fp1", "Cz"), r"a\.edf has no EEG channel Cz .* has Fp1, Fp2, C3, C4, P3, P4, O1, O2"),
        (("Fp1", "MARKER"), "has no EEG channel MARKER"),
        (("Fp1", "STI 014"), "has no EEG channel STI 014"),
    ],
)
def test_a_wanted_channel_that_is_missing_is_named_with_those_that_there_are(wanted, words: str) -> None:
    with pytest.raises(DataError, match=words):
        choose([*NAMES, "MARKER", "STI 014"], ["eeg"] * 9 + ["stim"], wanted)


def test_wanted_channels_come_in_their_order_and_in_any_spelling() -> None:
    found = choose(["FP1", "EEG T3-REF", "O1.", "M1", "Fp1-F7", "EXG1"], wanted=("t7", "Fp1", "M1", "Fp1-F7", "exg1"))
    assert found.taken == ("EEG T3-REF", "FP1", "M1", "Fp1-F7", "EXG1")
    assert found.spelt == ("T7", "Fp1", "M1", "Fp1-F7", "EXG1") and found.left_out == ("O1.",)


@pytest.mark.parametrize("marker", ["MARKER", "STI 014", "Status", "label", "Trigger1", "event_code", "TIME"])
def test_no_key_makes_an_input_of_a_marker(marker: str) -> None:
    with pytest.raises(DataError, match=f"has no EEG channel {marker}"):
        choose([*NAMES, marker], wanted=("Fp1", marker))


def test_two_channels_of_one_position_are_refused_by_name() -> None:
    with pytest.raises(DataError, match="more than one EEG channel EEG T7-REF .*: T3, T7, Cz"):
        choose(["T3", "T7", "Cz"], wanted=("EEG T7-REF",))
    assert choose(["T3", "T7", "Cz"], wanted=("T7",)).taken == ("T7",)  # as it is written


def test_a_file_without_eeg_is_refused() -> None:
    with pytest.raises(DataError, match=r"a\.edf has no EEG channel; it has ECG, label"):
        choose(["ECG", "label"])


# --- in a table ---

EEG_CT = make_eeg(10)


def prepare(root: str, **keys) -> tuple[tuple[str, ...], dict[str, PreparedEEG | DataError]]:
    table = RecordingsTable(root)
    preprocessing, listing = EEGPreprocessing(notch_hz=0, **keys), table.scan()
    channels = registry.list_eeg_channels(table, listing, preprocessing.channels)
    found = prepare_eeg(RecordingsTable(root), listing.recordings, preprocessing, channels=channels)
    return channels, {r.recording: prepared for r, prepared in found}


def test_other_signals_change_no_electrode(tmp_path: Path) -> None:
    other_CT = 300 * np.sin(np.arange(1000) / 100 * 7 + np.arange(8)[:, None])
    write_edf(tmp_path / "lab.edf", np.concatenate([EEG_CT, other_CT]), (*NAMES, *LAB))
    write_edf(tmp_path / "alone.edf", EEG_CT)
    channels, found = prepare(write_table(tmp_path, "lab.edf", "alone.edf"))
    lab, alone = found["lab"], found["alone"]
    assert channels == NAMES and isinstance(lab, PreparedEEG) and isinstance(alone, PreparedEEG)
    np.testing.assert_array_equal(lab.x_CT, alone.x_CT)
    assert lab.remarks == (f"left out, as no EEG of the scalp: {', '.join(LAB)}",) and alone.remarks == ()


@pytest.mark.parametrize("kind", ["edf", "bdf", "vhdr", "set", "fif"])
def test_a_marker_that_holds_the_label_is_no_input(tmp_path: Path, kind: str) -> None:
    names = (*NAMES, "MARKER")
    values_CT = np.concatenate([EEG_CT, np.full((1, 1000), 100.0) * (np.arange(1000) % 128 < 64)])
    path = tmp_path / f"a_raw.{kind}"
    write = {"edf": write_edf, "bdf": write_edf, "vhdr": write_brainvision, "set": write_set, "fif": write_fif}[kind]
    write(path, values_CT, names)
    root = write_table(tmp_path, path.name)
    channels, found = prepare(root)
    prepared = found["a_raw"]
    assert channels == NAMES and isinstance(prepared, PreparedEEG) and len(prepared.x_CT) == 8
    with pytest.raises(DataError, match="no EEG channel marker"):
        prepare(root, channels=("Fp1", "marker"))


def test_one_montage_in_several_spellings_orders_and_formats(tmp_path: Path) -> None:
    order = [3, 1, 0, 2, 7, 6, 5, 4]
    write_edf(tmp_path / "a.edf", EEG_CT)
    write_fif(tmp_path / "b.fif", EEG_CT[order], [f"EEG {NAMES[i].upper()}-REF" for i in order])
    write_set(tmp_path / "c.set", EEG_CT, [name.lower() for name in NAMES])
    write_brainvision(tmp_path / "d.vhdr", EEG_CT, [f"{name}." for name in NAMES])
    (tmp_path / "b.fif").rename(tmp_path / "b_raw.fif")
    channels, found = prepare(write_table(tmp_path, "a.edf", "b_raw.fif", "c.set", "d.vhdr"))
    assert channels == NAMES
    for name, prepared in found.items():
        assert isinstance(prepared, PreparedEEG), f"{name}: {prepared}"
        first = found["a"]
        assert isinstance(first, PreparedEEG)
        np.testing.assert_allclose(prepared.x_CT, first.x_CT, atol=0.2)


def test_the_key_chooses_where_files_differ(tmp_path: Path) -> None:
    write_edf(tmp_path / "a.edf", EEG_CT)
    write_edf(tmp_path / "b.edf", EEG_CT[:6], ("EEG O1", "EEG C4", "EEG C3", "Oz", "Pz", "Fz"))
    write_edf(tmp_path / "c.edf", EEG_CT[:4], ("C3", "Cz", "C4", "Fz"))
    root = write_table(tmp_path, "a.edf", "b.edf", "c.edf")
    _, found = prepare(root)
    assert isinstance(found["a"], PreparedEEG) and "other EEG channels" in str(found["b"])
    channels, found = prepare(root, channels=("o1", "C3", "C4"), reference="none")
    assert channels == ("O1", "C3", "C4")
    a, b = found["a"], found["b"]
    assert isinstance(a, PreparedEEG) and isinstance(b, PreparedEEG)
    np.testing.assert_allclose(a.x_CT[0], prepare_one(EEG_CT[6]), atol=0.1)
    np.testing.assert_allclose(b.x_CT, np.stack([prepare_one(EEG_CT[i]) for i in (0, 2, 1)]), atol=0.1)
    corrupted = TransformedReader(RecordingsTable(root), lambda raw, _: raw)
    listing, keys = RecordingsTable(root).scan(), EEGPreprocessing(channels=("O1", "C3", "C4"))
    assert [isinstance(p, PreparedEEG) for _, p in prepare_eeg(corrupted, listing.recordings, keys)] == [
        True,
        True,
        False,
    ]
    assert "c.edf has no EEG channel o1" in str(found["c"]) and "C3, Cz, C4, Fz" in str(found["c"])


def prepare_one(x_T: np.ndarray) -> np.ndarray:
    from eav_ray.data.preprocessing.eeg_clean import clean_eeg
    from eav_ray.data.recordings import RawEEG

    preprocessing = EEGPreprocessing(notch_hz=0, reference="none", bad_channel_correlation=0)
    return clean_eeg(RawEEG(x_T[None], 100, ("Cz",), "microvolt"), preprocessing).x_CT[0]


def test_check_names_what_is_left_out_once_and_files_that_differ(tmp_path: Path) -> None:
    for name in "abc":
        write_edf(tmp_path / f"{name}.edf", np.concatenate([EEG_CT, EEG_CT]), (*NAMES, *LAB))
    write_edf(tmp_path / "d.edf", EEG_CT[:3], ("Fp1", "Cz", "Oz"))
    (tmp_path / "e.edf").write_bytes(b"no EEG")
    table = RecordingsTable(write_table(tmp_path, "a.edf", "b.edf", "c.edf", "d.edf", "e.edf"))
    remarks, problems = table.check_eeg_channels(table.scan().recordings)
    assert remarks == (f"left out, as no EEG of the scalp: {', '.join(LAB)} (3 of 5 recordings)",)
    assert [p.recording for p in problems] == ["d", "e"]
    assert "differing: C3, C4, Cz" in problems[0].reason


def test_positions_that_the_file_types_as_something_else_are_left_out(tmp_path: Path) -> None:
    write_fif(tmp_path / "a_raw.fif", EEG_CT, types=["eeg"] * 6 + ["eog", "misc"])
    write_set(tmp_path / "b.set", EEG_CT, types=["EEG"] * 6 + ["EOG", "MISC"])
    for name in ("a_raw.fif", "b.set"):
        channels, _ = prepare(write_table(tmp_path, name))
        assert channels == NAMES[:6], name


def test_a_slower_or_faster_sensor_beside_the_eeg_changes_no_rate(tmp_path: Path) -> None:
    """A record holds 100 samples of each electrode, and as many of a channel that is split into ten."""
    from tests.helpers.eeg_files import encode_edf

    content = bytearray(encode_edf(np.concatenate([EEG_CT, np.zeros((4, 1000))]), (*NAMES, "Temp", "x1", "x2", "x3")))
    head = 256 * 13
    # The last four channels become one, Status, of four times the rate.
    fields = [16, 80, 8, 8, 8, 8, 8, 80, 8, 32]
    at, parts = 256, []
    for width in fields:
        block = bytes(content[at : at + width * 12])
        parts.append(block[: width * 9])
        at += width * 12
    parts[0] = parts[0][: 16 * 8] + b"Status".ljust(16)
    parts[8] = parts[8][: 8 * 8] + b"400".ljust(8)
    start = bytearray(content[:256])
    start[184:192], start[252:256] = str(256 * 10).ljust(8).encode(), b"9   "
    (tmp_path / "a.edf").write_bytes(bytes(start) + b"".join(parts) + bytes(content[head:]))
    table = RecordingsTable(write_table(tmp_path, "a.edf"))
    raw = table.read_eeg(table.scan().recordings[0])
    assert raw.hz == 100 and raw.values_CT.shape == (8, 1000)
    np.testing.assert_allclose(raw.values_CT, EEG_CT, atol=0.1)
