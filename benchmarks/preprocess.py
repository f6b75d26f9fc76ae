"""Preprocessing against bare decoding and against serial loaders, on generated people of EAV's size.

    python -m benchmarks.preprocess [FOLDER]

All sides of a ratio run one after the other on the same files, five times, the whole job three times; the order
alternates. One subject is generated (0.8 GB, some minutes); for the whole job the files stand under four names. FOLDER
keeps the subject, and what was measured: a call that was stopped goes on where it was, at the same commit. Needs
opencv-python-headless (extra `bench`) and some 30 minutes on 2 cores, with nothing else running.
"""

import importlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import librosa
import numpy as np
import ray
import ray.data
import soundfile
from scipy.signal import butter, resample_poly, sosfilt

from benchmarks.common import Goal, finish_benchmark, format_spread, parse_arguments
from eav_ray.config import EEGPreprocessing, Experiment, VideoPreprocessing, override
from eav_ray.data.datasets import registry
from eav_ray.data.datasets.eav import EAV
from eav_ray.data.io import jpeg, video
from eav_ray.data.preprocessing.eeg import PreparedEEG, prepare_eeg
from eav_ray.data.recordings import Recording
from eav_ray.data.shards.location import open_shard_store
from eav_ray.data.synthetic.generate import SyntheticSpec, generate_dataset
from eav_ray.distributed import cluster
from eav_ray.pipelines.evaluate.provenance import describe_commit
from eav_ray.pipelines.preprocess.chunks import hash_listing, plan_chunks
from eav_ray.pipelines.preprocess.preprocess import ChunkMaker
from eav_ray.storage import Store

RUNS, JOB_RUNS = 5, 3  # the whole job and its serial side take four minutes
MEASURED = "measured.json"  # in FOLDER
N_SUBJECTS = 4  # of the whole job
VIDEO_PREPROCESSING = VideoPreprocessing()


def generate_one_subject(folder: Path) -> Path:
    """One person with 100 speaking recordings of 20 s, 640 x 480 at 30 fps."""
    spec = SyntheticSpec(n_subjects=1, per_class=20, listening=True, video_size=(640, 480), fps=30)
    generate_dataset(folder, spec, workers=2)
    return folder


def copy_subject(root: Path, folder: Path) -> Path:
    """The same person under several names, each with files of its own."""
    for number in range(1, N_SUBJECTS + 1):
        for path in sorted((root / "subject1").rglob("*.*")):
            target = folder / f"subject{number}" / path.relative_to(root / "subject1")
            target = target.with_name(target.name.replace("subject1_", f"subject{number}_"))
            if path.suffix != ".json" and "_Listening_" not in path.name and not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
    return folder


def preprocess_minimally(paths: list[str], out: str) -> int:
    """What no preprocessing can do without: decode, resize, encode, write."""
    with open(out, "wb") as sink:
        for path in paths:
            x_FHWC = video.read_video(path, VIDEO_PREPROCESSING.fps, VIDEO_PREPROCESSING.size).frames
            for start in range(0, len(x_FHWC), 25):
                for file in jpeg.encode_frames(x_FHWC[start : start + 25], VIDEO_PREPROCESSING):
                    sink.write(file)
    return len(paths)


