"""Whatever a user gets wrong ends in one clear line, a non-zero exit and no traceback, before Ray starts."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayTaskError, UserCodeException

from eav_ray.cli.arguments import Arguments
from eav_ray.cli.run_command import run_command
from eav_ray.config import Experiment, RuntimeConfig
from eav_ray.config.paths import resolve_experiment_paths, retarget_experiment
from eav_ray.distributed import cluster
from eav_ray.errors import ConfigError, DataError
from tests.helpers.paths import EXPERIMENTS, REPOSITORY

DEMO = str(EXPERIMENTS / "demo.yaml")


@pytest.fixture(autouse=True)
def no_ray_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        monkeypatch.delenv(variable, raising=False)


def module_of(name: str, *, called: str) -> ModuleType:
    path = REPOSITORY / "jobs" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(called, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(name: str, words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a job's `door` in this process; its one line of error."""
    monkeypatch.setattr(sys, "argv", [f"jobs/{name}.py", *words])
    with pytest.raises(SystemExit) as ended:
        module_of(name, called="__main__")
    assert not ray.is_initialized()
    printed = capsys.readouterr()
    assert ended.value.code == 2, printed
    assert all(line.startswith("error: ") for line in printed.err.strip().splitlines()), printed.err
    return printed.err


CASES = {
    "an experiment file that is not there": ("train", ["eav_ray/experiments/no.yaml"], ["no.yaml", "demo.yaml"]),
    "no experiment file": ("train", [], ["exactly one experiment file"]),
    "a wrong key, with the nearest right one": ("train", [DEMO, "optim.lrr=1"], ["optim.lrr", "optim.lr"]),
    "a wrong value": ("train", [DEMO, "split.protocol=cross"], ["split.protocol", "subject_kfold"]),
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
    "a change that is not YAML": ("train", [DEMO, "data.modalities=[eeg"], ["data.modalities", "YAML"]),
    "a window that is longer than the model's": (
        "train",
        [DEMO, "preprocessing.window_s=10"],
        ["preprocessing.window_s is 10", "model.audio.max_length", "998"],
    ),
    "a number that is none": ("demo", [DEMO, "--subjects", "x"], ["--subjects", "'x'", "whole number"]),
    "a number that is missing": ("demo", [DEMO, "--per-class"], ["--per-class", "whole number"]),
    "a number that is too small": ("demo", [DEMO, "--subjects=0"], ["--subjects", "from 1"]),
    "an unknown option": ("pull", ["results", "--best"], ["--best", "--study"]),
    "a store that is none": ("pull", ["/nowhere"], ["/nowhere"]),
    "a store of an unknown kind": ("pull", ["http://x"], ["http://x", "s3://", "gs://"]),
    "a remote folder to pull to": ("pull", ["results", "--to", "s3://lab/best"], ["--to is s3://lab/best", "disk"]),
    "a remote file of predictions": ("predict", ["best", "--out=s3://lab/p.csv"], ["--out is s3://lab/p.csv", "disk"]),
    "a checkpoint that is none": ("predict", ["/nowhere/best", "data.root=x"], ["/nowhere/best"]),
    "not a change": ("predict", ["a", "b"], ["exactly one checkpoint"]),
    "an evaluation of two": ("evaluate", [DEMO, DEMO], ["exactly one experiment file"]),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line_that_names_the_way_out(
    case: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, words, expected = CASES[case]
    error = run(name, words, capsys, monkeypatch)
    for part in expected:
        assert part in error


def test_a_store_that_does_not_answer_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unresolved:
        @staticmethod
        def from_uri(uri: str) -> None:
            raise OSError(f"When resolving region for {uri}: no route")

    monkeypatch.setattr("pyarrow.fs.FileSystem", Unresolved)
    error = run("pull", ["s3://bucket"], capsys, monkeypatch)
    assert "s3://bucket" in error and "no route" in error


# What Ray raises in the driver for an error of a task


def stored(cause: Exception, text: str) -> RayTaskError:
    return RayTaskError("f", f"Traceback (most recent call last):\n{text}", cause, "ray::f", 1, "127.0.0.1")


def wrapped(cause: Exception, text: str) -> RayTaskError:
    return stored(cause, text).as_instanceof_cause()


NOTE = "Failed to apply UDF transform after 1/1 attempts (total backoff 0.0s).\nTo change retry attempts, configure"
OURS = 'File "x.py", line 6, in f\n    raise DataError(x)\neav_ray.errors.DataError: a.wav is damaged; take it out\n'
OTHER = "File \"x.py\", line 6, in f\n    raise KeyError(x)\nKeyError: 'x'\n"
USER = f"\nThe above exception was the direct cause of:\n\nray.exceptions.UserCodeException: UDF failed\n{NOTE}"
RAISED: dict[str, tuple[Callable[[], Exception], list[str]]] = {
    "ours": (lambda: DataError("a.wav is damaged; take it out"), ["error: a.wav is damaged; take it out"]),
    "all problems": (lambda: ConfigError("a: x\nb: y"), ["error: a: x", "error: b: y"]),
    "a task's": (
        lambda: wrapped(DataError("a.wav is damaged; take it out"), OURS),
        ["error: a.wav is damaged; take it out"],
    ),
    "with a note of Ray Data": (
        lambda: wrapped(DataError(f"a.wav is damaged; take it out\n{NOTE}"), OURS + NOTE),
        ["error: a.wav is damaged; take it out"],
    ),
    "a task's of a task": (
        lambda: wrapped(wrapped(DataError("a.wav is damaged; take it out"), OURS), OURS),
        ["error: a.wav is damaged; take it out"],
    ),
    # Only the text of ours comes back
    "of a function of Ray Data": (
        lambda: wrapped(UserCodeException(f"UDF failed\n{NOTE}"), OURS + USER),
        ["error: a.wav is damaged; take it out"],
    ),
    "of an actor of Ray Data": (
        lambda: ActorDiedError(stored(DataError("a.wav is damaged; take it out"), OURS)),
        ["error: a.wav is damaged; take it out"],
    ),
    "another error of a task": (lambda: wrapped(KeyError("x"), OTHER), ["error: a Ray task failed: KeyError: 'x';"]),
    "another error of a function of Ray Data": (
        lambda: wrapped(UserCodeException(f"UDF failed\n{NOTE}"), OTHER + USER),
        ["error: a Ray task failed: KeyError: 'x';"],
    ),
    "an error with a name of its own": (
        lambda: wrapped(UserCodeException("UDF failed"), 'File "x.py", line 6, in f\n    raise Again()\nzmq.Again: x'),
        ["error: a Ray task failed: zmq.Again: x;"],
    ),
    "out of memory": (
        lambda: OutOfMemoryError("Task was killed due to the node running low on memory.\nMore: https://docs"),
        ["error: a Ray task failed: Task was killed due to the node running low on memory.;"],
    ),
}


def chained() -> Exception:
    error = UserCodeException("UDF failed")
    error.__cause__ = DataError("a.wav is damaged; take it out")
    return error


RAISED["with a cause"] = (chained, ["error: a.wav is damaged; take it out"])


@pytest.mark.parametrize("case", RAISED)
def test_an_error_of_a_task_is_told_as_an_error_of_the_job(
    case: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make, expected = RAISED[case]

    def job(_: Arguments) -> None:
        raise make()

    monkeypatch.setattr(sys, "argv", ["job"])
    with pytest.raises(SystemExit) as ended:
        run_command("usage", job)
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(expected)
    for line, start in zip(lines, expected, strict=True):
        assert line.startswith(start)


def test_a_mistake_of_the_program_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def job(_: Arguments) -> None:
        raise KeyError("x")

    monkeypatch.setattr(sys, "argv", ["job"])
    with pytest.raises(KeyError):
        run_command("usage", job)


ON_RAY = """
import ray.data
from eav_ray.config import Runtime
from eav_ray.errors import DataError
from eav_ray.runtime import cluster
from eav_ray.cli.run_command import door

def broken(row):
    raise DataError("a.wav is damaged; take it out")

def job(arguments):
    with cluster.session(Runtime(workers=1)):
        cluster.prepare_ray_data()
        for _ in ray.data.from_items([{"a": 1}]).map(broken).iter_rows():
            pass

door("", job)
"""


@pytest.mark.ray
def test_an_error_of_a_real_task_is_one_line() -> None:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    command = [sys.executable, "-c", ON_RAY]
    done = subprocess.run(command, env=kept, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (2, "error: a.wav is damaged; take it out\n"), done.stdout


# Paths


def test_relative_folders_are_refused_in_a_submitted_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(ConfigError, match=r"store\.\w+ is .*absolute path"):
        resolve_experiment_paths(Experiment())
    with pytest.raises(ConfigError, match=r"store\.shards is .*absolute path"):
        resolve_experiment_paths(Experiment(), used_stores=("shards",))
    with pytest.raises(ConfigError, match=r"data\.root is .*absolute path"):
        retarget_experiment(Experiment(), {"data.root": "new_people"})


def test_a_submitted_job_may_leave_alone_the_stores_that_it_does_not_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert resolve_experiment_paths(Experiment(), used_stores=()).store == Experiment().store
    assert retarget_experiment(Experiment(), {"data.root": "/data/new_people"}).data.root == "/data/new_people"


def test_home_is_meant_by_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    from eav_ray.config import override

    monkeypatch.setenv("HOME", "/home/me")
    changes = {"data.root": "~/EAV", "store.shards": "~/shards", "store.results": "s3://lab/~", "store.cache": "~"}
    found = resolve_experiment_paths(override(Experiment(), changes))
    assert (found.data.root, found.store.shards) == ("/home/me/EAV", "/home/me/shards")
    assert (found.store.results, found.store.cache) == ("s3://lab/~", "/home/me")


def submitted_commands() -> list[list[str]]:
    """The words after `python` of every `ray job submit` that the texts show."""
    pages = [REPOSITORY / "README.md", REPOSITORY / "infra/README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
    texts = "".join(page.read_text() for page in pages)
    lines = texts.replace("\\\n", " ").splitlines()
    return [shlex.split(line.partition(" python ")[2]) for line in lines if line.startswith("ray job submit")]


class Reached(Exception):
    """The job's own work would begin."""


def reached(*_: Any, **__: Any) -> None:
    raise Reached


WORK = {
    "check": "check",
    "pull": "pull",
    "evaluate": "evaluate_checkpoint",
    "predict": "predict_to_file",
    "preprocess": "preprocess",
    "protocol": "run_protocol",
    "train": "train",
    "search": "search_experiment",
}
STORES = ["store.shards=/mnt/shards", "store.results=s3://lab/results", "store.cache=/tmp/cache"]
SUBMITTED = [
    *submitted_commands(),
    ["jobs/check.py", DEMO, "data.root=/mnt/EAV"],
    ["jobs/preprocess.py", DEMO, "data.root=/mnt/EAV", STORES[0]],
    ["jobs/train.py", DEMO, "data.root=/mnt/EAV", *STORES],
    ["jobs/protocol.py", DEMO, "data.root=/mnt/EAV", *STORES],
    ["jobs/evaluate.py", DEMO, "data.root=/mnt/EAV", "--checkpoint", "s3://lab/best", *STORES],
    ["jobs/predict.py", "s3://lab/best", "data.root=/mnt/new", "--out", "/mnt/predictions.csv"],
]


def submit(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Go through a job's door as `ray job submit` would, up to its own work."""
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(sys, "argv", words)
    name = Path(words[0]).stem
    module = module_of(name, called="job")
    monkeypatch.setattr(module, WORK[name], reached)
    run_command("", module.job, flags=("checkpoint", "out", "to"))


def test_there_are_submitted_commands_in_the_texts() -> None:
    assert len(submitted_commands()) >= 3


@pytest.mark.parametrize("words", SUBMITTED, ids=lambda words: " ".join(words[:2]))
def test_a_submitted_job_gets_to_its_work(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Reached):
        submit(words, monkeypatch)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["jobs/preprocess.py", DEMO, "data.root=/mnt/EAV"], "store.shards"),
        (["jobs/check.py", DEMO, "data.root=EAV"], "data.root"),
        (["jobs/train.py", DEMO, "data.root=/mnt/EAV", *STORES[:2], "store.cache=cache"], "store.cache"),
        (["jobs/predict.py", "s3://lab/best", "data.root=/mnt/new"], "--out"),
        (["jobs/pull.py", "s3://lab/results"], "--to"),
    ],
)
def test_a_submitted_job_names_the_relative_path_that_it_uses(
    words: list[str], named: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit):
        submit(words, monkeypatch)
    error = capsys.readouterr().err
    assert re.match(rf"error: {named} is .*a submitted job runs in a temporary copy.*absolute path", error), error


# A Ray on this machine


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "[::1]"])
def test_loopback_needs_no_token(host: str) -> None:
    cluster.require_protected_address(host, "host")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "head.example.org"])
