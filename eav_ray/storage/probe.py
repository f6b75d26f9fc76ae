"""Try all that is asked of an object store before anything starts, so that what a server cannot do is said at once."""

import contextlib
import secrets
from collections.abc import Callable, Iterator

from eav_ray.errors import ConfigError, StorageError
from eav_ray.storage.backends import Backend

CONTENT = bytes(range(256)) * 4
WITHOUT_CONDITIONS = "set store.exclusive=false, and never run two jobs on it at once"


def probe_backend(backend: Backend, path: str, *, is_exclusive: bool) -> None:
    """Write, read, list, replace and delete a small file.

    Args:
        path: What the store is called in an error.
        is_exclusive: Its leases want conditional writes.
    Raises:
        ConfigError: What the server does not do, and the way out.
        StorageError: It does not answer, or refuses the rights.
    """
    name = f"probe-{secrets.token_hex(8)}"

    def require(holds: bool, fault: str, remedy: str) -> None:
        if not holds:
            raise ConfigError(f"the server of {path} {fault}; {remedy}")

    with _explain(path):
        backend.write(name, CONTENT)
    try:
        require(backend.read(name) == CONTENT, "reads back differently from what was written", "use another server")
        listed = backend.list_files("").get(name)
        is_listed = listed is not None and listed.size == len(CONTENT)
        require(is_listed, "does not list what was written", "use another server")
        if is_exclusive:
            _probe_conditions(backend, name, require)
    finally:
        with contextlib.suppress(StorageError):
            backend.delete_files([name])
    require(backend.find_version(name) is None, "does not delete: files of a training stay", "give the right to delete")


def _probe_conditions(backend: Backend, name: str, require: Callable[[bool, str, str], None]) -> None:
    try:
        is_kept = backend.create(name, b"again") is None
        version = backend.find_version(name)
        is_replaced = bool(version and backend.replace(name, b"replaced", version))
        is_kept &= backend.replace(name, b"late", str(version)) is None
    except StorageError as error:
        raise ConfigError(f"{error}: it cannot write conditionally; {WITHOUT_CONDITIONS}") from None
    require(is_kept and is_replaced, "cannot write conditionally", WITHOUT_CONDITIONS)


@contextlib.contextmanager
def _explain(path: str) -> Iterator[None]:
    """Say which option may help a server that refuses the way in which a file is sent."""
    try:
        yield
    except StorageError as error:
        text = str(error)
        if any(word in text for word in ("411", "MissingContentLength", "hecksum", "501", "NotImplemented")):
            raise ConfigError(
                f"{text}; it may want files to be sent otherwise: try checksum=sha256 or checksum=none in the URL"
            ) from None
        raise
