"""Names, hashes and files: what the stores of this room have in common."""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from eav_ray.errors import DataError, StorageError

PARTIAL = ".partial"  # how the name of a file ends that is being made, or deleted


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
    hashes = [hash_file(f) for f in files if f.is_file()]
    return sha256("".join(hashes).encode()) if hashes else path


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, which is read once while neither its size nor its time changes.

    Raises:
        OSError: There is no such file.
    """
    status = path.stat()
    return _hash_file(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _hash_file(path: Path, size: int, modified_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(maxsize=1)  # every checkpoint holds them, and to look them up takes longer than to write a small one
def list_package_versions() -> dict[str, str]:
    """Of this program and of what its results depend on."""
    names = ("eav-ray", "torch", "ray", "deepspeed", "timm", "transformers", "mne", "numpy", "pyarrow")
    return {name: importlib.metadata.version(name) for name in names}


def make_partial_path(path: Path) -> Path:
    """Make a name of this process' own beside a path, for what is being made or deleted."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{PARTIAL}")


@contextlib.contextmanager
def replace_file(path: str | Path) -> Iterator[Path]:
    """Write a file under a name of its own, which becomes `path` when the block ends, and goes when it raises.

    Several processes may do this at once: whoever ends last wins.
    """
    path = Path(path)
    partial = make_partial_path(path)
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
        raise StorageError(f"cannot {action}: {reason}{hint}") from None


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
