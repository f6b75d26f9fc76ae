"""Watch for signals, and over remote work, while a process waits."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ray.exceptions import RayError

from eav_ray.errors import DataError

POLL_INTERVAL_S = 1.0


@contextmanager
def on_signals(handle: Callable[[], object], *numbers: signal.Signals) -> Iterator[None]:
    """Call a function when one of these signals comes; `ray job stop` sends SIGTERM before it kills.

    A signal that is ignored, as SIGHUP is below `nohup`, stays so. Only the main thread of a process is told of
    signals: in any other this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    earlier = {number: signal.signal(number, lambda *_: handle() and None) for number in heard}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


@contextmanager
def keep_hangup_from_children() -> Iterator[None]:
    """Let processes that are started meanwhile live on when the terminal closes: this one ends them, once it saved.

    A closing terminal sends SIGHUP to all of a job's processes. What is blocked here stays blocked in what is started.
    """
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)


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
