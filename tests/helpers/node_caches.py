"""What processes of one node do with its cache, in processes of their own."""

import os
import signal
import sys
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa

from eav_ray.data.shards.index import read_index
from eav_ray.data.shards.window_cache import WindowCache
from eav_ray.storage import NodeCache, Store
from eav_ray.training.mapped_embeddings import open_embeddings


def open_windows(shards: str, cache: str, cache_gb: float, times: int) -> None:
    """Open a data set as often as asked, and look at all of it."""
    store = Store(shards)
    for _ in range(times):
        windows = WindowCache(store, read_index(store), cache=cache, cache_gb=cache_gb)
        for column in ("audio", "eeg", "video"):
            windows.get(np.arange(len(windows)), column)


def die_while_making(cache: str, name: str) -> None:
    """Be killed in the middle of an entry."""

    def make(path: Path) -> None:
        path.write_bytes(b"x" * 1000)
        os.kill(os.getpid(), signal.SIGKILL)

    NodeCache(cache, 1).open(name, make, Path.read_bytes)


def measure_opening(results: str, prefix: str, cache: str) -> None:
    """Exit with an error where opening embeddings takes more than half their size in memory of one's own.

    A part or two may stay: glibc and Arrow give back what was freed when they see fit, later on a busy machine.
    """
    process = psutil.Process()

    def measure_own() -> int:
        pa.default_memory_pool().release_unused()
        return int(process.memory_full_info().uss)

    before = measure_own()
    found = open_embeddings(Store(results), prefix, NodeCache(cache, 1))
    size = sum(values.nbytes for values in found.arrays.values())
    assert size > 2**27 and all(not values.flags.owndata for values in found.arrays.values())
    rows = np.random.default_rng(0).integers(0, len(found.windows), 32)
    assert found.arrays["tokens"][rows].shape[0] == 32
    taken = measure_own() - before
    if taken > size / 2:
        sys.exit(f"opening {size} bytes took {taken} bytes")
