"""Object stores, by obstore: `s3://`, and untested `gs://` and `az://`.

A request that fails is repeated until `retry_s` is over; what a server says for good (no rights, no such name) is not
repeated, except that a missing name is asked for twice.
"""

import contextlib
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, TypeVar

from eav_ray.errors import ConfigError, StorageError, describe_error
from eav_ray.storage.backends import SMALL_BYTES, Backend, StoredFile
from eav_ray.storage.credentials import find_credentials
from eav_ray.storage.files import io_errors
from eav_ray.storage.location import StoreLocation

T = TypeVar("T")

RETRY_S = 300.0
FIRST_CONTACT_S = 20.0  # for which a store is asked that has never answered: its name may be wrong
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 10.0
MISSING_PAUSE_S = 0.2  # before a name that is missing is asked for again
_JITTER = random.Random()  # of its own: whoever seeds the module's generator must not get other numbers from it
MISSING_BUCKET_S = 5.0  # for which a request is repeated to which the server says that the bucket is missing


class ObjectBackend(Backend):
    """A bucket, or a folder in one."""

    _conditional_servers: ClassVar[set[tuple[str, str]]] = set()  # address and bucket of those that were asked

    def __init__(self, location: StoreLocation) -> None:
        self._retry_s = float(location.get_option("retry_s") or RETRY_S)
        self._location, self.has_answered = location, False
        with io_errors(f"open the store {location}", "; check its name, the network and your credentials"):
            self._store = _open_bucket(location, self._retry_s, {"read_timeout": "60s"})

    @cached_property
    def _quick_store(self) -> Any:
        """For small files: a request for a lease that hangs must not cost the lease. Few stores need it."""
        return _open_bucket(self._location, self._retry_s, {"timeout": "8s"})

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

    def list_files(self, prefix: str) -> dict[str, StoredFile]:
        def ask() -> dict[str, StoredFile]:
            entries = (e for chunk in self._obstore.list(self._store, prefix or None, chunk_size=1000) for e in chunk)
            return {e["path"]: StoredFile(int(e["size"]), e["last_modified"].timestamp()) for e in entries}

        return self._retry("list", prefix, ask)

    def delete_files(self, names: Iterable[str]) -> None:
        listed = list(names)

        if listed:
            with contextlib.suppress(FileNotFoundError):
                self._ask_twice("delete", listed[0], lambda: self._obstore.delete(self._store, listed))

    def delete_folder(self, prefix: str) -> None:
        """A bucket has no folders."""

    @contextlib.contextmanager
    def open_writer(self, name: str) -> Iterator[tuple[BinaryIO, ThreadPoolExecutor | None]]:
        # Through a file of this machine, so that an upload that fails can begin again.
        with tempfile.NamedTemporaryFile(prefix="eav-ray-upload-") as file:
            yield file, None  # pyright: ignore[reportReturnType]
            file.flush()
            self._retry("write", name, lambda: self._obstore.put(self._store, name, Path(file.name)))

    def read_version(self, name: str) -> tuple[bytes, str] | None:
        def ask() -> tuple[bytes, str]:
            found = self._obstore.get(self._quick_store, name)
            return bytes(found.bytes()), self._get_version(found.meta)

        with contextlib.suppress(FileNotFoundError):
            return self._ask_twice("read", name, ask)
        return None

    def find_version(self, name: str) -> str | None:
        with contextlib.suppress(FileNotFoundError):
            return self._ask_twice("read", name, lambda: self._get_version(self._obstore.head(self._quick_store, name)))
        return None

    def create(self, name: str, data: bytes) -> str | None:
        return self._put_if(name, data, None)

    def replace(self, name: str, data: bytes, version: str) -> str | None:
        return self._put_if(name, data, version)

    def refuses_second_creation(self, name: str) -> bool:
        server = (self._location.get_option("endpoint"), self._location.bucket_and_folder[0])
        if server not in ObjectBackend._conditional_servers:
            if not super().refuses_second_creation(name):
                return False
            ObjectBackend._conditional_servers.add(server)
        return True

    def _put_if(self, name: str, data: bytes, version: str | None) -> str | None:
        """Write a file that must still be of a version, or must not be there (None)."""
        from obstore.exceptions import AlreadyExistsError, NotFoundError, PreconditionError

        refusals = (AlreadyExistsError, FileExistsError, PreconditionError, NotFoundError, FileNotFoundError)
        mode: Any = "create" if version is None else {"version" if self._has_generations else "e_tag": version}
        store = self._quick_store if len(data) <= SMALL_BYTES else self._store

        def ask() -> str | None:
            try:
                return self._get_version(self._obstore.put(store, name, data, mode=mode))
            except refusals:
                # What is there tells: the write may have been done and its answer lost, or refused for no reason.
                found = self.read_version(name)
                if found and found[0] == data:
                    return found[1]
                if (found and found[1]) == version:
                    raise
                return None

        return self._retry("write", name, ask)

    @property
    def _has_generations(self) -> bool:
        return self._location.scheme == "gs"

    def _get_version(self, meta: Any) -> str:
        return str(meta["version" if self._has_generations else "e_tag"])

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
            time.sleep(pause_s * _JITTER.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


# How a file says that it arrived whole; servers differ in what they understand.
CHECKSUMS: dict[str, dict[str, Any]] = {
    "": {},
    "sha256": {"checksum_algorithm": "sha256"},
    "none": {"unsigned_payload": True},
}
CREDENTIALS = (
    "access_key_id",
    "web_identity_token_file",
    "container_credentials_relative_uri",
    "container_credentials_full_uri",
)


def _describe(error: BaseException) -> str:
    """Say in one line what a server or the network said; obstore tells the request before, and its source after."""
    text = str(error).split("\n\nDebug source:")[0]
    return describe_error(ValueError(text.rpartition(" - ")[2]))


def _open_bucket(location: StoreLocation, retry_s: float, timeouts: dict[str, str]) -> Any:
    from obstore.store import S3Store, from_url

    # What obstore repeats by itself is a part of an upload; whole requests are repeated here.
    backoff = {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=2), "base": 2}
    retry: Any = {"max_retries": 5, "retry_timeout": timedelta(seconds=min(retry_s, 20.0)), "backoff": backoff}
    client: Any = {"connect_timeout": "5s"} | timeouts
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
    config |= CHECKSUMS[location.get_option("checksum")] | find_credentials()
    # Only machines of Amazon's are given rights by an address of theirs, which elsewhere costs many seconds to miss.
    if endpoint and not any(key in config or f"AWS_{key.upper()}" in os.environ for key in CREDENTIALS):
        raise ConfigError(
            f"there are no credentials for {location}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
            "AWS_SHARED_CREDENTIALS_FILE, on every machine"
        )
    return S3Store(bucket, prefix=folder or None, client_options=client, retry_config=retry, **config)
