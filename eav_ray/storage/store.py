"""Named bytes below one root, and the rule by which a set of files counts.

A prefix exists only once its `COMMIT` is there and every file in it has the hash that `COMMIT` names. `COMMIT` is
written last, so a killed writer leaves nothing that a reader would take.
"""

import contextlib
import hashlib
import io
import json
import os
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from eav_ray.errors import DataError
from eav_ray.storage.backends import Backend, LocalBackend, StoredFile
from eav_ray.storage.file_lock import FileLock
from eav_ray.storage.files import check_format, check_store_name, io_errors, sha256
from eav_ray.storage.lease import Lease
from eav_ray.storage.location import StoreLocation, parse_location
from eav_ray.storage.object_backend import ObjectBackend
from eav_ray.storage.probe import probe_backend

COMMIT = "COMMIT"
LOCK = "lock"  # of a folder that one process writes at a time
LARGEST_CONDITIONAL_BYTES = 64 * 2**20  # of a write under a lease
COMMIT_FORMAT = 1  # of `COMMIT`
FLUSH_BYTES = 4 * 2**20  # bytes of a stream that are brought to the disk together


def split_store_path(path: str) -> tuple["Store", str]:
    """A path to one thing, as users give it: the store that holds it, and its name there.

    Raises:
        DataError: There is nothing below a store in it, such as `/` or `s3://bucket`.
    """
    url, question, query = path.partition("?")
    scheme, remote, rest = url.rpartition("://")
    if path and not remote:
        rest = os.path.abspath(os.path.expanduser(path))
    parent, _, name = rest.rstrip("/").rpartition("/")
    if not name or (remote and not parent):
        raise DataError(f"{path!r} names no folder; give a folder, or one below a bucket: s3://bucket/folder")
    return Store(f"{scheme}://{parent}{question}{query}" if remote else parent or "/"), name


def _open_backend(location: StoreLocation) -> Backend:
    return ObjectBackend(location) if location.scheme else LocalBackend(location.path)


@dataclass(frozen=True)
class CommittedFile:
    """What `COMMIT` says of one file."""

    sha256: str
    size: int  # bytes


@dataclass(frozen=True)
class Commit:
    """What `COMMIT` says of a committed prefix."""

    sha256: str  # of `COMMIT` itself
    files: dict[str, CommittedFile]  # by name below the prefix


class HashingWriter(io.RawIOBase):
    """Where `Store.stream` writes to, with the hash of what has gone through."""

    def __init__(self, file: Any, flusher: ThreadPoolExecutor | None = None) -> None:
        self._file, self._flusher = file, flusher
        self._hash = hashlib.sha256()
        self._unflushed_bytes, self._pending_flush = 0, None if flusher is None else flusher.submit(int)

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._file.write(data)
        self._hash.update(data)
        size = memoryview(data).nbytes
        self._unflushed_bytes += size
        if (
            self._flusher is not None
            and self._pending_flush is not None
            and self._unflushed_bytes >= FLUSH_BYTES
            and self._pending_flush.done()
        ):
            self._pending_flush.result()  # a full disk may show only now
            self._file.flush()
            self._pending_flush, self._unflushed_bytes = self._flusher.submit(os.fsync, self._file.fileno()), 0
        return size


