"""A search that nothing has room for says so, and only then."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from eav_ray.config import Experiment, Runtime, override
from eav_ray.errors import ConfigError
from eav_ray.runtime import cluster, tune
from eav_ray.runtime.cli import absolute


@dataclass
class Trial:
    status: str

    def is_finished(self) -> bool:
        return self.status in ("TERMINATED", "ERROR")


def test_only_trials_that_do_not_start_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("eav_ray.runtime.tune.time.monotonic", lambda: now[0])
    told: list[tuple[float, bool]] = []
    waiting = tune._Waiting(lambda waits: told.append((now[0], waits)))

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
    assert told == [(25, True), (30, False), (51, True), (80, False)]


def test_what_is_waited_for_is_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True}, {"Alive": False}])
    assert cluster.a_worker(Runtime(gpus_per_worker=0.5)) == "a node with 1 CPU and 0.5 GPU free (1 node is there)"


def test_a_database_in_a_file_lies_where_the_command_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A submitted job runs in a copy of that folder, which goes with it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    e = override(Experiment(), {"search.storage": "sqlite:///search.db"})
    assert absolute(e).search.storage == f"sqlite:///{tmp_path}/search.db"
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    shared = {"data.root": "/d", "store.shards": "/d", "store.results": "/d", "store.cache": "/d"}
    with pytest.raises(ConfigError, match="search.storage is search.db, a relative path, but a submitted job runs in"):
        absolute(override(e, shared))
