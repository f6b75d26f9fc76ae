"""Where the checkpoints of a run lie, and how far the newest of them is. Runs without torch."""

import re

from eav_ray.storage import COMMIT, Store
from eav_ray.training.run_spec import Position

CHECKPOINT_NAME = re.compile(rf"(a\d+-[0-9a-f]+)/e(\d+)-s(\d+)/{COMMIT}$")


def make_checkpoint_prefix(key: str, attempt: str, position: Position) -> str:
    return f"runs/{key}/{attempt}/e{position.epoch:04d}-s{position.step:06d}"


def find_newest_position(store: Store, key: str) -> Position | None:
    """Find the furthest position that any attempt of a run has committed; reads names alone.

    Raises:
        DataError: The store does not answer.
    """
    matches = (CHECKPOINT_NAME.search(name) for name in store.list_files(f"runs/{key}"))
    return max((Position(int(match[2]), int(match[3])) for match in matches if match), default=None)
