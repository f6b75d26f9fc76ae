"""The errors that a user can cause, and the end of a training that was asked to leave. All take one string: an
exception with two arguments does not survive the trip between Ray processes."""

import errno
import re
import socket
from collections.abc import Iterable, Iterator

LASTING_ERRNOS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT}
# What else a machine says that no other input would change: its limits, its disks, a path of its own.
MACHINE_ERRNOS = LASTING_ERRNOS | {
    errno.EMFILE,
    errno.ENFILE,
    errno.EFBIG,
    errno.ENOMEM,
    errno.EAGAIN,
    errno.EIO,
    errno.ESTALE,
    errno.ENOTDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.EADDRNOTAVAIL,
}
# How S3, GCS and their clients say that a request will be refused again.
LASTING_TEXT = re.compile(
    r"access.?denied|permission.?denied|forbidden|InvalidAccessKeyId|SignatureDoesNotMatch|no.?such.?bucket|"
    r"no space left|quota exceeded|\bHTTP (?:status )?40[13]\b",
    re.IGNORECASE,
)

MAX_LETTERS = 200  # of an error of others
MAX_SLIPS = 3  # of the pen, by which a word may differ from one that is suggested in its place

# What libraries raise on damaged files: they trust the lengths and types that a file states.
DAMAGE_ERRORS = (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, EOFError, ArithmeticError)


class ConfigError(ValueError):
    """A request that cannot be met: a wrong key or value, a fold that does not exist, too many workers."""


class DataError(ValueError):
    """A file or store that is missing, damaged, or not what it should be."""


class StorageError(DataError):
    """A store that does not answer, or refuses a request, after it was repeated. Says nothing of what is stored.

    Attributes:
        permanent: Whether to ask again later is of no use: rights are missing.
    """

    def __init__(self, text: str, permanent: bool = False) -> None:
        super().__init__(text)
        self.permanent = permanent


class UnrecoverableError(DataError):
    """A fault of a machine or of a store that no further attempt heals: no rights, a full disk, no GPU.

    Its text names the machine. Whoever trains many runs ends all of them.
    """


class TrainingInterrupted(Exception):
    """A training saved and left before its end, because it was asked to; the text says why."""


def suggest_nearest(word: str, allowed: Iterable[str]) -> str:
    """`'; did you mean "X"?'`, or nothing where no allowed word is a few slips away: a far one would mislead."""
    most = min(MAX_SLIPS, max(1, len(word) // 3))
    best, least = "", most + 1
    for candidate in allowed:
        if abs(len(candidate) - len(word)) < least:
            slips = _count_slips(word.casefold(), candidate.casefold())
            if slips < least:
                best, least = candidate, slips
    return f'; did you mean "{best}"?' if best else ""


def _count_slips(one: str, other: str) -> int:
    """Count the letters to add, leave out, replace or exchange with their neighbour that make one word of another."""
    earlier, before = list(range(len(other) + 1)), list[int]()
    for i, a in enumerate(one, 1):
        row = [i]
        for j, b in enumerate(other, 1):
            slips = min(earlier[j] + 1, row[j - 1] + 1, earlier[j - 1] + (a != b))
            if i > 1 and j > 1 and a == other[j - 2] and one[i - 2] == b:
                slips = min(slips, before[j - 2] + 1)
            row.append(slips)
        before, earlier = earlier, row
    return earlier[-1]


def describe_error(error: BaseException) -> str:
    """Describe an error in one line; a long one ends in an ellipsis."""
    text = " ".join(str(error).split())
    return (text if len(text) <= MAX_LETTERS else f"{text[: MAX_LETTERS - 4]} ...") or type(error).__name__


def is_lasting(error: BaseException) -> bool:
    """Whether an error, or what it was raised from, is one that another attempt would meet again on this machine."""
    return any(
        isinstance(each, UnrecoverableError)
        or (isinstance(each, StorageError) and each.permanent)
        or (isinstance(each, OSError) and (each.errno in LASTING_ERRNOS or bool(LASTING_TEXT.search(str(each)))))
        for each in _list_causes(error)
    )


def is_of_machine(error: OSError) -> bool:
    """Whether an error of the operating system is one of this machine: its text alone says what to correct."""
    return is_lasting(error) or error.errno in MACHINE_ERRNOS


def _list_causes(error: BaseException | None) -> Iterator[BaseException]:
    """List an error and all that it was raised from, what `from None` hides included."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def make_unrecoverable(error: BaseException) -> UnrecoverableError:
    """Make the error that ends all runs, of one that this machine met; its text names the machine."""
    if isinstance(error, UnrecoverableError):
        return error
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        reason = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return UnrecoverableError(f"{reason} (on the machine {socket.gethostname()})")
