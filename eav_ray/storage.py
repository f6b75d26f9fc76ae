"""Everything that is kept: a folder, `s3://` or `gs://` through pyarrow, and the rule by which a set of files counts.

A prefix exists only once its `COMMIT` is there and every file in it has the hash that `COMMIT` names. `COMMIT` is
written last, so a killed writer leaves nothing that a reader would take.
"""

import contextlib
import hashlib
import importlib.metadata
import io
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from eav_ray.errors import DataError

COMMIT = "COMMIT"
LOCK_RETRY_S = 1.0
COMMIT_FORMAT = 1  # of `COMMIT`
FLUSH_BYTES = 4 * 2**20  # bytes of a stream that are brought to the disk together
SCHEMES = ("s3://", "gs://", "file://")


def check_store_name(name: str) -> str:
    """A relative name that stays below its folder.

    Raises:
        DataError: Absolute, empty, with `..` or a backslash: such a name could read or write elsewhere.
    """
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise DataError(f"{name!r} is not a name inside a store; names are relative and without '..'")
    return str(path)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def hash_content(path: str) -> str:
    """What a local file, or the files of a local folder, hold: equal content, equal text. Another name is itself."""
    local_path = Path(path).expanduser()
    files = sorted(local_path.iterdir()) if local_path.is_dir() else [local_path] if local_path.is_file() else []
    hashes = [_hash_file(f, f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.is_file()]
    return sha256("".join(hashes).encode()) if hashes else path


@lru_cache(maxsize=64)
def _hash_file(path: Path, size: int, modified_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def list_package_versions() -> dict[str, str]:
    """Of this program and of what its results depend on."""
    names = ("eav-ray", "torch", "ray", "deepspeed", "timm", "transformers", "mne", "numpy", "pyarrow")
    return {name: importlib.metadata.version(name) for name in names}


def split_store_path(path: str) -> tuple["Store", str]:
    """A path to one thing, as users give it: the store that holds it, and its name there.

    Raises:
        DataError: There is nothing below a store in it, such as `/` or `s3://bucket`.
    """
    scheme, remote, rest = path.rpartition("://")
    if path and not remote:
        rest = os.path.abspath(os.path.expanduser(path))
    parent, _, name = rest.rstrip("/").rpartition("/")
    if not name or (remote and not parent):
        raise DataError(f"{path!r} names no folder; give a folder, or one below a bucket: s3://bucket/folder")
    return Store(f"{scheme}://{parent}" if remote else parent or "/"), name


@contextlib.contextmanager
def replace_file(path: str | Path) -> Iterator[Path]:
    """Write a file under a name of its own, which becomes `path` when the block ends, and goes when it raises.

    Several processes may do this at once: whoever ends last wins.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def io_errors(action: str, hint: str = "") -> Iterator[None]:
    """What a file system refuses, as one line. pyarrow's own errors, and OSError for all that a network can do."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise DataError(f"cannot {action}: {reason}{hint}") from None


def encode_documents(documents: Mapping[str, Any]) -> dict[str, bytes]:
    """Encode trees as JSON files, `<name>.json` each, for `Store.commit`."""
    return {f"{n}.json": json.dumps(tree, indent=1, sort_keys=True).encode() for n, tree in documents.items()}


def check_format(found: Any, expected: int | str, name: str, remedy: str) -> None:
    """Refuse a stored file whose format number is not the one that this version writes.

    Args:
        found: The number in the file, None where it has none.
        remedy: What to do about it.
    Raises:
        DataError: The numbers differ.
    """
    if found != expected:
        number = "no format number" if found is None else f"the format {found}"
        raise DataError(f"{name} has {number}, and this version reads format {expected}; {remedy}")


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
    """Named bytes below one root. Writing is atomic: a reader sees the old content or the new, never a part."""

    def __init__(self, root: str | Path) -> None:
        root_text = str(root)
        self.root = root_text.rstrip("/") or "/"
        if "://" in root_text:
            if not root_text.startswith(SCHEMES) or root_text in SCHEMES:
                raise DataError(
                    f"{root_text} is not a store; a store is a folder, s3://bucket/folder or gs://bucket/folder"
                )
            with io_errors(f"open the store {root_text}", "; check its name, the network and your credentials"):
                self._fs, base = pafs.FileSystem.from_uri(self.root)
        else:
            self._fs, base = pafs.LocalFileSystem(), str(Path(self.root).absolute())
        self._base = base.rstrip("/")  # empty for the root of the disk
        self.is_local = isinstance(self._fs, pafs.LocalFileSystem)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Store) and other.root == self.root

    def __hash__(self) -> int:
        return hash(self.root)

    def __str__(self) -> str:
        return self.root

    def __reduce__(self) -> tuple[type["Store"], tuple[str]]:
        """Travel by name: whoever opens it elsewhere does so with their own credentials."""
        return Store, (self.root,)

    def open_substore(self, name: str) -> "Store":
        return Store(self._format_path(check_store_name(name)))

    def resolve_path(self, name: str) -> str:
        """The path that the file system knows. On a local disk, links that lead out of the root are refused."""
        full = f"{self._base}/{check_store_name(name)}"
        if self.is_local and not Path(full).resolve().is_relative_to(Path(self._base or "/").resolve()):
            raise DataError(f"{self._format_path(name)} leads outside of {self.root}; nothing is read or written there")
        return full

    def _format_path(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{name}"

    def write(self, name: str, data: bytes) -> None:
        path = self.resolve_path(name)
        with io_errors(f"write {self._format_path(name)}", "; nothing was changed"):
            if not self.is_local:
                with self._fs.open_output_stream(path) as stream:  # an object appears when its upload is complete
                    stream.write(data)
                return
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            with replace_file(path) as partial, open(partial, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())

    @contextlib.contextmanager
    def open_writer(self, name: str) -> Iterator["HashingWriter"]:
        """Write one thing piece by piece; it appears under its name when the block ends.

        What was written is brought to the disk, or uploaded, while the caller makes the next piece. On an object store
        a block that ends by an exception may leave a part under the name: only name what a later record lists.
        """
        path = self.resolve_path(name)
        with io_errors(f"write {self._format_path(name)}", "; nothing was changed"):
            if not self.is_local:
                with self._fs.open_output_stream(path) as remote:
                    yield HashingWriter(remote)
                return
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            with replace_file(path) as partial, open(partial, "wb") as file, ThreadPoolExecutor(1) as flusher:
                yield HashingWriter(file, flusher)
                file.flush()
                os.fsync(file.fileno())

    def write_json(self, name: str, value: Any) -> None:
        self.write(name, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())

    def read(self, name: str) -> bytes:
        path = self.resolve_path(name)
        with io_errors(f"read {self._format_path(name)}"):
            try:
                with self._fs.open_input_stream(path) as stream:
                    return stream.read()
            except FileNotFoundError:
                raise DataError(f"{self._format_path(name)} does not exist") from None

    def read_json(self, name: str) -> Any:
        try:
            return json.loads(self.read(name))
        except ValueError:
            raise DataError(f"{self._format_path(name)} is not JSON; it was damaged or is not ours") from None

    def exists(self, name: str) -> bool:
        path = self.resolve_path(name)
        with io_errors(f"look for {self._format_path(name)}"):
            return self._fs.get_file_info(path).type != pafs.FileType.NotFound

    def list_files(self, prefix: str = "") -> list[str]:
        """All files below a prefix, sorted, relative to the root; partial files are not listed."""
        base = self.resolve_path(prefix) if prefix else self._base or "/"
        with io_errors(f"list {self._format_path(prefix) if prefix else self.root}"):
            infos = self._fs.get_file_info(pafs.FileSelector(base, recursive=True, allow_not_found=True))
        start = len(self._base) + 1
        return sorted(i.path[start:] for i in infos if i.is_file and not i.path.endswith(".partial"))

    def measure_files(self, prefix: str) -> dict[str, int]:
        """Bytes of each file below a prefix, by its name there, without reading any."""
        base = self.resolve_path(prefix)
        with io_errors(f"list {self._format_path(prefix)}"):
            infos = self._fs.get_file_info(pafs.FileSelector(base, recursive=True, allow_not_found=True))
        return {i.path[len(base) + 1 :]: i.size for i in infos if i.is_file}

    def list_folders(self, prefix: str = "") -> list[str]:
        """Names of the folders directly below a prefix, sorted."""
        depth = len(PurePosixPath(prefix).parts)
        parts = (PurePosixPath(name).parts for name in self.list_files(prefix))
        return sorted({p[depth] for p in parts if len(p) > depth + 1})

    def delete(self, prefix: str, *, last: str = "") -> None:
        """Delete all files below a prefix, each `COMMIT` first: a process killed midway leaves nothing that counts.

        An object store deletes in requests of a thousand names, in no order of ours.

        Args:
            last: A file directly below the prefix that goes after all others, by which a deletion that was cut off is
                found and finished.
        """
        with io_errors(f"delete {self._format_path(prefix)}"):
            if not self.exists(prefix):
                return
            names = self.list_files(prefix) if self.is_local else []
            first = [name for name in names if PurePosixPath(name).name == COMMIT]
            rest = [name for name in names if last and name not in first and name != f"{prefix}/{last}"]
            for name in first + rest:
                self._fs.delete_file(self.resolve_path(name))
            self._fs.delete_dir(self.resolve_path(prefix))

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
            stored = self.read(f"{prefix}/{name}")
            if name in files and stored != files[name]:
                raise DataError(f"{self._format_path(prefix)}/{name} reads back differently from what was written")
            hashes[name] = {"sha256": sha256(stored), "bytes": len(stored)}
        self.write_json(f"{prefix}/{COMMIT}", {"format": COMMIT_FORMAT, "files": hashes})

    def is_committed(self, prefix: str) -> bool:
        return self.exists(f"{prefix}/{COMMIT}")

    def read_commit(self, prefix: str) -> Commit:
        """Read what a committed prefix holds; its files are not looked at.

        Raises:
            DataError: No `COMMIT`, or a damaged one.
        """
        path = self._format_path(prefix)
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
            raise DataError(f"{self._format_path(prefix)}/{name} is damaged: its sha256 is not the one in {COMMIT}")
        return data

    def read_committed(self, prefix: str) -> dict[str, bytes]:
        """Read all files of a committed prefix, each with the hash that its `COMMIT` names.

        Raises:
            DataError: No COMMIT, a file is missing, or a hash differs.
        """
        commit = self.read_commit(prefix)
        return {name: self.read_committed_file(prefix, name, commit) for name in commit.files}

    @contextlib.contextmanager
    def lock(
        self, name: str, *, timeout_s: float = 0.0, on_wait: Callable[[], object] = lambda: None
    ) -> Iterator[None]:
        """Let one process write at a time, on a local file system; released when the process ends, however it ends.

        Args:
            timeout_s: How long to wait for whoever holds it.
            on_wait: Called once, when there is a wait.
        Raises:
            DataError: Another process holds it.
        """
        if not self.is_local:
            yield  # object stores have no locks: there, attempts have their own prefixes
            return
        import fcntl

        path = Path(self.resolve_path(name))
        with io_errors(f"write {self._format_path(name)}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = open(path, "a")  # noqa: SIM115
        with file:
            deadline, waits = time.monotonic() + timeout_s, False
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError:
                    if time.monotonic() >= deadline:
                        raise DataError(
                            f"{self.root} is being written by another process; wait for it, or give another "
                            "store.results"
                        ) from None
                if not waits:
                    on_wait()
                waits = True
                time.sleep(LOCK_RETRY_S)
            yield
