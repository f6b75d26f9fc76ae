"""Read what the header and the event table of a GDF file state, of which MNE hands on less.

MNE takes units that it does not know for volts, brings channels of different rates to one, and reads events as if they
were counted at the rate of the signals. The format: Schloegl, GDF 2.51 (arXiv cs/0608052); codes of events: BioSig.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from eav_ray.data.io.eeg_marks import Annotation
from eav_ray.errors import DataError

FIXED_BYTES, CHANNEL_BYTES = 256, 256
MAX_CHANNELS, MAX_EVENTS = 4096, 2**24
VOLT, NO_UNIT = 4256, (0, 512)  # codes of version 2: the unit without its last five bits; none stated, no dimension
OTHER_UNIT = "code"  # of what is no voltage
PREFIXES = {0: "", 18: "m", 19: "u", 20: "n", 21: "p"}  # the last five bits of a code
SAMPLE_BYTES = {1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 6: 4, 7: 8, 8: 8, 16: 4, 17: 8}  # by the code of a type of numbers
REJECTED_TRIAL, NEW_SEGMENT = 0x03FF, 0x7FFE
ARTEFACTS = range(0x0101, 0x0110)  # blinks, muscles, a failing electrode, ...


@dataclass(frozen=True)
class Event:
    onset_s: float
    duration_s: float  # 0 where none is stated
    code: int
    channel: int  # from 1; 0 for all


@dataclass(frozen=True)
class GDFHeader:
    """One entry a channel in each tuple.

    Attributes:
        units: As text, such as uV; empty where none is stated.
        scales: By which MNE multiplies the numbers of each channel.
        n_samples: Of a record.
    """

    path: Path
    labels: tuple[str, ...]
    units: tuple[str, ...]
    scales: tuple[float, ...]
    physical: tuple[tuple[float, float], ...]
    digital: tuple[tuple[float, float], ...]
    n_samples: tuple[int, ...]
    record_s: float
    events: tuple[Event, ...]

    def check_channels(self, channels: Sequence[int]) -> None:
        """Check what the header states of some channels; raises DataError where no amplitude or no one rate follows."""
        for i in channels:
            (low, high), (first, last) = self.physical[i], self.digital[i]
            if not np.isfinite([low, high, first, last]).all() or low == high or first == last:
                raise DataError(
                    f"{self.path}: the header gives channel {self.labels[i]} the range {low:g} to {high:g} for the "
                    f"numbers {first:g} to {last:g}, from which no amplitude follows; mend the header, or choose "
                    "channels without it by preprocessing.eeg.channels"
                )
        # MNE brings all channels of a file to the highest rate.
        counts = sorted({n for n in self.n_samples if n})
        if len(counts) > 1:
            rates = ", ".join(f"{n / self.record_s:g}" for n in counts)
            raise DataError(
                f"{self.path}: its channels are sampled at {rates} Hz, which a GDF file is not read with; export those "
                "of one rate, for example as EDF"
            )

    def list_annotations(self, names: Sequence[str]) -> tuple[list[Annotation], list[str]]:
        """List what events mark, and what of it is not used, a line each."""
        found: list[Annotation] = []
        remarks: list[str] = []
        for event in self.events:
            if event.code == NEW_SEGMENT:
                found.append(Annotation(event.onset_s, 0.0, "edge"))
            elif event.code == REJECTED_TRIAL and event.duration_s > 0:
                channels = (names[event.channel - 1],) if 1 <= event.channel <= len(names) else ()
                found.append(Annotation(event.onset_s, event.duration_s, "bad", channels))
            elif event.code == REJECTED_TRIAL:
                remarks.append("trials are marked as rejected without saying how long they are: they are kept")
            elif event.code in ARTEFACTS:
                remarks.append("spans that the file calls artefacts (codes 0x0101 to 0x010F) are kept")
        return found, list(dict.fromkeys(remarks))


def read_gdf_header(path: Path) -> GDFHeader:
    """Read the header and the events of a GDF file of version 1 or 2.

    Raises:
        DataError: It breaks off, or states no duration of its records.
        ValueError: It is no such header.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        fixed = file.read(FIXED_BYTES)
        if len(fixed) < FIXED_BYTES or fixed[:3] != b"GDF":
            raise ValueError("it does not begin as a GDF file does")
        version = float(fixed[4:8])
        is_second = version >= 1.9
        header_bytes = (
            struct.unpack("<H", fixed[184:186])[0] * 256 if is_second else struct.unpack("<q", fixed[184:192])[0]
        )
        (n_records,) = struct.unpack("<q", fixed[236:244])
        numerator, denominator = struct.unpack("<II", fixed[244:252])
        (count,) = struct.unpack("<H", fixed[252:254]) if is_second else struct.unpack("<I", fixed[252:256])
        if not 0 < count <= MAX_CHANNELS or header_bytes < FIXED_BYTES + count * CHANNEL_BYTES:
            raise ValueError(f"{count} channels, a header of {header_bytes} bytes")
        body = file.read(count * CHANNEL_BYTES)
        if len(body) < count * CHANNEL_BYTES:
            raise ValueError("it ends within its header")
        n_samples = np.frombuffer(body, "<i4", count, 216 * count)
        kinds = np.frombuffer(body, "<i4", count, 220 * count).tolist()
        if unknown := [kind for kind in kinds if kind not in SAMPLE_BYTES]:
            raise ValueError(f"numbers of type {unknown[0]}")
        if n_samples.min() < 0 or not n_samples.any() or n_records < 0:
            raise ValueError("a number of samples or of records is negative")
        if not numerator or not denominator:
            raise DataError(
                f"{path} does not state how long its records last, so that its rate is unknown; export it again"
            )
        record_bytes = sum(SAMPLE_BYTES[kind] * int(n) for kind, n in zip(kinds, n_samples, strict=True))
        end = header_bytes + n_records * record_bytes
        if end > size:
            raise DataError(f"{path} breaks off: {size} of {end} bytes are there; copy it again or leave it out")
        record_s = numerator / denominator
        file.seek(end)
        events = _read_events(file, version, float(n_samples.max()) / record_s)
    units, scales = _read_units(body, count, is_second=is_second)
    low, high = (np.frombuffer(body, "<f8", count, (104 + 8 * k) * count).tolist() for k in (0, 1))
    kind = "<f8" if is_second else "<i8"
    first, last = (np.frombuffer(body, kind, count, (120 + 8 * k) * count).astype(float).tolist() for k in (0, 1))
    return GDFHeader(
        path=path,
        labels=tuple(body[16 * i : 16 * i + 16].split(b"\0")[0].strip().decode("latin1") for i in range(count)),
        units=units,
        scales=scales,
        physical=tuple(zip(low, high, strict=True)),
        digital=tuple(zip(first, last, strict=True)),
        n_samples=tuple(n_samples.tolist()),
        record_s=record_s,
        events=events,
    )


