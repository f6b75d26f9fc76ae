"""Run a submitted job by the Python of the Ray that runs it. Imports nothing that has to be installed.

`ray job submit ... -- python3 jobs/check.py` names a command of the shell, which finds the system's Python where nobody
has activated the environment in which Ray was started.
"""

import importlib.util
import os
import shlex
import sys

SUBMITTED_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # as in eav_ray.config.paths
WORKER_COMMAND_OPTION = "--python_worker_command="  # of a raylet (distributed/ray_workarounds.py)
CHOSEN_VARIABLE = "EAV_RAY_INTERPRETER"  # in the environment of what was started anew, so that it is not again
NEEDED_MODULES = ("ray", "typer")


def use_own_interpreter() -> None:
    """Start this program anew by Ray's own Python, where it is a submitted job and this one lacks what it needs."""
    is_complete = all(importlib.util.find_spec(name) for name in NEEDED_MODULES)
    if is_complete or SUBMITTED_JOB_VARIABLE not in os.environ or CHOSEN_VARIABLE in os.environ:
        return
    python = find_ray_interpreter(os.getppid())
    if python:
        os.environ[CHOSEN_VARIABLE] = python
        os.execv(python, [python, *sys.argv])
    print(
        f"error: {sys.executable} lacks what eav-ray needs, and the Python of this Ray is not found; name one that has "
        "it in place of python3",
        file=sys.stderr,
    )
    sys.exit(2)


def find_ray_interpreter(pid: int) -> str:
    """Find by which Python a raylet starts its workers, among a process and those that started it.

    Returns:
        Its path; empty where there is no raylet, or it is not there.
    """
    while pid > 1:
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                words = os.fsdecode(file.read()).split("\0")
            with open(f"/proc/{pid}/stat", "rb") as file:
                pid = int(os.fsdecode(file.read()).rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):  # not Linux, or it has ended
            return ""
        for word in words:
            if word.startswith(WORKER_COMMAND_OPTION):
                python = shlex.split(word[len(WORKER_COMMAND_OPTION) :])[0]
                return python if os.access(python, os.X_OK) else ""
    return ""
