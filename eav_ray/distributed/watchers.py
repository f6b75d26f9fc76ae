"""Watch over remote work while a process waits."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ray.exceptions import RayError

from eav_ray.errors import DataError

POLL_INTERVAL_S = 1.0


@contextmanager
def poll_in_background(poll: Callable[[], object], interval_s: float = POLL_INTERVAL_S) -> Iterator[None]:
    """Call a function every few seconds from a thread of its own.

    What was away or refused is asked again: a store, an actor, a full disk below what it writes.
    """
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(interval_s):
            with contextlib.suppress(DataError, RayError, OSError):
                poll()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
