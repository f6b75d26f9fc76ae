"""Where the checkpoints of a run lie, and how far the newest of them is. Runs without torch."""

import re
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

from eav_ray.storage import COMMIT, Store
from eav_ray.training.run_spec import Position

MAX_REQUESTS = 32  # to a store at once
CHECKPOINT_NAME = re.compile(rf"(a\d+-[0-9a-f]+)/e(\d+)-s(\d+)/{COMMIT}$")


def make_checkpoint_prefix(key: str, attempt: str, position: Position) -> str:
    return f"runs/{key}/{attempt}/e{position.epoch:04d}-s{position.step:06d}"


def find_newest_position(store: Store, key: str) -> Position | None:
    """Find the furthest position that any attempt of a run has committed; reads names alone.

    Raises:
        DataError: The store does not answer.
    """
    return find_newest_positions(store, [key]).get(key)


def find_newest_positions(store: Store, keys: Collection[str]) -> dict[str, Position]:
    """Find `find_newest_position` of each run that has one; many are found by one listing.

    Raises:
        DataError: The store does not answer.
    """
    wanted, newest = set(keys), dict[str, Position]()
    places = ["runs"] if len(wanted) > MAX_REQUESTS else [f"runs/{key}" for key in wanted]
    with ThreadPoolExecutor(len(places) or 1) as pool:
        for name in chain.from_iterable(pool.map(store.list_files, places)):
            match, key = CHECKPOINT_NAME.search(name), name.removeprefix("runs/").partition("/")[0]
            if match and key in wanted:
                position = Position(int(match[2]), int(match[3]))
                newest[key] = max(position, newest.get(key, position))
    return newest
