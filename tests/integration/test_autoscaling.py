"""A cluster grows from no worker node to three for a search, and shrinks again; no node goes while it is busy (R17).

Nodes are raylets on this machine, which Ray's fake provider starts and ends for its autoscaler.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from eav_ray.distributed.cluster import FAKE_GPUS_ENV
from tests.helpers.clusters import PATIENCE_S, RAY, end_process, find_free_ports, write_token
from tests.helpers.paths import REPOSITORY
from tests.helpers.reliability import CHAOS

pytestmark = pytest.mark.ray
HEAD = "f" * 51 + "00000"  # what Ray's fake provider calls the head
NODES, IDLE_S = 3, 6
N_CANDIDATES = 6 if CHAOS else 3  # the first three start side by side

# Prints, a line every half second, which nodes are alive, whether those with a GPU have work, and the words of those
# that died. A driver of its own: the test process must join no cluster.
WATCH = """
import json, sys, time
import ray
from ray._private.state import available_resources_per_node
ray.init(address=sys.argv[1], log_to_driver=False)
while True:
    free = available_resources_per_node()
    nodes = {n["NodeID"]: n for n in ray.nodes() if n["Resources"].get("GPU") or not n["Alive"]}
    told = {k: [n["Alive"], free.get(k, {}).get("GPU", 0.0), n["DeathReasonMessage"]] for k, n in nodes.items()}
    print("seen", json.dumps([time.time(), told]), flush=True)
    time.sleep(0.5)
"""


@dataclass
class Growing:
    """A head without CPUs, whose autoscaler may start three nodes with a CPU and a GPU that torch does not see."""

    address: str
    environment: dict[str, str]
    watched: Path

    def seen(self) -> list[tuple[float, dict[str, tuple[bool, float, str]]]]:
        """What was seen until now: (time, node -> (alive, free GPUs, why it died))."""
        lines = self.watched.read_text().splitlines(keepends=True)
        # Ray writes there too.
        return [json.loads(line[5:]) for line in lines if line.startswith("seen ") and line.endswith("\n")]

    def alive(self) -> list[int]:
        return [sum(alive for alive, _, _ in nodes.values()) for _, nodes in self.seen()]


@pytest.fixture
def growing(tmp_path: Path) -> Iterator[Growing]:
    gcs, client, agent = find_free_ports(3)
    address = f"127.0.0.1:{gcs}"
    head, gpu = {"CPU": 0}, {"CPU": 1, "GPU": 1, "object_store_memory": 100_000_000}
    limits: dict[str, Any] = {
        "cluster_name": "fake",
        "max_workers": NODES,
        "upscaling_speed": 10.0,
        "idle_timeout_minutes": IDLE_S / 60,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": address,
            "launch_multiple": True,
            "head_node_id": HEAD,
        },
        "available_node_types": {
            "ray.head.default": {"resources": head, "node_config": {}, "min_workers": 0, "max_workers": 0},
            "gpu": {"resources": gpu, "node_config": {}, "min_workers": 0, "max_workers": NODES},
        },
        "head_node_type": "ray.head.default",
    }
    commands = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    limits |= {f"{which}_commands": [] for which in commands} | {"auth": {}, "file_mounts": {}, "docker": {}}
    limits |= {key: [] for key in ("cluster_synced_files", "rsync_exclude", "rsync_filter")}
    (tmp_path / "limits.json").write_text(json.dumps(limits))
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    kept |= write_token(tmp_path) | {"RAY_USAGE_STATS_ENABLED": "0"}
    kept |= {"OMP_NUM_THREADS": "1", "RAY_DEDUP_LOGS": "0"}
    fake = {"RAY_FAKE_CLUSTER": "1", "RAY_enable_autoscaler_v2": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    fake |= {FAKE_GPUS_ENV: "1", "RAY_CLOUD_INSTANCE_ID": HEAD, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD}
    words = ["start", "--head", "--block", "--num-cpus=0", "--node-ip-address=127.0.0.1", f"--port={gcs}"]
    words += [f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"]
    words += ["--include-dashboard=false", "--object-store-memory=100000000"]
    words += [f"--autoscaling-config={tmp_path / 'limits.json'}"]
    log = tmp_path / "log"
    running: list[subprocess.Popen[bytes]] = []
    with log.open("w") as out, (tmp_path / "watched").open("w") as reported:
        running.append(
            subprocess.Popen(
                [RAY, *words], env=kept | fake, stdout=out, stderr=out, start_new_session=True, cwd=REPOSITORY
            )
        )
        try:
            while "Ray runtime started" not in log.read_text():
                assert running[0].poll() is None, log.read_text()
                time.sleep(0.1)
            watch = [sys.executable, "-c", WATCH, address]
            running.append(subprocess.Popen(watch, env=kept, stdout=reported, stderr=out, start_new_session=True))
            yield Growing(address, kept, tmp_path / "watched")
        finally:
            for process in reversed(running):
                end_process(process)


def test_a_search_grows_a_cluster_and_gives_it_back(
    growing: Growing, preprocessed: list[str], tuned: Path, place: Path
) -> None:
    """Its encoders are those of a search that was here before; how far to grow says the autoscaler's configuration."""
    for kept in ("runs", "embeddings"):
        shutil.copytree(tuned / kept, place / "grown" / kept)
    words = [*preprocessed, "store.results=grown"]
    words += [f"search.candidates={N_CANDIDATES}", "search.ask_batch_size=3", "search.prune=true", "optim.epochs=12"]
    cluster = [f"runtime.address={growing.address}", "runtime.gpus_per_worker=0.5", "runtime.workers=1"]
    assert growing.alive()[-1:] in ([], [0])
    command = [sys.executable, str(REPOSITORY / "jobs" / "search.py"), *words, *cluster]
    searched = subprocess.run(
        command, cwd=place, env=growing.environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert searched.returncode == 0, searched.stdout + searched.stderr
    (todo,) = [line for line in searched.stdout.splitlines() if line.startswith("to do: ")]
    assert "encoder" not in todo
    ended = time.time()
    while growing.alive()[-1]:
        assert time.time() < ended + 60, growing.seen()[-1]
        time.sleep(0.5)
    assert max(growing.alive()) == NODES
    (trials,) = (place / "grown" / "searches").glob("*/candidates.parquet")
    rows = pd.read_parquet(trials)
    folds = rows.groupby(["candidate", "state"])["fold"].count()
    assert [number for number, _ in folds.index] == list(range(N_CANDIDATES))
    assert all(count == {"COMPLETE": 2, "PRUNED": 1}[state] for (_, state), count in folds.items())
    # Not one trial was lost with its node: Tune leaves the errors of attempts that it repeats.
    assert not list((place / "grown" / "ray").rglob("error.txt"))
    busy: dict[str, bool] = {}
    for _, nodes in growing.seen():
        for node, (alive, free, reason) in nodes.items():
            if alive:
                busy[node] = free < 1
            else:
                assert not busy.pop(node, False), reason
