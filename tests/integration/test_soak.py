"""A search and a protocol on a cluster whose nodes are killed one after the other, over a store that fails requests."""

import itertools
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from eav_ray.data.io.parquet import decode_dataframe
from eav_ray.storage import Store
from tests.helpers.nodes import Nodes
from tests.helpers.paths import REPOSITORY
from tests.helpers.reliability import CHAOS
from tests.helpers.s3_servers import BUCKET, CREDENTIALS, open_conditional_server, open_faulty_proxy

pytestmark = [pytest.mark.ray, pytest.mark.skipif(not CHAOS, reason="in `make chaos` only: it takes half an hour")]
FAULTS = ("refuse", "lose", "hide", "cut")
ONE_IN = 50  # requests fails
KILL_S = 120.0  # between two nodes that are killed
MAX_COMMANDS = 20  # times that a command which ended is given again
# Long enough that several nodes are lost within it.
LONGER = ["optim.epochs=60", "train.encoders.audio.epochs=20", "train.encoders.eeg.epochs=20"]
LONGER += ["train.encoders.video.epochs=20", "train.checkpoint_steps=5", "search.candidates=4"]


def kill_nodes(nodes: Nodes, ended: threading.Event, lost: list[float]) -> None:
    """Kill a node every `KILL_S`, and start another."""
    while not ended.wait(KILL_S):
        nodes.lose(nodes.running[-1] if len(lost) % 2 else nodes.running[1])
        nodes.add()
        lost.append(time.time())


def run_until_done(words: list[str], place: Path, environment: dict[str, str]) -> list[str]:
    """Give a command again until it has ended well; returns what it said each time that it did not."""
    failures: list[str] = []
    for _ in range(MAX_COMMANDS):
        command = [sys.executable, str(REPOSITORY / "jobs" / f"{words[0]}.py"), *words[1:]]
        done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=3600)
        if done.returncode == 0:
            return failures
        assert "Traceback" not in done.stderr, done.stderr
        failures.append(done.stderr.strip().splitlines()[-1])
    raise AssertionError(failures)


def read_results(url: str) -> tuple[pd.DataFrame, list[Any], pd.DataFrame]:
    """Read what a search and a protocol have found, without when and where."""
    store = Store(url)

    def read_table(name: str) -> pd.DataFrame:
        (found,) = [n for n in store.list_files() if n.endswith(name) and n.count("/") == 2]
        table = decode_dataframe(store.read(found), found)
        return table[[c for c in table if "second" not in c]]

    (best,) = [store.read_json(n) for n in store.list_files("searches") if n.endswith("/best.json")]
    return read_table("/candidates.parquet"), [best["candidate"], best["value"]], read_table("/predictions.parquet")


@pytest.mark.parametrize("nodes", [2], indirect=True)
def test_nodes_and_requests_that_fail_change_nothing(nodes: Nodes, preprocessed: list[str], place: Path) -> None:
    environment = nodes.environment | CREDENTIALS
    shared = [*preprocessed, *LONGER, f"runtime.address={nodes.address}", f"store.shards={place / 'data/shards'}"]
    shared += [f"store.cache={place / 'cache'}", "runtime.gpus_per_worker=0", "runtime.workers=2"]
    counter, lost, failures = itertools.count(1), list[float](), list[str]()

    def choose_fault(method: str, path: str) -> str:
        number = next(counter)
        return FAULTS[number // ONE_IN % len(FAULTS)] if number % ONE_IN == 0 else ""

    with open_conditional_server() as server, open_faulty_proxy(server) as (address, proxy):
        proxy.choose_fault = choose_fault
        ended = threading.Event()
        killer = threading.Thread(target=kill_nodes, args=(nodes, ended, lost))
        killer.start()
        began = time.time()
        try:
            for command in ("search", "protocol"):
                results = f"store.results=s3://{BUCKET}/soak?endpoint={address}"
                failures += run_until_done([command, *shared, results], place, environment)
        finally:
            ended.set()
            killer.join()
        disturbed_s = time.time() - began
        for command in ("search", "protocol"):
            results = f"store.results=s3://{BUCKET}/quiet?endpoint={server}"
            assert run_until_done([command, *shared, results], place, environment) == []
        disturbed, quiet = (read_results(f"s3://{BUCKET}/{name}?endpoint={server}") for name in ("soak", "quiet"))
    print(
        f"{disturbed_s / 60:.0f} minutes, {len(lost)} nodes killed, {next(counter)} requests, given again: {failures}"
    )
    assert len(lost) >= 3
    pd.testing.assert_frame_equal(disturbed[0], quiet[0], check_exact=True)
    assert disturbed[1] == quiet[1]
    pd.testing.assert_frame_equal(disturbed[2], quiet[2], check_exact=True)
