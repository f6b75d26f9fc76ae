"""Training curves for TensorBoard: `tensorboard --logdir <results>/tensorboard`.

tensorboardX's own writer keeps a thread and a file open for each training, and its caller waits for ever once the disk
is full. Here a file is open for as long as something is written to it.
"""

import errno
import os
import socket
import struct
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from eav_ray.config.extras import is_installed
from eav_ray.tracking.progress import FirstWarning
from eav_ray.training.run_spec import Progress

FILE_VERSION = "brain.Event:2"  # the first thing that TensorBoard reads of a file


class TensorBoardTracker:
    """One event file for each training, below a local folder, which appears with the first."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._file_name = folder, f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"
        self._warning = FirstWarning()

    def log(self, progress: Progress) -> None:
        """Write what a training has reported; a disk that does not take it is one line on stderr."""
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

        event = Event(wall_time=progress.timestamp, step=progress.step)
        for name, value in progress.metrics.items():
            event.summary.value.add(tag=name, simple_value=value)
        folder = self._folder / progress.key
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / self._file_name
            start = Event(wall_time=progress.timestamp, file_version=FILE_VERSION)
            _append(path, [event] if path.exists() and path.stat().st_size else [start, event])
        except OSError as error:
            self._warning.write(
                f"TensorBoard's files in {self._folder} miss curves; trainings go on without it: {error.strerror}"
            )


def _append(path: Path, events: list[Any]) -> None:
    """Append records as TFRecord has them: a length and its checksum, the event and its own; all or nothing."""
    from tensorboardX.record_writer import masked_crc32c

    data = b""
    for content in (event.SerializeToString() for event in events):
        length = struct.pack("<Q", len(content))
        data += length + struct.pack("<I", masked_crc32c(length)) + content + struct.pack("<I", masked_crc32c(content))
    with open(path, "ab", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if file.write(data) != len(data):  # a full disk takes a part
            file.truncate(size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def open_tensorboard_tracker(folder: Path) -> TensorBoardTracker | None:
    """Open a tracker where the optional package is installed; a line on stderr where it is not."""
    if is_installed("tensorboardX"):
        return TensorBoardTracker(folder)
    tqdm.write(
        "no curves for TensorBoard, which need tensorboardX; type `pip install -c constraints.txt -e '.[tensorboard]'`",
        file=sys.stderr,
    )
    return None
