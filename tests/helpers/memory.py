"""How much memory this process took at most."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Peak:
    mib: float = 0.0  # how much more than in the beginning


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Measure how far the resident memory of this process grows in a block; Linux only."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, peak = _read_kib("VmRSS"), Peak()
    yield peak
    peak.mib = (_read_kib("VmHWM") - before) / 1024


def _read_kib(key: str) -> int:
    found = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1])
