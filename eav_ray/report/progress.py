"""One line a stage: a bar, the count, the time so far and the time to go."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tqdm import tqdm

FORMAT = "{desc:<34.34} {bar:20} {n_fmt:>4}/{total_fmt:<4} {elapsed} ETA {remaining}{postfix}"


IN_A_FILE_S = 15.0  # seconds between two lines, where nobody watches


@dataclass
class Bar:
    _bar: tqdm
    _live: bool
    _shown: float = 0.0

    @property
    def done(self) -> float:
        return self._bar.n

    def to(self, done: float, total: float | None = None, *, note: str = "") -> None:
        if total is not None:
            self._bar.total = total
        self._bar.n = int(done) if done == int(done) else round(done, 1)
        if note:
            self._bar.set_postfix_str(note, refresh=False)
        if self._live or time.monotonic() - self._shown > IN_A_FILE_S:
            self._bar.refresh()
            self._shown = time.monotonic()


@contextmanager
def stage(title: str, total: int, unit: str) -> Iterator[Bar]:
    """A progress bar on stderr that stays as one line; into a file it is written now and then."""
    live = sys.stderr.isatty()
    bar = tqdm(
        total=total,
        desc=f"{title} ({unit})",
        bar_format=FORMAT,
        ncols=130,
        ascii=" #",
        file=sys.stderr,
    )
    try:
        yield Bar(bar, live)
    finally:
        bar.close()