def decode_with_opencv(paths: list[str]) -> int:
    """A loader as people write it: read all frames, resize every sixth, store nothing."""
    n_frames = 0
    for path in paths:
        capture = cv2.VideoCapture(path)
        for k in range(600):
            good, frame = capture.read()
            if not good:
                break
            n_frames += 1
            if k % 6 == 0:
                cv2.cvtColor(cv2.resize(frame, (224, 224), interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2RGB)
        capture.release()
    return n_frames


def time_processes(count: int, paths: list[str], scratch: Path) -> float:
    """Seconds that so many processes need which already run."""
    with multiprocessing.get_context("spawn").Pool(count) as pool:
        pool.starmap(
            preprocess_minimally, [([paths[0]], str(scratch / f"w{i}")) for i in range(count)]
        )  # imports are not counted
        began = time.perf_counter()
        # Small parts, so that all end together.
        parts = [(paths[i : i + 5], str(scratch / f"b{i}")) for i in range(0, len(paths), 5)]
        pool.starmap(preprocess_minimally, parts, chunksize=1)
        return time.perf_counter() - began


def time_ray_data(experiment: Experiment, shards: Path, cpus: float | None = None) -> float:
    """Seconds of the job's own pipeline, once Ray and its workers are up.

    Args:
        cpus: Of how many cores Ray Data may use; None for all.
    """
    e = override(experiment, {"store.shards": str(shards)})
    reader, listing = registry.scan_dataset(e.data)
    planned = plan_chunks(e, listing, hash_listing(e, reader, listing, Store(e.store.shards)))
    options = ray.data.DataContext.get_current().execution_options
    options.resource_limits = ray.data.ExecutionResources.for_limits(cpu=cpus)
    began = time.perf_counter()
    for _ in ChunkMaker(e.data, e.preprocessing, open_shard_store(e), ()).make(planned):
        pass
    return time.perf_counter() - began


def filter_with_scipy(path: str) -> np.ndarray:
    """The published pipeline in double precision, over all 200 recordings, file reading included."""
    dataset = EAV(str(Path(path).parents[2]))
    first = Recording("subject1", "001", 0, "speaking", 0, eeg=path)
    seg = np.stack([dataset.read_eeg(r).values_CT for r in dataset.session_recordings([first])])
    whole_CT = seg.transpose(1, 0, 2).reshape(seg.shape[1], -1).astype(np.float64)
    sos = butter(5, [0.5, 45], "bandpass", fs=100, output="sos")
    return sosfilt(sos, resample_poly(whole_CT, 1, 5, axis=1), axis=1)


def prepare_eeg_recordings(root: str, preprocessing: EEGPreprocessing) -> int:
    """The recordings that the job would prepare, file reading included."""
    dataset = EAV(root)
    recordings = dataset.scan().recordings
    prepared = [found for _, found in prepare_eeg(dataset, recordings, preprocessing) if isinstance(found, PreparedEEG)]
    assert len(prepared) == len(recordings)
    return len(prepared)


def load_serially(root: str, *, features: bool) -> int:
    """All modalities of all people as scripts do it: one file after the other, nothing stored.

    Args:
        features: AST's spectrogram of each window as well, by the library's extractor; the job leaves it to training.
    """
    from transformers import ASTFeatureExtractor

    extract, windows = ASTFeatureExtractor(), 0
    listing = EAV(root).scan()
    for eeg in sorted({r.eeg for r in listing.recordings if r.eeg is not None}):
        filter_with_scipy(eeg)
    decode_with_opencv([r.video for r in listing.recordings if r.video is not None])
    for recording in listing.recordings:
        assert recording.audio is not None
        x_T, hz = soundfile.read(recording.audio, dtype="float32")
        x_T = librosa.resample(x_T, orig_sr=hz, target_sr=16_000, res_type="soxr_hq") if hz != 16_000 else x_T
        for start in range(0, len(x_T) - 79_999, 80_000):
            windows += 1
            if features:
                extract(x_T[start : start + 80_000], sampling_rate=16_000, return_tensors="np")
    return windows


def time_program(*words: str) -> float:
    """Seconds of a Python program, its start included."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    began = time.perf_counter()
    process = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, check=False)
    if process.returncode:
        sys.exit(f"error: {words} ended with {process.returncode}: {process.stderr[-2000:]}")
    return time.perf_counter() - began


def time_job(root: Path, shards: Path) -> float:
    shutil.rmtree(shards, ignore_errors=True)
    words = [f"data.root={root}", f"store.shards={shards}"]
    return time_program("jobs/preprocess.py", "eav_ray/experiments/fusion.yaml", *words)


def time_serial_loaders(root: Path, features: bool) -> float:
    code = f"from benchmarks.preprocess import load_serially; load_serially({str(root)!r}, features={features})"
    return time_program("-c", code)


def time_in_own_process(work: Callable[[], Any]) -> float:
    """Seconds in a process of its own, its start not counted.

    In one process for all sides a side's large arrays come from memory that another has just given back, or not: that
    moved the serial pipeline between 0.8 and 2.8 s (docs/log.md).
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(time_work, (work,))


def time_work(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def read_measured(folder: Path) -> dict[str, list[float]]:
    """Read the seconds of each side that an earlier call measured at this commit."""
    path = folder / MEASURED
    kept = json.loads(path.read_text()) if path.exists() else {}
    return kept["seconds"] if kept.get("commit") == describe_commit() else {}


def write_measured(folder: Path, seconds: dict[str, list[float]]) -> None:
    (folder / MEASURED).write_text(json.dumps({"commit": describe_commit(), "seconds": seconds}))


def main() -> int:
    folder, _ = parse_arguments(__doc__)
    root = generate_one_subject(folder / "EAV")
    many_root = copy_subject(root, folder / "subjects")
    listing = EAV(str(root)).scan()
    paths = [r.video for r in listing.recordings if r.video is not None]
    eeg = next(r.eeg for r in listing.recordings if r.eeg is not None)
    experiment = override(Experiment(), {"data.root": str(root), "data.modalities": ["video"], "runtime.workers": 1})
    table = read_measured(folder)

    def measure(run: int, sides: dict[str, Callable[[], float]]) -> None:
        for name in sides if run % 2 == 0 else reversed(sides):
            if len(table.setdefault(name, [])) <= run:
                table[name].append(sides[name]())
                print(f"run {run + 1} {name}: {table[name][-1]:.1f} s", flush=True)
                write_measured(folder, table)

    with cluster.connect_to_ray(experiment.runtime):
        ray.get([ray.remote(_warm_up).remote() for _ in range(4)])
        for k in range(RUNS):
            scratch = Path(tempfile.mkdtemp(dir=folder))
            video_sides: dict[str, Callable[[], float]] = {
                "ray": partial(time_ray_data, experiment, scratch / "shards"),
                "bare": partial(time_processes, 2, paths, scratch),
                "bare, one": partial(time_processes, 1, paths, scratch),
                "opencv": partial(time_work, partial(decode_with_opencv, paths)),
                "ray, one core": partial(time_ray_data, experiment, scratch / "shards1", 1),
            }
            measure(k, video_sides)
            shutil.rmtree(scratch)
    for k in range(RUNS):
        eeg_sides: dict[str, Callable[[], float]] = {
            "official": partial(
                time_in_own_process, partial(prepare_eeg_recordings, str(root), EEGPreprocessing(kind="official"))
            ),
            "clean": partial(time_in_own_process, partial(prepare_eeg_recordings, str(root), EEGPreprocessing())),
            "scipy": partial(time_in_own_process, partial(filter_with_scipy, eeg)),
        }
        measure(k, eeg_sides)
    for k in range(JOB_RUNS):
        whole_sides: dict[str, Callable[[], float]] = {
            "job": partial(time_job, many_root, folder / "job-shards"),
            "serial": partial(time_serial_loaders, many_root, True),
        }
        if k == 0:  # once, to tell what the spectrograms take of the serial side
            whole_sides["serial, no spectrograms"] = partial(time_serial_loaders, many_root, False)
        measure(k, whole_sides)
    shutil.rmtree(folder / "job-shards", ignore_errors=True)
    t = {name: np.array(values) for name, values in table.items()}
    n = 600 * len(paths)
    one_core = "on one core" if os.environ.get("OMP_NUM_THREADS") == "1" else "threads of BLAS not limited"
    lines = [
        f"{len(paths)} videos of 600 frames, 640 x 480; EEG file of 200 recordings, {one_core}; the whole job on "
        f"{N_SUBJECTS} people of 100 recordings, all modalities. Median (range) of {RUNS} runs, of "
        f"the whole job {JOB_RUNS}.",
        "",
        "| side | seconds | frames/s |",
        "|---|---|---|",
        *(
            f"| video, {m} | {format_spread(t[m])} | {format_spread(n / t[m], 0)} |"
            for m in ("ray", "ray, one core", "bare", "bare, one", "opencv")
        ),
        *(f"| EEG, {name} | {format_spread(t[name])} | |" for name in ("official", "clean", "scipy")),
        *(f"| whole, {name} | {format_spread(t[name])} | |" for name in ("job", "serial", "serial, no spectrograms")),
        "",
        "The job stores its windows, cleans the EEG of the speaking recordings by the profile `clean` and leaves the",
        "spectrograms to training (docs/decisions/0011); the serial loaders store nothing. More than two cores were",
        "not measured: chunks share nothing but the store, so N cores should give N / 2 times what two give, until the",
        "store or the network is full.",
        "",
        *(
            f"- {what}: {format_spread(t[slow] / t[fast])}"
            for what, slow, fast in (
                ("video, two bare processes / Ray Data", "bare", "ray"),
                ("video, serial OpenCV / Ray Data", "opencv", "ray"),
                ("video, Ray Data on one core / on two", "ray, one core", "ray"),
                ("video, one bare process / two", "bare, one", "bare"),
                ("EEG, serial scipy (200 recordings) / official (200)", "scipy", "official"),
                ("EEG, serial scipy (200 recordings) / clean (100)", "scipy", "clean"),
                ("whole, serial loaders / job", "serial", "job"),
                ("whole, serial loaders without spectrograms / job", "serial, no spectrograms", "job"),
            )
        ),
    ]

    # What a second core is worth is the machine's: two bare processes are not twice as fast as one either.
    gain = (t["ray, one core"] / t["ray"]) / (t["bare, one"] / t["bare"])

    def make_goal(name: str, slow: str, fast: str, bar: float) -> Goal:
        return Goal(name, float(np.median(t[slow] / t[fast])), bar)

    goals = [
        make_goal("video through Ray Data of two bare processes", "bare", "ray", 0.85),
        make_goal("video through Ray Data of serial OpenCV", "opencv", "ray", 1.4),
        make_goal("video through Ray Data, two cores of one", "ray, one core", "ray", 1.8),
        Goal("what a second core adds, Ray Data of bare processes", float(np.median(gain)), 0.9),
        make_goal("EEG official of serial scipy", "scipy", "official", 2.0),
        make_goal("EEG clean of serial scipy", "scipy", "clean", 1.0),
        make_goal("whole job of serial loaders", "serial", "job", 1.4),
    ]
    return finish_benchmark("preprocess", "Speed of preprocessing", "\n".join(lines), goals)


def _warm_up() -> None:
    """Long enough that each worker gets one, and has what the job needs imported."""
    importlib.import_module("eav_ray.pipelines.preprocess.preprocess")
    time.sleep(2)


if __name__ == "__main__":
    sys.exit(main())
