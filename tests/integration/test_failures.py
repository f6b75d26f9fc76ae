"""On real Ray: the error of the rank that raised first is told, and a killed queue is rebuilt from the store."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from eav_ray.storage import Store
from eav_ray.training import checkpoint as ckpt
from eav_ray.training.run_spec import Position
from tests.helpers.clusters import PATIENCE_S, wait_for_checkpoint
from tests.helpers.paths import REPOSITORY
from tests.helpers.reliability import CHAOS

pytestmark = pytest.mark.ray
WORDS = ("runtime.engine=torch", "train.checkpoint_steps=2")


def start_training(place: Path, environment: dict[str, str], *words: str) -> "subprocess.Popen[str]":
    command = [sys.executable, str(REPOSITORY / "jobs" / "train.py"), *words]
    environment = environment | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(command, cwd=place, env=environment, stderr=subprocess.PIPE, text=True)


def find_queue(process: "subprocess.Popen[str]") -> psutil.Process:
    children = psutil.Process(process.pid).children(recursive=True)
    (queue,) = [child for child in children if "QueueActor" in " ".join(child.cmdline())]
    return queue


def test_a_killed_queue_is_rebuilt_and_the_job_goes_on(
    preprocessed: list[str], place: Path, job_environment: dict[str, str]
) -> None:
    words = [*preprocessed, *WORDS, "data.modalities=[audio,eeg]", "train.encoders.eeg.epochs=4"]
    words += ["train.encoders.audio.epochs=4", "runtime.workers=1", "store.results=forgotten"]
    process = start_training(place, job_environment, *words)
    try:
        wait_for_checkpoint(place / "forgotten", Position(0, 0), process)
        find_queue(process).kill()
        _, reported = process.communicate(timeout=PATIENCE_S)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    assert process.returncode == 0, reported
    store = Store(place / "forgotten")
    keys = store.list_folders("runs")
    assert len(keys) == 3  # two encoders and the fusion that follows them
    assert all(ckpt.find_finished_checkpoint(store, key) for key in keys)
    assert all(len(store.list_folders(f"runs/{key}")) == 1 for key in keys)  # no worker was started anew


@pytest.mark.skipif(not CHAOS, reason="in `make chaos` only: three starts of a group take a minute")
def test_a_training_that_fails_each_time_is_told_with_the_error_of_the_rank_that_raised(
    preprocessed: list[str], place: Path, job_environment: dict[str, str]
) -> None:
    words = [*preprocessed, *WORDS, "plugins=[tests.helpers.failing_encoder]", "data.modalities=[eeg]"]
    words += ["model.eeg={kind: failing_encoder}", "store.results=failing"]
    process = start_training(place, job_environment, *words)
    try:
        _, reported = process.communicate(timeout=PATIENCE_S)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    assert process.returncode == 2 and "Traceback" not in reported, reported
    line = reported.splitlines()[-1]
    assert "1 of 1 training failed" in line
    assert 'its workers ended 3 times without progress: KeyError: "an error of the second rank\'s own"' in line
