"""One line a stage: a bar, the count, the time so far and the time to go."""

import contextlib
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tqdm import tqdm

BAR_FORMAT = "{desc:<34} {bar:20} {n_fmt:>4}/{total_fmt:<4} {elapsed} ETA {remaining}"  # and then a note


LOG_FILE_INTERVAL_S = 15.0  # seconds between two lines, where nobody watches


def write_line(line: str) -> None:
    """Write a line to stderr, above the progress line."""
    with contextlib.suppress(OSError):  # the disk of a log file may be full
        tqdm.write(line, file=sys.stderr)


class FirstWarning:
    """Writes the first of several lines to stderr: what follows would say the same."""

    def __init__(self) -> None:
        self._was_written = False

    def write(self, line: str) -> None:
        if not self._was_written:
            self._was_written = True
            write_line(line)


@dataclass
class ProgressBar:
    _bar: tqdm
    _is_terminal: bool
    _refreshed_at: float = 0.0

    @property
    def done(self) -> float:
        return self._bar.n

    def set_done(self, done: float, total: float | None = None, *, note: str = "") -> None:
        if total is not None:
            self._bar.total = total
        rounded = round(done, 1)
        self._bar.n = int(rounded) if rounded == int(rounded) else rounded
        if note:  # not as tqdm's postfix, which begins with a comma, also where it is empty
            self._bar.bar_format = f"{BAR_FORMAT} " + note.rstrip().replace("{", "{{").replace("}", "}}")
        if self._is_terminal or time.monotonic() - self._refreshed_at > LOG_FILE_INTERVAL_S:
            with contextlib.suppress(OSError):  # the disk of a log file may be full
                self._bar.refresh()
            self._refreshed_at = time.monotonic()


@contextmanager
def open_progress_bar(title: str, total: int, unit: str, *, done: int = 0) -> Iterator[ProgressBar]:
    """A progress bar on stderr that stays as one line; into a file it is written now and then.

    Args:
        done: So much was done earlier, and took no time now.
    """
    is_terminal = sys.stderr.isatty()
    bar = tqdm(
        total=total,
        initial=done,
        desc=f"{title} ({unit})",
        bar_format=BAR_FORMAT,
        dynamic_ncols=is_terminal,  # a longer line would wrap there; a file takes all of it
        ascii=" #",
        file=sys.stderr,
    )
    try:
        yield ProgressBar(bar, is_terminal)
    finally:
        with contextlib.suppress(OSError):
            bar.close()
