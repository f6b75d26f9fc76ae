"""All modalities of a window show the same seconds, and what was not recorded is marked so."""

import re
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import pytest
import soundfile

from eav_ray.config import ModalityName, Preprocessing, VideoPreprocessing
from eav_ray.data.modalities.base import RecordingSignals
from eav_ray.data.preprocessing.eeg import PreparedEEG, prepare_eeg
from eav_ray.data.preprocessing.windowing import WindowedRecording, WindowFormat, cut_recording, cut_signals
from eav_ray.data.recordings import Listing, RawEEG, Recording
from tests.helpers.films import draw_click, make_frames, write_media

PROFILE = Preprocessing(window_s=1, video=VideoPreprocessing(fps=5, size=16))
ALL = ("audio", "eeg", "video")


class Noise:
    """EEG of a given length."""

    name: str = "noise"
    classes: tuple[str, ...] = ("a",)
    modalities: tuple[str, ...] = ("eeg",)

    def __init__(self, seconds: float, channels: int = 4) -> None:
        self.values_CT = np.random.default_rng(0).normal(0, 20, (channels, int(seconds * 500)))

    def scan(self) -> Listing:
        return Listing(())

    def session_recordings(self, recordings: Sequence[Recording]) -> list[Recording]:
        return list(recordings)

    def read_eeg(self, recording: Recording) -> RawEEG:
        names = tuple(f"E{i}" for i in range(len(self.values_CT)))
        return RawEEG(self.values_CT, 500.0, names, "microvolt")


def ramp(path: Path, seconds: float) -> str:
    """Audio whose value is its time in units of 100 s."""
    soundfile.write(path, np.arange(int(16000 * seconds)) / 16000 / 100, 16000, subtype="FLOAT")
    return str(path)


