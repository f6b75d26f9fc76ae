"""The right to write below a name, for one process at a time, on a store that can write conditionally.

A lease is a file with its holder, renewed while the holder lives. Who wants it watches: where it is renewed, the lease
is refused; where its content has not changed for `ttl_s`, it is taken over. Clocks are never compared. Each takeover
raises the fencing number.
"""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from eav_ray.errors import ConfigError, DataError, StorageError
from eav_ray.storage.backends import Backend

TTL_S = 30.0
POLL_S = 1.0
FORMAT = 1  # of the file of a lease


class Lease:
    """One lease.

    Args:
        path: What the file is called in an error.
        holder: Who asks: processes of one holder take the lease over from each other at once.
        ttl_s: Seconds without a renewal, after which it may be taken over; `TTL_S` where none are given.
    Attributes:
        fence: Its fencing number, once it is held: higher than that of every earlier holder.
    """

    def __init__(self, backend: Backend, name: str, path: str, *, holder: str = "", ttl_s: float = 0.0) -> None:
        self._backend, self._name, self._path, self._ttl_s = backend, name, path, ttl_s or TTL_S
        self._holder = holder or secrets.token_hex(8)
        self._process = describe_process()
        self._version, self._renewals = "", 0
        self._renewed_at = 0.0
        self._lost_to, self._guard = "", threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self.fence = 0

    def acquire(self, *, timeout_s: float = 0.0, on_wait: Callable[[], object] = lambda: None) -> None:
        """Take the lease, and renew it from then on.

        Args:
            timeout_s: How long to wait for a holder that renews it.
            on_wait: Called once, when there is a wait.
        Raises:
            DataError: Another process holds it, and renewed it.
            ConfigError: The server cannot write conditionally.
        """
        began, seen, seen_at, waits = time.monotonic(), "", 0.0, False
        while True:
            asked_at = time.monotonic()
            found = self._backend.read_version(self._name)
            now = time.monotonic()
            if now - asked_at > self._ttl_s / 3:
                seen_at = now  # the store was away: its holder could not renew it either
            if found is None:
                if self._try_create():
                    break
            else:
                record = parse_record(found[0])
                if found[1] != seen:
                    if seen and now - began > timeout_s:
                        raise DataError(f"{self._path} is held by {format_holder(record)}; wait for it, or end it")
                    seen, seen_at = found[1], now
                is_free = record.get("ended") or record.get("holder") == self._holder or now - seen_at > self._ttl_s
                if is_free and self._try_replace(found[1], int(record.get("fence", 0)) + 1):
                    break
                if is_free:
                    continue
            if not waits:
                on_wait()
            waits = True
            time.sleep(min(POLL_S, self._ttl_s / 10))
        self._thread = threading.Thread(target=self.renew_until_ended, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Check, before something is written, that the lease is still held.

        Raises:
            DataError: Another process has taken it over.
        """
        with self._guard:
            if not self._lost_to and time.monotonic() - self._renewed_at > self._ttl_s / 2:
                self._renew()  # this process stood still
            if self._lost_to:
                raise DataError(
                    f"{self._path} was taken over by {self._lost_to}, because this process did not renew it for "
                    f"{self._ttl_s:g} s; nothing more is written"
                )

    def write(self, name: str, data: bytes) -> None:
        """Write a file that each holder of this lease writes.

        What the file was is looked up before the check, and must still be so when it is written: what a later holder
        has written meanwhile stays, however long this process stood still.

        Raises:
            DataError: Another process has taken the lease over.
        """
        backend, version = self._backend, self._backend.find_version(name)
        self.check()
        new_version = backend.create(name, data) if version is None else backend.replace(name, data, version)
        if new_version is None:
            with self._guard:
                self._renew()
            self.check()
            raise DataError(f"{name} beside {self._path} was changed by another process; give the command again")

    def release(self) -> None:
        self._ended.set()
        if self._thread:
            self._thread.join()
        with self._guard, contextlib.suppress(DataError):
            # Where it could not be renewed, the store is away, and the lease ends by itself.
            if not self._lost_to and time.monotonic() - self._renewed_at < self._ttl_s:
                self._backend.replace(self._name, self._encode(ended=True), self._version)

    def _try_create(self) -> bool:
        self.fence, asked_at = 1, time.monotonic()
        version = self._backend.create(self._name, self._encode())
        if version is None:
            return False
        if not self._backend.refuses_second_creation(self._name):
            raise ConfigError(
                f"the server of {self._path} cannot write conditionally, so that two jobs could overwrite each other; "
                "set store.exclusive=false, and never run two jobs on it at once"
            )
        self._version, self._renewed_at = version, asked_at
        return True

    def _try_replace(self, version: str, fence: int) -> bool:
        self.fence, asked_at = fence, time.monotonic()
        new_version = self._backend.replace(self._name, self._encode(), version)
        if new_version is None:
            return False
        self._version, self._renewed_at = new_version, asked_at
        return True

    def renew_until_ended(self) -> None:
        while not self._ended.wait(self._ttl_s / 3):
            with self._guard:
                if self._lost_to:
                    return
                with contextlib.suppress(StorageError, OSError):  # it is away: the next renewal may reach it
                    self._renew()

    def _renew(self) -> None:
        self._renewals += 1
        # From when it was asked: this process may stand still before it reads the answer.
        asked_at = time.monotonic()
        version = self._backend.replace(self._name, self._encode(), self._version)
        if version is None:
            found = self._backend.read_version(self._name)
            record = parse_record(found[0]) if found else {}
            if found and (record.get("holder"), record.get("fence")) == (self._holder, self.fence):
                version = found[1]  # an earlier renewal, whose answer was lost
            else:
                self._lost_to = record.get("process", "another process") if found else "who deleted it"
                return
        self._version, self._renewed_at = version, asked_at

    def _encode(self, *, ended: bool = False) -> bytes:
        record = self._process | {"format": FORMAT, "holder": self._holder}
        record |= {"fence": self.fence, "renewals": self._renewals, "ended": ended}
        return json.dumps(record, sort_keys=True).encode()


def describe_process() -> dict[str, Any]:
    """Describe this process, for others that want what it holds."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"process": f"process {os.getpid()} on {socket.gethostname()}", "since": now}


def format_holder(record: dict[str, Any]) -> str:
    return f"{record.get('process', 'another process')} since {record.get('since', '?')}, which is alive"


def parse_record(data: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        record = json.loads(data)
        if isinstance(record, dict):
            return record
    return {}
