"""Blinks that were mixed into real EEG are taken out again, and EEG without any is left as it is."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from eav_ray.config import EEGPreprocessing
from eav_ray.data.datasets.eegmat import EEGMAT
from eav_ray.data.preprocessing import eeg_ica
from eav_ray.data.preprocessing.eeg_clean import clean_eeg
from eav_ray.data.recordings import RawEEG
from eav_ray.errors import ConfigError, DataError

PLAIN = EEGPreprocessing()
BLINKS = replace(PLAIN, artefacts="blinks")
FRONTAL = {"Fp1": 1.0, "Fp2": 1.0, "F7": 0.35, "F8": 0.35, "F3": 0.4, "F4": 0.4, "Fz": 0.4}


@pytest.fixture(scope="module")
def piece(real: Path) -> RawEEG:
    """20 s of somebody at rest."""
    dataset = EEGMAT(str(real / "eegmat"))
    raw = dataset.read_eeg(dataset.scan().recordings[0])
    return replace(raw, values_CT=raw.values_CT[:, :10_000])


@pytest.mark.real
def test_mixed_in_blinks_are_taken_out(piece: RawEEG) -> None:
    wave_T = np.zeros(piece.values_CT.shape[1])
    for start in range(500, 9500, 2000):
        wave_T[start : start + 200] = 150 * np.hanning(200)
    weight_C = np.array([FRONTAL.get(name, 0.05) for name in piece.channels])
    mixed = replace(piece, values_CT=piece.values_CT + weight_C[:, None] * wave_T)
    truth, left = clean_eeg(piece, PLAIN).x_CT, clean_eeg(mixed, PLAIN).x_CT
    found = clean_eeg(mixed, BLINKS)
    assert "eye blink" in found.removed_components and set(found.removed_components) == {"eye blink"}
    assert np.square(found.x_CT - truth).mean() < 0.2 * np.square(left - truth).mean()


@pytest.mark.real
def test_the_same_recording_gives_the_same_bits(piece: RawEEG) -> None:
    np.testing.assert_array_equal(clean_eeg(piece, BLINKS).x_CT, clean_eeg(piece, BLINKS).x_CT)


@pytest.mark.real
def test_nothing_found_is_nothing_changed(piece: RawEEG) -> None:
    found = clean_eeg(piece, BLINKS)
    assert found.removed_components == ()
    np.testing.assert_array_equal(found.x_CT, clean_eeg(piece, PLAIN).x_CT)


def test_too_few_channels_are_refused() -> None:
    x_CT = np.random.default_rng(0).normal(0, 20, (4, 5000))
    with pytest.raises(DataError, match="at least 8 good channels"):
        clean_eeg(RawEEG(x_CT, 500.0, ("Fp1", "Fp2", "C3", "C4"), "microvolt"), BLINKS)


def test_missing_packages_are_told_with_the_command_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    eeg_ica.require_ica_packages()
    monkeypatch.setitem(eeg_ica.REQUIRED_PACKAGES, "no_such_module", "no-such-package")
    with pytest.raises(ConfigError, match=r"needs .*no-such-package.*\[artefacts\]"):
        eeg_ica.require_ica_packages()
