"""Make this process fit for a command: what a shell, a terminal, cron or a container left of it."""

import io
import os
import select
import signal
import stat
import sys
import tempfile
from pathlib import Path
from typing import NoReturn


def prepare_streams() -> None:
    """Make the standard streams take whatever is printed.

    Cron and daemons close some: a file would get their numbers, and what is printed. A name that the terminal cannot
    show, or that is not UTF-8, is shown with escapes.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def provide_home() -> None:
    """Give a user without a home, or with one that cannot be written, a folder for what libraries keep there.

    Containers run as a number for a user, and with a root file system that cannot be written.
    """
    home = os.path.expanduser("~")
    if home != "~" and os.path.isdir(home) and os.access(home, os.W_OK | os.X_OK):
        return
    folder = Path(tempfile.gettempdir(), f"eav-ray-home-{os.getuid()}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        is_own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
    except OSError:
        is_own = False
    os.environ["HOME"] = str(folder) if is_own else tempfile.mkdtemp(prefix="eav-ray-home-")


def end_when_terminal_closes() -> None:
    """End as Ctrl-C does when the terminal is closed; below `nohup`, where SIGHUP is ignored, go on."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, _interrupt)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def silence_unread_streams() -> bool:
    """Let what is left to print go nowhere where nobody reads it; tells whether there is such a stream."""
    closed = [number for number in (1, 2) if not _is_read(number)]
    for number in closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    return bool(closed)


def _is_read(number: int) -> bool:
    """Whether somebody reads the pipe that a stream goes into."""
    poll = select.poll()
    poll.register(number, 0)
    return not any(events & select.POLLERR for _, events in poll.poll(0))
