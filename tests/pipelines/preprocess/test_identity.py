"""Recordings are the same where their files hold the same, wherever they lie and whatever they are called."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mne
import numpy as np
import pytest
import scipy.io
import soundfile

from eav_ray.config import Experiment, override
from eav_ray.data.datasets import registry
from eav_ray.data.recordings import Recording
from eav_ray.data.shards import content
from eav_ray.data.shards.dataset import open_dataset
from eav_ray.errors import DataError
from eav_ray.pipelines.preprocess.eeg_stage import prepare_subject
from eav_ray.pipelines.preprocess.preprocess import PreprocessingResult, preprocess
from eav_ray.storage import Store
from tests.helpers.in_process_preprocessing import MadeChunks, change_once_read, run_in_process

HZ, SECONDS = 100, 12
NAMES = ["Fp1", "Fp2", "C3", "C4", "P3", "P4", "O1", "O2"]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> MadeChunks:
    monkeypatch.setattr(content, "SETTLED_S", 0.0)  # so that hashes of files that were just made are remembered
    return run_in_process(monkeypatch)


def make_signal(seed: int, scale: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return scale * (rng.normal(0, 15, HZ * SECONDS) + rng.normal(0, 10, (len(NAMES), HZ * SECONDS)))


def write_table(folder: Path, rows: list[str], medium: str = "eeg") -> Path:
    (folder / "m.csv").write_text("\n".join([f"subject,recording,label,{medium}", *rows]) + "\n")
    return folder / "m.csv"


def experiment(folder: Path, table: Path, **changes: Any) -> Experiment:
    keys = {"data.dataset": "recordings_table", "data.root": str(table), "data.modalities": ["eeg"]}
    keys |= {"store.shards": str(folder / "shards"), "store.cache": str(folder / "cache")}
    keys |= {"preprocessing.recordings_per_shard": 1, "preprocessing.eeg.notch_hz": 0.0}
    return override(Experiment(), keys | changes)


def write_brainvision(folder: Path, name: str, signal: np.ndarray) -> list[str]:
    channels = "".join(f"Ch{i + 1}={n},,1,µV\n" for i, n in enumerate(NAMES))
    (folder / f"{name}.vhdr").write_text(
        "Brain Vision Data Exchange Header File Version 1.0\n\n[Common Infos]\nCodepage=UTF-8\n"
        f"DataFile={name}.eeg\nMarkerFile={name}.vmrk\nDataFormat=BINARY\nDataOrientation=MULTIPLEXED\n"
        f"NumberOfChannels={len(NAMES)}\nSamplingInterval={1_000_000 // HZ}\n\n"
        f"[Binary Infos]\nBinaryFormat=IEEE_FLOAT_32\n\n[Channel Infos]\n{channels}",
        encoding="utf-8",
    )
    (folder / f"{name}.vmrk").write_text(
        "Brain Vision Data Exchange Marker File, Version 1.0\n\n[Common Infos]\nCodepage=UTF-8\n"
        f"DataFile={name}.eeg\n\n[Marker Infos]\nMk1=New Segment,,1,1,0,20240101100000000000\n"
    )
    (folder / f"{name}.eeg").write_bytes(signal.T.astype("<f4").tobytes())
    return [f"{name}.vhdr", f"{name}.eeg", f"{name}.vmrk"]


def write_eeglab(folder: Path, name: str, signal: np.ndarray) -> list[str]:
    locations = np.array([(n,) for n in NAMES], dtype=[("labels", "O")])
    eeg = {"nbchan": len(NAMES), "pnts": signal.shape[1], "srate": HZ, "trials": 1, "data": f"{name}.fdt"}
    eeg |= {"xmin": 0.0, "xmax": SECONDS - 1 / HZ, "chanlocs": locations, "event": [], "epoch": [], "setname": name}
    scipy.io.savemat(folder / f"{name}.set", {"EEG": eeg}, appendmat=False)
    (folder / f"{name}.fdt").write_bytes(signal.T.astype("<f4").tobytes())
    return [f"{name}.set", f"{name}.fdt"]


def write_split_fif(folder: Path, name: str, signal: np.ndarray) -> list[str]:
    info = mne.create_info(NAMES, HZ, "eeg")
    raw = mne.io.RawArray(np.tile(signal, 50) * 1e-6, info, verbose="ERROR")
    raw.save(folder / f"{name}_raw.fif", split_size="2MB", fmt="single", overwrite=True, verbose="ERROR")
    files = sorted(p.name for p in folder.glob(f"{name}_raw*.fif"))
    assert len(files) == 2
    return [f"{name}_raw.fif", f"{name}_raw-1.fif"]


Write = Callable[[Path, str, np.ndarray], list[str]]


def read_sd(e: Experiment, recording: str) -> float:
    windows = open_dataset(e).windows
    return float(windows.get(windows.find_rows((recording,)), "eeg").std())


@pytest.mark.parametrize("write", [write_brainvision, write_eeglab, write_split_fif])
def test_the_samples_of_a_recording_change_and_its_header_does_not(
    tmp_path: Path, made: MadeChunks, write: Write
) -> None:
    """Same length, and the times of change put back: what is said of size and mtime is as it was."""
    files = write(tmp_path, "a", make_signal(0))
    write(tmp_path, "b", make_signal(1))
    e = experiment(tmp_path, write_table(tmp_path, [f"p1,r1,calm,{files[0]}", f"p1,r2,angry,b{files[0][1:]}"]))
    preprocess(e)
    before = read_sd(e, "p1/r1")
    assert [name.rsplit("-", 1)[0] for name in made] == ["p1-r1", "p1-r2"]
    header = (tmp_path / files[0]).read_bytes()
    path, old = tmp_path / files[1], (tmp_path / files[1]).stat()
    if write is write_split_fif:  # some samples of its second part
        data = bytearray(path.read_bytes())
        data[400_000:401_000] = bytes(1000)
    else:
        (tmp_path / "new").mkdir()
        write(tmp_path / "new", "a", make_signal(0, 4.0))
        data = (tmp_path / "new" / files[1]).read_bytes()
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
    now = path.stat()
    assert (now.st_size, now.st_mtime_ns, now.st_ino) == (old.st_size, old.st_mtime_ns, old.st_ino)
    assert (tmp_path / files[0]).read_bytes() == header
    made.clear()
    result = preprocess(e)
    assert [name.rsplit("-", 1)[0] for name in made] == ["p1-r1"] and result.n_skipped == 1
    if write is not write_split_fif:
        assert read_sd(e, "p1/r1") == pytest.approx(4 * before, rel=0.01)
    made.clear()
    preprocess(e)
    assert not made


def describe(result: PreprocessingResult) -> set[tuple[str, str]]:
    return {(s.file, s.sha256) for s in result.index.shards}


@pytest.mark.parametrize("how", ["moved", "copied", "linked folder", "linked files"])
def test_a_data_set_that_lies_elsewhere_finds_its_shards(tmp_path: Path, made: MadeChunks, how: str) -> None:
    (here := tmp_path / "here").mkdir()
    write_brainvision(here, "a", make_signal(0))
    table = write_table(here, ["p1,r1,calm,a.vhdr"])
    before = preprocess(experiment(tmp_path, table))
    there = tmp_path / "there"
    match how:
        case "moved":
            here.rename(there)
        case "copied":
            shutil.copytree(here, there)
        case "linked folder":
            there.symlink_to(here)
        case "linked files":
            there.mkdir()
            for path in here.iterdir():
                (there / path.name).symlink_to(path)
    made.clear()
    moved = experiment(tmp_path, there / "m.csv")
    after = preprocess(moved)
    assert not made and after.n_skipped == 1 and describe(after) == describe(before)
    # Trainings are known by the content of their shards.
    assert open_dataset(moved).digest == open_dataset(experiment(tmp_path, table)).digest


def test_a_link_counts_by_what_it_points_to(tmp_path: Path, made: MadeChunks) -> None:
    for name, seed in (("one", 1), ("two", 2)):
        soundfile.write(tmp_path / f"{name}.wav", np.random.default_rng(seed).normal(0, 0.1, 80_000), 16_000)
    link = tmp_path / "a.wav"
    link.symlink_to("one.wav")
    e = experiment(tmp_path, write_table(tmp_path, ["p1,r1,calm,a.wav"], "audio"), **{"data.modalities": ["audio"]})
    first = preprocess(e)
    link.unlink()
    link.symlink_to("two.wav")
    second = preprocess(e)
    assert len(made) == 2 and describe(first) != describe(second)
    link.unlink()
    link.symlink_to("one.wav")
    assert describe(preprocess(e)) == describe(first) and len(made) == 2


def test_two_data_sets_of_one_kind_share_shards_and_not_their_index(tmp_path: Path, made: MadeChunks) -> None:
    experiments = []
    for name, seeds in (("one", (0, 1)), ("two", (1, 2))):
        (tmp_path / name).mkdir()
        for seed in seeds:
            write_brainvision(tmp_path / name, f"s{seed}", make_signal(seed))
        rows = [f"p{seed},r1,{'calm' if seed % 2 else 'angry'},s{seed}.vhdr" for seed in seeds]
        experiments.append(experiment(tmp_path, write_table(tmp_path / name, rows)))
    first, second = (preprocess(e) for e in experiments)
    subjects = [set(open_dataset(e).windows.ids["subject"]) for e in experiments]
    assert subjects == [{"p0", "p1"}, {"p1", "p2"}]
    # p1 is the second row in one table and the first in the other: its place in time is another.
    assert len(made) == 4 and not describe(first) & describe(second)


def test_shards_are_opened_where_the_recordings_are_not(tmp_path: Path, made: MadeChunks) -> None:
    (raw := tmp_path / "raw").mkdir()
    write_brainvision(raw, "a", make_signal(0))
    e = experiment(tmp_path, write_table(raw, ["p1,r1,calm,a.vhdr"]))
    preprocess(e)
    shutil.rmtree(raw)
    assert set(open_dataset(e).windows.ids["id"]) == {"p1/r1"}
    elsewhere = override(e, {"data.root": str(tmp_path / "other.csv")})
    with pytest.raises(DataError, match=r"of data.root=.*other.csv, but of .*raw/m.csv; run `eav preprocess`"):
        open_dataset(elsewhere)


def test_a_file_that_changes_while_it_is_read_is_left_out_and_said(
    tmp_path: Path, made: MadeChunks, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        write_brainvision(tmp_path, name, make_signal(seed))
    e = experiment(tmp_path, write_table(tmp_path, ["p1,r1,calm,a.vhdr", "p1,r2,angry,b.vhdr"]))
    with monkeypatch.context() as patch:
        change_once_read(patch, "p1/r1", tmp_path / "a.eeg", make_signal(5).T.astype("<f4").tobytes())
        result = preprocess(e)
    (problem,) = result.problems
    assert problem.file == str(tmp_path / "a.eeg") and "changed while this job ran" in problem.reason
    assert set(open_dataset(e).windows.ids["id"]) == {"p1/r2"}
    made.clear()
    result = preprocess(e)
    assert not result.problems and [name.rsplit("-", 1)[0] for name in made] == ["p1-r1"]
    assert set(open_dataset(e).windows.ids["id"]) == {"p1/r1", "p1/r2"}


def test_a_hash_is_taken_once(tmp_path: Path, made: MadeChunks, monkeypatch: pytest.MonkeyPatch) -> None:
    write_brainvision(tmp_path, "a", make_signal(0))
    e = experiment(tmp_path, write_table(tmp_path, ["p1,r1,calm,a.vhdr"]))
    preprocess(e)
    hashed: list[str] = []
    hash_file = content.hash_file
    monkeypatch.setattr(content, "hash_file", lambda path: hashed.append(path) or hash_file(path))
    preprocess(override(e, {"preprocessing.window_s": 4, "model.video.frames": 20}))
    assert len(made) == 2 and not hashed  # other preprocessing reads the recordings, and knows them
    os.utime(tmp_path / "a.eeg")
    preprocess(e)
    assert hashed == [str(tmp_path / "a.eeg")] and len(made) == 2


def test_what_changed_just_now_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two changes within one tick of the clock have one time."""
    run_in_process(monkeypatch)
    write_brainvision(tmp_path, "a", make_signal(0))
    e = experiment(tmp_path, write_table(tmp_path, ["p1,r1,calm,a.vhdr"]))
    preprocess(e)
    assert content.read_hashes(Store(e.store.shards), e.data) == {}


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"format": 1, "subjects": {"p1": {"a": 3}}}', b'{"format": 9}'])
def test_damaged_memory_of_hashes_is_made_anew(tmp_path: Path, made: MadeChunks, damage: bytes) -> None:
    write_brainvision(tmp_path, "a", make_signal(0))
    e = experiment(tmp_path, write_table(tmp_path, ["p1,r1,calm,a.vhdr"]))
    store = Store(e.store.shards)
    store.write(content.name_hashes(e.data), damage)
    preprocess(e)
    assert preprocess(e).n_skipped == 1
    assert {Path(path).name for path in content.read_hashes(store, e.data)} == {"a.vhdr", "a.eeg", "a.vmrk"}


