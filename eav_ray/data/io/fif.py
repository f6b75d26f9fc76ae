"""Read at which sample a FIF recording says that it begins, which MNE counts on where nothing was saved at first."""

import gzip
import struct
from pathlib import Path

FIRST_SAMPLE, DATA_BUFFER, DATA_SKIP = 208, 300, 301  # kinds of tags
MAX_TAGS = 100_000  # before the first samples


def read_first_sample(path: Path) -> int:
    """Read the number of the first sample; 0 where none is stated before the samples.

    Raises:
        OSError: The file cannot be read.
    """
    with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
        for _ in range(MAX_TAGS):
            head = file.read(16)
            if len(head) < 16:
                break
            kind, _, size, following = struct.unpack(">iIii", head)
            start = file.tell()
            if kind == FIRST_SAMPLE and size == 4:
                return struct.unpack(">i", file.read(4).ljust(4, b"\0"))[0]
            if kind in (DATA_BUFFER, DATA_SKIP) or following < 0 or 0 < following < start or size < 0:
                break
            file.seek(following or start + size)
    return 0
