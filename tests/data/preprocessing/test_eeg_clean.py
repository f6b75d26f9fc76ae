"""The clean profile keeps the phase, the band and the scale of EEG, and lets no bad channel into the others."""

import mne
import numpy as np
import pytest
from scipy.signal import resample_poly

from eav_ray.config import EEGPreprocessing
from eav_ray.data.datasets.eav import EAV_CHANNELS
from eav_ray.data.preprocessing.eeg_clean import clean_eeg
from eav_ray.data.recordings import RawEEG
from eav_ray.electrodes import resolve_electrodes
from eav_ray.errors import DataError

HZ, SECONDS = 500, 20
TIME_T = np.arange(HZ * SECONDS) / HZ
UNREFERENCED = EEGPreprocessing(reference="none")


def raw(values_CT: np.ndarray, *, hz: float = HZ, unit: str = "auto") -> RawEEG:
    names = EAV_CHANNELS[: len(values_CT)]
    return RawEEG(values_CT, hz, names, unit)


def noise(channels: int = 30, seconds: float = SECONDS, hz: int = HZ) -> np.ndarray:
    """Each channel's own, and what volume conduction gives to all."""
    rng, length = np.random.default_rng(0), int(hz * seconds)
    return rng.normal(0, 30, (channels, length)) + rng.normal(0, 40, length)


def tone(hz: float, sampled_hz: int = HZ, seconds: float = SECONDS) -> np.ndarray:
    t = np.arange(int(sampled_hz * seconds)) / sampled_hz
    return np.tile(50 * np.sin(2 * np.pi * hz * t + 0.7), (4, 1))


def decibel(hz: float) -> float:
    cleaned = clean_eeg(raw(tone(hz)), UNREFERENCED).x_CT
    return 20 * np.log10(cleaned[0, 200:-200].std() / tone(hz)[0].std())


@pytest.mark.parametrize("hz", [1.0, 10.0])
def test_a_tone_keeps_its_phase(hz: float) -> None:
    cleaned = clean_eeg(raw(tone(hz)), UNREFERENCED).x_CT
    expected = tone(hz)[0, ::5]
    middle = slice(500, 1500)
    assert np.corrcoef(cleaned[0, middle], expected[middle])[0, 1] > 0.9999


@pytest.mark.parametrize("hz", [2, 10, 30])
def test_the_pass_band_is_kept_within_one_decibel(hz: float) -> None:
    assert abs(decibel(hz)) < 1


@pytest.mark.parametrize("hz", [0.1, 49.8, 50, 60, 70, 150])
def test_drift_mains_and_what_would_fold_into_the_band_are_suppressed(hz: float) -> None:
    assert decibel(hz) < -30


def test_the_mains_are_suppressed_less_within_half_a_second_of_the_ends() -> None:
    """The price of a filter that cannot know how the mains go on: -30 dB inside, about -10 dB at the ends."""
    cleaned = clean_eeg(raw(tone(50)), UNREFERENCED).x_CT
    assert 20 * np.log10(cleaned[:, 75:-75].std() / tone(50).std()) < -30
    assert 20 * np.log10(cleaned.std() / tone(50).std()) < -15


def test_an_offset_and_a_drift_do_not_ring_at_the_ends() -> None:
    offset_and_drift = noise() + 5000 + 20 * TIME_T
    drifting = clean_eeg(raw(offset_and_drift), EEGPreprocessing()).x_CT
    still = clean_eeg(raw(noise()), EEGPreprocessing()).x_CT
    assert np.abs(drifting - still).max() < still.std()


@pytest.mark.parametrize(("hz", "seconds"), [(500, 20), (500, 3.5), (256, 4), (100, 4), (200, 2), (1000, 2), (1024, 1)])
def test_any_rate_becomes_the_profiles(hz: int, seconds: float) -> None:
    cleaned = clean_eeg(raw(noise(4, seconds, hz), hz=hz), EEGPreprocessing()).x_CT
    assert cleaned.shape == (4, 100 * seconds)
    assert cleaned.dtype == np.float32


def test_the_average_reference_leaves_no_mean() -> None:
    cleaned = clean_eeg(raw(noise() + 40 * np.sin(2 * np.pi * 10 * TIME_T)), EEGPreprocessing()).x_CT
    np.testing.assert_allclose(cleaned.mean(axis=0), 0, atol=1e-4)


def test_volts_are_recognised_and_become_microvolts() -> None:
    as_microvolt, as_volt = (
        clean_eeg(raw(noise()), EEGPreprocessing()),
        clean_eeg(raw(noise() * 1e-6), EEGPreprocessing()),
    )
    assert (as_microvolt.unit, as_volt.unit) == ("microvolt", "volt")
    np.testing.assert_allclose(as_volt.x_CT, as_microvolt.x_CT, rtol=1e-3, atol=1e-3)


def test_a_stated_unit_is_believed() -> None:
    quality = clean_eeg(raw(noise() * 1e-6, unit="volt"), EEGPreprocessing(unit="microvolt"))
    assert quality.unit == "volt"
    quality = clean_eeg(raw(noise()), EEGPreprocessing(unit="microvolt"))
    assert quality.unit == "microvolt"


