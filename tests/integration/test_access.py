"""Who reaches what: a Ray of a job's own listens on loopback alone, and a cluster that wants no token is not used."""

import ipaddress
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.helpers.clusters import PATIENCE_S, find_free_ports, open_head, write_token
from tests.helpers.paths import REPOSITORY, TINY

pytestmark = pytest.mark.ray


def test_a_cluster_without_a_token_is_refused(job_environment: dict[str, str], synthetic: Path, tmp_path: Path) -> None:
    """Its dashboard is on loopback, where it answers everybody; the token is in the client's environment only."""
    gcs, dashboard, client, agent = find_free_ports(4)
    words = ["--num-cpus=1", f"--port={gcs}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
    words += [f"--dashboard-agent-listen-port={agent}", "--object-store-memory=100000000"]
    open_to_all = job_environment | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    with open_head(open_to_all, tmp_path / "log", *words):
        with urllib.request.urlopen(f"http://127.0.0.1:{dashboard}/api/jobs/", timeout=30) as answer:
            assert answer.status == 200
        command = [sys.executable, str(REPOSITORY / "jobs" / "preprocess.py"), str(TINY), f"data.root={synthetic}"]
        for mine in (open_to_all, job_environment | write_token(tmp_path)):
            environment = mine | {"RAY_ADDRESS": f"127.0.0.1:{gcs}"}
            done = subprocess.run(
                command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE_S
            )
            assert done.returncode == 2 and re.fullmatch(
                r"error: the Ray at [0-9.:]+ answers without a token: .*RAY_AUTH_MODE=token.*\n", done.stderr
            ), done.stderr
    # Nothing was made of the recordings: what lies in the store are the hashes of their files.
    left = [path for path in tmp_path.rglob("*") if path.is_file() and path.name not in ("log", "token")]
    assert all(path.name == "lock" or path.parent.name == "hashes" for path in left), left


def test_a_ray_of_a_jobs_own_listens_on_loopback_alone(uninterrupted: Path, sockets: set[tuple[str, str]]) -> None:
    """Ray's services, the store and the connections by which workers of a training find and reach each other."""
    assert {"gcs_server", "raylet", "ray::RayTrainWorker", "ray::DashboardAgent"} <= {program for program, _ in sockets}
    assert {(program, at) for program, at in sockets if not ipaddress.ip_address(at).is_loopback} == set()
