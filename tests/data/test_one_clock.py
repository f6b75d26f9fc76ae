"""A step in the EEG, a click and a flash of one moment lie in one window, at one place, whatever holds them."""

from itertools import cycle, islice
from pathlib import Path

import av
import numpy as np
import pytest

from eav_ray.config import DataConfig, EEGPreprocessing, Preprocessing, VideoPreprocessing
from eav_ray.data.datasets import registry
from eav_ray.data.preprocessing.eeg import prepare_eeg
from eav_ray.data.preprocessing.windowing import WindowFormat, cut_recording
from tests.helpers.eeg_files import make_eeg, write_brainvision, write_edf, write_fif, write_set
from tests.helpers.films import draw_click, find_click_s, make_frames, write_media

PREPROCESSING = Preprocessing(
    window_s=5, eeg=EEGPreprocessing(reference="none"), video=VideoPreprocessing(fps=10, size=16)
)
EVENT_S, END_S, PAUSE_S = 42.3, 50.0, (10.0, 40.0)
EEG_FILES = ("edf", "bdf", "vhdr", "set", "fif", "odd.fif")
MEDIA = (
    ("mp4", "libx264", "aac", 25, 0.0, 0.0),
    ("mkv", "libx264", "flac", 29.97, 0.0, 1.2),
    ("ts", "mpeg2video", "mp2", 25, 0.0, 0.0),
    ("mkv", "mpeg4", "libopus", 14.985, 2.4, 0.0),
    ("mov", "mpeg4", "pcm_s16le", 12.5, 0.0, 0.0),
    ("mp4", "libx264", "aac", 1000 / 33, 0.0, 0.7),
)


def make_step(hz: float, from_s: float, to_s: float, seed: int) -> np.ndarray:
    """EEG between two times: half of the electrodes jump up at the event, the others down; microvolts."""
    eeg_CT = make_eeg(to_s - from_s, hz, seed=seed)
    time_s = from_s + np.arange(eeg_CT.shape[1]) / hz
    return eeg_CT / 4 + np.repeat([[150.0], [-150.0]], 4, axis=0) * (time_s >= EVENT_S)


def write_eeg(folder: Path, kind: str) -> str:
    """Twenty seconds, with a pause of half a minute in their middle."""
    hz = 99.873 if kind == "odd.fif" else 100
    before, after = make_step(hz, 0, PAUSE_S[0], 0), make_step(hz, PAUSE_S[1], END_S, 1)
    joined, path = np.concatenate([before, after], axis=1), folder / f"a.{kind}"
    if kind in ("edf", "bdf"):
        write_edf(path, joined, onsets_s=[*range(10), *range(40, 50)])
    elif kind == "vhdr":
        segments = ("New Segment,,1,1,0,20231231235950000000", "New Segment,,1001,1,0,20240101000030000000")
        write_brainvision(path, joined, markers=segments)
    elif kind == "set":
        write_set(path, joined, events=[("boundary", 1000.5, 3000.0)])
    else:
        path = folder / "a_raw.fif"
        pause = np.zeros((8, round((PAUSE_S[1] - PAUSE_S[0]) * hz)))
        marks = [(PAUSE_S[0], PAUSE_S[1] - PAUSE_S[0], "BAD_ACQ_SKIP")]
        write_fif(path, np.concatenate([before, pause, after], axis=1), hz=hz, annotations=marks)
    return path.name


def write_film(folder: Path, suffix: str, codec: str, sound: str, fps: float, film_s: float, sound_s: float) -> str:
    """A film that is dark before the event and bright from then on, and a tone; both may begin late."""
    times_s = np.arange(np.ceil(film_s * fps), END_S * fps) / fps
    dark, bright = (np.full((48, 64, 3), grey, np.uint8) for grey in (20, 220))
    frames: list[av.VideoFrame] = make_frames((bright if t >= EVENT_S - 1e-6 else dark for t in times_s), times_s)
    x_T = draw_click(END_S, EVENT_S)[round(sound_s * 48_000) :]
    path = folder / f"film.{suffix}"
    write_media(path, frames, x_T, video_codec=codec, audio_codec=sound, sound_at_s=sound_s, rate=round(fps))
    return path.name


@pytest.mark.parametrize(("eeg", "media"), list(zip(EEG_FILES, islice(cycle(MEDIA), len(EEG_FILES)), strict=True)))
def test_what_happened_at_one_moment_is_stored_at_one_moment(
    tmp_path: Path, eeg: str, media: tuple[str, str, str, float, float, float]
) -> None:
    """EEG to within two of its samples, sound to 5 ms and what a codec may put before it, film to one of its frames."""
    suffix, codec, sound, fps, film_from_s, sound_from_s = media
    film = write_film(tmp_path, *media)
    (tmp_path / "m.csv").write_text(
        f"subject,recording,label,eeg,audio,video\np,r,x,{write_eeg(tmp_path, eeg)},{film},{film}\n"
    )
    data = DataConfig(dataset="recordings_table", root=str(tmp_path / "m.csv"))
    reader, listing = registry.scan_dataset(data)
    (recording,) = listing.recordings
    prepared = next(prepare_eeg(reader, [recording], PREPROCESSING.eeg))[1]
    cut = cut_recording(recording, WindowFormat(PREPROCESSING, ("audio", "eeg", "video"), 8), prepared)
    assert not cut.problems and len(cut.windows) == 10

    x_CT = np.concatenate([w["eeg"] for w in cut.windows], axis=1)
    hz, number = PREPROCESSING.eeg.hz, int(EVENT_S // 5)
    change_T = np.diff(x_CT[:4].mean(0) - x_CT[4:].mean(0))
    assert (change_T.argmax() + 1) / hz == pytest.approx(EVENT_S, abs=2 / hz)
    late_s = 0.03 if suffix == "ts" else 0.0  # a transport stream does not say what an encoder puts before
    click_s = find_click_s(np.concatenate([w["audio"] for w in cut.windows]), PREPROCESSING.audio.hz)
    assert click_s == pytest.approx(EVENT_S + late_s / 2, abs=0.005 + late_s / 2)
    brightness = np.concatenate([w["video"] for w in cut.windows]).mean((1, 2, 3))
    flash_s = int(np.argmax(brightness > 120)) / PREPROCESSING.video.fps
    assert EVENT_S - 0.5 / fps - 1e-3 <= flash_s <= EVENT_S + 1 / PREPROCESSING.video.fps + 0.5 / fps
    assert {int(time_s // 5) for time_s in (click_s, flash_s, (change_T.argmax() + 1) / hz)} == {number}

    # What lies in the pause, or before a stream begins, is missing there and nowhere else.
    paused = [PAUSE_S[0] <= 5 * k < PAUSE_S[1] for k in range(10)]
    assert [w["has_eeg"] for w in cut.windows] == [not p for p in paused]
    for m, from_s in (("audio", sound_from_s), ("video", film_from_s)):
        assert all(w[f"has_{m}"] for w in cut.windows)
        assert cut.windows[0][f"{m}_seconds"] == pytest.approx(5 - from_s, abs=0.1)
        assert cut.windows[1][f"{m}_seconds"] == pytest.approx(5, abs=1e-6)
