"""A submitted job goes on by the Python of the Ray that runs it, whatever the shell calls `python3`."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from eav_ray.cli.interpreter import CHOSEN_VARIABLE, find_ray_interpreter
from tests.helpers.paths import REPOSITORY

# A process that starts another, as a raylet starts what starts a job; its words name the Python of its workers.
RAYLET = "import subprocess, sys; sys.exit(subprocess.run(sys.argv[2:]).returncode)"
# Without site-packages, as the system's Python is.
SYSTEM_PYTHON = [sys.executable, "-S"]
JOB = [str(REPOSITORY / "jobs" / "check.py"), "--help"]


def run(python: str | None, *, is_submitted: bool = True, **more: str) -> "subprocess.CompletedProcess[str]":
    """Run a job by a Python that lacks all that it needs, below a raylet whose workers have another one."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"PYTHONPATH": str(REPOSITORY)}
    environment |= ({"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"} if is_submitted else {}) | more
    option = "--other" if python is None else f"--python_worker_command={python} setup_worker.py --x=1"
    command = [sys.executable, "-c", RAYLET, option, "sh", "-c", shlex.join([*SYSTEM_PYTHON, *JOB])]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """This Python by another name, with a blank, as Ray quotes it."""
    path = tmp_path / "a folder" / "python"
    path.parent.mkdir()
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    path.chmod(0o755)
    return path


def test_a_job_that_the_systems_python_began_goes_on_by_rays(linked: Path) -> None:
    for python in (sys.executable, f'"{linked}"'):
        done = run(python)
        assert done.returncode == 0 and "Usage: eav check" in done.stdout, done.stderr


@pytest.mark.parametrize("python", [None, "/nowhere/python"])
def test_where_rays_python_is_not_found_one_line_says_so(python: str | None) -> None:
    done = run(python)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ") and "lacks what eav-ray needs" in done.stderr


def test_it_is_started_anew_once_and_in_submitted_jobs_alone() -> None:
    for done in (run(sys.executable, **{CHOSEN_VARIABLE: "x"}), run(sys.executable, is_submitted=False)):
        assert done.returncode == 1 and "ModuleNotFoundError" in done.stderr


def test_no_raylet_is_no_interpreter() -> None:
    assert find_ray_interpreter(os.getpid()) == "" and find_ray_interpreter(2**30) == ""
