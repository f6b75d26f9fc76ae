"""Synthetic people and job commands for the tests on real Ray."""

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from eav_ray.data.synthetic.generate import SyntheticSpec, generate_dataset
from eav_ray.distributed.ray_workarounds import CONNECTION_VARIABLES, LOCAL_RAY_VARIABLES, NO_DASHBOARD_VARIABLE
from eav_ray.storage import Store
from tests.helpers.clusters import Job, find_free_ports, open_head, run_watched, write_token
from tests.helpers.job_shell import JobShell, open_job_shell
from tests.helpers.nodes import Nodes, open_nodes
from tests.helpers.paths import REPOSITORY, TINY
from tests.helpers.s3_servers import BUCKET, CREDENTIALS, open_conditional_server, open_faulty_proxy


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three people of ten recordings."""
    root = tmp_path_factory.mktemp("synthetic")
    generate_dataset(root, SyntheticSpec(n_subjects=3, per_class=2, video_size=(64, 48), fps=5))
    return root


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that one chain of jobs works in."""
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="session")
def job_environment() -> dict[str, str]:
    """What a job has in its environment, on a Ray of its own."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    return kept | {"OMP_NUM_THREADS": "1"} | CREDENTIALS


@pytest.fixture(scope="session")
def cluster(job_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a job that joins a cluster of one node; to start a Ray is most of what a small job costs."""
    folder = tmp_path_factory.mktemp("cluster")
    gcs, client, agent = find_free_ports(3)
    joined = job_environment | write_token(folder)
    # As a job does with a Ray of its own.
    joined |= CONNECTION_VARIABLES | LOCAL_RAY_VARIABLES | {NO_DASHBOARD_VARIABLE: "1"}
    ports = (f"--port={gcs}", f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}")
    size = (f"--num-cpus={os.cpu_count()}", "--object-store-memory=300000000")
    unused = ("--include-dashboard=false", "--include-log-monitor=false")
    # As on a node with a GPU, of which workers without one must see nothing (test_gpus.py).
    with open_head(joined | {"CUDA_VISIBLE_DEVICES": "0"}, folder / "log", *ports, *size, *unused):
        yield joined | {"RAY_ADDRESS": f"127.0.0.1:{gcs}"}


@pytest.fixture(scope="session")
def shell(cluster: dict[str, str]) -> Iterator[JobShell]:
    with open_job_shell(cluster) as opened:
        yield opened


@pytest.fixture(scope="session")
def sockets() -> set[tuple[str, str]]:
    """At which addresses jobs with a Ray of their own have listened so far, as (program, address)."""
    return set()


@pytest.fixture(scope="session")
def job(job_environment: dict[str, str], shell: JobShell, place: Path, sockets: set[tuple[str, str]]) -> Job:
    """Run `eav <name> <words>` in the shell of the session's cluster."""

    def run(
        name: str, *words: str, expect: int = 0, own_ray: bool = False, more: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """With `own_ray` run `jobs/<name>.py`, a process with a Ray of its own; `more` goes into its environment."""
        if own_ray:
            command = [sys.executable, str(REPOSITORY / "jobs" / f"{name}.py"), *words]
            done = run_watched(command, sockets, cwd=place, env=job_environment | (more or {}))
        else:
            done = shell.run([name, *map(str, words)], place)
        assert done.returncode == expect, f"{name} {words} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return run


@pytest.fixture(scope="session")
def preprocessed(job: Job, synthetic: Path) -> list[str]:
    """The arguments that all jobs share, once the shards are there."""
    words = [str(TINY), f"data.root={synthetic}"]
    done = job("preprocess", *words)
    assert "120 windows" in done.stdout and "bad channels" in done.stdout
    page = Path(done.stdout.rsplit("quality: ", 1)[1].strip())
    assert page.read_text().count("<img") == 3  # head, spectrum, levels; faces only where they are asked for
    return words


@pytest.fixture(scope="session")
def long_training(preprocessed: list[str]) -> list[str]:
    """The arguments of a training that lasts long enough to be interrupted: 200 steps."""
    words = ["data.modalities=[eeg]", "train.encoders.eeg.epochs=40", "train.checkpoint_steps=3"]
    return [*preprocessed, *words, "model.eeg.dropout=0.2"]


@pytest.fixture(scope="session")
def uninterrupted(job: Job, long_training: list[str], place: Path) -> Path:
    """Results of that training, left alone."""
    job("train", *long_training, "store.results=uninterrupted", own_ray=True)
    return place / "uninterrupted"


@pytest.fixture(scope="session")
def tuned(job: Job, preprocessed: list[str], place: Path) -> Path:
    """The results store after a search in a bucket, of whose requests one in fifty fails; copied to a folder."""
    faults, seen = ("refuse", "lose", "hide", "cut"), itertools.count(1)
    with open_conditional_server() as server, open_faulty_proxy(server) as (address, proxy):
        proxy.choose_fault = lambda method, path: faults[n // 50 % 4] if (n := next(seen)) % 50 == 0 else ""
        # On two ranks; DeepSpeed, which takes longer to start, trains in test_stop.py.
        done = job(
            "search", *preprocessed, "runtime.engine=torch", f"store.results=s3://{BUCKET}/tiny?endpoint={address}"
        )
        assert next(seen) > 500
        bucket = Store(f"s3://{BUCKET}/tiny?endpoint={server}")
        for name in bucket.list_files():
            Store(place / "results").write(name, bucket.read(name))
    assert "9 encoder trainings" in done.stdout and "4 fusion trainings of the search" in done.stdout
    assert not list((place / "journals").iterdir())
    return place / "results"


@pytest.fixture
def nodes(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Nodes]:
    """A cluster of as many nodes as the test asks for."""
    with open_nodes(tmp_path, request.param) as opened:
        yield opened
