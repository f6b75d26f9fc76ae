"""What a store needs of a file system or an object store: few operations, by names below the root.

Object stores are reached by obstore. A request that fails is repeated until `retry_s` is over; what a server says for
good (no rights, no such name) is not repeated, except that a missing name is asked for twice.
"""

import contextlib
import os
import random
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from eav_ray.errors import DataError, StorageError, describe_error
from eav_ray.storage.files import io_errors, replace_file
from eav_ray.storage.location import StoreLocation

T = TypeVar("T")

RETRY_S = 300.0
FIRST_CONTACT_S = 20.0  # for which a store is asked that has never answered: its name may be wrong
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 10.0
MISSING_PAUSE_S = 0.2  # before a name that is missing is asked for again
MISSING_BUCKET_S = 5.0  # for which a request is repeated to which the server says that the bucket is missing


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
    def list_sizes(self, prefix: str) -> dict[str, int]:
        """Return the bytes of each file below a folder, by its name below the root; partial files are left out."""

    @abstractmethod
    def delete_files(self, names: Iterable[str]) -> None:
        """Delete files, those that are missing included; an object store takes them in no order of ours."""

    @abstractmethod
    def delete_folder(self, prefix: str) -> None: ...

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
    def create(self, name: str, data: bytes) -> str | None:
        """Write a file that must not be there yet; returns its version, None where it was there."""

    @abstractmethod
    def replace(self, name: str, data: bytes, version: str) -> str | None:
        """Write a file that must still be of a version; returns its new one, None where it has changed."""


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

    def list_sizes(self, prefix: str) -> dict[str, int]:
        found: dict[str, int] = {}
        for folder, _, names in os.walk(self.resolve(prefix)):
            for name in names:
                path = Path(folder, name)
                with contextlib.suppress(FileNotFoundError):  # another process has just deleted it
                    if path.is_file() and path.suffix != ".partial":
                        found[str(path.relative_to(self.root))] = path.stat().st_size
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
        path = self.resolve(name)
        with contextlib.suppress(FileNotFoundError):
            data = path.read_bytes()
            return data, data.decode(errors="replace")
        return None

    def create(self, name: str, data: bytes) -> str | None:
        path = self.resolve(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".partial") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            try:
                os.link(file.name, path)  # refused where the name is there, on every file system of a cluster too
            except FileExistsError:
                return None
        return data.decode(errors="replace")

    def replace(self, name: str, data: bytes, version: str) -> str | None:
        # Two that replace at once: one of them makes the guard.
        guard = f"{name}.guard"
        if self.create(guard, b"") is None:
            return None
        try:
            found = self.read_version(name)
            if found is None or found[1] != version:
                return None
            self.write(name, data)
            return data.decode(errors="replace")
        finally:
            self.delete_files([guard])


