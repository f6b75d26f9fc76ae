"""Real recordings have the shapes and numbers that their authors state."""

from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest

from eav_ray.config import DataConfig, Preprocessing
from eav_ray.data.datasets import registry
from eav_ray.data.io import audio, video
from eav_ray.data.preprocessing.eeg import prepare_eeg
from eav_ray.data.preprocessing.windowing import WindowFormat, cut_recording
from eav_ray.errors import DataError

pytestmark = pytest.mark.real


def test_ravdess_has_its_clips(real: Path) -> None:
    dataset, listing = registry.scan_dataset(DataConfig(dataset="ravdess", root=str(real), modalities=("audio",)))
    assert listing.problems == ()
    subjects = Counter(r.subject for r in listing.recordings)
    assert set(subjects.values()) == {36}  # 4 neutral, 8 of each other emotion
    of_one = Counter(dataset.classes[r.label] for r in listing.recordings if r.subject == "actor01")
    assert of_one == {"Neutral": 4, "Sadness": 8, "Anger": 8, "Happiness": 8, "Calmness": 8}
    assert len(registry.list_eeg_channels(dataset, listing)) == 0


def test_a_ravdess_clip_is_one_window(real: Path) -> None:
    dataset, listing = registry.scan_dataset(
        DataConfig(dataset="ravdess", root=str(real / "ravdess"), modalities=("audio",))
    )
    for recording in listing.recordings[::50]:
        made = cut_recording(recording, WindowFormat(Preprocessing(), ("audio",), 0), None)
        (row,) = made.windows
        assert made.problems == ()
        assert row["has_audio"] and 2 < row["audio_seconds"] <= 5
        assert 1e-4 < row["audio"].std() < 0.5


def test_original_and_converted_clips_sound_the_same(real: Path) -> None:
    """Two ways to 16 kHz: ours from what was published, and the converted copy."""
    compared = 0
    for original in sorted((real / "ravdess_original").glob("*.wav")):
        copy = real / "ravdess" / f"Actor_{original.stem[-2:]}" / f"{original.stem}.flac"
        if copy.is_file():
            ours, theirs = audio.read_audio(original, 16000), audio.read_audio(copy, 16000)
            n = min(len(ours), len(theirs))
            assert abs(len(ours) - len(theirs)) < 160
            power = [np.abs(np.fft.rfft(x[:n]))[: n // 5] for x in (ours, theirs)]
            assert np.corrcoef(*power)[0, 1] > 0.99
            compared += 1
    assert compared


def test_eegmat_has_its_shapes(real: Path) -> None:
    dataset, listing = registry.scan_dataset(
        DataConfig(dataset="eegmat", root=str(real / "eegmat"), modalities=("eeg",))
    )
    assert listing.problems == ()
    assert Counter(r.label for r in listing.recordings)[0] == len(listing.recordings) / 2
    assert len(registry.list_eeg_channels(dataset, listing)) == 19
    two = listing.recordings[:2]
    for (recording, prepared), seconds in zip(prepare_eeg(dataset, two, Preprocessing().eeg), (182, 62), strict=True):
        raw = dataset.read_eeg(recording)
        assert raw.values_CT.shape == (19, 500 * seconds) and raw.hz == 500
        assert not {"A2-A1", "ECG"} & set(raw.channels)
        made = cut_recording(recording, WindowFormat(Preprocessing(), ("eeg",), 19), prepared)
        assert made.problems == () and len(made.windows) == seconds // 5
        assert all(1 < row["eeg"].std() < 100 for row in made.windows)  # microvolts


def test_a_broken_edf_is_a_data_error_or_shorter(real: Path, tmp_path: Path) -> None:
    whole = (real / "eegmat" / "Subject00_2.edf").read_bytes()
    path = tmp_path / "Subject00_1.edf"
    rng = np.random.default_rng(0)
    broken = [whole[: int(share * len(whole))] for share in (0, 0.001, 0.01, 0.5)]
    for _ in range(20):
        garbled = bytearray(whole[:100_000])
        for place in rng.integers(0, 5000, 5):
            garbled[place] = rng.integers(256)
        broken.append(bytes(garbled))
    for content in broken:
        path.write_bytes(content)
        dataset, listing = registry.scan_dataset(DataConfig(dataset="eegmat", root=str(tmp_path), modalities=("eeg",)))
        assert "Subject00_2.edf is missing" in listing.problems[0].reason
        try:
            dataset.read_eeg(listing.recordings[0])
        except DataError as error:
            assert path.name in str(error)


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_every_film_keeps_its_length(real: Path, suffix: str) -> None:
    for path in sorted((real / "video").glob(f"*{suffix}")):
        frames, duration_s, *_ = video.read_video(path, 5, 64)
        assert frames.shape[1:] == (64, 64, 3)
        assert abs(len(frames) - 5 * duration_s) <= 1
        assert frames.std() > 5


def test_every_film_is_heard_when_it_sounds(real: Path) -> None:
    """One of them has its sound from 2.4 s on."""
    ends = {}
    for path in sorted((real / "video").glob("*.m[op][v4]")):
        with av.open(str(path)) as container:
            streams = container.streams.audio
            if not streams:
                with pytest.raises(DataError, match="has no sound"):
                    audio.read_audio(path, 16000)
                continue
            unit, start, length = streams[0].time_base, streams[0].start_time or 0, streams[0].duration or 0
            assert unit is not None
            begin_s, end_s = float(start * unit), float((start + length) * unit)
        x_T = audio.read_audio(path, 16000)
        assert len(x_T) / 16000 == pytest.approx(end_s, abs=0.05)
        assert not x_T[: max(0, round((begin_s - 0.05) * 16000))].any()
        ends[path.name] = begin_s
    assert max(ends.values()) > 2