def test_beyond_loopback_a_token_is_needed(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="token"):
        cluster.require_protected_address(host, "host")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    cluster.require_protected_address(host, "host")


def test_a_local_request_that_fits_is_accepted() -> None:
    cluster.check_local_resources(RuntimeConfig(workers=1))


@pytest.mark.parametrize("where", ["runtime.address", "RAY_ADDRESS"])
def test_an_address_of_local_is_this_machine(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if where == "RAY_ADDRESS":
        monkeypatch.setenv("RAY_ADDRESS", "local")
    address = "local" if where == "runtime.address" else ""
    assert cluster.resolve_address(RuntimeConfig(address=address)) == ""
    with pytest.raises(ConfigError, match="needs 4096 CPUs"):
        cluster.check_local_resources(RuntimeConfig(address=address, workers=4096))
    with pytest.raises(ConfigError, match="RAY_AUTH_MODE=token"):
        cluster.check_local_resources(
            RuntimeConfig(address=address, workers=1, dashboard=True, dashboard_host="0.0.0.0")
        )


def test_what_a_cluster_has_is_not_asked_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    many = RuntimeConfig(address="head:6379", workers=4096, gpus_per_worker=8)
    assert cluster.resolve_address(many) == "head:6379"
    cluster.check_local_resources(many)
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    cluster.check_local_resources(RuntimeConfig(workers=4096, gpus_per_worker=8))


def test_groups_that_do_not_fit_are_refused_with_a_number_that_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    with pytest.raises(ConfigError, match="needs 6 CPUs.*has 4; set runtime.workers to at most 2"):
        cluster.check_local_resources(RuntimeConfig(workers=3, groups=2))
    with pytest.raises(ConfigError, match="needs 8 CPUs.*has 4; lower runtime.groups or runtime.cpus_per_worker"):
        cluster.check_local_resources(RuntimeConfig(workers=1, groups=8))


@pytest.mark.parametrize(
    ("have", "asked", "expected"),
    [
        (0, 1, "needs 1 GPUs, but this machine has 0; set runtime.gpus_per_worker=0, or join a cluster"),
        (1, 1, ""),
        (1, 2, "needs 2 GPUs.*has 1; set runtime.workers to at most 1 or runtime.gpus_per_worker=0, or join a cluster"),
    ],
)
def test_gpus_that_this_machine_lacks_are_refused(
    have: int, asked: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr(cluster, "count_local_gpus", lambda: have)
    runtime = RuntimeConfig(workers=asked, gpus_per_worker=1)
    if not expected:
        cluster.check_local_resources(runtime)
        return
    with pytest.raises(ConfigError, match=expected):
        cluster.check_local_resources(runtime)


def test_gpus_that_are_hidden_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert cluster.count_local_gpus() == 0