class Store:
    """Named bytes below one root. Writing is atomic: a reader sees the old content or the new, never a part.

    Args:
        root: A folder, or a URL of an object store (`storage.location`).
    """

    def __init__(self, root: str | Path) -> None:
        self._location = parse_location(str(root))
        self.root = str(self._location)
        self._backend = _open_backend(self._location)
        self.is_local = isinstance(self._backend, LocalBackend)
        self._lease: Lease | None = None
        self.fence = 0  # where it was given by `lock`: higher than that of every earlier holder

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Store) and other.root == self.root

    def __hash__(self) -> int:
        return hash(self.root)

    def __str__(self) -> str:
        return self.root

    def __reduce__(self) -> tuple[type["Store"], tuple[str]]:
        """Travel by name: whoever opens it elsewhere does so with their own credentials."""
        return Store, (self.root,)

    def assume_reachable(self) -> "Store":
        """Be patient from the first request on: another process of this job has reached the store."""
        self._backend.assume_reachable()
        return self

    def probe(self) -> None:
        """Try whether the store does all that is asked of it, before anything starts (`storage.probe`).

        A folder is made where it is missing; one that is only read may be kept from writing.
        """
        if self.is_local and Path(self.root).is_file():
            raise DataError(f"{self.root} is a file, and a store is a folder; give another path")
        with self._explain("use", ""):
            if self.is_local:
                Path(self.root).mkdir(parents=True, exist_ok=True)
            else:
                probe_backend(self._backend, self.root, is_exclusive=not self._is_shared_without_conditions)

    def require_writable(self) -> None:
        """Write a small file and delete it, so that a folder that is only read is said before work begins.

        Raises:
            DataError: It cannot be written.
        """
        if self.is_local:
            name = f"probe-{secrets.token_hex(8)}"
            self.write(name, b"")
            self.delete(name)

    def open_substore(self, name: str) -> "Store":
        return Store(self.format_path(check_store_name(name)))

    def resolve_path(self, name: str) -> str:
        """Return the path of a local file. Links that lead out of the root are refused."""
        assert isinstance(self._backend, LocalBackend)
        return str(self._backend.resolve(check_store_name(name)))

    def format_path(self, name: str) -> str:
        """Name something in the store, as commands take it."""
        return self._location.join(name)

    def write(self, name: str, data: bytes) -> None:
        """Write one thing.

        Raises:
            DataError: The store was given by `lock`, and another process has taken the lock over.
        """
        with self._explain("write", name, "; nothing was changed"):
            # A conditional write is one request; what is large goes in parts, and lies under an attempt of its own.
            if self._lease is None or len(data) > LARGEST_CONDITIONAL_BYTES:
                self.check_lock()
                self._backend.write(check_store_name(name), data)
            else:
                self._lease.write(check_store_name(name), data)

    def write_if_missing(self, name: str, data: bytes) -> bool:
        """Write one thing unless there is one of this name; tell whether it was written."""
        with self._explain("write", name, "; nothing was changed"):
            self.check_lock()
            if self._is_shared_without_conditions or len(data) > LARGEST_CONDITIONAL_BYTES:
                if self.exists(name):
                    return False
                self._backend.write(check_store_name(name), data)
                return True
            return self._backend.create(check_store_name(name), data) is not None

    def check_lock(self) -> None:
        """Check, before something is written, that the lock that gave this store is still held.

        Raises:
            DataError: Another process has taken it over.
        """
        if self._lease is not None:
            self._lease.check()

    @property
    def _is_shared_without_conditions(self) -> bool:
        return not self.is_local and self._location.get_option("exclusive") == "false"

    @contextlib.contextmanager
    def open_writer(self, name: str) -> Iterator["HashingWriter"]:
        """Write one thing piece by piece; it appears under its name when the block ends without an error.

        On a disk, what was written is brought there while the caller makes the next piece.
        """
        writer = self._backend.open_writer(check_store_name(name))
        with self._explain("write", name, "; nothing was changed"), writer as (file, flusher):
            yield HashingWriter(file, flusher)

    def write_json(self, name: str, value: Any) -> None:
        self.write(name, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())

    def read(self, name: str) -> bytes:
        with self._explain("read", name):
            try:
                return self._backend.read(check_store_name(name))
            except FileNotFoundError:
                raise DataError(f"{self.format_path(name)} does not exist") from None

    def read_json(self, name: str) -> Any:
        try:
            return json.loads(self.read(name))
        except ValueError as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{self.format_path(name)} is not JSON; it was damaged or is not ours") from None

    def exists(self, name: str) -> bool:
        """Tell whether there is a file or a folder of this name."""
        with self._explain("look for", name):
            checked = check_store_name(name)
            if self.is_local:
                return Path(self.resolve_path(name)).exists()
            return self._backend.measure(checked) is not None or bool(self._backend.list_files(checked))

    def list_files(self, prefix: str = "") -> list[str]:
        """All files below a prefix, sorted, relative to the root; partial files are not listed."""
        return sorted(self._list(prefix))

    def measure_files(self, prefix: str) -> dict[str, int]:
        """Bytes of each file below a prefix, by its name there, without reading any."""
        return {name.removeprefix(f"{prefix}/"): file.size for name, file in self._list(prefix).items()}

    def list_times(self, prefix: str) -> dict[str, float]:
        """When each file below a prefix was written to this store, seconds since 1970, by its name there."""
        return {name.removeprefix(f"{prefix}/"): file.written for name, file in self._list(prefix).items()}

    def list_folders(self, prefix: str = "") -> list[str]:
        """Names of the folders directly below a prefix, sorted."""
        depth = len(PurePosixPath(prefix).parts)
        parts = (PurePosixPath(name).parts for name in self.list_files(prefix))
        return sorted({p[depth] for p in parts if len(p) > depth + 1})

    def _list(self, prefix: str) -> dict[str, StoredFile]:
        with self._explain("list", prefix):
            return self._backend.list_files(check_store_name(prefix) if prefix else "")

    def _explain(self, verb: str, name: str, hint: str = "") -> contextlib.AbstractContextManager[None]:
        return io_errors(f"{verb} {self.format_path(name)}", hint)

    def delete(self, prefix: str, *, last: str = "") -> None:
        """Delete all files below a prefix, each `COMMIT` first: a process killed midway leaves nothing that counts.

        Args:
            last: A file directly below the prefix that goes after all others, by which a deletion that was cut off is
                found and finished.
        """
        checked = check_store_name(prefix)
        self.check_lock()
        with self._explain("delete", prefix):
            names = self.list_files(prefix) or ([] if self.is_local else [checked])  # of a folder, or a file itself
            first = [name for name in names if PurePosixPath(name).name == COMMIT]
            ends = [f"{prefix}/{LOCK}", f"{prefix}/{last}"]
            self._backend.delete_files(first)
            self._backend.delete_files([name for name in names if name not in (*first, *ends)])
            for name in ends:
                self._backend.delete_files([name] if name in names else [])
            # What came later is left alone in a bucket; of a folder, only its holder writes there.
            self._backend.delete_folder(checked)

    def commit(self, prefix: str, files: dict[str, bytes], *, already_written: tuple[str, ...] = ()) -> None:
        """Write files below a prefix, read them back, and only then the `COMMIT` that makes them count.

        Args:
            files: Content by name.
            already_written: Names that other processes already wrote below the prefix, to be committed with the rest.
        """
        for name, data in files.items():
            self.write(f"{prefix}/{name}", data)
        hashes: dict[str, dict[str, Any]] = {}
        for name in (*files, *already_written):
            try:
                stored = self.read(f"{prefix}/{name}")
            except DataError:
                self.check_lock()  # a later holder may have deleted it
                raise
            if name in files and stored != files[name]:
                raise DataError(f"{self.format_path(prefix)}/{name} reads back differently from what was written")
            hashes[name] = {"sha256": sha256(stored), "bytes": len(stored)}
        self.write_json(f"{prefix}/{COMMIT}", {"format": COMMIT_FORMAT, "files": hashes})

    def is_committed(self, prefix: str) -> bool:
        return self.exists(f"{prefix}/{COMMIT}")

    def read_commit(self, prefix: str) -> Commit:
        """Read what a committed prefix holds; its files are not looked at.

        Raises:
            DataError: No `COMMIT`, or a damaged one.
        """
        path = self.format_path(prefix)
        if not self.is_committed(prefix):
            raise DataError(f"{path} has no {COMMIT}: it was never finished, so it does not count")
        data = self.read(f"{prefix}/{COMMIT}")
        try:
            tree = json.loads(data)
            found, entries = tree.get("format"), tree["files"]
            files = {check_store_name(n): CommittedFile(str(f["sha256"]), int(f["bytes"])) for n, f in entries.items()}
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path}/{COMMIT} does not list files; it was damaged") from None
        check_format(found, COMMIT_FORMAT, f"{path}/{COMMIT}", "make it again, or use the version that wrote it")
        return Commit(sha256(data), files)

    def read_committed_file(self, prefix: str, name: str, commit: Commit) -> bytes:
        """Read one file of a committed prefix, with the hash that `COMMIT` names.

        Raises:
            DataError: It is missing, or its hash differs.
        """
        data = self.read(f"{prefix}/{name}")
        if sha256(data) != commit.files[name].sha256:
            raise DataError(f"{self.format_path(prefix)}/{name} is damaged: its sha256 is not the one in {COMMIT}")
        return data

    def read_committed(self, prefix: str) -> dict[str, bytes]:
        """Read all files of a committed prefix, each with the hash that its `COMMIT` names.

        Raises:
            DataError: No COMMIT, a file is missing, or a hash differs.
        """
        commit = self.read_commit(prefix)
        return {name: self.read_committed_file(prefix, name, commit) for name in commit.files}

    @contextlib.contextmanager
    def lock_unfinished(self, prefix: str) -> Iterator["Store"]:
        """As `lock`, for what one process makes below a prefix; what is committed is read, and needs no right to write.

        Raises:
            DataError: Another process is making it.
        """
        if self.is_committed(prefix):
            yield self
        else:
            with self.lock(f"{prefix}/{LOCK}") as guarded:
                yield guarded

    @contextlib.contextmanager
    def lock(
        self,
        name: str,
        *,
        timeout_s: float = 0.0,
        on_wait: Callable[[], object] = lambda: None,
        holder: str = "",
    ) -> Iterator["Store"]:
        """Let one process write at a time: on a disk by a lock that ends with the process, else by a lease.

        Args:
            timeout_s: How long to wait for whoever holds it.
            on_wait: Called once, when there is a wait.
            holder: Who asks: processes of one holder take a lease over from each other at once.
        Returns:
            This store, for what others write too: after a takeover it writes nothing more.
        Raises:
            DataError: Another process holds it.
        """
        checked, path = check_store_name(name), self.format_path(name)
        if self._is_shared_without_conditions:
            yield self
            return
        guarded = Store(self.root)
        guarded._backend = self._backend
        with contextlib.ExitStack() as stack:
            if self.is_local:
                lock = FileLock(self.resolve_path(name), path)
                with self._explain("write", name):
                    has_lock = lock.acquire(timeout_s=timeout_s, on_wait=on_wait)
                if has_lock:
                    stack.callback(lock.release)
                    guarded.fence = lock.fence
                    yield guarded
                    return
            lease = Lease(self._backend, f"{checked}.lease" if self.is_local else checked, path, holder=holder)
            with self._explain("write", name):
                lease.acquire(timeout_s=timeout_s, on_wait=on_wait)
            stack.callback(lease.release)
            guarded._lease, guarded.fence = lease, lease.fence
            yield guarded
