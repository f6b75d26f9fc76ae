"""What a store needs of a file system or an object store: few operations, by names below the root."""

import contextlib
import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from eav_ray.errors import DataError
from eav_ray.storage.files import PARTIAL, make_partial_path, replace_file, sha256

SMALL_BYTES = 4096  # that are written at once
# What a file system says that has no links.
WITHOUT_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK, errno.EINVAL, errno.EXDEV)


@dataclass(frozen=True)
class StoredFile:
    """What a listing says of a file."""

    size: int  # bytes
    written: float  # when, seconds since 1970


class Backend(ABC):
    """The files below one root. Writing is atomic: a reader sees the old content or the new, never a part."""

    def assume_reachable(self) -> None:  # noqa: B027
        """Wait for a store that does not answer as long as for one that has answered this process before."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError where there is no such name."""

    @abstractmethod
    def write(self, name: str, data: bytes) -> None: ...

    @abstractmethod
    def measure(self, name: str) -> int | None:
        """Return the bytes of a file; None where there is none."""

    @abstractmethod
    def list_files(self, prefix: str) -> dict[str, StoredFile]:
        """Return each file below a folder, by its name below the root; partial files are left out."""

    @abstractmethod
    def delete_files(self, names: Iterable[str]) -> None:
        """Delete files, those that are missing included; an object store takes them in no order of ours."""

    @abstractmethod
    def delete_folder(self, prefix: str) -> None:
        """Delete a folder and what is in it, where there are folders."""

    @abstractmethod
    def open_writer(self, name: str) -> contextlib.AbstractContextManager[tuple[BinaryIO, ThreadPoolExecutor | None]]:
        """Open a file that appears under its name when the block ends without an error.

        Returns:
            The file, and a thread that brings it to the disk where there is one.
        """

    @abstractmethod
    def read_version(self, name: str) -> tuple[bytes, str] | None:
        """Read a file with the version that `replace` takes; None where there is none."""

    @abstractmethod
    def find_version(self, name: str) -> str | None:
        """Return the version of a file; None where there is none."""

    @abstractmethod
    def create(self, name: str, data: bytes) -> str | None:
        """Write a file that must not be there yet; returns its version, None where other content was there."""

    @abstractmethod
    def replace(self, name: str, data: bytes, version: str) -> str | None:
        """Write a file that must still be of a version; returns its new one, None where it has changed."""

    def refuses_second_creation(self, name: str) -> bool:
        """Tell whether a file that is there is not created again: whether conditional writes can be relied on."""
        return self.create(name, b"a second time") is None


class LocalBackend(Backend):
    """A folder of this machine. Links that lead out of it are refused."""

    def __init__(self, root: str) -> None:
        self.root = Path(root).absolute()

    def resolve(self, name: str) -> Path:
        path = self.root / name if name else self.root
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise DataError(f"{path} leads outside of {self.root}; nothing is read or written there")
        return path

    def read(self, name: str) -> bytes:
        return self.resolve(name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        with self.open_writer(name) as (file, _):
            file.write(data)

    def measure(self, name: str) -> int | None:
        path = self.resolve(name)
        return path.stat().st_size if path.is_file() else None

    def list_files(self, prefix: str) -> dict[str, StoredFile]:
        found: dict[str, StoredFile] = {}
        for folder, _, names in os.walk(self.resolve(prefix)):
            for name in names:
                path = Path(folder, name)
                with contextlib.suppress(FileNotFoundError):  # another process has just deleted it
                    if path.is_file() and path.suffix != PARTIAL:
                        status = path.stat()
                        found[str(path.relative_to(self.root))] = StoredFile(status.st_size, status.st_mtime)
        return found

    def delete_files(self, names: Iterable[str]) -> None:
        for name in names:
            (self.root / name).unlink(missing_ok=True)

    def delete_folder(self, prefix: str) -> None:
        import shutil

        path = self.resolve(prefix)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def open_writer(self, name: str) -> Iterator[tuple[BinaryIO, ThreadPoolExecutor | None]]:
        path = self.resolve(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path) as partial, open(partial, "wb") as file, ThreadPoolExecutor(1) as flusher:
            yield file, flusher
            file.flush()
            os.fsync(file.fileno())

    def read_version(self, name: str) -> tuple[bytes, str] | None:
        with contextlib.suppress(FileNotFoundError):
            data = self.resolve(name).read_bytes()
            return data, sha256(data)
        return None

    def find_version(self, name: str) -> str | None:
        found = self.read_version(name)
        return found and found[1]

    def create(self, name: str, data: bytes) -> str | None:
        path = self.resolve(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = make_partial_path(path)
        try:
            with open(partial, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.link(partial, path)  # refused where the name is there, on every file system of a cluster too
        except FileExistsError:
            return None
        except OSError as error:
            if error.errno not in WITHOUT_LINKS:
                raise
            return self._create_without_links(path, partial, data)
        finally:
            partial.unlink(missing_ok=True)
        return sha256(data)

    def _create_without_links(self, path: Path, partial: Path, data: bytes) -> str | None:
        """Create a file: a small one at its place, so that only one process can; a large one whole or not at all."""
        if len(data) > SMALL_BYTES:
            if path.exists():
                return None
            os.replace(partial, path)
            return sha256(data)
        try:
            with open(path, "xb") as file:
                try:
                    file.write(data)
                except OSError:
                    path.unlink()
                    raise
        except FileExistsError:
            return None
        return sha256(data)

    def replace(self, name: str, data: bytes, version: str) -> str | None:
        # Only one process can create the name that follows a version, and whoever finds it there moves it on, so that
        # one that died in between holds nobody up.
        follower = f"{name}.after-{version[:16]}{PARTIAL}"
        is_first = self.create(follower, data) is not None
        found = self.find_version(name)
        if found != version:
            if is_first:
                self.delete_files([follower])
            return found if found == sha256(data) else None  # another process may have moved it into place
        with contextlib.suppress(FileNotFoundError):  # another process has just moved it
            os.replace(self.resolve(follower), self.resolve(name))
        return sha256(data) if is_first else None
