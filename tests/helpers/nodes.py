"""A cluster of several nodes on this machine, of which single ones are drained, lost and added."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from eav_ray.distributed.worker_groups import LEAVE_S
from tests.helpers import slow_saves
from tests.helpers.clusters import PATIENCE_S, RAY, end_process, find_free_ports, write_token
from tests.helpers.paths import REPOSITORY
from tests.helpers.s3_servers import CREDENTIALS


@dataclass
class Nodes:
    """A head without CPUs and some nodes of one CPU each, on this machine, each a process group of its own."""

    environment: dict[str, str]
    log: Path
    address: str = ""
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, *words: str) -> None:
        words = ("start", "--block", "--node-ip-address=127.0.0.1", "--object-store-memory=100000000", *words)
        with self.log.open("a") as out:
            made = subprocess.Popen(
                [RAY, *words], env=self.environment, stdout=out, stderr=out, start_new_session=True, cwd=REPOSITORY
            )
        self.running.append(made)
        for _ in range(10 * PATIENCE_S):
            assert made.poll() is None, self.log.read_text()
            if self.raylet(made):
                return
            time.sleep(0.1)
        raise AssertionError(self.log.read_text())

    def raylet(self, node: subprocess.Popen[bytes]) -> psutil.Process | None:
        """None where it has ended, as that of a node that was drained does."""
        try:
            whole = psutil.Process(node.pid).children(recursive=True)
            return next((child for child in whole if child.name() == "raylet"), None)
        except psutil.Error:
            return None

    def has_a_worker(self, node: subprocess.Popen[bytes]) -> bool:
        try:
            raylet = self.raylet(node)
            return bool(raylet) and any("RayTrainWorker" in " ".join(c.cmdline()) for c in raylet.children())
        except psutil.Error:
            return False

    def with_a_worker(self, other_than: subprocess.Popen[bytes] | None = None) -> subprocess.Popen[bytes]:
        """A node on which a training worker runs."""
        for _ in range(10 * PATIENCE_S):
            for node in self.running[1:]:
                if node is not other_than and self.has_a_worker(node):
                    return node
            time.sleep(0.1)
        raise AssertionError("no training worker runs")

    def drain(self, node: subprocess.Popen[bytes], seconds: int) -> None:
        raylet = self.raylet(node)
        assert raylet
        words = raylet.cmdline()
        (name,) = {w.split("=", 1)[1] for w in words if w.startswith("--node_id=")}
        command = [RAY, "drain-node", "--address", self.address, "--node-id", name]
        command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "the spot market"]
        command += ["--deadline-remaining-seconds", str(seconds)]
        subprocess.run(command, check=True, capture_output=True, env=self.environment)

    def add(self) -> None:
        """Start one more node of one CPU."""
        (agent,) = find_free_ports(1)
        self.start("--num-cpus=1", f"--address={self.address}", f"--dashboard-agent-listen-port={agent}")

    def lose(self, node: subprocess.Popen[bytes]) -> None:
        self.running.remove(node)
        end_process(node)


@contextmanager
def open_nodes(folder: Path, count: int) -> Iterator[Nodes]:
    """Start a head and some nodes; end them with the block."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    kept |= write_token(folder) | CREDENTIALS
    # Plugins of tests are imported in every process, whatever the folder that it starts in.
    kept["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    # A node that is gone is noticed within seconds, not within half a minute.
    kept |= {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "5"}
    kept |= {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": f"{LEAVE_S:.0f}"}
    kept |= {slow_saves.VARIABLE: f"{2e9 / 50e6}:{folder / 'saves'}"}  # for whoever asks for it: 2 GB at 50 MB/s
    made = Nodes(kept | {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}, folder / "log")
    try:
        gcs, client, agent = find_free_ports(3)
        made.address = f"127.0.0.1:{gcs}"
        head = ("--head", "--num-cpus=0", f"--port={gcs}", f"--ray-client-server-port={client}")
        made.start(*head, "--include-dashboard=false", f"--dashboard-agent-listen-port={agent}")
        for _ in range(count):
            made.add()
        yield made
    finally:
        for node in reversed(made.running):
            end_process(node)  # a node that is told to end waits for its workers, a head for all its time
