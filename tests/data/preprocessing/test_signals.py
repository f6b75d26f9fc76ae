"""Signals other than EEG keep their time, their amplitude and their gaps, at any rate, and can be learned from."""

from pathlib import Path
from typing import Any

import mne
import numpy as np
import pandas as pd
import pytest

from eav_ray.config import Experiment, FeaturePreprocessing, load_experiment
from eav_ray.data.datasets import registry
from eav_ray.data.preprocessing.signals import prepare_signals
from eav_ray.data.preprocessing.windowing import WindowFormat, cut_recording
from eav_ray.data.shards.dataset import open_dataset
from eav_ray.errors import ConfigError, DataError
from eav_ray.models.encoders.base import DataShapes
from eav_ray.models.encoders.factory import build_encoder
from eav_ray.pipelines.preprocess.dataset_check import check_dataset
from eav_ray.pipelines.preprocess.preprocess import PreprocessingResult
from eav_ray.pipelines.preprocess.quality_page import write_quality_page
from tests.helpers.eeg_files import write_edf
from tests.helpers.in_process_shards import write_shards

SECTION = FeaturePreprocessing(signals=("ECG", "GSR"), steps=500)  # 100 Hz


def write_fif(path: Path, values_CT: np.ndarray, hz: float, names: tuple[str, ...] = ("Fp1", "ECG", "GSR")) -> Path:
    kinds: Any = ["eeg" if n == "Fp1" else "ecg" if n == "ECG" else "misc" for n in names]
    raw = mne.io.RawArray(values_CT, mne.create_info(list(names), hz, kinds, verbose="ERROR"), verbose="ERROR")
    raw.save(path, overwrite=True, verbose="ERROR")
    return path


@pytest.mark.parametrize("hz", [100.0, 128.0, 499.907, 1000.0])
def test_a_pulse_comes_out_at_its_time_and_an_offset_at_its_size(tmp_path: Path, hz: float) -> None:
    """A pulse of 40 ms at 7.3 s on the one channel; on the other 5 volts that grow by a hundredth each second."""
    t = np.arange(round(20 * hz)) / hz
    pulse, slow = np.exp(-0.5 * ((t - 7.3) / 0.04) ** 2), 5 + 0.01 * t
    path = write_fif(tmp_path / "a_raw.fif", np.stack([0 * t, 1e-3 * pulse, slow]), hz)
    values, duration_s, *_ = prepare_signals(str(path), SECTION, 5, 3600)
    assert duration_s == pytest.approx(20, abs=1 / hz) and len(values) == pytest.approx(2000, abs=1)
    assert abs(values[:, 0].argmax() / 100 - 7.3) <= 0.01
    assert values[:, 0].max() == pytest.approx(1e3, rel=0.05)  # microvolts
    np.testing.assert_allclose(values[:, 1] / 1e6, 5 + 0.01 * np.arange(len(values)) / 100, atol=2e-3)


def test_what_is_beyond_the_band_is_filtered_out(tmp_path: Path) -> None:
    t = np.arange(20_000) / 1000
    slow, fast = np.sin(2 * np.pi * 0.05 * t), np.sin(2 * np.pi * 45 * t)
    path = write_fif(
        tmp_path / "a_raw.fif", np.stack([0 * t, 1e-6 * (slow + fast + np.sin(2 * np.pi * 8 * t)), slow]), 1e3
    )
    section = FeaturePreprocessing(signals=("ECG",), steps=500, low_hz=1, high_hz=20)
    values = prepare_signals(str(path), section, 5, 3600).values_TC
    middle = values[500:1500, 0]
    power = np.abs(np.fft.rfft(middle)) ** 2
    assert power.argmax() == 80 and power[80] > 0.99 * power.sum()
    assert np.std(middle) == pytest.approx(np.sqrt(0.5), rel=0.05)


def test_nothing_folds_into_what_is_stored(tmp_path: Path) -> None:
    """80 Hz at 100 samples a second would come out as 20 Hz."""
    t = np.arange(20_000) / 1000
    path = write_fif(tmp_path / "a_raw.fif", np.stack([0 * t, 1e-6 * np.sin(2 * np.pi * 80 * t), 0 * t]), 1e3)
    values = prepare_signals(str(path), SECTION, 5, 3600).values_TC
    assert np.std(values[100:-100, 0]) < 0.01


