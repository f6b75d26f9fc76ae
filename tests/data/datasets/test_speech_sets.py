"""RAVDESS and CREMA-D in the layouts that are published: each clip once, with its class, its sound and its film."""

from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from eav_ray.config import DataConfig, ModalityName, Preprocessing
from eav_ray.data.datasets import registry
from eav_ray.data.datasets.ravdess import RAVDESS
from eav_ray.data.preprocessing.windowing import WindowFormat, cut_recording
from eav_ray.data.recordings import Listing, Recording
from eav_ray.errors import ConfigError, DataError
from tests.helpers.speech import draw_tone, write_film

BOTH: tuple[ModalityName, ...] = ("audio", "video")


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def scan(
    which: Literal["ravdess", "cremad"], root: Path, modalities: tuple[ModalityName, ...] = BOTH
) -> tuple[tuple[str, ...], Listing]:
    dataset, listing = registry.scan_dataset(DataConfig(dataset=which, root=str(root), modalities=modalities))
    return dataset.classes, listing


def files(recording: Recording) -> tuple[str, str]:
    """Names of the files of its sound and its film."""
    return Path(recording.audio or "").name, Path(recording.video or "").name


# --- RAVDESS ---


def test_the_three_files_of_a_clip_are_one_recording(tmp_path: Path) -> None:
    touch(tmp_path, *(f"Actor_01/0{m}-01-05-01-02-01-01.mp4" for m in (1, 2)), "Actor_01/03-01-05-01-02-01-01.wav")
    classes, listing = scan("ravdess", tmp_path)
    (one,) = listing.recordings
    assert one.id == "actor01/01-05-01-02-01-01" and classes[one.label] == "Anger" and listing.problems == ()
    assert files(one) == ("03-01-05-01-02-01-01.wav", "01-01-05-01-02-01-01.mp4")


def test_archives_side_by_side_are_joined_and_each_modality_may_lack(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "Audio_Speech_Actors_01-24/Actor_01/03-01-01-01-01-01-01.wav",
        "Video_Speech_Actor_01/Actor_01/02-01-01-01-01-01-01.mp4",
        "Video_Speech_Actor_01/Actor_01/01-01-03-01-01-01-01.mp4",
        "Video_Speech_Actor_02/Actor_02/02-01-04-01-01-01-02.mp4",
        "Video_Song_Actor_02/Actor_02/01-02-04-01-01-01-02.mp4",  # singing
        "Video_Speech_Actor_02/Actor_02/01-01-06-01-01-01-02.mp4",  # fear
    )
    classes, listing = scan("ravdess", tmp_path)
    assert [(r.subject, classes[r.label], *files(r)) for r in listing.recordings] == [
        ("actor01", "Neutral", "03-01-01-01-01-01-01.wav", "02-01-01-01-01-01-01.mp4"),
        ("actor01", "Happiness", "01-01-03-01-01-01-01.mp4", "01-01-03-01-01-01-01.mp4"),
        ("actor02", "Sadness", "", "02-01-04-01-01-01-02.mp4"),
    ]
    _, heard = scan("ravdess", tmp_path, ("audio",))
    assert len(heard.recordings) == 2 and "has none of audio" in heard.problems[0].reason


def test_a_file_in_anothers_folder_and_a_clip_twice_are_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "Actor_01/03-01-05-01-01-01-02.wav", "Actor_01/03-01-01-01-01-01-01.wav")
    touch(tmp_path, "Actor_01/03-01-01-01-01-01-01.flac", "Actor_01/01-01-01-01-01-01-01.mp4", "Actor_01/notes.txt")
    _, listing = scan("ravdess", tmp_path)
    assert listing.recordings == ()
    assert [p.reason.split(";")[0] for p in listing.problems] == [
        "its name says actor 02, its folder 01",
        "the same clip twice (03-01-01-01-01-01-01.flac, 03-01-01-01-01-01-01.wav)",
    ]


# --- CREMA-D ---


def test_clips_of_the_shared_emotions_are_listed_by_actor_and_name(tmp_path: Path) -> None:
    codes = ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD")
    touch(tmp_path, *(f"AudioWAV/{a}_DFA_{c}_XX.wav" for a in (1002, 1001) for c in codes))
    touch(tmp_path, "AudioWAV/1040_ITH_SAD_X.wav", "AudioWAV/1001_IEO_ANG_HI.wav", "AudioMP3/1001_DFA_ANG_XX.mp3")
    touch(tmp_path, *(f"VideoFlash/{n}.flv" for n in ("1001_DFA_ANG_XX", "1001_TIE_SAD_LO", "1001_TIE_FEA_XX")))
    classes, listing = scan("cremad", tmp_path)
    assert listing.problems == ()
    assert set(classes) < set(RAVDESS.classes)  # spelled alike
    assert Counter(r.subject for r in listing.recordings) == {"actor1001": 6, "actor1002": 4, "actor1040": 1}
    first = [(r.recording, classes[r.label], r.order, *files(r)) for r in listing.recordings[:6]]
    assert first == [
        ("DFA_ANG_XX", "Anger", 0, "1001_DFA_ANG_XX.wav", "1001_DFA_ANG_XX.flv"),
        ("DFA_HAP_XX", "Happiness", 1, "1001_DFA_HAP_XX.wav", ""),
        ("DFA_NEU_XX", "Neutral", 2, "1001_DFA_NEU_XX.wav", ""),
        ("DFA_SAD_XX", "Sadness", 3, "1001_DFA_SAD_XX.wav", ""),
        ("IEO_ANG_HI", "Anger", 4, "1001_IEO_ANG_HI.wav", ""),
        ("TIE_SAD_LO", "Sadness", 5, "1001_TIE_SAD_LO.flv", "1001_TIE_SAD_LO.flv"),
    ]