class ObjectBackend(Backend):
    """A bucket, or a folder in one."""

    def __init__(self, location: StoreLocation) -> None:
        self._retry_s = float(location.get_option("retry_s") or RETRY_S)
        self._location, self.has_answered = location, False
        with io_errors(f"open the store {location}", "; check its name, the network and your credentials"):
            self._store = _open_bucket(location, self._retry_s)

    def assume_reachable(self) -> None:
        self.has_answered = True

    def read(self, name: str) -> bytes:
        return self._ask_twice("read", name, lambda: bytes(self._obstore.get(self._store, name).bytes()))

    def write(self, name: str, data: bytes) -> None:
        self._retry("write", name, lambda: self._obstore.put(self._store, name, data))

    def measure(self, name: str) -> int | None:
        with contextlib.suppress(FileNotFoundError):
            return self._ask_twice("read", name, lambda: int(self._obstore.head(self._store, name)["size"]))
        return None

    def list_sizes(self, prefix: str) -> dict[str, int]:
        def ask() -> dict[str, int]:
            chunks = self._obstore.list(self._store, prefix or None, chunk_size=1000)
            return {entry["path"]: int(entry["size"]) for chunk in chunks for entry in chunk}

        return self._retry("list", prefix, ask)

    def delete_files(self, names: Iterable[str]) -> None:
        listed = list(names)

        if listed:
            with contextlib.suppress(FileNotFoundError):
                self._ask_twice("delete", listed[0], lambda: self._obstore.delete(self._store, listed))

    def delete_folder(self, prefix: str) -> None:
        self.delete_files(self.list_sizes(prefix))

    @contextlib.contextmanager
    def open_writer(self, name: str) -> Iterator[tuple[BinaryIO, ThreadPoolExecutor | None]]:
        # Through a file of this machine, so that an upload that fails can begin again.
        with tempfile.NamedTemporaryFile(prefix="eav-ray-upload-") as file:
            yield file, None  # pyright: ignore[reportReturnType]
            file.flush()
            self._retry("write", name, lambda: self._obstore.put(self._store, name, Path(file.name)))

    def read_version(self, name: str) -> tuple[bytes, str] | None:
        def ask() -> tuple[bytes, str]:
            found = self._obstore.get(self._store, name)
            return bytes(found.bytes()), str(found.meta["e_tag"])

        with contextlib.suppress(FileNotFoundError):
            return self._ask_twice("read", name, ask)
        return None

    def create(self, name: str, data: bytes) -> str | None:
        return self._put_if(name, data, "create")

    def replace(self, name: str, data: bytes, version: str) -> str | None:
        return self._put_if(name, data, {"e_tag": version})

    def _put_if(self, name: str, data: bytes, mode: Any) -> str | None:
        from obstore.exceptions import AlreadyExistsError, NotFoundError, PreconditionError

        refusals = (AlreadyExistsError, FileExistsError, PreconditionError, NotFoundError, FileNotFoundError)
        tries = 0

        def ask() -> str | None:
            nonlocal tries
            tries += 1
            try:
                return str(self._obstore.put(self._store, name, data, mode=mode)["e_tag"])
            except refusals:
                # The answer to an earlier try may have been lost, not the write: the content tells.
                found = self.read_version(name) if tries > 1 else None
                return found[1] if found and found[0] == data else None

        return self._retry("write", name, ask)

    @property
    def _obstore(self) -> Any:
        import obstore

        return obstore

    def _ask_twice(self, verb: str, name: str, ask: Callable[[], T]) -> T:
        """Ask for a name again that a server does not know, before it is believed."""
        try:
            return self._retry(verb, name, ask, may_be_missing=True)
        except FileNotFoundError:
            time.sleep(MISSING_PAUSE_S)
            return self._retry(verb, name, ask, may_be_missing=True)

    def _retry(self, verb: str, name: str, ask: Callable[[], T], *, may_be_missing: bool = False) -> T:
        from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

        began, pause_s = time.monotonic(), FIRST_PAUSE_S
        while True:
            try:
                answer = ask()
                self.has_answered = True
                return answer
            except (BaseError, OSError) as error:
                is_missing = isinstance(error, FileNotFoundError)
                if is_missing and may_be_missing:
                    self.has_answered = True
                    raise
                final = isinstance(error, PermissionDeniedError | UnauthenticatedError | PermissionError)
                # A bucket that does not exist will not come.
                limit_s = MISSING_BUCKET_S if is_missing else self._retry_s if self.has_answered else FIRST_CONTACT_S
                limit_s = min(limit_s, self._retry_s)
                if final or time.monotonic() - began + pause_s > limit_s:
                    what = self._location.join(name) if name else str(self._location)
                    raise StorageError(f"cannot {verb} {what}: {_describe(error)}", permanent=final) from None
            time.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def _describe(error: BaseException) -> str:
    """Say in one line what a server or the network said; obstore tells the request before, and its source after."""
    text = str(error).split("\n\nDebug source:")[0]
    return describe_error(ValueError(text.rpartition(" - ")[2]))


def _open_bucket(location: StoreLocation, retry_s: float) -> Any:
    from obstore.store import S3Store, from_url

    # What obstore repeats by itself is a part of an upload; whole requests are repeated here.
    retry: Any = {"max_retries": 5, "retry_timeout": timedelta(seconds=min(retry_s, 20.0))}
    client: Any = {"timeout": "60s", "connect_timeout": "5s"}
    if location.scheme != "s3":
        url = f"{location.scheme}://{location.path}"
        return from_url(url, client_options=client, retry_config=retry)
    bucket, folder = location.bucket_and_folder
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    endpoint = location.get_option("endpoint") or next((os.environ[n] for n in names if os.environ.get(n)), "")
    config: dict[str, Any] = {"virtual_hosted_style_request": not endpoint}
    if endpoint:
        config["endpoint"] = endpoint
        client["allow_http"] = endpoint.startswith("http://")
    if region := location.get_option("region"):
        config["region"] = region
    return S3Store(bucket, prefix=folder or None, client_options=client, retry_config=retry, **config)


def open_backend(location: StoreLocation) -> Backend:
    """Open the files of a store."""
    return ObjectBackend(location) if location.scheme else LocalBackend(location.path)
