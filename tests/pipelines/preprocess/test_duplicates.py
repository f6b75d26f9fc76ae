"""`check` names recordings that are one signal, and says nothing of those that are not."""

import re
from pathlib import Path

import av
import mne
import numpy as np
import pytest
import soundfile

from eav_ray.cli.main import run_command
from eav_ray.config import Experiment, override
from eav_ray.data.datasets.eav import EAV
from eav_ray.data.recordings import Recording
from eav_ray.pipelines.preprocess import near_duplicates
from eav_ray.pipelines.preprocess.dataset_check import check_dataset, format_dataset_check
from eav_ray.pipelines.preprocess.duplicates import find_duplicate_files, summarize_duplicates
from eav_ray.pipelines.preprocess.preprocess import preprocess
from tests.helpers.generated_eav import write_subject
from tests.helpers.in_process_preprocessing import run_in_process

HZ = 16_000


def make_sound(seed: int, seconds: float = 5.0) -> np.ndarray:
    """Noise in syllables, as speech has them."""
    rng = np.random.default_rng(seed)
    envelope = np.repeat(rng.uniform(0.02, 1, 50), int(HZ * seconds / 50))
    return (0.1 * envelope * rng.standard_normal(len(envelope))).astype(np.float32)


def write_sound(path: Path, seed: int, gain: float = 1.0, delay_s: float = 0.0) -> None:
    samples = gain * np.concatenate([np.zeros(int(delay_s * HZ), np.float32), make_sound(seed)])
    soundfile.write(path, samples, HZ, subtype="PCM_16")


def write_aac(path: Path, seed: int) -> None:
    with av.open(str(path), "w", format="ipod") as container:
        stream = container.add_stream("aac", rate=HZ, layout="mono")
        resampler = av.AudioResampler(format="fltp", layout="mono", rate=HZ, frame_size=1024)
        frame = av.AudioFrame.from_ndarray(make_sound(seed)[None], format="fltp", layout="mono")
        frame.sample_rate = HZ
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode())


def experiment(folder: Path, rows: list[str], medium: str = "audio") -> Experiment:
    (folder / "m.csv").write_text("\n".join([f"subject,recording,label,{medium}", *rows]) + "\n")
    keys = {"data.dataset": "recordings_table", "data.root": str(folder / "m.csv"), "data.modalities": [medium]}
    keys |= {f"store.{name}": str(folder / name) for name in ("shards", "cache", "results")}
    return override(Experiment(), keys | {"preprocessing.eeg.notch_hz": 0.0})


def list_notes(e: Experiment, *, deep: bool = False) -> list[str]:
    return [note for note in check_dataset(e, deep=deep).notes if "duplicates: " in note]


def test_rows_of_one_file_and_of_equal_bytes_are_named_with_the_way_out(tmp_path: Path) -> None:
    write_sound(tmp_path / "a.wav", 0)
    write_sound(tmp_path / "b.wav", 1)
    (tmp_path / "copy.wav").write_bytes((tmp_path / "a.wav").read_bytes())
    (tmp_path / "link.wav").symlink_to("b.wav")
    rows = ["p0,r1,calm,a.wav", "p0,r2,angry,copy.wav", "p0,r3,angry,b.wav", "p1,r1,angry,link.wav"]
    e = experiment(tmp_path, rows)
    way_out = "keep one of these rows and drop the others, or correct which file each names"
    assert list_notes(e) == [
        f"duplicates: p0/r1 (calm), p0/r2 (angry) have one signal of audio (files of equal bytes, a.wav, copy.wav); "
        f"their labels differ; {way_out}",
        f"duplicates: p0/r3 (angry), p1/r1 (angry) have one signal of audio (files of equal bytes, b.wav, link.wav); "
        f"their subjects differ; {way_out}",
    ]
    shown = format_dataset_check(check_dataset(e))
    assert "2 subjects, 4 recordings, 0 problems\nduplicates: " in shown
    assert shown.endswith("begun later (`eav check --deep`)")


