"""What the header of an EDF or BDF file states, and the times that its records carry.

MNE reads the samples; it takes any unit that it does not know for volts, and joins records between which time passed.
"""

import math
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from eav_ray.data.io.eeg_marks import Annotation
from eav_ray.errors import DataError, describe_error

FIXED_BYTES, CHANNEL_BYTES = 256, 256
BDF_MARK = b"\xff"  # the first byte
BLANKS = " \t\n\r\x0b\x0c"  # that MNE strips of a field
MAX_CHANNELS = 4096
MAX_RECORDS = 2**20  # with annotations: each is looked at
ANNOTATION_LABELS = ("EDF Annotations", "BDF Annotations")
# A list of annotations: onset, perhaps a duration, texts.
ANNOTATION_LIST = re.compile(rb"([+-]\d+(?:\.\d*)?)(?:\x15(\d+(?:\.\d*)?))?\x14([^\x00]*?)\x14?\x00")
MAX_CLOCK_ERROR_S = 0.02  # between the time that a record states and where its samples lie: clocks are not that exact


@dataclass(frozen=True)
class EDFHeader:
    """The header of an EDF, EDF+, BDF or BDF+ file; one entry a channel in each tuple, annotations included."""

    path: Path
    labels: tuple[str, ...]
    units: tuple[str, ...]
    physical: tuple[tuple[float, float], ...]  # minimum, maximum
    digital: tuple[tuple[float, float], ...]
    n_samples: tuple[int, ...]  # of a record
    header_bytes: int
    n_records: int  # that the file holds in full
    stated_records: int  # -1: whoever recorded did not say
    record_s: float
    is_discontinuous: bool
    sample_bytes: int

    @property
    def is_annotation(self) -> tuple[bool, ...]:
        return tuple(label in ANNOTATION_LABELS for label in self.labels)

    @property
    def signal_labels(self) -> tuple[str, ...]:
        return tuple(n for n, other in zip(self.labels, self.is_annotation, strict=True) if not other)

    @cached_property
    def record_annotations(self) -> list[list[tuple[float, float, str]]]:
        """For each record what its annotation channels hold: (onset, duration, text), seconds; no text: its time."""
        offsets = np.cumsum([0, *self.n_samples]) * self.sample_bytes
        spans = [(int(offsets[i]), int(offsets[i + 1])) for i, is_list in enumerate(self.is_annotation) if is_list]
        if not spans:
            return []
        if self.n_records > MAX_RECORDS:
            raise DataError(f"{self.path} has {self.n_records} records; at most {MAX_RECORDS} are read")
        found = []
        record_bytes = int(offsets[-1])
        with self.path.open("rb") as file:
            for k in range(self.n_records):
                entries: list[tuple[float, float, str]] = []
                for first, last in spans:
                    file.seek(self.header_bytes + k * record_bytes + first)
                    for onset, duration, texts in ANNOTATION_LIST.findall(file.read(last - first)):
                        entries += [
                            (float(onset), float(duration or 0), text)
                            for text in texts.decode("utf-8", "replace").split("\x14")
                        ]
                found.append(entries)
        return found


def read_edf_header(path: Path) -> EDFHeader:
    """Read the header of an EDF or BDF file.

    Raises:
        DataError: It is no such header, or one of no signals.
    """
    is_bdf = path.suffix.lower() == ".bdf"
    kind, sample_bytes = ("BDF", 3) if is_bdf else ("EDF", 2)
    size = path.stat().st_size
    with path.open("rb") as file:
        fixed = file.read(FIXED_BYTES)
        _check_suffix(path, fixed[:1] == BDF_MARK, is_bdf)
        try:
            header_bytes, stated_records = int(_text(fixed[184:192])), int(_text(fixed[236:244]))
            record_s, count = _number(fixed[244:252]), int(_text(fixed[252:256]))
            if not 0 < count <= MAX_CHANNELS or header_bytes != FIXED_BYTES + count * CHANNEL_BYTES:
                raise ValueError(f"{count} channels, a header of {header_bytes} bytes")
            body = file.read(count * CHANNEL_BYTES)
            if len(body) < count * CHANNEL_BYTES:
                raise ValueError("it ends within its header")
            fields: dict[str, list[bytes]] = {}
            start = 0
            for name, width in (
                ("label", 16), ("transducer", 80), ("unit", 8), ("pmin", 8), ("pmax", 8), ("dmin", 8), ("dmax", 8),
                ("filter", 80), ("samples", 8),
            ):  # fmt: skip
                fields[name] = [body[start + i * width : start + (i + 1) * width] for i in range(count)]
                start += count * width
            physical = [(_number(a), _number(b)) for a, b in zip(fields["pmin"], fields["pmax"], strict=True)]
            digital = [(_number(a), _number(b)) for a, b in zip(fields["dmin"], fields["dmax"], strict=True)]
            n_samples = [int(_text(n)) for n in fields["samples"]]
            if min(n_samples) < 0 or not sum(n_samples) or record_s < 0 or stated_records < -1:
                raise ValueError("a number of samples, of records or a duration is negative")
        except (ValueError, OverflowError) as error:
            raise DataError(
                f"{path} cannot be read as EEG ({kind}: {describe_error(error)}); replace it or leave it out"
            ) from None
    n_records = (size - header_bytes) // (sum(n_samples) * sample_bytes)
    # As MNE strips and decodes them.
    labels = [label.strip().decode("latin1") for label in fields["label"]]
    return EDFHeader(
        path=path,
        labels=tuple(labels),
        units=tuple(unit.decode("latin1") for unit in fields["unit"]),
        physical=tuple(physical),
        digital=tuple(digital),
        n_samples=tuple(n_samples),
        header_bytes=header_bytes,
        n_records=n_records,
        stated_records=stated_records,
        record_s=record_s,
        is_discontinuous=_text(fixed[192:236])[:5] in ("EDF+D", "BDF+D"),
        sample_bytes=sample_bytes,
    )


