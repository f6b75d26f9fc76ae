"""A training on real Ray whose worker is killed, and which is told to end, goes on and ends as if nothing had been."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from eav_ray.training.run_spec import Position
from tests.helpers.clusters import (
    PATIENCE_S,
    Job,
    end_process,
    find_furthest,
    find_workers,
    read_finished,
    wait_for_checkpoint,
)
from tests.helpers.paths import REPOSITORY
from tests.helpers.reliability import IN_CHAOS

pytestmark = pytest.mark.ray


@contextmanager
def open_training(words: list[str], place: Path, **options: Any) -> Iterator["subprocess.Popen[str]"]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(REPOSITORY / "jobs" / "train.py"), *words]
    process = subprocess.Popen(command, cwd=place, env=environment, stderr=subprocess.PIPE, text=True, **options)
    try:
        yield process
    finally:
        end_process(process)


@pytest.fixture
def started(long_training: list[str], place: Path) -> Iterator["subprocess.Popen[str]"]:
    with open_training([*long_training, "store.results=stopped"], place) as process:
        yield process


def test_a_killed_worker_and_a_job_that_is_told_to_end_change_nothing(
    started: "subprocess.Popen[str]", job: Job, long_training: list[str], place: Path, uninterrupted: Path
) -> None:
    first = wait_for_checkpoint(place / "stopped", Position(0, 0), started)
    victims = find_workers(started)
    assert len(victims) == 2
    victims[1].kill()
    second = wait_for_checkpoint(place / "stopped", first, started)
    assert second < Position(30, 0)  # there is a training left to stop
    started.send_signal(signal.SIGTERM)
    _, reported = started.communicate(timeout=PATIENCE_S)
    assert started.returncode == 130 and "Traceback" not in reported
    assert "stopped; rerun the same command to continue (0 of 1 training finished)" in reported.splitlines()[-1]
    assert second <= find_furthest(place / "stopped") < Position(40, 0)
    job("train", *long_training, "store.results=stopped")
    whole, stopped = read_finished(uninterrupted), read_finished(place / "stopped")
    assert whole.weights.keys() == stopped.weights.keys()
    for name, tensor in whole.weights.items():
        assert torch.equal(tensor, stopped.weights[name]), name


# SIGHUP is taken as SIGTERM is, which is sent above.
@pytest.mark.slow
@pytest.mark.parametrize(
    "number",
    [pytest.param(signal.SIGHUP, id="closed terminal", marks=IN_CHAOS), pytest.param(signal.SIGINT, id="Ctrl-C")],
)
def test_a_training_whose_terminal_sends_a_signal_saves_first(
    number: signal.Signals, long_training: list[str], place: Path
) -> None:
    """It goes to all processes of the job, Ray's too; none of them is left behind."""
    results = place / number.name
    words = [*long_training, f"store.results={results}"]
    with open_training(words, place, start_new_session=True) as process:
        first = wait_for_checkpoint(results, Position(0, 0), process)
        children = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, number)
        _, reported = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 130 and "Traceback" not in reported, reported
        assert not psutil.wait_procs(children, timeout=60)[1]
    last = reported.splitlines()[-1]
    assert last == "stopped; rerun the same command to continue (0 of 1 training finished)"
    assert first <= find_furthest(results) < Position(40, 0)