def film(path: Path, seconds: float) -> str:
    """Video whose brightness is its time, 40 a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=30)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
        stream.codec_context.qmin = stream.codec_context.qmax = 1
        for k in range(round(seconds * 30)):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 10 + 40 * k / 30, np.uint8), format="rgb24")
            frame.pts, frame.time_base = k, Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return str(path)


def recording(
    folder: Path, *, eeg_s: float | None = None, audio_s: float | None = None, video_s: float | None = None
) -> tuple[Noise, Recording]:
    made = Recording(
        "p1",
        "007",
        0,
        "speaking",
        6,
        eeg=None if eeg_s is None else "noise.mat",
        audio=None if audio_s is None else ramp(folder / "a.wav", audio_s),
        video=None if video_s is None else film(folder / "v.mp4", video_s),
    )
    return Noise(eeg_s or 1), made


def cut_all(
    dataset: Noise,
    made: Recording,
    preprocessing: Preprocessing,
    modalities: tuple[ModalityName, ...],
    *,
    eeg_channels: int,
) -> WindowedRecording:
    prepared = next(prepare_eeg(dataset, [made], preprocessing.eeg))[1] if made.eeg else None
    return cut_recording(made, WindowFormat(preprocessing, modalities, eeg_channels), prepared)


def cut_rows(*args, eeg_channels: int) -> list[dict[str, Any]]:
    made = cut_all(*args, eeg_channels=eeg_channels)
    assert made.problems == ()
    return made.windows


def has(rows: list[dict], modality: str) -> list[bool]:
    return [row[f"has_{modality}"] for row in rows]


def test_windows_are_aligned_and_typed(tmp_path: Path) -> None:
    rows = cut_rows(*recording(tmp_path, eeg_s=4, audio_s=4, video_s=4), PROFILE, ALL, eeg_channels=4)
    assert [row["window"] for row in rows] == [0, 1, 2, 3]
    for w, row in enumerate(rows):
        assert (row["subject"], row["recording"], row["label"], row["task"], row["order"]) == (
            ("p1", "007", 0, "speaking", 6)
        )
        assert row["eeg"].shape == (4, 100) and row["eeg"].dtype == np.float32
        assert row["audio"].shape == (16000,) and row["audio"].dtype == np.float32
        assert row["video"].shape == (5, 16, 16, 3) and row["video"].dtype == np.uint8
        assert row["has_eeg"] and row["has_audio"] and row["has_video"] and row["eeg_bad_channels"] == 0
        np.testing.assert_allclose(row["audio"], (w + np.arange(16000) / 16000) / 100, atol=1e-6)
        shown_s = (row["video"].mean(axis=(1, 2, 3)) - 10) / 40
        np.testing.assert_allclose(shown_s, w + np.arange(5) / 5, atol=0.06)


def test_windows_put_together_are_the_whole_recording(tmp_path: Path) -> None:
    dataset, made = recording(tmp_path, eeg_s=4)
    short = cut_rows(dataset, made, PROFILE, ("eeg",), eeg_channels=4)
    (whole,) = cut_rows(dataset, made, Preprocessing(window_s=4), ("eeg",), eeg_channels=4)
    np.testing.assert_array_equal(np.concatenate([row["eeg"] for row in short], axis=1), whole["eeg"])


def test_a_short_video_shifts_no_window(tmp_path: Path) -> None:
    rows = cut_rows(*recording(tmp_path, eeg_s=4, audio_s=4, video_s=2.6), PROFILE, ALL, eeg_channels=4)
    assert has(rows, "video") == [True, True, True, False]
    assert has(rows, "eeg") == has(rows, "audio") == [True] * 4
    assert [row["video_seconds"] for row in rows] == pytest.approx([1, 1, 0.6, 0], abs=0.05)
    np.testing.assert_array_equal(rows[2]["video"][3], rows[2]["video"][2])  # held
    assert not rows[3]["video"].any()


def test_less_than_half_a_window_does_not_count(tmp_path: Path) -> None:
    rows = cut_rows(*recording(tmp_path, eeg_s=3, audio_s=1.4, video_s=3), PROFILE, ALL, eeg_channels=4)
    assert has(rows, "audio") == [True, False, False]
    assert rows[1]["audio_seconds"] == 0 and not rows[1]["audio"].any()


def test_half_a_window_is_padded_with_silence(tmp_path: Path) -> None:
    rows = cut_rows(*recording(tmp_path, eeg_s=2, audio_s=1.75), PROFILE, ("audio", "eeg"), eeg_channels=4)
    assert has(rows, "audio") == [True, True]
    assert rows[1]["audio"][:12000].all() and not rows[1]["audio"][12000:].any()


def test_the_longest_modality_decides_the_number(tmp_path: Path) -> None:
    assert len(cut_rows(*recording(tmp_path, eeg_s=2.9, audio_s=1, video_s=1), PROFILE, ALL, eeg_channels=4)) == 2
    # Some frames short of three seconds is three seconds.
    assert len(cut_rows(*recording(tmp_path, video_s=2.97), PROFILE, ("video",), eeg_channels=4)) == 3


def test_a_recording_shorter_than_a_window_is_one_window(tmp_path: Path) -> None:
    preprocessing = Preprocessing(window_s=5, video=PROFILE.video)
    (row,) = cut_rows(*recording(tmp_path, audio_s=1.5, video_s=0.3), preprocessing, ALL, eeg_channels=4)
    assert row["has_audio"] and row["has_video"] and not row["has_eeg"]
    assert row["audio_seconds"] == 1.5 and row["video"].shape == (25, 16, 16, 3)


def test_a_missing_modality_is_zero_and_has_its_shape(tmp_path: Path) -> None:
    rows = cut_rows(*recording(tmp_path, audio_s=2), PROFILE, ALL, eeg_channels=30)
    for row in rows:
        assert row["eeg"].shape == (30, 100) and row["video"].shape == (5, 16, 16, 3)
        assert not row["eeg"].any() and not row["video"].any()
        assert not row["has_eeg"] and not row["has_video"] and row["eeg_seconds"] == row["video_seconds"] == 0


def test_only_the_wanted_modalities_are_read_and_returned(tmp_path: Path) -> None:
    dataset, made = recording(tmp_path, eeg_s=2, audio_s=2)
    (tmp_path / "a.wav").write_bytes(b"")
    rows = cut_rows(dataset, made, PROFILE, ("eeg",), eeg_channels=4)
    assert "audio" not in rows[0] and "has_video" not in rows[0]


@pytest.mark.parametrize(("policy", "windows"), [("partial", 2), ("drop", 0), ("fail", 0)])
def test_a_file_that_cannot_be_read_costs_its_modality_or_the_recording(
    tmp_path: Path, policy: Literal["partial", "drop", "fail"], windows: int
) -> None:
    dataset, made = recording(tmp_path, eeg_s=2, audio_s=2)
    (tmp_path / "a.wav").write_bytes(b"")
    found = cut_all(dataset, made, replace(PROFILE, on_bad=policy), ALL, eeg_channels=4)
    (problem,) = found.problems
    assert problem.file == made.audio and "a.wav" in problem.reason
    assert len(found.windows) == windows and not any(has(found.windows, "audio"))
    assert all(has(found.windows, "eeg"))


def test_bad_eeg_is_named(tmp_path: Path) -> None:
    dataset, made = recording(tmp_path, eeg_s=2)
    (problem,) = cut_all(dataset, made, PROFILE, ALL, eeg_channels=30).problems
    assert re.search("noise.mat.*4 EEG channels, but the data set has 30", problem.reason)
    dataset.values_CT[0] = np.nan
    assert cut_rows(dataset, made, PROFILE, ALL, eeg_channels=4)[0]["eeg_bad_channels"] == 1
    dataset.values_CT[:] = np.nan
    found = cut_all(dataset, made, PROFILE, ALL, eeg_channels=4)
    assert not found.windows and re.search(r"noise\.mat \(p1/007\): 4 of 4", found.problems[0].reason)


def test_a_recording_with_none_of_the_modalities_has_no_windows(tmp_path: Path) -> None:
    assert cut_rows(*recording(tmp_path, eeg_s=2), PROFILE, ("audio",), eeg_channels=4) == []


def test_quality_says_how_loud_and_how_still_a_recording_is(tmp_path: Path) -> None:
    dataset, made = recording(tmp_path, audio_s=2, video_s=2)
    sine = np.sin(2 * np.pi * 100 * np.arange(32000) / 16000)
    soundfile.write(tmp_path / "a.wav", np.clip(2 * sine, -1, 1), 16000, subtype="FLOAT")
    found = cut_all(dataset, made, PROFILE, ALL, eeg_channels=4)
    clipped = (np.abs(2 * sine) >= 1).mean()
    assert found.quality["audio_clipped"] == pytest.approx(clipped, abs=0.01)
    assert found.quality["audio_db"] == pytest.approx(20 * np.log10(np.clip(2 * sine, -1, 1).std()), abs=0.1)
    assert found.quality["video_repeated"] == 0 and found.quality["video_luma"] == pytest.approx(46, abs=3)
    assert "eeg_bad_channel_reasons" not in found.quality


def test_spans_that_are_missing_are_not_covered() -> None:
    """Two spans that overlap, across the ends of windows of a second; more than half of a window must be there."""
    signals = RecordingSignals(
        {"audio": np.ones(4 * 16_000, np.float32)}, {"audio": 4.0}, missing_s={"audio": ((0.8, 1.6), (1.2, 1.7))}
    )
    made = Recording("p1", "007", 0, "speaking", 6, audio="a.wav")
    windows = cut_signals(signals, made, WindowFormat(PROFILE, ("audio",), 0)).windows
    assert [w["audio_seconds"] for w in windows] == pytest.approx([0.8, 0.0, 1.0, 1.0])
    assert [w["has_audio"] for w in windows] == [True, False, True, True]
    assert not windows[1]["audio"].any()


def test_what_files_say_of_themselves_is_kept(tmp_path: Path) -> None:
    """Missing spans and remarks of EEG come through the stage before."""
    _, made = recording(tmp_path, eeg_s=3)
    prepared = PreparedEEG(np.ones((4, 3 * PROFILE.eeg.hz), np.float32), "volt", {}, (), ((1.0, 2.0),), ("one", "two"))
    found = cut_recording(made, WindowFormat(PROFILE, ("eeg",), 4), prepared)
    assert [w["has_eeg"] for w in found.windows] == [True, False, True]
    assert found.quality["remarks"] == ["eeg: one", "eeg: two"]


def test_what_a_file_lacks_in_the_middle_or_from_its_beginning_is_missing_in_its_windows(tmp_path: Path) -> None:
    """A film that begins 1.2 s after its sound, and sound with a gap from second 2 to second 4."""
    times_s = np.arange(30, 150) / 25
    frames = make_frames([np.full((48, 64, 3), 10 + 40 * t, np.uint8) for t in times_s], times_s)
    sound_T = draw_click(6.0, 5.0)
    path = write_media(tmp_path / "a.mkv", frames, sound_T, audio_codec="flac", lost=[("audio", 2.0, 4.0)])
    made = Recording("p1", "007", 0, "speaking", 6, audio=str(path), video=str(path))
    cut = cut_all(Noise(1), made, PROFILE, ("audio", "video"), eeg_channels=4)
    assert has(cut.windows, "audio") == [True, True, False, False, True, True]
    assert has(cut.windows, "video") == [False, True, True, True, True, True]
    assert np.abs(cut.windows[4]["audio"]).max() < 0.01 and np.abs(cut.windows[5]["audio"][:80]).max() > 0.4
    shown_s = np.concatenate([(row["video"].mean(axis=(1, 2, 3)) - 10) / 40 for row in cut.windows[2:]])
    np.testing.assert_allclose(shown_s, 2 + np.arange(20) / 5, atol=0.06)
    assert cut.quality["remarks"] == [
        "audio: its time stamps leave gaps, where nothing was recorded",
        "video: it begins late",
    ]


def test_silent_sound_is_missing_in_all_windows(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(48_000), 16_000)
    made = Recording("p1", "007", 0, "speaking", 6, audio=str(tmp_path / "a.wav"), video=film(tmp_path / "v.mp4", 3))
    cut = cut_all(Noise(1), made, PROFILE, ("audio", "video"), eeg_channels=4)
    assert has(cut.windows, "audio") == [False] * 3 and has(cut.windows, "video") == [True] * 3
    assert cut.problems == () and "silent from beginning to end" in cut.quality["remarks"][0]
    assert "audio_db" not in cut.quality


def test_modalities_of_other_lengths_are_a_line_of_the_quality_table(tmp_path: Path) -> None:
    shorter = "audio, video: over a window before the longest modality ends, and missing from then on"
    for audio_s, remarks in ((1.9, [shorter]), (3.0, [])):
        made = cut_all(*recording(tmp_path, eeg_s=4, audio_s=audio_s, video_s=audio_s), PROFILE, ALL, eeg_channels=4)
        assert [r for r in made.quality.get("remarks", []) if "longest" in r] == remarks
