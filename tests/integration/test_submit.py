"""A job goes through a job server: `ray start --head`, then `ray job submit`, as the README says."""

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from eav_ray.distributed.worker_groups import LEAVE_S
from tests.helpers import slow_saves
from tests.helpers.clusters import (
    PATIENCE_S,
    RAY,
    Job,
    find_free_ports,
    find_furthest,
    open_head,
    read_finished,
    write_token,
)
from tests.helpers.paths import REPOSITORY
from tests.helpers.reliability import CHAOS

pytestmark = pytest.mark.ray
SAVE_S = 2e9 / 50e6 if CHAOS else 4  # 2 GB at 50 MB/s; more than Ray gives a job by default


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Token authentication with a token of this test's own; nobody has activated an environment of Python."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_") and k != "VIRTUAL_ENV"}
    own = {str(Path(sys.executable).parent), f"{sys.prefix}/bin"}
    path = os.pathsep.join(folder for folder in kept["PATH"].split(os.pathsep) if folder not in own)
    folder = tmp_path_factory.mktemp("token")
    kept |= {"PATH": path, "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    kept |= {"RAY_JOB_STOP_WAIT_TIME_S": f"{LEAVE_S:.0f}", slow_saves.VARIABLE: f"{SAVE_S}:{folder / 'saves'}"}
    return kept | write_token(folder)


@pytest.fixture(scope="module")
def server(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the job server of a head that this test started and ends."""
    gcs, dashboard, client, agent = find_free_ports(4)
    log = tmp_path_factory.mktemp("head") / "log"
    words = ["--num-cpus=2", f"--port={gcs}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
    words += [f"--dashboard-agent-listen-port={agent}", "--object-store-memory=300000000"]
    with open_head(environment, log, *words) as head:
        address = f"http://127.0.0.1:{dashboard}"
        wait_for(address, head, log)
        yield address


def wait_for(address: str, head: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        assert head.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"{address}/api/version", timeout=2):
                return
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):  # it is there, and wants its token
                return
        except OSError:
            pass
        time.sleep(0.5)
    pytest.fail(f"no job server at {address}\n{log.read_text()}")


def submit(server: str, environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [RAY, "job", "submit", "--address", server, "--working-dir", ".", "--", "python3", *words],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )


def test_the_job_server_refuses_who_has_no_token_and_preprocesses_for_who_has_one(
    server: str, environment: dict[str, str], synthetic: Path, tmp_path: Path
) -> None:
    stores = [f"store.{k}={tmp_path / k}" for k in ("shards", "results", "cache")]
    words = ["jobs/preprocess.py", "tests/integration/tiny.yaml", f"data.root={synthetic}", "data.subjects=[subject1]"]
    without = {k: v for k, v in environment.items() if not k.startswith("RAY_AUTH")} | {"RAY_AUTH_MODE": "disabled"}
    refused = submit(server, without, *words, *stores)
    assert refused.returncode != 0 and not list(tmp_path.iterdir())
    assert "Unauthorized: Missing authentication token" in refused.stdout + refused.stderr
    admitted = submit(server, environment, *words, *stores)  # so it was the token, and nothing else
    assert admitted.returncode == 0, admitted.stdout + admitted.stderr
    assert "40 windows" in admitted.stdout
    assert list((tmp_path / "shards").rglob("*.parquet"))


def test_a_submitted_job_with_relative_folders_says_what_to_do(server: str, environment: dict[str, str]) -> None:
    done = submit(server, environment, "jobs/preprocess.py", "tests/integration/tiny.yaml")
    assert done.returncode != 0
    assert "a submitted job runs in a temporary copy" in done.stdout


def test_a_job_that_is_stopped_in_the_middle_of_a_save_has_saved(
    server: str, environment: dict[str, str], preprocessed: list[str], place: Path, job: Job
) -> None:
    words = [*preprocessed, "data.modalities=[eeg]", "runtime.workers=1", "runtime.engine=torch"]
    words += ["train.encoders.eeg.epochs=4", "train.checkpoint_steps=1", f"plugins=[{slow_saves.__name__}]"]
    stores = {"shards": "data/shards", "results": "stopped_by_server", "cache": "cache"}
    words += [f"store.{name}={place / folder}" for name, folder in stores.items()]
    results, begun = place / stores["results"], Path(environment[slow_saves.VARIABLE].split(":", 1)[1])
    ask = [RAY, "job", "submit", "--address", server, "--submission-id", "slow", "--no-wait", "--working-dir", "."]
    run(environment, *ask, "--", "python3", "jobs/train.py", *words)
    before = slow_saves.wait_for_saves(begun, 2)
    run(environment, RAY, "job", "stop", "--address", server, "slow")
    assert find_furthest(results) == slow_saves.read_begun(begun)[-1] >= before[-1]
    logs = run(environment, RAY, "job", "logs", "--address", server, "slow").stdout
    assert "stopped; rerun the same command to continue (0 of 1 training finished)" in logs
    if CHAOS:
        job("train", *words)
        (folder,) = (results / "runs").iterdir()
        assert len(list(folder.glob("a*"))) == 2
        job("train", *words, f"store.results={place / 'not_stopped'}")
        whole, stopped = read_finished(place / "not_stopped"), read_finished(results)
        assert all(torch.equal(tensor, stopped.weights[name]) for name, tensor in whole.weights.items())


def run(environment: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, check=True, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=PATIENCE_S
    )
