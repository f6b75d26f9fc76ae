"""On real Ray: an error of a task is one line, the rank that raised first is told, a killed queue is rebuilt."""

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


FAILING_TASK = """
import sys
import ray.data
from eav_ray.cli.main import run_command
from eav_ray.config import RuntimeConfig
from eav_ray.distributed import cluster, ray_workarounds
from eav_ray.errors import DataError
from eav_ray.pipelines.train import train

def fail(row):
    raise DataError("a.wav is damaged; take it out")

def run(experiment):
    with cluster.connect_to_ray(RuntimeConfig(workers=1)):
        ray_workarounds.configure_ray_data()
        for _ in ray.data.from_items([{"a": 1}]).map(fail).iter_rows():
            pass

train.train = run
sys.exit(run_command(["train", "demo"]))
"""


def test_an_error_of_a_real_task_is_one_line(cluster: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-c", FAILING_TASK]
    done = subprocess.run(command, env=cluster, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S)
    assert (done.returncode, done.stderr) == (2, "error: a.wav is damaged; take it out\n"), done.stdout


def start_training(place: Path, environment: dict[str, str], *words: str) -> "subprocess.Popen[str]":
    command = [sys.executable, str(REPOSITORY / "jobs" / "train.py"), *words]
    environment = environment | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(command, cwd=place, env=environment, stderr=subprocess.PIPE, text=True)


def find_actors(cluster: dict[str, str]) -> dict[str, psutil.Process]:
    """The processes of a cluster in which only one job trains, by what Ray calls them."""
    port = cluster["RAY_ADDRESS"].partition(":")[2]
    (raylet,) = (
        p
        for p in psutil.process_iter(["name", "cmdline"])
        if p.info["name"] == "raylet" and f":{port}" in " ".join(p.info["cmdline"])
    )
    return {" ".join(child.cmdline()).partition(".")[0].strip(): child for child in raylet.children()}


def test_a_killed_queue_is_rebuilt_and_the_job_goes_on(
    preprocessed: list[str], place: Path, cluster: dict[str, str]
) -> None:
    words = [*preprocessed, *WORDS, "data.modalities=[audio,eeg]", "train.encoders.eeg.epochs=4"]
    words += ["train.encoders.audio.epochs=4", "runtime.workers=1", "store.results=forgotten"]
    process = start_training(place, cluster, *words)
    try:
        wait_for_checkpoint(place / "forgotten", Position(0, 0), process)
        actors = find_actors(cluster)
        actors["ray::QueueActor"].kill()
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
    # Of a group on the only node, which reads no data set of Ray's, Ray Train starts no more than this.
    assert {"ray::TrainController", "ray::SynchronizationActor", "ray::RayTrainWorker"} < set(actors)
    assert not {"ray::DatasetManager", "ray::PreemptionWatcher", "ray::PlacementGroupCleaner"} & set(actors)


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
