"""After alignment people look alike in second order, whatever their gains and mixtures; no label is looked at."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from eav_ray.config import EEGPreprocessing
from eav_ray.data.preprocessing.alignment import compute_alignment
from eav_ray.data.preprocessing.eeg import PreparedEEG, prepare_eeg
from eav_ray.data.recordings import Listing, RawEEG, Recording

CHANNELS, HZ = ("Fp1", "Fp2", "C3", "C4", "O1", "O2"), 200
NAMES = tuple(Recording("subject1", f"{k:03d}", k % 2, "speaking", k, eeg=f"{k}") for k in range(5))


def session(seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((6, 6)) * 20
    found = [mixing @ rng.standard_normal((6, 2000)) for _ in range(5)]
    return [x - x.mean(1, keepdims=True) for x in found]


def mean_covariance(signals: Sequence[np.ndarray]) -> np.ndarray:
    return np.mean([x @ x.T / x.shape[1] for x in signals], axis=0)


def test_the_mean_covariance_becomes_the_identity() -> None:
    recordings = session()
    matrix = compute_alignment(recordings, "euclidean")
    np.testing.assert_allclose(mean_covariance([matrix @ x for x in recordings]), np.eye(6), atol=1e-9)
    np.testing.assert_allclose(matrix, matrix.T)


def test_people_who_differ_by_a_mixture_differ_by_a_rotation_only() -> None:
    recordings = session()
    other = [np.diag([3.0, 0.5, 1, 2, 1, 0.1]) @ x for x in recordings]
    one, two = (compute_alignment(s, "euclidean") @ s[0] for s in (recordings, other))
    rotation = two @ np.linalg.pinv(one)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(6), atol=1e-8)


def test_standardisation_gives_each_channel_the_same_spread() -> None:
    recordings = session()
    matrix = compute_alignment(recordings, "standardise")
    np.testing.assert_allclose(np.diag(mean_covariance([matrix @ x for x in recordings])), 1)
    assert (matrix == np.diag(np.diag(matrix))).all()


@pytest.mark.parametrize("kind", ["standardise", "euclidean"])
def test_an_average_reference_and_masked_channels_leave_finite_numbers(kind: str) -> None:
    recordings = [x - x.mean(0) for x in session()]
    recordings[1][2] = 0
    whole = [x.copy() for x in recordings]
    for x in whole:
        x[4] = 0
    for signals in (recordings, whole):
        matrix = compute_alignment(signals, kind)
        assert np.isfinite(matrix).all() and np.abs(matrix).max() < 1e3
    assert not compute_alignment(whole, kind)[4].any()


class SyntheticReader:
    """Recordings of one person, each at another gain."""

    name, classes, modalities, channels = "synthetic", ("a", "b"), ("eeg",), CHANNELS

    def scan(self) -> Listing:
        return Listing(NAMES, ())

    def session_recordings(self, recordings: Sequence[Recording]) -> list[Recording]:
        return list(NAMES)

    def read_eeg(self, recording: Recording) -> RawEEG:
        rng = np.random.default_rng(int(recording.recording))
        signal = np.cumsum(rng.standard_normal((1, 4 * HZ)), axis=1) + rng.standard_normal((6, 4 * HZ))
        return RawEEG(signal * 10.0, HZ, CHANNELS, "microvolt")


@pytest.mark.parametrize("kind", ["clean", "official"])
@pytest.mark.parametrize("align", ["standardise", "euclidean"])
def test_a_part_of_a_persons_recordings_is_aligned_as_all_of_them(kind: str, align: str) -> None:
    preprocessing = EEGPreprocessing(kind=kind, align=align, bad_channel_correlation=0)  # pyright: ignore[reportArgumentType]
    everything = dict(prepare_eeg(SyntheticReader(), NAMES, preprocessing))
    part = dict(prepare_eeg(SyntheticReader(), NAMES[3:], preprocessing, NAMES))
    for recording in NAMES[3:]:
        one, other = everything[recording], part[recording]
        assert isinstance(one, PreparedEEG) and isinstance(other, PreparedEEG)
        np.testing.assert_array_equal(one.x_CT, other.x_CT)
    assert all(isinstance(p, PreparedEEG) and p.x_CT.dtype == np.float32 for p in everything.values())


def test_a_recording_of_another_montage_is_left_to_be_refused() -> None:
    class Odd(SyntheticReader):
        def read_eeg(self, recording: Recording) -> RawEEG:
            raw = super().read_eeg(recording)
            n = 5 if recording.recording == "003" else 6
            return RawEEG(raw.values_CT[:n], raw.hz, raw.channels[:n], raw.unit)

    found = [p for _, p in prepare_eeg(Odd(), NAMES, EEGPreprocessing(align="euclidean", bad_channel_correlation=0))]
    assert [len(p.x_CT) for p in found if isinstance(p, PreparedEEG)] == [6, 6, 6, 5, 6]


def test_labels_change_nothing() -> None:
    preprocessing = EEGPreprocessing(align="euclidean", bad_channel_correlation=0)
    other = [replace(r, label=1 - r.label) for r in NAMES]
    for (_, one), (_, two) in zip(
        prepare_eeg(SyntheticReader(), NAMES, preprocessing),
        prepare_eeg(SyntheticReader(), other, preprocessing),
        strict=True,
    ):
        assert isinstance(one, PreparedEEG) and isinstance(two, PreparedEEG)
        np.testing.assert_array_equal(one.x_CT, two.x_CT)