def _check_suffix(path: Path, is_marked: bool, is_bdf: bool) -> None:
    """Raise DataError where a header begins as one of the other format, whose samples have another size."""
    if is_marked and not is_bdf:
        raise DataError(f"{path} begins as a BDF file, with samples of three bytes; rename it to .bdf")
    if is_bdf and not is_marked:
        raise DataError(f"{path} begins as an EDF file, with samples of two bytes; rename it to .edf")


def check_channels(header: EDFHeader, channels: list[int]) -> float:
    """Check what a header states of some channels, and return their sampling rate, Hz.

    Raises:
        DataError: Numbers cannot be turned into amplitudes, or rates differ.
    """
    path = header.path
    for i in channels:
        (low, high), (first, last) = header.physical[i], header.digital[i]
        if not all(map(math.isfinite, (low, high, first, last))) or low == high or first == last:
            raise DataError(
                f"{path}: the header gives channel {header.labels[i]} the range {low:g} to {high:g} for the numbers "
                f"{first:g} to {last:g}, from which no amplitude follows; mend the header, or choose channels without "
                "it by preprocessing.eeg.channels"
            )
    counts = sorted({header.n_samples[i] for i in channels})
    if not header.record_s or not counts[0]:
        raise DataError(f"{path}: its records last {header.record_s:g} s, so it has annotations and no EEG")
    if len(counts) > 1:
        rates = ", ".join(f"{n / header.record_s:g}" for n in counts)
        raise DataError(
            f"{path}: its EEG channels are sampled at {rates} Hz; choose channels of one rate by "
            "preprocessing.eeg.channels"
        )
    return counts[0] / header.record_s


def find_gaps(header: EDFHeader) -> list[tuple[int, float]]:
    """Find the records before which time passed: their number, and how many seconds nothing was recorded.

    Raises:
        DataError: Records go back in time, or do not say when they were made, in a file that is said to have pauses.
    """
    times = _list_record_times(header)
    if times is None:
        if header.is_discontinuous:
            raise DataError(
                f"{header.path} says that it was paused (EDF+D), but not every record says when it was made; export it "
                "again as EDF+C"
            )
        return []
    gaps: list[tuple[int, float]] = []
    shift_s = times[0] if len(times) else 0.0
    for k, time_s in enumerate(times):
        late_s = time_s - shift_s - k * header.record_s
        if late_s > MAX_CLOCK_ERROR_S:
            gaps.append((k, late_s))
            shift_s += late_s
        elif k and time_s - times[k - 1] < header.record_s - MAX_CLOCK_ERROR_S:
            raise DataError(
                f"{header.path}: record {k + 1} begins before the one before it ends (at {time_s:g} s); export it again"
            )
    return gaps


def list_annotations(header: EDFHeader) -> list[Annotation]:
    """List annotations on the clock that begins with the first record."""
    times = _list_record_times(header)
    start_s = times[0] if times else 0.0
    entries = [entry for entries in header.record_annotations for entry in entries if entry[2]]
    found = []
    for onset_s, duration_s, text in entries:
        description, _, channel = text.partition("@@")
        found.append(Annotation(onset_s - start_s, duration_s, description, (channel,) if channel else ()))
    return found


def _list_record_times(header: EDFHeader) -> list[float] | None:
    """When each record began: by the first list of annotations in it; None where one does not say."""
    records = header.record_annotations
    if not records or any(not entries or entries[0][2] for entries in records):
        return None
    return [entries[0][0] for entries in records]


def _text(field: bytes) -> str:
    return field.decode("latin1").split("\0")[0].strip()


def _number(field: bytes) -> float:
    return float(_text(field).replace(",", "."))
