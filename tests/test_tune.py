"""A search that nothing has room for says so, and only then."""

from dataclasses import dataclass
from typing import Any

import pytest

from eav_ray.config import Runtime
from eav_ray.runtime import cluster, tune


@dataclass
class Trial:
    status: str

    def is_finished(self) -> bool:
        return self.status in ("TERMINATED", "ERROR")


def test_only_trials_that_do_not_start_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("eav_ray.runtime.tune.time.monotonic", lambda: now[0])
    told: list[float] = []
    waiting = tune._Waiting(lambda: told.append(now[0]))

    def step(at: float, *states: str) -> None:
        now[0] = at
        trials: Any = [Trial(state) for state in states]
        waiting.on_step_begin(0, trials)

    step(15, "PENDING", "PENDING")
    step(25, "PENDING", "PENDING")
    step(30, "RUNNING", "PENDING")
    step(45, "PENDING", "TERMINATED")
    step(51, "PENDING", "TERMINATED")
    step(80, "TERMINATED", "TERMINATED")
    step(99, "PENDING", "ERROR")
    assert told == [25, 51]


def test_what_is_waited_for_is_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True}, {"Alive": False}])
    assert cluster.a_worker(Runtime(gpus_per_worker=0.5)) == "a node with 1 CPU and 0.5 GPU free (1 node is there)"
