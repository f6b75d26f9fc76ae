"""A lock on a disk of this machine, or of a network file system that has locks; it ends with the process."""

import errno
import fcntl
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from eav_ray.errors import DataError
from eav_ray.storage.lease import describe_process, format_holder, parse_record

RETRY_S = 1.0
# What a file system says that has no locks: some network file systems, and those in user space.
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)

HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)  # what it says of a lock that another process has


class FileLock:
    """`flock` on a file that says who holds it, and how often it was taken.

    Args:
        path: What the file is called in an error.
    Attributes:
        fence: Once it is held: higher than that of every earlier holder.
    """

    def __init__(self, file: str, path: str) -> None:
        self._file, self._path = Path(file), path
        self._descriptor, self.fence = -1, 0

    def acquire(self, *, timeout_s: float, on_wait: Callable[[], object]) -> bool:
        """Take the lock; False where the disk has none.

        Raises:
            DataError: Another process holds it.
            OSError: The disk does not answer.
        """
        self._open()
        try:
            if not self._wait(timeout_s, on_wait):
                self.release()
                return False
            record = parse_record(os.pread(self._descriptor, 4096, 0))
            self.fence = int(record.get("fence", 0)) + 1
            text = json.dumps(describe_process() | {"fence": self.fence}).encode()
            os.pwrite(self._descriptor, text, 0)
            os.ftruncate(self._descriptor, len(text))
            return True
        except BaseException:
            self.release()
            raise

    def _open(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o666)

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(self._file))
        except FileNotFoundError:
            return False

    def _wait(self, timeout_s: float, on_wait: Callable[[], object]) -> bool:
        deadline, has_waited = time.monotonic() + timeout_s, False
        while True:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_in_place():
                    return True
                self.release()  # its holder has deleted it, and another may have made it anew
                self._open()
                continue
            except OSError as error:
                if error.errno in WITHOUT_LOCKS:
                    return False
                if error.errno not in HELD:
                    raise
            if time.monotonic() >= deadline:
                record = parse_record(os.pread(self._descriptor, 4096, 0))
                raise DataError(f"{self._path} is held by {format_holder(record)}; wait for it, or end it")
            if not has_waited:
                on_wait()
            has_waited = True
            time.sleep(RETRY_S)

    def release(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1