def test_samples_that_are_lost_are_missing_and_move_nothing(tmp_path: Path) -> None:
    t = np.arange(2000) / 100
    values_CT = np.stack([0 * t, 1e-6 * t, t])
    values_CT[1, 300:420] = np.nan
    path = write_fif(tmp_path / "a_raw.fif", values_CT, 100)
    section = FeaturePreprocessing(signals=("ECG",), steps=500)
    values = prepare_signals(str(path), section, 5, 3600).values_TC
    assert np.isnan(values[300:420]).all()
    known = np.r_[0:300, 420:2000]
    np.testing.assert_allclose(values[known, 0], t[known], atol=1e-3)


@pytest.mark.parametrize(
    ("section", "words"),
    [
        (FeaturePreprocessing(signals=("ECG", "Status"), steps=500), "no channel Status"),
        (FeaturePreprocessing(signals=("ECG", "Marker"), steps=500), "Marker marks or counts something"),
        (FeaturePreprocessing(signals=("EKG",), steps=500), "no channel EKG; it has Fp1, ECG, GSR"),
        (FeaturePreprocessing(signals=("ECG",), steps=500, high_hz=50), "ECG is sampled at 100 Hz, too slowly for"),
    ],
)
def test_what_cannot_be_read_so_is_said(tmp_path: Path, section: FeaturePreprocessing, words: str) -> None:
    names = ("Fp1", "ECG", "GSR", "Marker")
    path = write_fif(tmp_path / "a_raw.fif", np.zeros((4, 1000)), 100, names)
    with pytest.raises(DataError, match=words):
        prepare_signals(str(path), section, 5, 3600)
    with pytest.raises(DataError, match="lasts 10 s; a recording may last 5 s"):
        prepare_signals(str(path), SECTION, 5, 5)


def make_experiment(folder: Path, **changes: Any) -> Experiment:
    """Two subjects with a heart rate each; EEG and ECG are in one file."""
    rows = []
    t = np.arange(1100) / 100
    for subject, beats_per_s in (("a", 1.0), ("b", 2.0)):
        ecg = 1e-3 * (np.cos(2 * np.pi * beats_per_s * t) > 0.95)
        eeg = 1e-5 * np.random.default_rng(0).standard_normal(len(t))
        write_fif(folder / f"{subject}_raw.fif", np.stack([eeg, ecg, 0 * t]), 100)
        rows.append({"subject": subject, "recording": "r", "label": subject, "eeg": f"{subject}_raw.fif"})
    pd.DataFrame(rows).to_csv(folder / "recordings.csv", index=False)
    signals = {"preprocessing.features": {"heart": {"signals": ["ECG"], "steps": 500}}}
    table = {"data.dataset": "recordings_table", "data.root": str(folder / "recordings.csv")}
    return load_experiment("fusion", table | signals | {"data.modalities": ["heart"]} | changes)


def test_signals_are_cut_into_windows_like_everything_else(tmp_path: Path) -> None:
    e = make_experiment(tmp_path)
    _, listing = registry.scan_dataset(e.data, e.preprocessing.features)
    cut = cut_recording(listing.recordings[1], WindowFormat(e.preprocessing, ("heart",), 0), None)
    assert not cut.problems and [w["has_heart"] for w in cut.windows] == [True, True]
    for window in cut.windows:
        x = window["heart"][:, 0]
        assert window["heart"].shape == (500, 1) and np.abs(np.fft.rfft(x - x.mean())).argmax() == 10  # 2 Hz in 5 s


def test_signals_may_lie_in_files_of_their_own(tmp_path: Path) -> None:
    own = tmp_path / "belt"
    own.mkdir()
    t = np.arange(1000) / 100
    for subject in "ab":
        (own / subject).mkdir()
        write_fif(own / subject / "r.fif", np.stack([np.sin(2 * np.pi * 0.4 * t)]), 100, ("RESP",))
    section = {"breath": {"signals": ["RESP"], "steps": 250}}
    words = {"data.modalities": ["breath"], "preprocessing.features": section}
    e = make_experiment(tmp_path, **words | {"data.features": {"breath": {"path": str(own)}}})
    _, listing = registry.scan_dataset(e.data, e.preprocessing.features)
    assert [Path(r.features["breath"].path).parent.name for r in listing.recordings] == ["a", "b"]
    cut = cut_recording(listing.recordings[0], WindowFormat(e.preprocessing, ("breath",), 0), None)
    assert np.abs(np.fft.rfft(cut.windows[0]["breath"][:, 0])).argmax() == 2  # 0.4 Hz in 5 s


