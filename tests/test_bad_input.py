"""Whatever a user gets wrong ends in one clear line, a non-zero exit and no traceback, before Ray starts."""

import importlib.util
import sys
from pathlib import Path

import pytest
import ray

from eav_ray.config import Runtime
from eav_ray.errors import ConfigError
from eav_ray.runtime import cluster

REPOSITORY = Path(__file__).parents[1]
DEMO = str(REPOSITORY / "jobs" / "experiments" / "demo.yaml")


def run(name: str, words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a job's `door` in this process; its one line of error."""
    path = REPOSITORY / "jobs" / f"{name}.py"
    spec = importlib.util.spec_from_file_location("__main__", path)
    assert spec is not None and spec.loader is not None
    monkeypatch.setattr(sys, "argv", [str(path), *words])
    for variable in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(SystemExit) as ended:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    assert not ray.is_initialized()
    printed = capsys.readouterr()
    assert ended.value.code == 2, printed
    assert all(line.startswith("error: ") for line in printed.err.strip().splitlines()), printed.err
    return printed.err


CASES = {
    "an experiment file that is not there": ("train", ["jobs/experiments/no.yaml"], ["no.yaml", "demo.yaml"]),
    "no experiment file": ("train", [], ["exactly one experiment file"]),
    "a wrong key, with the nearest right one": ("train", [DEMO, "optim.lrr=1"], ["optim.lrr", "optim.lr"]),
    "a wrong value": ("train", [DEMO, "fold.protocol=cross"], ["fold.protocol", "subject_kfold"]),
    "heads that do not divide": ("train", [DEMO, "fusion.heads=7"], ["heads is 7", "64"]),
    "no such data": ("check", [DEMO, "data.root=/nowhere"], ["/nowhere"]),
    "a folder that is no EAV": ("check", [DEMO, f"data.root={REPOSITORY}"], ["subject"]),
    "no shards yet": ("train", [DEMO, "store.shards=/nowhere"], ["preprocess"]),
    "more workers than CPUs": (
        "train",
        [DEMO, "runtime.workers=4096", "optim.batch=4096"]
        + [f"train.encoders.{m}.batch=4096" for m in ("audio", "eeg", "video")],
        ["4096", "this machine has", "set runtime.workers"],
    ),
    "a batch that the workers do not share": ("train", [DEMO, "optim.batch=33"], ["optim.batch is 33"]),
    "an open dashboard without a token": (
        "train",
        [DEMO, "runtime.dashboard=true", "runtime.dashboard_host=0.0.0.0"],
        ["0.0.0.0", "RAY_AUTH_MODE=token"],
    ),
    "an unknown option": ("pull", ["results", "--best"], ["--best", "--study"]),
    "a store that is none": ("pull", ["/nowhere"], ["/nowhere"]),
    "a checkpoint that is none": ("predict", ["/nowhere/best", "data.root=x"], ["/nowhere/best"]),
    "not a change": ("predict", ["a", "b"], ["exactly one checkpoint"]),
    "an evaluation of nothing": ("evaluate", [DEMO], ["--checkpoint"]),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line_that_names_the_way_out(
    case: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, words, expected = CASES[case]
    error = run(name, words, capsys, monkeypatch)
    for part in expected:
        assert part in error


def test_relative_folders_are_refused_in_a_submitted_job(monkeypatch: pytest.MonkeyPatch) -> None:
    from eav_ray.config import Experiment
    from eav_ray.runtime.cli import absolute

    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(ConfigError, match=r"store\.\w+ is .*absolute path"):
        absolute(Experiment())


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "[::1]"])
def test_loopback_needs_no_token(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    cluster.refuse_exposed(host, "host")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "head.example.org"])
def test_beyond_loopback_a_token_is_needed(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with pytest.raises(ConfigError, match="token"):
        cluster.refuse_exposed(host, "host")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    cluster.refuse_exposed(host, "host")


def test_a_local_request_that_fits_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    cluster.check_local(Runtime(workers=1))