def _read_units(body: bytes, count: int, *, is_second: bool) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Read the unit of each channel as text, and by what MNE multiplies its numbers."""
    if not is_second:
        fields = [body[96 * count + 8 * i :][:8].split(b"\0")[0].strip().decode("latin1") for i in range(count)]
        return tuple(fields), tuple(1e-6 if field[:2] == "uV" else 1.0 for field in fields)
    codes = np.frombuffer(body, "<u2", count, 102 * count).tolist()
    units = []
    for code in codes:
        is_voltage = code & ~31 == VOLT and code & 31 in PREFIXES
        units.append(f"{PREFIXES[code & 31]}V" if is_voltage else "" if code in NO_UNIT else f"{OTHER_UNIT} {code}")
    return tuple(units), tuple({VOLT + 19: 1e-6, VOLT + 18: 1e-3}.get(code, 1.0) for code in codes)


def _read_events(file: BinaryIO, version: float, signal_hz: float) -> tuple[Event, ...]:
    """Read the table of events behind the samples; none where the file has none."""
    head = file.read(8)
    if len(head) < 8 or head[0] not in (1, 3):
        return ()
    if version < 1.94:
        hz, count = float(int.from_bytes(head[1:4], "little")), struct.unpack("<I", head[4:8])[0]
    else:
        count, hz = int.from_bytes(head[1:4], "little"), struct.unpack("<f", head[4:8])[0]
    hz = float(hz) if np.isfinite(hz) and hz > 0 else signal_hz
    has_channels = head[0] == 3
    body = file.read(count * (12 if has_channels else 6)) if count <= MAX_EVENTS else b""
    if len(body) < count * (12 if has_channels else 6):
        raise ValueError(f"its table of {count} events breaks off")
    positions = np.frombuffer(body, "<u4", count).astype(np.int64) - 1
    codes = np.frombuffer(body, "<u2", count, 4 * count)
    channels, durations = np.zeros(count, int), np.zeros(count, int)
    if has_channels:
        channels = np.frombuffer(body, "<u2", count, 6 * count)
        durations = np.frombuffer(body, "<u4", count, 8 * count)
    return tuple(
        Event(place / hz, lasting / hz, code, channel)
        for place, lasting, code, channel in zip(
            positions.tolist(), durations.tolist(), codes.tolist(), channels.tolist(), strict=True
        )
    )
