"""Signals of this process, and processes that compute for it."""

import contextlib
import multiprocessing
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

# What a terminal sends to all processes of a job, on Ctrl-C and when it is closed.
TERMINAL_SIGNALS = (signal.SIGINT, signal.SIGHUP)


@contextmanager
def on_signals(handle: Callable[[], object], *numbers: signal.Signals) -> Iterator[None]:
    """Call a function when one of these comes; `ray job stop` sends SIGTERM before it kills.

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
def defer_signals(*numbers: signal.Signals) -> Iterator[None]:
    """Hear these signals when the block is left: what is begun in it is finished first."""
    pending: list[signal.Signals] = []
    try:
        with contextlib.ExitStack() as stack:
            for number in numbers:
                stack.enter_context(on_signals(partial(pending.append, number), number))
            yield
    finally:
        for number in dict.fromkeys(pending):
            signal.raise_signal(number)


@contextmanager
def keep_signals_from_children(*numbers: signal.Signals) -> Iterator[None]:
    """Let processes that are started meanwhile not hear these signals: this one ends them, once it has saved.

    A terminal sends them to all of a job's processes. What is blocked here stays blocked in what is started; a signal
    that comes meanwhile is heard at the end.
    """
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)


def map_in_processes(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    n_processes: int,
    *,
    initializer: Callable[..., object] | None = None,
    arguments: tuple[Any, ...] = (),
) -> Generator[Result, None, None]:
    """Yield what becomes of each item, in their order, computed by processes of their own.

    They are spawned, not forked: this one may hold threads. Where it is interrupted, or no more is asked for, they end
    at once.

    Args:
        initializer: Is called in each process before its first item, with `arguments`.

    Raises:
        BrokenProcessPool: One of the processes ended.
    """
    earlier = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(n_processes, multiprocessing.get_context("spawn"), initializer, arguments)
    try:
        with keep_signals_from_children(*TERMINAL_SIGNALS):
            pending = [pool.submit(work, item) for item in items]
        for each in pending:
            yield each.result()
        pool.shutdown()
    except BaseException:
        # They are ended before the pool is, and the pool is waited for: one that is still closing when the interpreter
        # exits may write to a pipe that it has just closed, and print the error.
        for child in set(multiprocessing.active_children()) - earlier:
            with contextlib.suppress(OSError, ValueError):  # it has ended by itself
                child.terminate()
        pool.shutdown(cancel_futures=True)
        raise
