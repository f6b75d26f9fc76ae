"""Ray on this machine: its command, free ports, and what its training workers have saved."""

import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from eav_ray.storage import Store
from eav_ray.training import checkpoint as ckpt
from eav_ray.training.run_spec import Position

RAY = str(Path(sys.executable).with_name("ray"))  # the command
Job = Callable[..., subprocess.CompletedProcess[str]]  # runs a job as a user does


def find_free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def find_furthest(results: Path) -> Position:
    """Of all checkpoints of the only run, by any attempt."""
    store = Store(results)
    found = [position for key in store.list_folders("runs") for _, position, _ in ckpt.list_checkpoints(store, key)]
    return max(found, default=Position(0, 0))


def wait_for_checkpoint(results: Path, after: Position, process: "subprocess.Popen[str]") -> Position:
    for _ in range(1200):
        if (found := find_furthest(results)) > after:
            return found
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    raise AssertionError(f"nothing was saved after {after}")


def find_workers(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found


def read_finished(results: Path) -> ckpt.Checkpoint:
    store = Store(results)
    (key,) = store.list_folders("runs")
    found, damaged = ckpt.find_latest_checkpoint(store, key)
    assert found and found[1].finished and not damaged
    return found[1]
