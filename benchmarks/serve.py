"""Serving one window: how long an answer takes, preprocessing included, and whether memory grows.

    python -m benchmarks.serve [FOLDER] [minutes=30] [requests=200]

A model with the sizes of eav_ray/experiments/demo.yaml, as `jobs/serve.py` serves it, and files of synthetic people.
First each recording of 5 s (EEG, audio, video) is asked for alone, one after the other: the time is what a client on
the same machine waits. Then, for some minutes, one client asks without a pause while another streams EEG and noise in
real time; the resident memory of the replica is read once a second, and its slope is that of a line through the second
half.
"""

import base64
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from benchmarks.common import Goal, finish_benchmark, parse_arguments
from eav_ray.config import load_experiment
from eav_ray.data.datasets.eav import EAV, EAV_CHANNELS, EAV_CLASSES
from eav_ray.data.recordings import Recording
from eav_ray.data.splits import Split
from eav_ray.data.synthetic.generate import SyntheticSpec, generate_dataset
from eav_ray.models.classifier import Classifier
from eav_ray.models.encoders.base import DataShapes
from eav_ray.storage import Store
from eav_ray.training.checkpoint import write_checkpoint
from eav_ray.training.checkpoint_files import Checkpoint, CheckpointState
from eav_ray.training.run_spec import Position
from tests.helpers.paths import EXPERIMENTS

REPOSITORY = Path(__file__).parents[1]
MAX_P95_S = 1.0
MAX_GROWTH = 2.0  # MiB a minute over the second half, at most: 2.8 GiB a day
SPEC = SyntheticSpec(n_subjects=1, per_class=4, seconds=5)
CHUNK_S = 0.1


def make_checkpoint(folder: Path) -> str:
    """Weights that nobody trained: they cost what others cost."""
    e = load_experiment(EXPERIMENTS / "demo.yaml")
    torch.manual_seed(0)
    shapes = DataShapes(len(EAV_CHANNELS), len(EAV_CLASSES))
    model = Classifier(e, shapes)
    model.normalise.sd.fill_(20.0)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    split = Split("loso", ("a/1",), (), ("b/1",))
    state = CheckpointState("served", Position(1, 0), True, EAV_CLASSES, shapes, data_digest="")
    return write_checkpoint(Store(folder), "a0000-aaaaaaaa", Checkpoint(state, e, split, {}, weights, {})).path


def make_request_bodies(root: Path) -> tuple[list[bytes], EAV, list[Recording]]:
    """One request a recording."""
    dataset = EAV(str(root))
    recordings = list(dataset.scan().recordings)
    found = []
    for r in recordings:
        raw = dataset.read_eeg(r)
        assert r.audio and r.video
        tree = {
            "eeg": {
                "hz": raw.hz,
                "channels": list(raw.channels),
                "values": base64.b64encode(raw.values_CT.astype("<f4").tobytes()).decode(),
            },
            "audio": base64.b64encode(Path(r.audio).read_bytes()).decode(),
            "video": base64.b64encode(Path(r.video).read_bytes()).decode(),
        }
        found.append(json.dumps(tree).encode())
    return found, dataset, recordings


def time_request(url: str, body: bytes) -> float:
    """Seconds until the answer is there."""
    began = time.perf_counter()
    with urllib.request.urlopen(urllib.request.Request(f"{url}/predict", body), timeout=60) as response:
        tree = json.load(response)
    seconds = time.perf_counter() - began
    assert tree["predicted"] in EAV_CLASSES and not tree["not_used"], tree
    return seconds


class StreamClient:
    """One client that sends EEG and audio of synthetic people at the pace at which they were recorded."""

    def __init__(self, url: str, dataset: EAV, recording: Recording) -> None:
        raw = dataset.read_eeg(recording)
        self._eeg_CT, self._hz = raw.values_CT.astype("<f4"), int(raw.hz)
        self._url = url.replace("http://", "ws://") + "/stream"
        self.answers, self.late_s, self.used = 0, [], set[str]()
        self._sent: dict[float, float] = {}  # stream's second -> when its last piece was sent

    def run(self, stop: threading.Event) -> None:
        with connect(self._url) as socket:
            reader = threading.Thread(target=self._read, args=(socket,))
            reader.start()
            began, k = time.monotonic(), 0
            noise_T = (np.random.default_rng(0).normal(0, 3000, 16_000)).astype("<i2")
            while not stop.is_set():
                at_s = k * CHUNK_S
                n, m = round(CHUNK_S * self._hz), round(CHUNK_S * 16_000)
                at = (k * n) % (self._eeg_CT.shape[1] - n)
                eeg = {"modality": "eeg", "time": at_s, "hz": self._hz, "channels": list(EAV_CHANNELS)}
                sound = {"modality": "audio", "time": at_s, "hz": 16_000, "dtype": "int16"}
                socket.send(json.dumps(eeg).encode() + b"\n" + self._eeg_CT[:, at : at + n].T.tobytes())
                socket.send(json.dumps(sound).encode() + b"\n" + noise_T[:m].tobytes())
                k += 1
                self._sent[round(k * CHUNK_S, 3)] = time.monotonic()
                time.sleep(max(0.0, began + k * CHUNK_S - time.monotonic()))
        reader.join()

    def _read(self, socket: ClientConnection) -> None:
        try:
            for text in socket:
                tree: dict[str, Any] = json.loads(text)
                if "waiting" not in tree:
                    self.answers += 1
                    self.used |= set(tree["used"])
                    self.late_s.append(time.monotonic() - self._sent.get(round(tree["time"], 3), np.nan))
        except ConnectionClosed:
            return


