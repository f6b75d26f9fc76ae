"""What somebody needs to make a result again: command, commit, versions, data, hardware."""

import datetime
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from eav_ray.config import Experiment, digest
from eav_ray.data.shards.index import ShardIndex
from eav_ray.storage import list_package_versions


def collect_provenance(experiment: Experiment, index: ShardIndex) -> dict[str, Any]:
    """In the order in which it is shown."""
    return {
        "command": _describe_command(),
        "date": str(datetime.date.today()),
        "commit": describe_commit(),
        "versions": list_package_versions(),
        "Python": platform.python_version(),
        "index of shards": f"{index.key}, {len(index.shards)} shards, content {digest(index.fingerprint)}",
        "seed": str(experiment.seed),
        "split seed": str(experiment.split.seed),
        "hardware": describe_hardware(),
    }


def _describe_command() -> str:
    program, *words = sys.argv
    return shlex.join(["eav", *words] if Path(program).name == "eav" else ["python", program, *words])


def describe_commit() -> str:
    """Of the working tree that this program runs from; "unknown" where it is none."""
    command = ["git", "describe", "--always", "--dirty=, changed", "--exclude=*"]
    try:
        process = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent, timeout=20)
    except (OSError, subprocess.TimeoutExpired):  # no git
        return "unknown"
    return process.stdout.strip() or "unknown"


def describe_hardware() -> str:
    return f"{os.cpu_count()} cores of {describe_cpu_model()}"


def describe_cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
