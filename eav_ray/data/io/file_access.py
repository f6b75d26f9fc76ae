"""Look at files and folders, and say in one line where the rights to do so are missing.

`Path.is_file` and its like raise PermissionError for what lies in a folder without rights.
"""

import errno
import os
import stat
from pathlib import Path

from eav_ray.errors import DataError

NOTHING_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


def is_file(path: str | Path) -> bool:
    """Tell whether there is a file; raises DataError where it cannot be looked at."""
    return stat.S_ISREG(_read_mode(path))


def is_folder(path: str | Path) -> bool:
    """Tell whether there is a folder; raises DataError where it cannot be looked at."""
    return stat.S_ISDIR(_read_mode(path))


def list_folder(folder: Path) -> list[Path]:
    """List what a folder holds, sorted: the system's own order differs between machines.

    Raises:
        DataError: It cannot be looked into.
    """
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise _describe_access(folder, error) from None


def require_file(path: str | Path, expected: str) -> None:
    """Raise DataError where there is no file, or one that may not be read; what is no plain file is not opened.

    Args:
        expected: What should be there.
    """
    if not is_file(path):
        raise DataError(f"{path} is missing; expected {expected}")
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise DataError(f"{path} cannot be opened ({error.strerror}); correct its rights, or leave it out") from None


def _read_mode(path: str | Path) -> int:
    """Read what kind of thing has a path; 0 where there is nothing."""
    try:
        return os.stat(path).st_mode
    except ValueError:  # a zero byte
        return 0
    except OSError as error:
        if error.errno in NOTHING_THERE:
            return 0
        raise _describe_access(path, error) from None


def _describe_access(path: str | Path, error: OSError) -> DataError:
    return DataError(f"{path} cannot be looked at ({error.strerror}); correct its rights and those of its folders")
