"""Preprocessing against bare decoding and against serial loaders, on one generated person of EAV's size.

    python -m benchmarks.preprocess [FOLDER]

Both sides of a ratio run one after the other on the same files, five times; the order alternates. FOLDER keeps the
generated person (0.5 GB) from one run to the next. Needs opencv-python-headless (extra `bench`).
"""

import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import ray
import ray.data
from scipy.signal import butter, resample_poly, sosfilt

from benchmarks.common import Goal, finish, spread
from eav_ray.config import EEGProfile, Experiment, VideoProfile, override
from eav_ray.data import frames, sets, video
from eav_ray.data.eav import EAV
from eav_ray.data.manifest import Recording
from eav_ray.data.session import Prepared, prepare
from eav_ray.data.synthetic import Plan, plant
from eav_ray.runtime import cluster
from eav_ray.runtime.preprocess import _run, chunks, shard_store

RUNS = 5
PROFILE = VideoProfile()


def person(folder: Path) -> Path:
    """One person with 100 speaking recordings of 20 s, 640 x 480 at 30 fps."""
    plan = Plan(people=1, per_class=20, listening=True, video_size=(640, 480), fps=30)
    plant(folder, plan, workers=2)
    return folder


def bare(paths: list[str], out: str) -> int:
    """What no preprocessing can do without: decode, resize, encode, write."""
    with open(out, "wb") as sink:
        for path in paths:
            x_FHWC = video.read(path, PROFILE.fps, PROFILE.size).frames
            for start in range(0, len(x_FHWC), 25):
                for file in frames.encode(x_FHWC[start : start + 25], PROFILE):
                    sink.write(file)
    return len(paths)


def serial_opencv(paths: list[str]) -> int:
    """A loader as people write it: read all frames, resize every sixth, store nothing."""
    seen = 0
    for path in paths:
        capture = cv2.VideoCapture(path)
        for k in range(600):
            good, frame = capture.read()
            if not good:
                break
            seen += 1
            if k % 6 == 0:
                cv2.cvtColor(cv2.resize(frame, (224, 224), interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2RGB)
        capture.release()
    return seen


def two_processes(paths: list[str], scratch: Path) -> float:
    """Seconds that two processes need which already run."""
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.starmap(bare, [([paths[0]], str(scratch / f"w{i}")) for i in range(2)])  # imports are not counted
        began = time.perf_counter()
        # Small parts, so that both end together.
        parts = [(paths[i : i + 5], str(scratch / f"b{i}")) for i in range(0, len(paths), 5)]
        pool.starmap(bare, parts, chunksize=1)
        return time.perf_counter() - began


def through_ray(experiment: Experiment, shards: Path) -> float:
    """Seconds of the job's own pipeline, once Ray and its workers are up."""
    e = override(experiment, {"store.shards": str(shards)})
    _, listing = sets.scan(e.data)
    began = time.perf_counter()
    _run(e, chunks(e, listing), shard_store(e), 0)
    return time.perf_counter() - began


def serial_scipy(path: str) -> np.ndarray:
    """The published pipeline in double precision, over all 200 recordings, file reading included."""
    dataset = EAV(str(Path(path).parents[2]))
    first = Recording("subject1", "001", 0, "speaking", 0, eeg=path)
    seg = np.stack([dataset.read_eeg(r).values_CT for r in dataset.sitting([first])])
    whole_CT = seg.transpose(1, 0, 2).reshape(seg.shape[1], -1).astype(np.float64)
    sos = butter(5, [0.5, 45], "bandpass", fs=100, output="sos")
    return sosfilt(sos, resample_poly(whole_CT, 1, 5, axis=1), axis=1)


def ours(root: str, profile: EEGProfile) -> int:
    dataset = EAV(root)
    recordings = dataset.scan().recordings
    done = [found for _, found in prepare(dataset, recordings, profile) if isinstance(found, Prepared)]
    assert len(done) == len(recordings)
    return len(done)


def wall_seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> int:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp())
    root = person(folder / "EAV")
    listing = EAV(str(root)).scan()
    paths = [r.video for r in listing.recordings if r.video is not None]
    eeg = next(r.eeg for r in listing.recordings if r.eeg is not None)
    experiment = override(
        Experiment(), {"data.root": str(root), "data.modalities": ["video"], "profile.chunk": 5, "runtime.workers": 1}
    )
    table: dict[str, list[float]] = {name: [] for name in ("ray", "bare", "opencv", "official", "clean", "scipy")}
    with cluster.session(experiment.runtime):
        ray.get([ray.remote(_warm).remote() for _ in range(4)])
        for k in range(RUNS):
            scratch = Path(tempfile.mkdtemp(dir=folder))
            sides: list[tuple[str, Callable[[], float]]] = [
                ("ray", partial(through_ray, experiment, scratch / "shards")),
                ("bare", partial(two_processes, paths, scratch)),
                ("opencv", partial(wall_seconds, partial(serial_opencv, paths))),
                ("official", partial(wall_seconds, partial(ours, str(root), EEGProfile(kind="official")))),
                ("clean", partial(wall_seconds, partial(ours, str(root), EEGProfile()))),
                ("scipy", partial(wall_seconds, partial(serial_scipy, eeg))),
            ]
            for name, side in sides if k % 2 == 0 else sides[::-1]:
                table[name].append(side())
                print(f"run {k + 1} {name}: {table[name][-1]:.1f} s", flush=True)
    t = {name: np.array(values) for name, values in table.items()}
    n = 600 * len(paths)
    lines = [
        f"{len(paths)} videos of 600 frames, 640 x 480; EEG file of 200 recordings. Median (range) of {RUNS} runs.",
        "",
        "| side | seconds | frames/s |",
        "|---|---|---|",
        *(f"| {name} | {spread(t[name])} | {spread(n / t[name], 0)} |" for name in ("ray", "bare", "opencv")),
        *(f"| EEG {name} | {spread(t[name])} | |" for name in ("official", "clean", "scipy")),
        "",
        f"- video, Ray Data / two bare processes: {spread(t['bare'] / t['ray'])}",
        f"- video, Ray Data / serial OpenCV: {spread(t['opencv'] / t['ray'])}",
        f"- EEG, official against serial scipy: {spread(t['scipy'] / t['official'])}",
        f"- EEG, clean (100 recordings) against serial scipy (200): {spread(t['scipy'] / t['clean'])}",
    ]
    goals = [
        Goal("video through Ray Data of two bare processes", float(np.median(t["bare"] / t["ray"])), 0.85),
        Goal("video through Ray Data of serial OpenCV", float(np.median(t["opencv"] / t["ray"])), 1.4),
        Goal("EEG official of serial scipy", float(np.median(t["scipy"] / t["official"])), 2.0),
        Goal("EEG clean of serial scipy", float(np.median(t["scipy"] / t["clean"])), 1.0),
    ]
    return finish("preprocess", "Speed of preprocessing", "\n".join(lines), goals)


def _warm() -> None:
    """Long enough that each worker gets one, and has this module and all below it imported."""
    time.sleep(2)


if __name__ == "__main__":
    sys.exit(main())
