"""The profile `official` is the published order of operations, sample for sample, and never meets the other profile."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy.signal import butter, resample_poly, sosfilt

from eav_ray.config import EEGPreprocessing, Experiment, override
from eav_ray.data.datasets.eav import EAV_CHANNELS
from eav_ray.data.preprocessing.eeg import PreparedEEG, prepare_eeg
from eav_ray.data.preprocessing.resampling import decimate
from eav_ray.data.recordings import Listing, RawEEG, Recording
from eav_ray.data.shards.location import open_shard_store
from eav_ray.errors import ConfigError, DataError

OFFICIAL = EEGPreprocessing(kind="official")
RECORDINGS = [Recording("p1", f"{i + 1:03d}", 0, "speaking", i, eeg="p1.mat", eeg_index=i) for i in range(4)]


class Sitting:
    """A person's file, single precision, of which only every second recording is listed."""

    name: str = "sitting"
    classes: tuple[str, ...] = ("a",)
    modalities: tuple[str, ...] = ("eeg",)

    def __init__(self, hz: float = 500.0) -> None:
        rng = np.random.default_rng(0)
        drift = np.cumsum(rng.normal(0, 2, (4, 30, 5000)), axis=2)
        self.seg = (rng.normal(0, 40, (4, 30, 5000)) + drift + 3000 * rng.normal(size=(1, 30, 1))).astype(np.float32)
        self.hz = [hz] * 4

    def scan(self) -> Listing:
        return Listing(())

    def session_recordings(self, recordings: Sequence[Recording]) -> list[Recording]:
        return RECORDINGS

    def read_eeg(self, recording: Recording) -> RawEEG:
        i = recording.eeg_index
        return RawEEG(self.seg[i], self.hz[i], EAV_CHANNELS, "auto")


def published(seg: np.ndarray) -> np.ndarray:
    """The steps of EAV's authors in double precision: (recordings, channels, samples) to 100 Hz."""
    whole_CT = np.concatenate(list(seg.astype(np.float64)), axis=1)
    decimated_CT = resample_poly(whole_CT, 1, 5, axis=1)
    sos = butter(5, [0.5, 45], btype="bandpass", fs=100, output="sos")
    return np.stack(np.split(sosfilt(sos, decimated_CT, axis=1), len(seg), axis=1))


def test_it_equals_the_published_steps() -> None:
    """Max difference of all samples, float32 against double, in SD of the filtered signal."""
    data = Sitting()
    expected = published(data.seg)
    listed = RECORDINGS[1::2]
    found = [p.x_CT for _, p in prepare_eeg(data, listed, OFFICIAL) if isinstance(p, PreparedEEG)]
    assert len(found) == 2
    for got, wanted in zip(found, expected[1::2], strict=True):
        assert got.shape == (30, 1000) and got.dtype == np.float32
        assert np.abs(got - wanted).max() < 1e-4 * wanted.std()


def test_what_was_recorded_before_rings_into_a_recording() -> None:
    """As published, and a reason why `clean` is the default: recordings that are not listed count too."""
    data, other = Sitting(), Sitting()
    other.seg[0] *= -1
    first, second = (next(prepare_eeg(d, RECORDINGS[1:2], OFFICIAL))[1] for d in (data, other))
    assert isinstance(first, PreparedEEG) and isinstance(second, PreparedEEG)
    change = np.abs(first.x_CT - second.x_CT)
    assert change[:, :50].max() > 1000 * change[:, -50:].max()


def test_a_recording_whose_channel_lacks_too_much_is_refused_and_reaches_no_other() -> None:
    data = Sitting()
    data.seg[1, 3, 17:4000] = np.nan
    found = dict(prepare_eeg(data, RECORDINGS, OFFICIAL))
    bad = found[RECORDINGS[1]]
    assert isinstance(bad, DataError) and "p1.mat (p1/002)" in str(bad) and "not finite" in str(bad)
    for r in (RECORDINGS[0], *RECORDINGS[2:]):
        good = found[r]
        assert isinstance(good, PreparedEEG) and np.isfinite(good.x_CT).all()


def test_recordings_of_different_rates_are_no_single_signal() -> None:
    data = Sitting()
    data.hz[2] = 250.0
    assert all("kind=clean" in str(error) for _, error in prepare_eeg(data, RECORDINGS, OFFICIAL))


@pytest.mark.parametrize(
    "change", [{"preprocessing.eeg.hz": 200}, {"preprocessing.eeg.low_hz": 1.0}, {"preprocessing.eeg.high_hz": 40.0}]
)
def test_it_is_one_pipeline_and_not_a_family(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="official is 100 Hz"):
        override(Experiment(), {"preprocessing.eeg.kind": "official"} | change)


def test_the_profiles_share_no_shards() -> None:
    clean = override(Experiment(), {"store.shards": "shards", "data.root": "EAV"})
    official = override(clean, {"preprocessing.eeg.kind": "official", "split.access": "unlabelled_block"})
    assert open_shard_store(clean).root != open_shard_store(official).root
    assert open_shard_store(clean).root == open_shard_store(replace(clean, name="another")).root


@pytest.mark.parametrize("length", [1, 7, 101, 320, 321, 5000, 20_003])
@pytest.mark.parametrize("down", [2, 5, 10])
def test_decimation_is_that_of_scipy(length: int, down: int) -> None:
    x_T = np.random.default_rng(length).normal(0, 100, length)
    expected = resample_poly(x_T, 1, down)
    np.testing.assert_allclose(decimate(x_T, 1, down), expected, atol=1e-9)
    single = decimate(x_T.astype(np.float32), 1, down)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, expected, atol=100 * 5e-6)