def test_files_of_modalities_that_are_not_used_do_not_count(tmp_path: Path, made: MadeChunks) -> None:
    write_brainvision(tmp_path, "a", make_signal(0))
    soundfile.write(tmp_path / "a.wav", np.zeros(16_000), 16_000)
    table = tmp_path / "m.csv"
    table.write_text("subject,recording,label,eeg,audio\np1,r1,calm,a.vhdr,a.wav\n")
    e = experiment(tmp_path, table)
    preprocess(e)
    soundfile.write(tmp_path / "a.wav", np.ones(16_000), 16_000)
    assert preprocess(e).n_skipped == 1


def test_another_order_of_the_channels_is_another_shard(tmp_path: Path, made: MadeChunks) -> None:
    """The first recording of a data set says how its channels are ordered, in all shards."""
    write_brainvision(tmp_path, "a", make_signal(0))
    write_brainvision(tmp_path, "b", make_signal(1))
    header = (tmp_path / "a.vhdr").read_text(encoding="utf-8")
    e = experiment(tmp_path, write_table(tmp_path, ["p1,r1,calm,a.vhdr", "p1,r2,angry,b.vhdr"]))
    first = preprocess(e)
    for old, new in (("Ch1=Fp1", "Ch1=x"), ("Ch2=Fp2", "Ch2=Fp1"), ("Ch1=x", "Ch1=Fp2")):
        header = header.replace(old, new)
    (tmp_path / "a.vhdr").write_text(header, encoding="utf-8")
    made.clear()
    second = preprocess(e)
    assert first.index.eeg_channel_names[:2] == ("Fp1", "Fp2") and second.index.eeg_channel_names[:2] == ("Fp2", "Fp1")
    assert len(made) == 2 and second.n_skipped == 0


