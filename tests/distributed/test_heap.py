"""Freed memory goes back to the machine."""

import subprocess
import sys

from tests.helpers.paths import REPOSITORY

CODE = """
import re, threading
from eav_ray.distributed.heap import limit_heaps, release_heaps

def measure():
    return int(re.search(r"Private_Dirty:\\s+(\\d+)", open("/proc/self/smaps_rollup").read())[1]) // 1024

limit_heaps()
before = measure()
blocks = [bytes(20_000) for _ in range(10_000)]  # 200 MB in blocks that are not mapped one by one
kept = blocks[::100]
blocks.clear()
held = measure()
release_heaps()
print(held - before, measure() - before)
"""


def test_freed_blocks_between_others_are_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    held, left = map(int, done.stdout.split())
    assert held > 100 and left < 20, done.stdout
