"""Files that a node makes once from what a store holds, and that all of its processes map into their memory."""

import contextlib
import math
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TypeVar

from eav_ray.errors import ConfigError
from eav_ray.storage.backends import LocalBackend
from eav_ray.storage.file_lock import WITHOUT_LOCKS
from eav_ray.storage.files import PARTIAL, make_partial_path
from eav_ray.storage.lease import Lease

T = TypeVar("T")

LOCK, LEASE = ".lock", ".lease"  # a file, and a folder
SUFFIXES = (".arrow", ".embeddings", PARTIAL)  # what else lies in the folder is not the cache's


class NodeCache:
    """Entries, each a file or a folder, in a folder on a disk of this node.

    One process makes or deletes an entry at a time, and the others wait for it: so an entry is made once, and what a
    killed process left half made is found by its name, counts as used, and is deleted first of all.

    Args:
        folder: Is created where it is missing.
        max_gb: GiB that all entries may take; those that were not opened for longest make room.
    Raises:
        ConfigError: The folder is a file, or below one.
    """

    def __init__(self, folder: str | Path, max_gb: float) -> None:
        self._folder, self._max_gb = Path(folder), max_gb
        self._protected: frozenset[str] = frozenset()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise ConfigError(f"store.cache is {folder}, which is no folder, or below a file; give a folder") from None

    def protect(self, names: Collection[str]) -> None:
        """Never let these entries make room for others."""
        self._protected |= frozenset(names)

    def open(self, name: str, make: Callable[[Path], None], open_entry: Callable[[Path], T]) -> T:
        """Open an entry, which is made before where it is missing.

        Args:
            make: Writes the entry to a path, and calls `reserve` before it takes space.
            open_entry: Must raise FileNotFoundError where the entry is gone; once it has returned, the entry may be
                deleted: mapped files stay readable.
        Raises:
            ConfigError: From `reserve`.
        """
        path = self._folder / name
        with contextlib.suppress(FileNotFoundError):  # it is missing, or another process has just evicted it
            return _open_used(path, open_entry)
        with self._lock():
            with contextlib.suppress(FileNotFoundError):  # it is missing, or a file of it is
                return _open_used(path, open_entry)
            self._delete_leftovers()
            partial = make_partial_path(path)
            try:
                make(partial)
                _delete(path)
                os.replace(partial, path)
            finally:
                _delete(partial)
            return _open_used(path, open_entry)

    def list_entries(self) -> list[Path]:
        """List the entries, those that are half made included."""
        return sorted(p for p in self._folder.iterdir() if p.suffix in SUFFIXES)

    def delete(self, names: Collection[str]) -> None:
        """Delete entries; processes that have mapped them go on with what they have."""
        with self._lock():
            self._delete_leftovers()
            for name in names:
                _delete(self._folder / name)

    def reserve(self, n_bytes: int) -> None:
        """Delete the entries that were not opened for longest, until there is room for more; for `make` alone.

        Raises:
            ConfigError: The entries that must stay leave too little room.
        """
        entries = {path: _measure(path) for path in self.list_entries()}
        excess = sum(entries.values()) + n_bytes - self._max_gb * 2**30
        for path in sorted(entries, key=lambda p: p.stat().st_mtime):
            if excess > 0 and path.name not in self._protected and path.suffix != PARTIAL:
                renamed = make_partial_path(path)  # a process killed here leaves no half of an entry
                path.rename(renamed)
                _delete(renamed)
                excess -= entries[path]
        if excess > 0:
            raise ConfigError(
                f"store.cache_gb is {self._max_gb:g}, but the windows and embeddings of this experiment need more "
                f"({excess / 2**30 + self._max_gb:.2f} GiB so far); raise store.cache_gb"
            )

    def _delete_leftovers(self) -> None:
        """Delete what killed processes left: who holds the lock knows that nobody writes."""
        for path in self._folder.glob(f".*{PARTIAL}"):
            _delete(path)

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        import fcntl

        with open(self._folder / LOCK, "a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)  # ends with the process
            except OSError as error:
                if error.errno not in WITHOUT_LOCKS:
                    raise
            else:
                yield
                return
        # The disk has no locks. What a lease writes beside itself is no entry that was left half made.
        lease = Lease(LocalBackend(str(self._folder / LEASE)), "lease", str(self._folder))
        lease.acquire(timeout_s=math.inf)
        try:
            yield
        finally:
            lease.release()


def _open_used(path: Path, open_entry: Callable[[Path], T]) -> T:
    os.utime(path)  # last use
    return open_entry(path)


def _measure(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    return sum(p.stat().st_size for p in (path.iterdir() if path.is_dir() else [path]))


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
