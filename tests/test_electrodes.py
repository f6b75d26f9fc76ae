"""Electrodes are known by their position, whatever a recorder calls them and in whatever order they come."""

import numpy as np
import pytest

from eav_ray.config import EEGPreprocessing
from eav_ray.data.preprocessing.eeg import PreparedEEG, prepare_eeg
from eav_ray.data.recordings import DatasetReader, RawEEG, Recording
from eav_ray.electrodes import (
    canonicalize_channel_name,
    describe_left_out,
    match_channels,
)
from eav_ray.errors import DataError

WANTED = ("Fp1", "Fp2", "C3", "C4", "O1", "O2")
RECORDING = Recording("subject1", "001", 0, "speaking", 0, eeg="a.edf")


@pytest.mark.parametrize(
    ("name", "position"),
    [
        ("EEG FP1-REF", "Fp1"),
        ("eeg fp1-le", "Fp1"),
        ("Fp1.", "Fp1"),
        (" fcz ", "FCz"),
        ("T3", "T7"),
        ("EEG T4-A1A2", "T8"),
        ("t5", "P7"),
        ("T6", "P8"),
        ("T7", "T7"),
        ("Fp1-F7", "Fp1-F7"),  # bipolar: no one position
        (" ECG ", "ECG"),
    ],
)
def test_a_name_is_spelt_by_the_position_that_it_means(name: str, position: str) -> None:
    assert canonicalize_channel_name(name) == position


def test_channels_are_found_by_position() -> None:
    assert match_channels(["T3", "EEG O2-REF", "FP1"], ["Fp1", "T7", "O2"], "a.edf") == [2, 0, 1]


def test_a_missing_channel_is_named() -> None:
    with pytest.raises(DataError, match=r"a.edf has no EEG channel C4; wanted are Fp1, C4, and it has Fp1, O1"):
        match_channels(["fp1", "O1"], ["Fp1", "C4"], "a.edf")


def test_two_channels_of_one_position_are_refused() -> None:
    with pytest.raises(DataError, match="a.edf has more than one EEG channel T7; keep one of each"):
        match_channels(["T3", "T7", "O1"], ["T7"], "a.edf")


def test_extra_channels_are_named() -> None:
    assert describe_left_out(["ECG", "fp1", "Cz "], ["Fp1"]) == "ECG, Cz"
    assert describe_left_out(["O1", "FP1"], ["Fp1", "O1"]) == ""


class Permuted(DatasetReader):
    """Noise in microvolts, of the same electrodes in an order and a spelling of its own, and some more."""

    def __init__(self, channels: tuple[str, ...]) -> None:
        self._channels = channels

    def read_eeg(self, recording: Recording) -> RawEEG:
        rows = {name: np.random.default_rng(k).standard_normal(4000) * 20 for k, name in enumerate((*WANTED, "ECG"))}
        values = [rows[canonicalize_channel_name(name)] for name in self._channels]
        return RawEEG(np.stack(values), 200, self._channels, "microvolt")


@pytest.mark.parametrize("kind", ["clean", "official"])
def test_permuted_electrodes_are_put_back_before_anything_is_filtered(kind: str) -> None:
    preprocessing = EEGPreprocessing(kind=kind, bad_channel_correlation=0)
    others = ("EEG O2-REF", "ECG", "c4", "FP1", "O1.", "Fp2", "C3")
    signals = []
    for reader in (Permuted(WANTED), Permuted(others)):
        ((_, prepared),) = prepare_eeg(reader, [RECORDING], preprocessing, channels=WANTED)
        assert isinstance(prepared, PreparedEEG)
        signals.append(prepared.x_CT)
    assert signals[0].shape[0] == len(WANTED)
    np.testing.assert_array_equal(*signals)


def test_a_recording_without_a_wanted_electrode_says_which() -> None:
    ((_, found),) = prepare_eeg(Permuted(WANTED[:5]), [RECORDING], EEGPreprocessing(), channels=WANTED)
    assert isinstance(found, DataError) and "a.edf has no EEG channel O2" in str(found)
