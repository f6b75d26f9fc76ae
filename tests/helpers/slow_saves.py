"""A plugin by which each checkpoint takes as long to write as a large one over a slow line.

`VARIABLE`, in the environment of workers, says how many seconds, and which file gets the position of each that begins.
"""

import os
import subprocess
import time
from pathlib import Path
from typing import Any

from eav_ray.training import checkpoint_writer
from eav_ray.training.run_spec import Position

VARIABLE = "EAV_RAY_TEST_SLOW_SAVES"
write_checkpoint = checkpoint_writer.write_checkpoint


def write_slowly(store: Any, attempt: str, checkpoint: Any) -> Any:
    seconds, log = os.environ[VARIABLE].split(":", 1)
    with open(log, "a") as begun:
        print(checkpoint.state.position.epoch, checkpoint.state.position.step, file=begun, flush=True)
    time.sleep(float(seconds))
    return write_checkpoint(store, attempt, checkpoint)


if VARIABLE in os.environ:
    checkpoint_writer.write_checkpoint = write_slowly


def read_begun(log: Path) -> list[Position]:
    """Positions at which saves have begun."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [Position(*map(int, line.split())) for line in lines]


def wait_for_saves(log: Path, count: int, training: "subprocess.Popen[str] | None" = None) -> list[Position]:
    """Wait until so many saves have begun; fails at once where the training has ended."""
    for _ in range(1800):
        if len(begun := read_begun(log)) >= count:
            return begun
        assert training is None or training.poll() is None, training.communicate()
        time.sleep(0.1)
    raise AssertionError(f"{len(begun)} of {count} saves have begun")
