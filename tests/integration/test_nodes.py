"""A training on a cluster of several nodes outlives a node that is drained and one that is gone at once (R2).

With `runtime.min_workers` it also goes on where nothing takes the place of a lost node.
"""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from eav_ray.distributed.worker_groups import LEAVE_S
from eav_ray.training.run_spec import Position
from tests.helpers import slow_saves
from tests.helpers.clusters import (
    PATIENCE_S,
    find_furthest,
    read_finished,
    wait_for_checkpoint,
)
from tests.helpers.nodes import Nodes
from tests.helpers.paths import REPOSITORY
from tests.helpers.reliability import CHAOS

pytestmark = [
    pytest.mark.ray,
    # Ray Train puts actors of its own on any node; where one of those is lost, its workers may wait for it for ever.
    pytest.mark.skipif(not CHAOS, reason="in `make chaos` only: Ray Train itself does not always outlive a lost node"),
]
GROUPS = "import json, ray; ray.init(address={!r}, log_to_driver=False); from ray.util import placement_group_table; "
GROUPS += "print(json.dumps([g['state'] for g in placement_group_table().values()]))"


@contextmanager
def training_on(nodes: Nodes, place: Path, results: str, words: list[str]) -> "Iterator[subprocess.Popen[str]]":
    stores = {"shards": "data/shards", "results": results, "cache": "cache"}
    words = [*words, f"runtime.address={nodes.address}", *(f"store.{k}={place / v}" for k, v in stores.items())]
    command = [sys.executable, str(REPOSITORY / "jobs" / "train.py"), *words]
    training = subprocess.Popen(command, cwd=place, stderr=subprocess.PIPE, text=True, env=nodes.environment)
    try:
        yield training
    finally:
        if training.poll() is None:
            training.send_signal(signal.SIGKILL)
            training.wait()


@pytest.mark.parametrize("nodes", [4], indirect=True)
def test_a_drained_node_and_a_lost_one_change_nothing(
    nodes: Nodes, long_training: list[str], place: Path, uninterrupted: Path
) -> None:
    results = place / "moved"
    with training_on(nodes, place, "moved", long_training) as training:
        first = wait_for_checkpoint(results, Position(0, 0), training)
        drained = nodes.with_a_worker()
        nodes.drain(drained, 600)
        while len(attempts(results)) < 2:  # the group has moved, long before the node goes
            time.sleep(0.1)
            assert training.poll() is None, training.communicate()
        second = wait_for_checkpoint(results, max(first, find_furthest(results)), training)
        nodes.lose(nodes.with_a_worker(other_than=drained))
        _, reported = training.communicate(timeout=PATIENCE_S)
        assert training.returncode == 0, reported
        assert second < Position(40, 0)
    command = [sys.executable, "-c", GROUPS.format(nodes.address)]
    left = subprocess.run(command, check=True, capture_output=True, text=True, env=nodes.environment)
    assert set(json.loads(left.stdout.splitlines()[-1])) <= {"REMOVED"}
    whole, moved = read_finished(uninterrupted), read_finished(results)
    for name, tensor in whole.weights.items():
        assert torch.equal(tensor, moved.weights[name]), name


@pytest.mark.parametrize("nodes", [4], indirect=True)
def test_a_node_that_must_end_in_the_middle_of_a_save_has_saved(
    nodes: Nodes, long_training: list[str], place: Path, tmp_path: Path
) -> None:
    """SIGTERM to `ray start --block`, as Kubernetes and Slurm send it, on each node that trains."""
    results, begun = place / "ended", tmp_path / "saves"
    words = [*long_training, "train.encoders.eeg.epochs=2", "train.checkpoint_steps=4"]
    with training_on(nodes, place, "ended", [*words, f"plugins=[{slow_saves.__name__}]"]) as training:
        before = slow_saves.wait_for_saves(begun, 1, training)
        ending = nodes.with_a_worker()
        ending.send_signal(signal.SIGTERM)
        ending.wait(timeout=LEAVE_S + 30)
        assert find_furthest(results) >= before[-1]
        _, reported = training.communicate(timeout=PATIENCE_S)
        assert training.returncode == 0, reported
    assert len(attempts(results)) == 2
    assert before[-1] < slow_saves.read_begun(begun)[len(before)]  # what follows goes on from there


@pytest.mark.parametrize("nodes", [2], indirect=True)
def test_a_group_that_may_shrink_goes_on_with_the_nodes_that_are_left(
    nodes: Nodes, long_training: list[str], place: Path
) -> None:
    results = place / "shrunk"
    with training_on(nodes, place, "shrunk", [*long_training, "runtime.min_workers=1"]) as training:
        wait_for_checkpoint(results, Position(0, 0), training)
        assert all(nodes.has_a_worker(node) for node in nodes.running[1:])
        nodes.lose(nodes.with_a_worker())
        _, reported = training.communicate(timeout=PATIENCE_S)
        assert training.returncode == 0, reported
    assert read_finished(results).state.position == Position(40, 0)
    assert len(attempts(results)) == 2


def attempts(results: Path) -> list[str]:
    return [path.name for path in (results / "runs").glob("*/a*")]