def test_the_encoder_of_signals_is_chosen_and_its_sizes_are_checked(tmp_path: Path) -> None:
    e = make_experiment(tmp_path)
    assert e.model["heart"].kind == "signal" and e.model["heart"].normalises_subjects
    short = make_experiment(tmp_path, **{"model.heart.depth": 8})
    with pytest.raises(ConfigError, match=r"steps is 500, but model.heart.kind=signal .* needs at least 1280"):
        build_encoder(short, "heart", DataShapes(0, 2))


def write_mixed_edf(path: Path) -> None:
    """20 s: ECG of 2 mV at 8 Hz and 1000 samples a second, skin conductance that rises from 5 to 7 uS at 4."""
    t, slow_t = np.arange(20_000) / 1000, np.arange(80) / 4
    ecg, eda = 2 * np.sin(2 * np.pi * 8 * t), 5 + slow_t / 10
    head = b"0".ljust(8) + b"X X X X".ljust(80) * 2 + b"01.01.24" + b"10.00.00" + b"768".ljust(8) + b"EDF".ljust(44)
    head += b"20".ljust(8) + b"1".ljust(8) + b"2".ljust(4) + b"ECG".ljust(16) + b"EDA".ljust(16) + b" " * 160
    for first, second, width in (
        (b"mV", b"uS", 8), (b"-10", b"0", 8), (b"10", b"10", 8), (b"-32768", b"-32768", 8), (b"32767", b"32767", 8),
        (b"", b"", 80), (b"1000", b"4", 8), (b"", b"", 32),
    ):  # fmt: skip
        head += first.ljust(width) + second.ljust(width)
    digits = [np.round((x - low) / (10 - low) * 65535 - 32768).astype("<i2") for x, low in ((ecg, -10), (eda, 0))]
    body = b"".join(
        digits[0][k * 1000 : k * 1000 + 1000].tobytes() + digits[1][k * 4 : k * 4 + 4].tobytes() for k in range(20)
    )
    path.write_bytes(head + body)


def test_signals_of_one_file_may_have_rates_and_units_of_their_own(tmp_path: Path) -> None:
    write_mixed_edf(tmp_path / "a.edf")
    section = FeaturePreprocessing(signals=("EDA", "ECG"), steps=500)
    found = prepare_signals(str(tmp_path / "a.edf"), section, 5, 3600)
    t = np.arange(2000) / 100
    assert found.duration_s == 20 and found.values_TC.shape == (2000, 2)
    # Behind the last sample of a signal of 4 Hz it is held.
    np.testing.assert_allclose(found.values_TC[:, 0], 5 + np.minimum(t, 19.75) / 10, atol=0.002)
    np.testing.assert_allclose(found.values_TC[100:-100, 1], 2000 * np.sin(2 * np.pi * 8 * t)[100:-100], atol=10)
    assert found.remarks == ()


def test_what_one_signal_lacks_costs_no_other(tmp_path: Path) -> None:
    t = np.arange(2000) / 100
    values_CT = np.stack([0 * t, 1e-6 * t, 1e-6 * t])
    values_CT[1, :300], values_CT[:, 1500:] = np.nan, np.nan
    path = write_fif(tmp_path / "a_raw.fif", values_CT, 100)
    found = prepare_signals(str(path), SECTION, 5, 3600)
    assert np.isnan(found.values_TC[:, 0]).tolist() == ((t < 3) | (t >= 15)).tolist()
    assert np.isnan(found.values_TC[:, 1]).tolist() == (t >= 15).tolist()
    assert found.missing_s == ((15, 20),)
    cut = prepare_signals(str(path), FeaturePreprocessing(signals=("ECG",), steps=500), 5, 10, (2, 16))
    assert (cut.duration_s, cut.missing_s) == (14, ((0, 1), (13, 14)))


def test_no_filter_sees_across_a_join_and_a_bad_signal_is_missing(tmp_path: Path) -> None:
    t = np.arange(2000) / 100
    step = np.where(t < 10, 0.0, 1e-3)
    path = write_fif(tmp_path / "a_raw.fif", np.stack([0 * t, step, step]), 100)
    raw = mne.io.read_raw_fif(path, preload=True, verbose="ERROR")
    raw.set_annotations(mne.Annotations([10], [0], ["EDGE boundary"]))
    raw.info["bads"] = ["GSR"]
    raw.save(path, overwrite=True, verbose="ERROR")
    section = FeaturePreprocessing(signals=("ECG", "GSR"), steps=500, high_hz=2)
    found = prepare_signals(str(path), section, 5, 3600)
    np.testing.assert_allclose(found.values_TC[:, 0], step * 1e6, atol=0.01)
    assert np.isnan(found.values_TC[:, 1]).all() and found.missing_s == ()
    assert any("GSR is marked bad in the file" in remark for remark in found.remarks)
    assert any("pieces were joined" in remark for remark in found.remarks)


