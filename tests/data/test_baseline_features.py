"""What classical baselines read of a window equals what librosa and SciPy make of its recording."""

import librosa
import numpy as np
import pytest
from scipy import signal

from eav_ray.config import Preprocessing
from eav_ray.data.modalities.band_power import FREQUENCY_BANDS
from eav_ray.data.modalities.registry import get_modality

HZ = 16000


def draw_clip(seconds: float, *, silent_s: float = 0.0) -> np.ndarray:
    """A tone that swells, in noise, between silent ends 60 dB below it."""
    rng = np.random.default_rng(0)
    time_s = np.arange(int(HZ * seconds)) / HZ
    tone = 0.3 * np.sin(2 * np.pi * 220 * time_s) * (1 + np.sin(2 * np.pi * 3 * time_s)) + 0.02 * rng.normal(
        size=len(time_s)
    )
    noise = 1e-4 * rng.normal(size=(2, int(HZ * silent_s)))
    return np.concatenate([noise[0], tone, noise[1]]).astype(np.float32)


def compute(name: str, windows: np.ndarray) -> np.ndarray:
    return get_modality(name).compute_baseline_features(windows, Preprocessing())


def test_audio_features_are_librosas_of_the_trimmed_recording() -> None:
    clip = draw_clip(2.0, silent_s=0.5)
    padded = np.pad(clip, (0, 5 * HZ - len(clip)))
    sound, (begin, end) = librosa.effects.trim(clip, top_db=30)
    assert begin > 0.4 * HZ and end < 2.7 * HZ  # there was something to trim
    common = {"y": sound, "sr": HZ, "n_fft": 512, "hop_length": 160}
    cepstra = librosa.feature.mfcc(n_mfcc=30, **common)
    decibel = librosa.power_to_db(librosa.feature.melspectrogram(n_mels=64, **common))
    (found,) = compute("audio", padded[None])
    assert found.shape == (3 * 30 + 2 * 64,)
    np.testing.assert_allclose(found[:30], cepstra.mean(1), rtol=1e-5)
    np.testing.assert_allclose(found[30:60], cepstra.std(1), rtol=1e-5)
    differences = librosa.feature.delta(cepstra, mode="nearest").std(1)
    np.testing.assert_allclose(found[60:90], differences, rtol=1e-5)
    np.testing.assert_allclose(found[90:154], decibel.mean(1), rtol=1e-5)
    np.testing.assert_allclose(found[154:], decibel.std(1), rtol=1e-5)


@pytest.mark.parametrize("samples", [0, 1, 100, 3000])
def test_a_window_of_next_to_no_sound_has_finite_features(samples: int) -> None:
    window = np.zeros((1, 5 * HZ), np.float32)
    window[:, :samples] = 0.1
    assert np.isfinite(compute("audio", window)).all()


def test_eeg_features_are_the_log_power_of_bands_by_welch() -> None:
    rng = np.random.default_rng(0)
    x = (20 * rng.normal(size=(3, 4, 500))).astype(np.float32)
    x[1, 2] = 0
    found = compute("eeg", x).reshape(3, 4, len(FREQUENCY_BANDS))
    hz, power = signal.welch(x[0, 3].astype(float), 100, nperseg=200)
    for band, (low, high) in enumerate(FREQUENCY_BANDS.values()):
        expected = 10 * np.log10(power[(hz >= low) & (hz < high)].mean())
        np.testing.assert_allclose(found[0, 3, band], expected, rtol=1e-6)
    assert np.isnan(found[1, 2]).all() and np.isfinite(found).sum() == found.size - len(FREQUENCY_BANDS)


def test_given_features_are_themselves_and_of_several_steps_mean_and_sd_of_what_is_known() -> None:
    one = np.array([[[1.0, np.nan, 3.0]]], np.float32)
    np.testing.assert_array_equal(compute("face", one), [[1.0, np.nan, 3.0]])
    steps = np.array([[[1.0, 5.0], [3.0, np.nan], [np.nan, np.nan]], [[np.nan, 1.0]] * 3], np.float32)
    np.testing.assert_allclose(compute("face", steps), [[2, 5, 1, 0], [np.nan, 1, np.nan, 0]])


def test_pictures_are_how_light_their_blocks_are_and_how_strong_edges() -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (3, 4, 48, 32, 3), dtype=np.uint8)
    found = compute("video", x).reshape(3, 2, 3, 8, 8)
    grey = np.log(x.astype(float).mean(-1) + 10)
    light = grey.reshape(3, 4, 8, 6, 8, 4).mean((3, 5))
    np.testing.assert_allclose(found[:, 0, 0], light.mean(1), rtol=1e-5)
    np.testing.assert_allclose(found[:, 1, 0], light.std(1), rtol=1e-3, atol=1e-5)
    down = np.zeros_like(grey)
    down[:, :, :-1] = np.abs(grey[:, :, 1:] - grey[:, :, :-1])
    np.testing.assert_allclose(found[:, 0, 1], down.reshape(3, 4, 8, 6, 8, 4).mean((1, 3, 5)), rtol=1e-4)
    assert compute("video", x[:0]).shape[0] == 0


def test_light_that_is_twice_as_strong_moves_no_edge() -> None:
    x = np.random.default_rng(0).integers(40, 120, (1, 2, 50, 50, 3)).astype(np.uint8)
    dim, bright = (compute("video", each).reshape(2, 3, -1) for each in (x, 2 * x))
    assert np.abs(bright[:, 1:] - dim[:, 1:]).max() < 0.1 < (bright[0, 0] - dim[0, 0]).min()


def test_pictures_of_fewer_pixels_than_blocks_keep_each() -> None:
    assert compute("video", np.zeros((1, 2, 5, 4, 3), np.uint8)).shape == (1, 2 * 3 * 20)
