"""Rates that are no whole number come out at their time, as well as even ones, and as fast."""

import numpy as np
import pytest
from scipy.signal import resample_poly

from eav_ray.config import EEGPreprocessing
from eav_ray.data.preprocessing.eeg_clean import PreparedEEG, clean_eeg
from eav_ray.data.preprocessing.eeg_official import filter_official
from eav_ray.data.preprocessing.resampling import count_resampled, resample
from eav_ray.data.recordings import RawEEG
from tests.helpers.eeg_files import NAMES

ODD_RATES = [499.907, 500 * 128 / 129, 1e6 / 3906, 511.99999, 250.00001, 1000 / 3, 199.9, 128.5]


def tones(t: np.ndarray) -> np.ndarray:
    """Of 2, 10 and 30 Hz, whose phases tell times apart."""
    return sum(a * np.sin(2 * np.pi * f * t + p) for f, a, p in ((2, 30, 0.3), (10, 20, 1.0), (30, 10, 2.0)))


@pytest.mark.parametrize("hz", ODD_RATES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_odd_rates_follow_the_formula_to_the_end_of_an_hour_s_part(hz: float, dtype: type) -> None:
    """Against the tones themselves: after 1000 s, a rate that is off by one in a million would be off by 1 ms."""
    n_times = round(1000 * hz)
    found = resample(tones(np.arange(n_times) / hz).astype(dtype), hz, 100)
    assert found.dtype == dtype and len(found) == count_resampled(n_times, hz, 100) == int(np.ceil(n_times * 100 / hz))
    inside = slice(100, len(found) - 100)
    np.testing.assert_allclose(found[inside], tones(np.arange(len(found)) / 100)[inside], atol=0.15)


@pytest.mark.parametrize("hz", [500.0, 256.0, 200.0, 1000.0, 512.0, 128.0])
def test_even_rates_are_those_of_scipy(hz: float) -> None:
    x_CT = np.random.default_rng(0).normal(size=(2, round(10 * hz)))
    divisor = np.gcd(100, int(hz))
    expected = resample_poly(x_CT, 100 // divisor, int(hz) // divisor, axis=1)
    np.testing.assert_allclose(resample(x_CT, hz, 100), expected, atol=1e-9)


@pytest.mark.parametrize("hz", [499.907, 1e6 / 3906])
def test_an_odd_rate_resamples_noise_as_a_large_polyphase_filter_does(hz: float) -> None:
    """Well below the new Nyquist frequency they agree; what lies above it does not fold, which SciPy's lets through."""
    rng = np.random.default_rng(0)
    x_T = rng.normal(0, 30, round(60 * hz))
    up, down = 10_000, round(hz * 100)
    found, expected = (np.fft.rfft(y[500:5500]) for y in (resample(x_T, hz, 100), resample_poly(x_T, up, down)))
    f = np.fft.rfftfreq(5000, 0.01)
    low = (f > 1) & (f < 25)
    assert np.abs(found - expected)[low].mean() < 0.05 * np.abs(expected)[low].mean()
    tone = resample(np.sin(2 * np.pi * 60 * np.arange(len(x_T)) / hz), hz, 100)
    assert np.abs(tone[100:-100]).max() < 1e-3


@pytest.mark.parametrize("kind", ["clean", "official"])
@pytest.mark.parametrize("hz", [499.907, 500 * 128 / 129])
def test_an_event_after_1000_s_lies_at_its_sample(kind: str, hz: float) -> None:
    n_times = round(1010 * hz)
    t = np.arange(n_times) / hz
    rng = np.random.default_rng(0)
    x_CT = rng.normal(0, 5, (8, n_times)).astype(np.float32)
    x_CT += (np.abs(t - 1000) < 0.5) * 200 * np.sin(2 * np.pi * 10 * (t - 1000)) * np.linspace(-1, 1, 8)[:, None]
    raw = RawEEG(x_CT, hz, NAMES, "microvolt")
    preprocessing = (
        EEGPreprocessing(kind="official")
        if kind == "official"
        else EEGPreprocessing(reference="none", bad_channel_correlation=0)
    )
    found = filter_official([raw], preprocessing)[0] if kind == "official" else clean_eeg(raw, preprocessing)
    even = RawEEG(np.stack([np.interp(np.arange(101_000) / 100, t, row) for row in x_CT]), 100.0, NAMES, "microvolt")
    reference = filter_official([even], preprocessing)[0] if kind == "official" else clean_eeg(even, preprocessing)
    assert isinstance(found, PreparedEEG) and isinstance(reference, PreparedEEG)
    part, expected = found.x_CT[0, 99_900:100_150], reference.x_CT[0, 99_900:100_150]
    lags = np.correlate(part, expected, "full")
    assert abs(int(np.argmax(lags)) - (len(expected) - 1)) == 0 and np.corrcoef(part, expected)[0, 1] > 0.97


def test_an_odd_rate_needs_no_filter_of_millions_of_taps(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("polyphase resampling of a rate without a simple ratio")

    monkeypatch.setattr("eav_ray.data.preprocessing.resampling.resample_poly", refuse)
    assert resample(np.zeros((8, 10_000)), 499.907, 100).shape == (8, 2001)