def test_one_eeg_file_of_three_rows_is_named_once(tmp_path: Path) -> None:
    info = mne.create_info(["Fp1", "Fp2", "C3"], 100, "eeg")
    mne.io.RawArray(np.random.default_rng(0).normal(0, 1e-5, (3, 3000)), info, verbose="ERROR").save(
        tmp_path / "a_raw.fif", verbose="ERROR"
    )
    e = experiment(tmp_path, [f"{r},a_raw.fif" for r in ("p0,r1,calm", "p0,r2,angry", "p1,r1,calm")], "eeg")
    (note,) = list_notes(e)
    assert note.startswith("duplicates: p0/r1 (calm), p0/r2 (angry), p1/r1 (calm) have one signal of eeg (one file, ")
    assert "; their labels and subjects differ; " in note


def test_equal_samples_beside_other_headers_are_one_signal_and_equal_headers_are_not(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        header = (
            "Brain Vision Data Exchange Header File Version 1.0\n\n[Common Infos]\nCodepage=UTF-8\n"
            f"DataFile={name}.eeg\nDataFormat=BINARY\nDataOrientation=MULTIPLEXED\nNumberOfChannels=2\n"
            "SamplingInterval=10000\n\n[Binary Infos]\nBinaryFormat=IEEE_FLOAT_32\n\n[Channel Infos]\n"
            "Ch1=Fp1,,1,µV\nCh2=Fp2,,1,µV\n"
        )
        (tmp_path / f"{name}.vhdr").write_text(header, encoding="utf-8")
        (tmp_path / f"{name}.eeg").write_bytes(np.random.default_rng(seed).normal(size=4000).astype("<f4").tobytes())
    rows = ["pa,r1,calm,a.vhdr", "pb,r1,angry,b.vhdr", "pc,r1,calm,c.vhdr"]
    e = experiment(tmp_path, rows, "eeg")
    (note,) = list_notes(e)
    assert note.startswith(
        "duplicates: pa/r1 (calm), pb/r1 (angry) have one signal of eeg (files of equal bytes, a.eeg"
    )


def test_the_recordings_of_one_file_of_eav_are_not_one_signal(tmp_path: Path) -> None:
    write_subject(tmp_path)
    listing = EAV(str(tmp_path)).scan()
    assert len(listing.recordings) > 1 and len({r.eeg for r in listing.recordings}) == 1
    assert find_duplicate_files(listing.recordings, ["eeg"]) == ()


def test_equal_films_beside_one_file_of_eeg_are_one_signal(tmp_path: Path) -> None:
    """The place of a recording in the file of its EEG says nothing of its sound and film."""
    subject = write_subject(tmp_path)
    films = sorted((subject / "Video").glob("[0-9]*.mp4"))
    films[0].write_bytes(b"film")
    films[3].write_bytes(b"film")
    listing = EAV(str(tmp_path)).scan()
    (found,) = find_duplicate_files(listing.recordings, ["eeg", "video"])
    assert (found.modality, found.files) == ("video", (str(films[0]), str(films[3])))


def test_parts_of_one_film_are_not_one_signal_and_one_sound_beside_them_is(tmp_path: Path) -> None:
    for name in ("film.mp4", "sound.wav"):
        (tmp_path / name).write_bytes(name.encode())
    rows = [
        Recording(
            "p0", f"r{k}", 0, "", k, audio=str(tmp_path / "sound.wav"), video=str(tmp_path / "film.mp4"), spans_s=s
        )
        for k, s in enumerate(({"video": (0.0, 5.0)}, {"video": (5.0, 10.0)}))
    ]
    assert [d.modality for d in find_duplicate_files(rows, ["audio", "video"])] == ["audio"]


def test_files_of_equal_size_and_equal_beginnings_are_told_apart(tmp_path: Path) -> None:
    samples = make_sound(0, 10.0)
    for name, value in (("a", 0.1), ("b", 0.2)):
        samples[-1] = value
        soundfile.write(tmp_path / f"{name}.wav", samples, HZ)
    (tmp_path / "empty.wav").touch()
    (tmp_path / "empty2.wav").touch()
    rows = [f"p0,{n},calm,{n}.wav" for n in ("a", "b", "empty", "empty2")]
    assert list_notes(experiment(tmp_path, rows)) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_decoding_finds_what_was_encoded_anew_made_softer_or_begun_later(
    tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(near_duplicates, "count_usable_cpus", lambda: workers)  # what a container leaves of them
    for seed in range(6):
        write_sound(tmp_path / f"{seed}.wav", seed)
    write_aac(tmp_path / "0.m4a", 0)
    write_sound(tmp_path / "1_soft.wav", 1, gain=0.2)
    write_sound(tmp_path / "2_late.wav", 2, delay_s=0.1)
    (tmp_path / "damaged.wav").write_bytes(b"RIFF")
    rows = [f"p{seed},r,{'calm' if seed % 2 else 'angry'},{seed}.wav" for seed in range(6)]
    rows += ["p0,copy,calm,0.m4a", "p7,r,calm,1_soft.wav", "p2,copy,angry,2_late.wav", "p9,r,calm,damaged.wav"]
    found = check_dataset(experiment(tmp_path, rows), deep=True)
    notes = [note for note in found.notes if note.startswith("near-duplicates")]
    differing = {frozenset(re.findall(r"p[0-9]/[a-z]+", note)): note.split("; ")[1] for note in notes}
    assert set(differing) == {frozenset(p) for p in (("p0/copy", "p0/r"), ("p1/r", "p7/r"), ("p2/copy", "p2/r"))}
    assert differing[frozenset(("p0/copy", "p0/r"))] == "their labels differ"
    assert differing[frozenset(("p1/r", "p7/r"))] == "their subjects differ"
    assert differing[frozenset(("p2/copy", "p2/r"))].startswith("keep one of these rows")
    assert found.notes[-1].startswith("compared by content: 9 of 10 of audio; 3 pairs nearly equal")
    (problem,) = found.problems
    assert problem.file == str(tmp_path / "damaged.wav")


def test_what_is_equal_byte_by_byte_is_not_named_twice(tmp_path: Path) -> None:
    write_sound(tmp_path / "a.wav", 0)
    e = experiment(tmp_path, ["p0,r1,calm,a.wav", "p0,r2,angry,a.wav"])
    assert [note.split(":")[0] for note in list_notes(e, deep=True)] == ["duplicates"]


def test_preprocessing_says_it_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_in_process(monkeypatch)
    write_sound(tmp_path / "a.wav", 0)
    write_sound(tmp_path / "b.wav", 1)
    rows = ["p0,r1,calm,a.wav", "p0,r2,angry,a.wav", "p0,r3,angry,b.wav"]
    e = experiment(tmp_path, rows)
    assert summarize_duplicates(preprocess(e).duplicates) == (
        "2 recordings share a file or its bytes with another (such as p0/r1 and p0/r2): on two sides of a split they "
        "are a leak; `eav check` lists them"
    )
    words = [f"store.shards={tmp_path / 'shards'}", "data.dataset=recordings_table", "data.modalities=[audio]"]
    assert run_command(["preprocess", "demo", f"data.root={e.data.root}", *words]) == 0
    said = capsys.readouterr().out
    assert said.count("share a file or its bytes") == 1
    e = experiment(tmp_path, [rows[0], rows[2]])
    assert summarize_duplicates(preprocess(e).duplicates) == ""


def test_one_published_pair_is_named_and_no_other_clip(real: Path) -> None:
    """Actor 07 of RAVDESS has one recording under two names; repetitions of a sentence are no copies."""
    keys = {"data.dataset": "ravdess", "data.root": str(real / "ravdess"), "data.modalities": ["audio"]}
    (note,) = list_notes(override(Experiment(), keys))
    assert "files of equal bytes" in note and note.count("07/") == 2
