"""Slurm on one machine: stand-ins for its commands, and a job that runs infra/slurm.sbatch as it would."""

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.helpers.clusters import end_process
from tests.helpers.paths import REPOSITORY

SCRIPT = REPOSITORY / "infra" / "slurm.sbatch"
# `srun` runs its words once a node, here, and hands on what it is told.
STAND_INS = {
    "hostname": "echo 127.0.0.1 192.0.2.1",
    "scontrol": 'echo "scontrol $*" >>"$LOG"',
    "srun": """
        while [[ $1 == -* ]]; do shift; done
        for node in $(seq 0 $((SLURM_JOB_NUM_NODES - 1))); do SLURM_NODEID=$node "$@" & done
        trap 'kill -TERM $(jobs -p)' TERM
        while [[ -n $(jobs -pr) ]]; do wait; done""",
}


@contextmanager
def open_job(
    folder: Path, environment: Mapping[str, str], *words: str, nodes: int, place: Path
) -> Iterator["subprocess.Popen[str]"]:
    """Start the script in `place` with Slurm's variables; what is asked of stand-ins stands in `folder`/log.

    Args:
        environment: Names in PATH, after `folder`, where other commands are.
    """
    for name, text in STAND_INS.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (folder / name).chmod(0o755)
    (folder / "log").touch()
    more = {"PATH": f"{folder}:{environment['PATH']}", "HOME": str(folder), "LOG": str(folder / "log")}
    more |= {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NUM_NODES": str(nodes)}
    more |= {"SLURM_CPUS_PER_TASK": "2", "SLURM_GPUS_ON_NODE": "0"}
    job = subprocess.Popen(
        ["bash", str(SCRIPT), *words], env={**environment, **more}, cwd=place, stderr=subprocess.PIPE, text=True
    )
    try:
        yield job
    finally:
        end_process(job)


def list_folders() -> list[Path]:
    """List what jobs of this process have left of their own folders."""
    return list(Path("/tmp").glob(f"eav-ray-{os.getpid()}-*"))
