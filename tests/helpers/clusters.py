"""Ray on this machine: a head, free ports, and what its training workers have saved."""

import contextlib
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from eav_ray.storage import Store
from eav_ray.training import checkpoint as ckpt
from eav_ray.training.checkpoint_files import Checkpoint
from eav_ray.training.run_spec import Position
from tests.helpers.paths import REPOSITORY

PATIENCE_S = 600  # after which a test takes something for hung: also where the machine is busy
RAY = str(Path(sys.executable).with_name("ray"))  # the command
Job = Callable[..., subprocess.CompletedProcess[str]]  # runs a job as a user does
ONE_WORKER = ("runtime.engine=torch", "runtime.workers=1")  # the runtime whose processes start soonest and are fewest


# Above the ports that Ray's workers take, below those that Linux gives to whoever connects: of these one may be taken
# before a cluster has started on it.
PORTS = range(20_000, 32_000)


def find_free_ports(count: int) -> list[int]:
    """Find ports at which nothing listens, at any address of this machine."""
    found: list[int] = []
    while len(found) < count:
        port = PORTS.start + secrets.randbelow(len(PORTS))
        with socket.socket() as candidate, contextlib.suppress(OSError):
            candidate.bind(("", port))
            found += [port] * (port not in found)
    return found


def write_token(folder: Path) -> dict[str, str]:
    """Write a token of Ray's for this test alone; returns what a head, a node or a command has in its environment."""
    file = folder / "token"
    file.touch(0o600)
    file.write_text(secrets.token_hex(32))
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(file)}


@contextmanager
def open_head(environment: dict[str, str], log: Path, *words: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Start a head of a cluster by `ray start`, and end it with the block; `log` gets what it says."""
    command = [RAY, "start", "--head", "--block", "--node-ip-address=127.0.0.1", *words]
    with log.open("w") as out:
        head = subprocess.Popen(
            command, env=environment, stdout=out, stderr=out, start_new_session=True, cwd=REPOSITORY
        )
    try:
        deadline = time.monotonic() + PATIENCE_S
        while "Ray runtime started" not in log.read_text():
            assert head.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield head
    finally:
        end_process(head)


def end_process(process: "subprocess.Popen[Any]") -> None:
    """End a process at once, with all that it started: a head that is told to end takes half a minute."""
    started = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.kill()
    for child in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    process.wait(timeout=60)
    psutil.wait_procs(started, timeout=20)
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe:
            pipe.close()


def find_furthest(results: Path) -> Position:
    """Of all checkpoints of the only run, by any attempt."""
    store = Store(results)
    found = [position for key in store.list_folders("runs") for _, position, _ in ckpt.list_checkpoints(store, key)]
    return max(found, default=Position(0, 0))


def wait_for_checkpoint(results: Path, after: Position, process: "subprocess.Popen[str]") -> Position:
    for _ in range(10 * PATIENCE_S):
        if (found := find_furthest(results)) > after:
            return found
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    raise AssertionError(f"nothing was saved after {after}")


def run_watched(
    command: list[str], sockets: set[tuple[str, str]], **options: Any
) -> "subprocess.CompletedProcess[str]":
    """Run a command, and note at which addresses it and all that it starts listen, as (program, address)."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, **options) as process:
        ended = threading.Event()
        watcher = threading.Thread(target=_watch_sockets, args=(psutil.Process(process.pid), sockets, ended))
        watcher.start()
        try:
            out, err = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
            ended.set()
            watcher.join()
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def _watch_sockets(root: psutil.Process, sockets: set[tuple[str, str]], ended: threading.Event) -> None:
    while not ended.wait(0.2):
        with contextlib.suppress(psutil.Error):
            for process in (root, *root.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    name = (process.cmdline() or ["?"])[0].split("/")[-1].split(" ")[0].split(".")[0]
                    sockets |= {
                        (name, c.laddr.ip.removeprefix("::ffff:"))
                        for c in process.net_connections("inet")
                        if c.status == psutil.CONN_LISTEN or (c.type == socket.SOCK_DGRAM and not c.raddr)
                    }


def find_workers(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found


def read_finished(results: Path) -> Checkpoint:
    store = Store(results)
    (key,) = store.list_folders("runs")
    found, damaged = ckpt.load_latest_checkpoint(store, key)
    assert found and found[1].state.finished and not damaged
    return found[1]
