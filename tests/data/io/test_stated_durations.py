"""Clips far longer than the others of a data set are named, by what files state."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from eav_ray.data.io.stated_durations import (
    describe_long_clips,
    describe_unequal_lengths,
    find_long_clips,
    find_shorter_modalities,
    read_some_durations_s,
    read_stated_duration_s,
    remark_long_clips,
)
from tests.helpers.films import draw_click, make_frames, write_media


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp4", "a.mkv", "a.mka", "a.ts", "a.avi", "a.flv"])
def test_a_file_states_how_long_it_lasts(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name in ("a.wav", "a.flac"):
        soundfile.write(path, np.zeros(48_000 * 3), 48_000)
    elif name == "a.mka":
        write_media(path, x_T=draw_click(3.0, 1.0))
    else:
        frames = make_frames([np.zeros((48, 64, 3), np.uint8)] * 75, np.arange(75) / 25)
        write_media(path, frames, video_codec="flv1" if name == "a.flv" else "mpeg4")
    assert read_stated_duration_s(path) == pytest.approx(3.0, abs=0.1)


def test_what_cannot_be_opened_states_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_text("no sound")
    assert read_stated_duration_s(tmp_path / "a.wav") is None
    assert read_stated_duration_s(tmp_path / "none.wav") is None


def test_clips_far_longer_than_the_others_are_found() -> None:
    clips = {f"c{k}": 2 + 0.1 * k for k in range(8)}
    assert find_long_clips(clips | {"long": 61.0, "longer": 90.0})[0] == {"longer": 90.0, "long": 61.0}
    assert find_long_clips(clips | {"long": 11.0})[0] == {}  # some seconds more
    assert find_long_clips({f"c{k}": 10.0 * 2**k for k in range(8)})[0] == {}  # clips of all lengths
    assert find_long_clips({"a": 2.0, "b": 61.0})[0] == {} == find_long_clips({})[0]
    line = describe_long_clips(clips | {"long": 61.0}, "audio")
    assert line.startswith("audio of long (61 s): far longer than the others, whose median is 2.4 s")
    assert describe_long_clips(clips, "audio") == ""


def test_of_many_files_large_ones_and_some_others_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths: dict[str, str] = {}
    for k in range(300):
        path = tmp_path / f"{k}.wav"
        soundfile.write(path, np.zeros(8000 * (30 if k == 177 else 1)), 8000)
        paths[str(k)] = str(path)
    found = read_some_durations_s(paths | {"gone": str(tmp_path / "gone.wav")})
    assert found["177"] == pytest.approx(30) and len(found) <= 102
    assert find_long_clips(found)[0] == {"177": pytest.approx(30)}


def test_the_quality_of_a_long_clip_has_a_remark() -> None:
    rows = [{"subject": "p", "recording": str(k), "audio_seconds": 61.0 if k == 3 else 2.0} for k in range(6)]
    rows[3]["remarks"] = ["audio: other"]
    remark_long_clips(rows)
    assert rows[3]["remarks"] == ["audio: other", "audio: far longer than the others, whose median is 2.0 s"]
    assert all("remarks" not in row for k, row in enumerate(rows) if k != 3)


def test_modalities_that_differ_by_more_than_a_window_are_named() -> None:
    assert find_shorter_modalities({"audio": 14.0, "eeg": 20.0, "video": 15.0}, 5) == ["audio"]  # 5 s is a window
    assert find_shorter_modalities({"audio": 14.0}, 5) == find_shorter_modalities({}, 5) == []
    equal = {f"p/{k}": {"audio": 20.0, "eeg": 19.0} for k in range(5)}
    assert describe_unequal_lengths(equal, 5) == describe_unequal_lengths({}, 5) == ""
    line = describe_unequal_lengths(equal | {f"p/x{k}": {"eeg": 20.0, "audio": 3.0} for k in range(5)}, 5)
    assert line.startswith("modalities differ in length by more than a window of 5 s: p/x0 (audio 3.0 s, eeg 20.0 s), ")
    assert "p/x2 (" in line and " and 2 more; where one has ended it is missing" in line and "p/x3" not in line
