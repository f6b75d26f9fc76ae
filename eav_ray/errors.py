"""The two errors that a user can cause, and the end of a training that was asked to leave. All take one string: an
exception with two arguments does not survive the trip between Ray processes."""

import difflib
from collections.abc import Iterable

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


class TrainingInterrupted(Exception):
    """A training saved and left before its end, because it was asked to; the text says why."""


def suggest_nearest(word: str, allowed: Iterable[str]) -> str:
    """`'; did you mean "X"?'`, or nothing where no allowed word is close."""
    matches = difflib.get_close_matches(word, list(allowed), n=1, cutoff=0.5)
    return f'; did you mean "{matches[0]}"?' if matches else ""


def describe_error(error: BaseException) -> str:
    """One line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