@pytest.mark.parametrize("damage", ["not finite", "flat", "extreme", "uncorrelated"])
def test_a_bad_channel_is_found_and_does_not_touch_the_others(damage: str) -> None:
    x_CT = noise() + 40 * np.sin(2 * np.pi * 10 * TIME_T + np.arange(30)[:, None] / 10)
    bad = EAV_CHANNELS.index("Cz")
    spoiled = x_CT.copy()
    match damage:
        case "not finite":
            spoiled[bad, 17], spoiled[bad, 3000:5000] = np.nan, np.inf
        case "uncorrelated":
            spoiled[bad] = np.random.default_rng(1).normal(0, 50, x_CT.shape[1])
        case "flat":
            spoiled[bad] = -3276.8
        case "extreme":
            spoiled[bad] *= 1000
    whole, _, none, *_ = clean_eeg(raw(x_CT), UNREFERENCED)
    cleaned, _, found, *_ = clean_eeg(raw(spoiled), UNREFERENCED)
    assert none == {} and found == {"Cz": damage}
    others = np.arange(30) != bad
    np.testing.assert_allclose(cleaned[others], whole[others], atol=1e-3)
    # Splines know what neighbours share, here 10 Hz, and not the channel's own noise.
    assert np.corrcoef(cleaned[bad], whole[bad])[0, 1] > 0.8


def test_a_bad_channel_without_a_known_position_is_zero() -> None:
    x_CT = noise(6)
    x_CT[2] = 0
    cleaned, _, bad, *_ = clean_eeg(RawEEG(x_CT, HZ, ("A", "B", "C", "D", "E", "F"), "auto"), EEGPreprocessing())
    assert bad == {"C": "flat"}
    assert not cleaned[2].any() and cleaned[[0, 1, 3, 4, 5]].std(axis=1).all()


@pytest.mark.parametrize("channels", [3, 4, 5, 8])
def test_few_channels_are_enough(channels: int) -> None:
    x_CT = noise(channels)
    x_CT[1] = np.nan
    cleaned = clean_eeg(raw(x_CT), EEGPreprocessing())
    assert cleaned.bad_channels == {EAV_CHANNELS[1]: "not finite"} and np.isfinite(cleaned.x_CT).all()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda x: x[0], "shape"),
        (lambda x: x[:29], "30 channels"),
        (lambda x: x[:, :499], "at least 1 s"),
        (lambda x: np.where(np.arange(30)[:, None] < 16, 0, x), "16 of 30"),
        (lambda x: x * np.nan, "30 of 30"),
    ],
)
def test_what_is_no_recording_is_refused(spoil, words: str) -> None:
    with pytest.raises(DataError, match=words):
        clean_eeg(RawEEG(spoil(noise()), HZ, EAV_CHANNELS, "auto"), EEGPreprocessing())


def test_a_rate_too_slow_for_the_band_is_refused_with_the_way_out() -> None:
    with pytest.raises(DataError, match="set preprocessing.eeg.high_hz below 32"):
        clean_eeg(raw(noise(4, 20, 64), hz=64), EEGPreprocessing())


def test_the_input_is_left_alone() -> None:
    x_CT = noise()
    before = x_CT.copy()
    clean_eeg(raw(x_CT), EEGPreprocessing())
    np.testing.assert_array_equal(x_CT, before)


def test_filters_are_those_of_mne() -> None:
    """Max difference, double precision, of one recording after all filters, with decimation as the profile does it."""
    x_CT = noise() - noise().mean(axis=1, keepdims=True)
    notched = mne.filter.notch_filter(
        x_CT,
        HZ,
        [50.0],
        notch_widths=2.0,
        method="iir",
        iir_params={"order": 1, "ftype": "butter", "output": "sos"},
        phase="zero",
        verbose="ERROR",
    )
    decimated = resample_poly(notched, 1, 5, axis=1, padtype="line")
    expected = mne.filter.filter_data(
        decimated,
        100,
        0.5,
        45.0,
        method="iir",
        iir_params={"order": 4, "ftype": "butter", "output": "sos"},
        phase="zero",
        verbose="ERROR",
    )
    found = clean_eeg(raw(noise()), UNREFERENCED).x_CT
    assert np.abs(found - expected).max() < 1e-5 * expected.std()


def test_no_channel_is_uncorrelated_where_none_is_asked_about() -> None:
    x_CT = np.random.default_rng(0).normal(0, 30, (30, 10000))
    assert clean_eeg(raw(x_CT), EEGPreprocessing(bad_channel_correlation=0)).bad_channels == {}
    with pytest.raises(DataError, match=r"uncorrelated.*preprocessing\.eeg\.bad_channel_correlation=0"):
        clean_eeg(raw(x_CT), EEGPreprocessing())


def test_names_as_recorders_write_them_mean_their_positions() -> None:
    names = ["EEG Fp1-REF", "FP2", "F3.", "EEG C3-A1", "EEG Oz", "eeg_t7", "Pz-M1"]
    assert resolve_electrodes(names) == ["Fp1", "Fp2", "F3", "C3", "Oz", "T7", "Pz"]
    assert resolve_electrodes(["Fp1-F7", "ECG", "", "EEG 1", "Cz", "EEG Cz"]) == ["", "", "", "", "Cz", ""]


def test_a_bad_channel_is_interpolated_whatever_the_recorder_called_it() -> None:
    x_CT = noise()
    x_CT[5] = 0
    plain = clean_eeg(raw(x_CT), EEGPreprocessing())
    named = RawEEG(x_CT, HZ, tuple(f"EEG {name.upper()}-REF" for name in EAV_CHANNELS), "auto")
    found = clean_eeg(named, EEGPreprocessing())
    assert found.bad_channels == {f"EEG {EAV_CHANNELS[5].upper()}-REF": "flat"}
    np.testing.assert_array_equal(found.x_CT, plain.x_CT)
