"""EEG files of formats that MNE reads and nothing here writes: GDF and Neuroscan's .cnt, byte by byte."""

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

UNIT_CODES = {"V": 4256, "mV": 4274, "uV": 4275, "nV": 4276, "": 0, "no dimension": 512, "degC": 6048}


def write_gdf(
    path: Path,
    values_CT: np.ndarray,
    names: Sequence[str],
    *,
    hz: int = 100,
    version: str = "2.20",
    unit: str = "uV",
    events: Sequence[tuple[int, int, int, int]] = (),
    event_hz: float = 0.0,
    has_durations: bool = True,
    n_samples: Sequence[int] = (),
    record: tuple[int, int] = (1, 1),
) -> None:
    """Write a GDF file.

    Args:
        values_CT: In `unit`, whole records.
        events: (sample from 0, code, channel from 1 or 0 for all, duration in samples), at `event_hz`.
        has_durations: Whether the table of events has channels and durations.
        n_samples: What a record has of each channel, its first ones.
        record: How long one lasts, as a fraction of seconds.
    """
    count, second = len(names), float(version) >= 1.9
    low, high, most = -3276.7, 3276.7, 32767
    scale = {"V": 1e-6, "mV": 1e-3, "nV": 1e3}.get(unit, 1.0)
    head = f"GDF {version}".encode().ljust(8) + b" " * (66 if second else 80)
    if second:
        head = head.ljust(184, b"\0") + struct.pack("<H", 1 + count) + bytes(50)
    else:
        head = head.ljust(184, b" ") + struct.pack("<q", 256 * (1 + count)) + bytes(44)
    n_record = hz * record[0] // record[1]
    head += struct.pack("<qII", values_CT.shape[1] // n_record, *record)
    head += struct.pack("<HH", count, 0) if second else struct.pack("<I", count)
    assert len(head) == 256

    def column(kind: str, *values: float) -> bytes:
        return struct.pack(f"<{count}{kind}", *(values * count)[:count])

    head += b"".join(name.encode().ljust(16, b"\0") for name in names) + bytes(80 * count)
    head += bytes(6 * count) + column("H", UNIT_CODES[unit]) if second else unit.encode().ljust(8) * count
    head += column("d", low * scale) + column("d", high * scale)
    kind = "d" if second else "q"
    head += column(kind, -most) + column(kind, most) + bytes(80 * count)
    head += column("i", *(n_samples or [n_record])) + column("i", 3) + bytes(32 * count)
    digits_CT = np.round(values_CT / (scale * 0.1)).astype("<i2")
    counts = [*(n_samples or [n_record])] * count
    body = b"".join(
        row_T[k : k + n].tobytes()
        for k in range(0, digits_CT.shape[1], n_record)
        for row_T, n in zip(digits_CT, counts[:count], strict=True)
    )
    rate, mode = event_hz or hz, 3 if has_durations else 1
    if float(version) < 1.94:
        table = bytes([mode]) + int(rate).to_bytes(3, "little") + struct.pack("<I", len(events))
    else:
        table = bytes([mode]) + len(events).to_bytes(3, "little") + struct.pack("<f", rate)
    table += b"".join(struct.pack("<I", e[0] + 1) for e in events) + b"".join(struct.pack("<H", e[1]) for e in events)
    if has_durations:
        table += b"".join(struct.pack("<H", e[2]) for e in events) + b"".join(struct.pack("<I", e[3]) for e in events)
    path.write_bytes(head + body + (table if events or not second else b""))


def write_cnt(
    path: Path,
    values_CT: np.ndarray,
    names: Sequence[str],
    *,
    hz: int = 100,
    is_wide: bool = True,
    bads: Sequence[str] = (),
    rejected: Sequence[tuple[int, int]] = (),
) -> None:
    """Write a Neuroscan recording of 0.1 microvolts a step.

    Args:
        is_wide: Whether numbers have 32 bits, else 16.
        bads: Names of channels that the header calls bad.
        rejected: Spans of samples between marks of rejection and of acceptance.
    """
    count, n_times = values_CT.shape
    width = 4 if is_wide else 2
    data_at = 900 + 75 * count
    events_at = data_at + n_times * count * width
    head = bytearray(900)
    head[:12] = b"Version 3.0\0"
    head[225:247] = b"01/02/2410:00:00    \0\0"
    struct.pack_into("<H", head, 370, count)
    struct.pack_into("<H", head, 376, hz)
    struct.pack_into("<i", head, 864, n_times)
    struct.pack_into("<i", head, 886, events_at)
    channels = b""
    for name in names:
        entry = bytearray(75)
        entry[: len(name)] = name.encode()
        entry[14] = name in bads
        struct.pack_into("<h", entry, 47, 7)  # what is subtracted first
        struct.pack_into("<f", entry, 59, 20.48)
        struct.pack_into("<f", entry, 71, 1.0)
        channels += bytes(entry)
    digits_CT = np.round(values_CT / 0.1).astype(int) + 7
    body = digits_CT.T.astype("<i4" if is_wide else "<i2").tobytes()
    marks = [(sample, mark) for span in rejected for sample, mark in zip(span, (0xC0, 0xD0), strict=True)]
    events = b"".join(struct.pack("<HBBi", 0, 0, m, data_at + (s + 1) * count * width) for s, m in marks)
    path.write_bytes(bytes(head) + channels + body + struct.pack("<Bii", 1, len(events), 0) + events)
