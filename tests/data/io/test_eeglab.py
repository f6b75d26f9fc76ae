"""What EEGLAB files say of channels and samples that are not to be used is used, or said."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scipy.io import loadmat, savemat

from eav_ray.data.io.eeg import open_eeg_file, read_eeg_file
from eav_ray.data.recordings import RawEEG
from tests.helpers.eeg_files import NAMES, make_eeg, write_set

EEG_CT = make_eeg(20)
FLAGS = np.isin(np.arange(8), [2, 5]).astype(float)  # C3 and P4
GOOD_T = np.ones(2000, bool)
GOOD_T[500:700] = False
BAD = {"C3", "P4"}


def write(path: Path, *, is_flat: bool = False, events: Any = (), **fields: Any) -> Path:
    """Write a recording with further fields; `chanlocs` are columns of it."""
    write_set(path, EEG_CT, events=events)
    tree = loadmat(path, simplify_cells=True)["EEG"]
    columns = fields.pop("chanlocs", {})
    rows = [tuple(value[i] for value in (NAMES, *columns.values())) for i in range(8)]
    tree["chanlocs"] = np.array(rows, dtype=[(name, object) for name in ("labels", *columns)])
    tree["event"] = np.array(list(events), dtype=[("type", object), ("latency", object), ("duration", object)])
    savemat(path, tree | fields if is_flat else {"EEG": tree | fields}, appendmat=False)
    return path


def write_hdf5(path: Path, **fields: Any) -> Path:
    """The same as MATLAB v7.3; empty arrays hold their shape."""
    with h5py.File(path, "w", userblock_size=512) as file:
        eeg, references = file.create_group("EEG"), file.create_group("#refs#")

        def store(group: Any, name: str, value: Any) -> h5py.Reference:
            if isinstance(value, dict):
                group.create_group(name).attrs["MATLAB_class"] = np.bytes_("struct")
                return [store(group[name], key, inner) for key, inner in value.items()][0]
            content = np.array([[ord(c)] for c in value], "u2") if isinstance(value, str) else np.atleast_2d(value)
            kind = "char" if isinstance(value, str) else "double"
            dataset = group.create_dataset(name, data=content if content.size else np.array([1, 0], "u8"))
            dataset.attrs["MATLAB_class"] = np.bytes_(kind)
            if not content.size:
                dataset.attrs["MATLAB_empty"] = np.uint8(1)
            return dataset.ref

        numbers = {"nbchan": 8.0, "trials": 1.0, "pnts": 2000.0, "srate": 100.0, "xmin": 0.0, "xmax": 19.99}
        columns = {"labels": NAMES, **fields.pop("chanlocs", {})}
        for name, value in (numbers | {"data": EEG_CT.T.astype("f4")} | fields).items():
            store(eeg, name, value)
        group = eeg.create_group("chanlocs")
        group.attrs["MATLAB_class"] = np.bytes_("struct")
        for name, values in columns.items():
            found = [store(references, f"{name}{i}", value) for i, value in enumerate(values)]
            group.create_dataset(name, data=np.array(found, dtype=h5py.ref_dtype).reshape(-1, 1))
    content = bytearray(path.read_bytes())
    content[:128] = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM"
    path.write_bytes(content)
    return path


def read(path: Path) -> RawEEG:
    """Read a file; what is known of its header is what reading says."""
    raw = read_eeg_file(path, NAMES)
    file = open_eeg_file(path)
    described = file.describe_header(NAMES)
    file.close()
    assert set(raw.remarks) <= set(described)
    assert {why for why in raw.bad_channels.values()} <= {line.split(": ")[0] for line in described}
    return raw


CHANNEL_FIELDS: list[dict[str, Any]] = [
    {"chanlocs": {"badchan": FLAGS}},
    {"chanlocs": {"status": ["bad" if flag else "good" for flag in FLAGS]}},
    {"etc": {"clean_channel_mask": FLAGS == 0}},
    {"reject": {"rejmanualE": FLAGS, "rejthreshE": []}},
    {"etc": {"noiseDetection": {"interpolatedChannelNumbers": [3.0], "stillNoisyChannelNumbers": [6.0]}}},
]


@pytest.mark.parametrize("how", ["in a structure", "field by field", "v7.3"])
@pytest.mark.parametrize("fields", CHANNEL_FIELDS)
def test_channels_that_are_flagged_are_bad(tmp_path: Path, how: str, fields: dict[str, Any]) -> None:
    path = tmp_path / "a.set"
    if how == "v7.3":
        write_hdf5(path, **fields)
    else:
        write(path, is_flat=how == "field by field", **fields)
    raw = read(path)
    assert set(raw.bad_channels) == BAD and raw.remarks == () and not raw.missing_s
    np.testing.assert_allclose(raw.values_CT, EEG_CT, atol=1e-3)


@pytest.mark.parametrize("how", ["in a structure", "v7.3"])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"chanlocs": {"badchan": np.zeros(8)}, "etc": {"clean_channel_mask": np.ones(8)}},
        {"chanlocs": {"badchan": [[]] * 8, "status": ["good"] * 8}, "reject": {"rejmanualE": [], "rejmanual": []}},
        {"etc": {"clean_channel_mask": [1.0] * 8 + [0.0] * 3, "clean_sample_mask": np.ones(2000)}},  # three are gone
        {"etc": {"clean_channel_mask": []}, "reject": []},
    ],
)
def test_what_flags_nothing_changes_nothing(tmp_path: Path, how: str, fields: dict[str, Any]) -> None:
    raw = read((write if how == "in a structure" else write_hdf5)(tmp_path / "a.set", **fields))
    assert not raw.bad_channels and raw.remarks == () and not raw.missing_s and not raw.joins_s


@pytest.mark.parametrize("how", ["in a structure", "v7.3"])
def test_samples_that_are_flagged_are_missing(tmp_path: Path, how: str) -> None:
    fields = {"etc": {"clean_sample_mask": GOOD_T.astype(float)}}
    write_it: Any = write if how == "in a structure" else write_hdf5
    raw = read(write_it(tmp_path / "a.set", **fields))
    np.testing.assert_allclose(raw.missing_s, [(5, 7)])
    np.testing.assert_allclose(raw.values_CT, EEG_CT, atol=1e-3)


@pytest.mark.parametrize("events", [[], [("boundary", 500.5, np.nan)], [("boundary", 500.5, 300.0)]])
def test_samples_that_were_cut_out_are_a_pause(tmp_path: Path, events: Any) -> None:
    """Of 2300 samples 300 are gone: by the mask alone, beside a join, and beside a boundary that says the same."""
    mask_T = np.ones(2300, bool)
    mask_T[500:800] = False
    raw = read(write(tmp_path / "a.set", events=events, etc={"clean_sample_mask": mask_T}))
    np.testing.assert_allclose(raw.missing_s, [(5, 8)])
    assert raw.values_CT.shape == (8, 2300)
    np.testing.assert_allclose(raw.values_CT[:, 800:], EEG_CT[:, 500:], atol=1e-3)


def test_what_was_cut_off_before_is_said(tmp_path: Path) -> None:
    raw = read(write(tmp_path / "a.set", events=[("boundary", 0.5, 400.0), ("stim", 900.0, 0.0)]))
    assert raw.values_CT.shape == EEG_CT.shape and raw.joins_s == ()
    assert raw.remarks == ("what came before was cut off, as it says: time begins with what is left",)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"etc": {"clean_channel_mask": [1.0] * 5 + [0.0] * 2}}, "EEG.etc.clean_channel_mask is of 7 channels"),
        ({"reject": {"rejjpE": np.ones((8, 30))}}, "EEG.reject.rejjpE is of 240 channels, the recording of 8"),
        ({"etc": {"clean_sample_mask": GOOD_T[:1500]}}, "clean_sample_mask is of 1500 samples, 1300 of them good"),
        ({"reject": {"gcompreject": [0.0, 1.0, 1.0]}}, "marks 2 components of an ICA, which are not taken out"),
    ],
)
def test_what_cannot_be_used_is_said(tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    raw = read(write(tmp_path / "a.set", **fields))
    assert len(raw.remarks) == 1 and words in raw.remarks[0] and not raw.bad_channels and not raw.missing_s
