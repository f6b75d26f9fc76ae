"""Run commands of `eav` one after the other in one process, which stays connected to a cluster.

To start Python, import Ray and start workers is most of what a small command costs. The shell reads a line of JSON for
each command, its words and its folder, and answers with a line: exit status, what it printed, and where.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.helpers.clusters import end_process
from tests.helpers.paths import REPOSITORY

MARK = "done "  # before an answer: Ray prints too


class JobShell:
    """The side of the tests."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def run(self, words: Sequence[str], place: Path) -> "subprocess.CompletedProcess[str]":
        """Run one command in a folder, as a process of its own would."""
        assert self._process.stdin and self._process.stdout
        print(json.dumps([list(words), str(place)]), file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            if line.startswith(MARK):
                code, out, err = json.loads(line.removeprefix(MARK))
                return subprocess.CompletedProcess(["eav", *words], code, out, err)
        raise AssertionError(f"the shell of commands ended with {self._process.wait()} at: {' '.join(words)}")


@contextmanager
def open_job_shell(environment: Mapping[str, str]) -> Iterator[JobShell]:
    """Start a shell on the cluster that RAY_ADDRESS of the environment names, and end it."""
    path = os.pathsep.join([str(REPOSITORY), *filter(None, [environment.get("PYTHONPATH")])])
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.helpers.job_shell"],
        env={**environment, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield JobShell(process)
    finally:
        assert process.stdin
        process.stdin.close()  # which ends it
        try:
            process.wait(timeout=30)
        finally:
            end_process(process)


def serve() -> None:
    """Run the commands that come by stdin; what they and their Ray print goes to files first."""
    from eav_ray.cli.main import run_command
    from eav_ray.config import RuntimeConfig
    from eav_ray.distributed import cluster

    answers = os.fdopen(os.dup(1), "w")
    with cluster.connect_to_ray(RuntimeConfig(workers=1)), tempfile.TemporaryDirectory() as folder:
        own = [os.dup(number) for number in (1, 2)]
        for line in sys.stdin:
            words, place = json.loads(line)
            paths = [Path(folder, name) for name in ("out", "err")]
            os.chdir(place)
            for number, path in enumerate(paths, 1):
                file = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
                os.dup2(file, number)
                os.close(file)
            try:
                code = run_command(words)
            except SystemExit as leave:
                code = leave.code
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                for number, kept in enumerate(own, 1):
                    os.dup2(kept, number)
            print(MARK + json.dumps([code, *(path.read_text() for path in paths)]), file=answers, flush=True)


if __name__ == "__main__":
    serve()
