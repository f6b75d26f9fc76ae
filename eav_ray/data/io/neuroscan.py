"""Read which channels the header of a Neuroscan recording (.cnt) calls bad.

MNE looks for it in two places, of which one, that of an older header, is the fifth letter of a longer name.
"""

from collections.abc import Sequence
from pathlib import Path

FIXED_BYTES, CHANNEL_BYTES = 900, 75
OLD_FLAG, NEW_FLAG = 4, 14


def find_bad_channels(path: Path, names: Sequence[str]) -> list[str]:
    """Find the channels that are called bad.

    Args:
        names: Of all channels, in the order of the header.
    """
    with path.open("rb") as file:
        file.seek(FIXED_BYTES)
        body = file.read(CHANNEL_BYTES * len(names))
    entries = [body[CHANNEL_BYTES * i : CHANNEL_BYTES * (i + 1)] for i in range(len(names))]
    return [name for name, entry in zip(names, entries, strict=True) if _is_bad(entry)]


def _is_bad(entry: bytes) -> bool:
    is_name = b"\0" not in entry[:OLD_FLAG]  # which then goes on where the older header has its flag
    return bool(entry[NEW_FLAG]) or (bool(entry[OLD_FLAG]) and not is_name)