def find_replica(process: "subprocess.Popen[str]") -> psutil.Process:
    for child in psutil.Process(process.pid).children(recursive=True):
        if "ServeReplica" in " ".join(child.cmdline()):
            return child
    sys.exit("error: no replica is running")


def main() -> int:
    folder, words = parse_arguments(__doc__, allowed_keys=("minutes", "requests"))
    minutes, requests = float(words.get("minutes", 30)), int(words.get("requests", 200))
    generate_dataset(folder / "EAV", SPEC)
    request_bodies, dataset, recordings = make_request_bodies(folder / "EAV")
    command = [sys.executable, "jobs/serve.py", make_checkpoint(folder), "--port", "18765"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("EAV_RAY_SERVE")}
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY, env=environment)
    assert server.stdout is not None
    try:
        match = re.search(r"http://\S+", server.stdout.readline())
        if match is None:
            sys.exit("error: nothing is served")
        url = match[0]
        for body in request_bodies[:5]:
            time_request(url, body)
        unloaded_s = np.array(
            [time_request(url, body) for body, _ in zip(cycle(request_bodies), range(requests), strict=False)]
        )
        print(f"alone: median {np.median(unloaded_s):.3f} s, p95 {np.quantile(unloaded_s, 0.95):.3f} s", flush=True)

        model, stop = find_replica(server), threading.Event()
        stream = StreamClient(url, dataset, recordings[0])
        streaming = threading.Thread(target=stream.run, args=(stop,))
        streaming.start()
        loaded_s: list[float] = []
        memory: list[tuple[float, float]] = []  # minutes, MiB
        began = time.monotonic()
        for body in cycle(request_bodies):
            loaded_s.append(time_request(url, body))
            now = (time.monotonic() - began) / 60
            if not memory or now - memory[-1][0] >= 1 / 60:
                memory.append((now, model.memory_info().rss / 2**20))
            if now >= minutes:
                break
        stop.set()
        streaming.join()
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)
    at, mib = np.array(memory).T
    later = at >= at[-1] / 2
    slope = float(np.polyfit(at[later], mib[later], 1)[0])
    p95 = float(np.quantile(unloaded_s, 0.95))
    lines = [
        f"One window of 5 s (EEG, audio and video as files), one client, {requests} requests: median "
        f"{np.median(unloaded_s):.3f} s, p95 {p95:.3f} s, slowest {unloaded_s.max():.3f} s.",
        "",
        f"{minutes:g} minutes of one client that asks without a pause and one that streams EEG and audio: "
        f"{len(loaded_s)} requests, median {np.median(loaded_s):.3f} s, p95 {np.quantile(loaded_s, 0.95):.3f} s; "
        f"{stream.answers} answers to the stream (used: {', '.join(sorted(stream.used))}), which come "
        f"{np.nanmedian(stream.late_s):.3f} s after the last piece (median), p95 "
        f"{np.nanquantile(stream.late_s, 0.95):.3f} s.",
        "",
        "Resident memory of the replica, MiB, at the start and after each tenth of that time: "
        + ", ".join(f"{v:.0f}" for v in np.interp(np.linspace(0, at[-1], 11), at, mib))
        + ".",
    ]
    goals = [
        Goal("p95 of one window, preprocessing included", p95, MAX_P95_S, " s", at_least=False),
        Goal("growth of memory over the second half", slope, MAX_GROWTH, " MiB/minute", at_least=False),
        Goal("answers to the stream a second", stream.answers / (minutes * 60), 0.95),
    ]
    return finish_benchmark("serve", "Serving", "\n".join(lines), goals)


if __name__ == "__main__":
    sys.exit(main())
