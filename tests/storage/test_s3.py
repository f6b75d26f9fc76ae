"""Results on a real S3 server: the contract of a store, and a training during which the server goes away (R18)."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from eav_ray.config import override
from eav_ray.data.shards.window_cache import WindowCache
from eav_ray.data.splits import Split
from eav_ray.errors import ConfigError, DataError
from eav_ray.storage import COMMIT, Store
from eav_ray.training import checkpoint as ckpt
from eav_ray.training.checkpoint_files import Checkpoint
from eav_ray.training.prepared_run import WorkerContext
from eav_ray.training.run_spec import Progress, Run
from eav_ray.training.runner import execute_run
from tests.helpers.trainings import TRAIN, make_experiment, make_windows

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]
KEY, SECRET = "tests", "only-for-tests"
OPTIONS = "?exclusive=false"  # rclone writes without looking at conditions


class Server:
    """rclone on loopback; buckets are the folders below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "lab").mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self.start()

    def start(self) -> None:
        command = [str(Path(sys.executable).parent / "rclone"), "serve", "s3", "--auth-key", f"{KEY},{SECRET}"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen([*command, "--addr", self.address, str(self.root)], **quiet)
        host, port = self.address.split(":")
        for _ in range(200):
            with socket.socket() as connection:
                if connection.connect_ex((host, int(port))) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError("the S3 server did not start")

    def stop(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("s3"))
    environment = {
        "AWS_ENDPOINT_URL_S3": f"http://{made.address}",
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        # Without them uploads to servers other than Amazon's may fail with 411.
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield made
    made.stop()


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> WindowCache:
    return make_windows(tmp_path_factory.mktemp("windows"))


def test_the_probe_finds_a_server_without_conditional_writes(server: Server) -> None:
    with pytest.raises(ConfigError, match="cannot write conditionally; set store.exclusive=false"):
        Store("s3://lab/probed").probe()
    store = Store(f"s3://lab/probed{OPTIONS}")
    store.probe()
    assert store.list_files() == []


def test_what_is_committed_is_read_listed_and_deleted(server: Server) -> None:
    store = Store(f"s3://lab/contract{OPTIONS}")
    files = {"model.safetensors": os.urandom(6_000_000), "state.json": b"{}"}
    store.commit("runs/a/one", files)
    store.write("runs/b/two", b"x")
    assert store.is_committed("runs/a/one") and store.read_committed("runs/a/one") == files
    assert store.list_folders("runs") == ["a", "b"] and not store.exists("runs/c")
    assert [n for n in store.list_files("runs/a")] == [f"runs/a/one/{n}" for n in (COMMIT, *sorted(files))]
    assert abs(store.list_times("runs/b")["two"] - time.time()) < 3600  # of the server's clock
    with pytest.raises(DataError, match=r"s3://lab/contract/nothing\?exclusive=false does not exist"):
        store.read("nothing")
    with store.open_writer("streamed") as stream:
        for _ in range(3):
            stream.write(b"12345")
    assert store.read("streamed") == b"12345" * 3
    store.delete("runs/a/one")
    assert not store.is_committed("runs/a/one") and store.read("runs/b/two") == b"x"


@pytest.mark.parametrize("harm", ["cut", "flip", "gone"])
def test_an_upload_that_is_not_whole_is_not_read(server: Server, harm: str) -> None:
    store = Store(f"s3://lab/harmed{OPTIONS}&retry_s=1")
    prefix = f"runs/{harm}"
    store.commit(prefix, {"model.safetensors": bytes(1000), "state.json": b"{}"})
    path = server.root / "lab" / "harmed" / prefix / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[500] ^= 1
    path.unlink() if harm == "gone" else path.write_bytes(data if harm == "flip" else data[:999])
    with pytest.raises(DataError, match="model.safetensors"):
        store.read_committed(prefix)


def test_a_training_outlives_its_store_and_ends_bit_identical(
    server: Server, windows: WindowCache, tmp_path: Path
) -> None:
    """The server is killed after the second epoch and comes back later; nothing half-written is ever loaded."""
    e = override(make_experiment("torch"), {"optim.mixup": 0.4, "optim.epochs": 6})
    run = Run("joint", e, Split("within", TRAIN, (), ("subject1/007",)), "data")
    away: list[threading.Timer] = []

    def report(progress: Progress) -> None:
        if progress.epoch == 2:
            server.stop()
            away.append(threading.Timer(8, server.start))  # longer than the client's own retries
            away[0].start()

    def train(store: Store, reported: bool) -> Checkpoint:
        place = WorkerContext(windows, store, torch.device("cpu"))
        prefix = execute_run(run, place, report if reported else lambda progress: None)
        return ckpt.OpenedCheckpoint(store, prefix).load()

    whole = train(Store(tmp_path), reported=False)
    through = train(Store(f"s3://lab/results{OPTIONS}"), reported=True)
    away[0].join()
    assert whole.weights.keys() == through.weights.keys()
    assert all(torch.equal(tensor, through.weights[name]) for name, tensor in whole.weights.items())
    assert [p.epoch for _, p, _ in ckpt.list_checkpoints(Store(f"s3://lab/results{OPTIONS}"), run.key)] == [6]


def test_a_store_that_stays_away_is_one_line_and_the_last_checkpoint_stays(
    server: Server, windows: WindowCache
) -> None:
    run = Run("joint", make_experiment("torch"), Split("within", TRAIN[:6], (), ("subject1/007",)), "data")
    store = Store(f"s3://lab/away{OPTIONS}&retry_s=1")

    def report(progress: Progress) -> None:
        if progress.epoch == 2:
            while not ckpt.list_checkpoints(store, run.key):
                time.sleep(0.05)
            server.stop()

    with pytest.raises(DataError, match=r"cannot (write|list|read|look for|delete) s3://lab/away") as caught:
        execute_run(run, WorkerContext(windows, store, torch.device("cpu")), report)
    assert "\n" not in str(caught.value)
    server.start()
    found, damaged = ckpt.load_latest_checkpoint(store, run.key)
    assert found and 1 <= found[1].state.position.epoch <= 2 and damaged == []