def test_names_of_another_form_and_clips_twice_are_told(tmp_path: Path) -> None:
    wrong = ("1092_DFA_ANG_XX", "1001_DFA_JOY_XX", "1001-DFA-ANG-XX", "1001_DFA_ANG")
    touch(tmp_path, *(f"AudioWAV/{n}.wav" for n in (*wrong, "1001_DFA_SAD_XX", "1001_DFA_ANG_XX")))
    touch(tmp_path, "AudioWAV/1001_DFA_SAD_XX.flac", "AudioWAV/._1001_DFA_SAD_XX.wav", "AudioWAV/README.md")
    _, listing = scan("cremad", tmp_path, ("audio",))
    assert [r.recording for r in listing.recordings] == ["DFA_ANG_XX"]
    reported = {p.recording: p.reason for p in listing.problems}
    assert set(reported) == {*wrong, "DFA_SAD_XX"}
    assert "an actor of 1001 to 1091" in reported["1092_DFA_ANG_XX"] and "twice" in reported["DFA_SAD_XX"]


def test_no_such_folder_and_files_that_were_never_fetched_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a CREMA-D folder: no AudioWAV, AudioMP3, VideoFlash inside"):
        scan("cremad", tmp_path)
    touch(tmp_path, "CREMA-D/AudioWAV/1001_DFA_ANG_XX.wav")
    assert len(scan("cremad", tmp_path, ("audio",))[1].recordings) == 1
    (tmp_path / "CREMA-D/AudioWAV/1001_DFA_ANG_XX.wav").write_text("version https://git-lfs.github.com/spec/v1\noid x")
    with pytest.raises(DataError, match="AudioWAV in .*CREMA-D hold pointers of Git LFS.*`git lfs pull`"):
        scan("cremad", tmp_path)
    # Sound that was fetched is read where the films were not.
    touch(tmp_path, "CREMA-D/VideoFlash/1001_DFA_ANG_XX.flv")
    (tmp_path / "CREMA-D/VideoFlash/1001_DFA_ANG_XX.flv").write_text("version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / "CREMA-D/AudioWAV/1001_DFA_ANG_XX.wav").write_bytes(b"")
    (one,) = scan("cremad", tmp_path, ("audio",))[1].recordings
    assert files(one) == ("1001_DFA_ANG_XX.wav", "")
    with pytest.raises(ConfigError, match="asks for video, but cremad in .* offers audio;"):
        scan("cremad", tmp_path)


# --- what becomes of them ---


def write(root: Path, *names: str) -> None:
    """Films of 2 s with sound, of which the last one is cut."""
    rng = np.random.default_rng(0)
    path = root
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_film(path, draw_tone("Anger", 200, 44_100, 2.0, rng), 44_100, seconds=2.0)
    path.write_bytes(path.read_bytes()[:9000])


@pytest.mark.parametrize(
    ("which", "names"),
    [
        ("cremad", ("VideoFlash/1001_DFA_ANG_XX.flv", "VideoFlash/1001_DFA_SAD_XX.flv")),
        ("ravdess", ("Actor_01/01-01-01-01-01-01-01.mp4", "Actor_01/01-01-05-01-01-01-01.mp4")),
    ],
)
def test_a_film_becomes_a_window_of_sound_and_picture_and_a_damaged_one_a_problem(
    tmp_path: Path, which: Literal["ravdess", "cremad"], names: tuple[str, ...]
) -> None:
    write(tmp_path, *names)
    _, listing = scan(which, tmp_path)
    whole, damaged = (cut_recording(r, WindowFormat(Preprocessing(), BOTH, 0), None) for r in listing.recordings)
    (row,) = whole.windows
    assert row["has_audio"] and row["has_video"] and whole.problems == ()
    assert row["audio_seconds"] == pytest.approx(2, abs=0.05) and row["video_seconds"] == pytest.approx(2, abs=0.05)
    assert not damaged.windows and len(damaged.problems) == 2
    assert all(Path(names[1]).name in p.reason for p in damaged.problems)
