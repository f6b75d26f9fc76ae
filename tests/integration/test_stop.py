"""A training on real Ray whose worker is killed, and which is told to end, goes on and ends as if nothing had been."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from eav_ray.storage import Store
from eav_ray.training import checkpoint as ckpt
from eav_ray.training.run_spec import Position
from tests.helpers.paths import REPOSITORY
from tests.integration.conftest import Job

pytestmark = pytest.mark.ray


@pytest.fixture
def started(long_training: list[str], place: Path) -> Iterator["subprocess.Popen[str]"]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(REPOSITORY / "jobs" / "train.py"), *long_training, "store.results=stopped"]
    process = subprocess.Popen(command, cwd=place, env=environment, stderr=subprocess.PIPE, text=True)
    yield process
    if process.poll() is None:
        process.kill()
        process.wait()


def furthest(results: Path) -> Position:
    """Of all checkpoints of the only run, by any attempt."""
    store = Store(results)
    found = [position for key in store.list_folders("runs") for _, position, _ in ckpt.list_checkpoints(store, key)]
    return max(found, default=Position(0, 0))


def wait_for(results: Path, after: Position, process: "subprocess.Popen[str]") -> Position:
    for _ in range(1200):
        if (found := furthest(results)) > after:
            return found
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    raise AssertionError(f"nothing was saved after {after}")


def workers(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found


def last(results: Path) -> ckpt.Checkpoint:
    store = Store(results)
    (key,) = store.list_folders("runs")
    found, damaged = ckpt.find_latest_checkpoint(store, key)
    assert found and found[1].finished and not damaged
    return found[1]


def test_a_killed_worker_and_a_job_that_is_told_to_end_change_nothing(
    started: "subprocess.Popen[str]", job: Job, long_training: list[str], place: Path, uninterrupted: Path
) -> None:
    first = wait_for(place / "stopped", Position(0, 0), started)
    victims = workers(started)
    assert len(victims) == 2
    victims[1].kill()
    second = wait_for(place / "stopped", first, started)
    assert second < Position(30, 0)  # there is a training left to stop
    started.send_signal(signal.SIGTERM)
    _, told = started.communicate(timeout=120)
    assert started.returncode == 130 and "Traceback" not in told
    assert "stopped: 0 of 1 trainings are finished; the same command continues" in told.splitlines()[-1]
    assert second <= furthest(place / "stopped") < Position(40, 0)
    job("train", *long_training, "store.results=stopped")
    whole, stopped = last(uninterrupted), last(place / "stopped")
    assert whole.weights.keys() == stopped.weights.keys()
    for name, tensor in whole.weights.items():
        assert torch.equal(tensor, stopped.weights[name]), name