def test_two_jobs_on_one_data_set_are_told_apart(tmp_path: Path, made: MadeChunks) -> None:
    write_brainvision(tmp_path, "a", make_signal(0))
    e = experiment(tmp_path, write_table(tmp_path, ["p1,r1,calm,a.vhdr"]))
    preprocess(e)
    (lock,) = Path(e.store.shards).rglob("lock")
    name = str(lock.relative_to(e.store.shards))
    with Store(e.store.shards).lock(name), pytest.raises(DataError, match=r"is held by process .*; wait for it"):
        preprocess(e)


@pytest.mark.parametrize("change", [{"preprocessing.eeg.kind": "official"}, {"preprocessing.eeg.align": "euclidean"}])
def test_a_job_that_goes_on_makes_what_the_whole_job_made(
    tmp_path: Path, made: MadeChunks, change: dict[str, Any]
) -> None:
    """Where a recording depends on all of the person, also on those that are finished."""
    for name, seed in (("a", 0), ("b", 1), ("c", 2)):
        write_brainvision(tmp_path, name, make_signal(seed, 1 + seed))
    rows = ["p1,r1,calm,a.vhdr", "p1,r2,angry,b.vhdr", "p1,r3,calm,c.vhdr"]
    access = {"split.access": "unlabelled_block"}  # more than one recording of a person is looked at
    e = experiment(tmp_path, write_table(tmp_path, rows), **change, **access)
    whole = describe(preprocess(e))
    (record,) = Path(e.store.shards).rglob("records/p1-r2-*.json")
    record.unlink()
    made.clear()
    assert describe(preprocess(e)) == whole and [name[:5] for name in made] == ["p1-r2"]
    (tmp_path / "c.eeg").write_bytes(make_signal(9).T.astype("<f4").tobytes())
    made.clear()
    assert not describe(preprocess(e)) & whole and len(made) == 3


def test_official_filters_all_of_the_person_whatever_is_left_to_do(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        write_brainvision(tmp_path, name, make_signal(seed, 1 + seed))
    table = write_table(tmp_path, ["p1,r1,calm,a.vhdr", "p1,r2,angry,b.vhdr"])
    changes = {"preprocessing.eeg.kind": "official", "split.access": "unlabelled_block"}
    e = experiment(tmp_path, table, **changes)
    _, listing = registry.scan_dataset(e.data)

    def prepare(units: list[int], known: tuple[Recording, ...]) -> bytes:
        found = prepare_subject(
            {"subject_index": np.array([0])},
            unit_indices_by_subject=[units],
            recording_units=[(r,) for r in listing.recordings],
            data=e.data,
            preprocessing=e.preprocessing,
            subject_recordings={"p1": list(known)},
            channels=tuple(NAMES),
        )
        return list(found)[-1]["eeg"][0]

    whole = prepare([0, 1], listing.recordings)
    assert prepare([1], listing.recordings) == whole  # the first was made by a job that was killed
    assert prepare([1], ()) != whole