def test_seconds_of_a_window_are_those_of_its_signals(tmp_path: Path) -> None:
    e = make_experiment(tmp_path)
    t = np.arange(1200) / 100
    ecg = np.where((t >= 3) & (t < 7), np.nan, 1e-3 * np.cos(2 * np.pi * t))
    write_fif(tmp_path / "a_raw.fif", np.stack([0 * t, ecg, 0 * t]), 100)
    _, listing = registry.scan_dataset(e.data, e.preprocessing.features)
    cut = cut_recording(listing.recordings[0], WindowFormat(e.preprocessing, ("heart",), 0), None)
    for window in cut.windows:
        known_s = np.isfinite(window["heart"][:, 0]).sum() / 100
        assert window["has_heart"] and window["heart_seconds"] == pytest.approx(known_s) == pytest.approx(3)


def test_tables_of_bids_count_for_signals_too(tmp_path: Path) -> None:
    """20 s at 100 Hz: a second is marked bad, one of two belts is bad, and the tables of the second run are damaged."""
    folder = tmp_path / "sub-01" / "eeg"
    folder.mkdir(parents=True)
    (tmp_path / "participants.tsv").write_text("participant_id\tgroup\nsub-01\ta\n")
    t = np.arange(2000) / 100
    rows = "Fp1\tEEG\tuV\tgood\nECG\tECG\tuV\tgood\nRESP\tRESP\tuV\tbad\n"
    for run in (1, 2):
        name = f"sub-01_task-rest_run-{run}"
        write_edf(folder / f"{name}_eeg.edf", np.stack([0 * t, 100 * np.sin(t), t]), ("Fp1", "ECG", "RESP"))
        (folder / f"{name}_channels.tsv").write_text("name\ttype\tunits\tstatus\n" + rows * run)
        (folder / f"{name}_events.tsv").write_text("onset\tduration\ttrial_type\n2\t1\tBAD_cough\n")
    words = {"data.dataset": "bids", "data.root": str(tmp_path), "data.bids.label": "participants.group"}
    section = {"belts": {"signals": ["ECG", "RESP"], "steps": 500}}
    e = load_experiment("fusion", words | {"data.modalities": ["belts"], "preprocessing.features": section})
    _, listing = registry.scan_dataset(e.data, e.preprocessing.features)
    good, damaged = (cut_recording(r, WindowFormat(e.preprocessing, ("belts",), 0), None) for r in listing.recordings)
    first = good.windows[0]["belts"]
    assert np.isnan(first[:, 0]).tolist() == ((t >= 2) & (t < 3))[:500].tolist() and np.isnan(first[:, 1]).all()
    assert [window["belts_seconds"] for window in good.windows] == [4, 5, 5, 5]
    said = " ".join(good.quality["remarks"])
    assert "RESP is bad in channels.tsv" in said and "spans that are marked bad are missing" in said
    assert damaged.windows == [] and "two rows have the name" in damaged.problems[0].reason


def test_check_names_files_without_a_signal(tmp_path: Path) -> None:
    e = make_experiment(tmp_path)
    write_fif(tmp_path / "b_raw.fif", np.zeros((2, 1100)), 100, ("Fp1", "GSR"))
    (problem,) = check_dataset(e).problems
    assert problem.subject == "b" and "has no channel ECG; it has Fp1, GSR" in problem.reason


def test_signals_need_no_eeg_beside_them(tmp_path: Path) -> None:
    """The page of qualities is written of a data set whose files have no channel of EEG."""
    e = make_experiment(tmp_path, **{"store.shards": str(tmp_path / "shards")})
    for subject in "ab":
        write_fif(
            tmp_path / f"{subject}_raw.fif", 1e-3 * np.random.default_rng(0).normal(size=(1, 1100)), 100, ("ECG",)
        )
    write_shards(e)
    index = open_dataset(e).index
    quality = ({"subject": "a", "recording": "r", "label": 0, "windows": 2, "remarks": ["heart: it was paused"]},)
    text, _ = write_quality_page(e, PreprocessingResult(index, (), 0, quality), frames=False)
    assert "heart: it was paused" in text
