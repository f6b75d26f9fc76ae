"""What EEG files mark on their clock: pauses, joins of pieces, and spans that are not to be used."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

import numpy as np

from eav_ray.data.recordings import MAX_RECORDING_S, Span
from eav_ray.errors import DataError

PAUSED = "it was paused: what lies in a pause is missing, and what follows keeps its time"
JOINED = "pieces were joined: each is filtered on its own"
MARKED_BAD = "spans that are marked bad are missing"
CUT_AT_START = "what came before was cut off, as it says: time begins with what is left"
CHANNEL_MARKED_BAD = "spans in which single channels are marked bad hold nothing in these"
MIN_PAUSE_S = 0.02  # shorter ones are what clocks and rounding make
JOIN_MARKS = ("boundary", "bad boundary", "edge boundary", "edge", "-99")  # in lower case
NOTHING_RECORDED = "bad_acq_skip"


@dataclass(frozen=True)
class Annotation:
    """A mark of a file: seconds on its clock, which may not know of pauses; all channels where none is named."""

    onset_s: float
    duration_s: float
    description: str
    channels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Marks:
    """What lies where among the samples of a file, which follow each other without a gap.

    Attributes:
        pauses: (sample, seconds): before this sample nothing was recorded for so long.
        joins: Samples at which another piece begins.
        blank: Spans of samples in which nothing was recorded.
        bad_s: Spans that are not to be used, on the clock of `is_on_real_clock`.
        bad_channels_s: The same of single channels.
        is_on_real_clock: Whether times of bad spans count pauses.
    """

    pauses: tuple[tuple[int, float], ...] = ()
    joins: tuple[int, ...] = ()
    blank: tuple[tuple[int, int], ...] = ()
    bad_s: tuple[Span, ...] = ()
    bad_channels_s: tuple[tuple[str, Span], ...] = ()
    is_on_real_clock: bool = False


@dataclass(frozen=True)
class PlacedSamples:
    """Samples on one clock. `values_CT` is not a number where nothing was recorded."""

    values_CT: np.ndarray = field(repr=False)
    missing_s: tuple[Span, ...] = ()
    joins_s: tuple[float, ...] = ()
    remarks: tuple[str, ...] = ()


def find_marks(annotations: Sequence[Annotation], hz: float, *, is_on_real_clock: bool = False) -> Marks:
    """Find what annotations mark: MNE's `bad...` and `EDGE`, EEGLAB's `boundary`, BrainVision's `Bad Interval`.

    A boundary with a duration says how much was cut out there; one without is a join.
    """
    pauses: list[tuple[int, float]] = []
    joins: list[int] = []
    blank: list[tuple[int, int]] = []
    bad_s: list[Span] = []
    bad_channels_s: list[tuple[str, Span]] = []
    for mark in annotations:
        word = mark.description.strip().lower()
        lasts = bool(np.isfinite(mark.duration_s)) and mark.duration_s > 0
        if not np.isfinite(mark.onset_s):
            continue
        if word in JOIN_MARKS:
            # EEGLAB marks a boundary half a sample before the first sample of the next piece.
            sample = int(np.ceil(mark.onset_s * hz - 1e-6))
            is_pause = word in ("boundary", "-99") and lasts and mark.duration_s >= MIN_PAUSE_S
            pauses += [(sample, mark.duration_s)] if is_pause else []
            joins += [] if is_pause else [sample]
        elif word.startswith(NOTHING_RECORDED) and lasts:
            # MNE marks a skip once more that is marked already.
            blank.append((round(mark.onset_s * hz), round((mark.onset_s + mark.duration_s) * hz)))
        elif word.startswith("bad") and lasts:
            span = (mark.onset_s, mark.onset_s + mark.duration_s)
            bad_channels_s += [(name, span) for name in mark.channels]
            bad_s += [] if mark.channels else [span]
    return Marks(
        pauses=tuple(sorted(pauses)),
        joins=tuple(sorted(set(joins))),
        blank=tuple(sorted(set(blank))),
        bad_s=tuple(bad_s),
        bad_channels_s=tuple(bad_channels_s),
        is_on_real_clock=is_on_real_clock,
    )


def find_segments(marker_text: str, hz: float, source: str) -> Marks:
    """Find the pauses and joins between the segments of a BrainVision recording, from the text of its marker file.

    A `New Segment` says when it began; where one does not, it is a join.

    Raises:
        DataError: A segment begins before the one before it.
    """
    pauses: list[tuple[int, float]] = []
    joins: list[int] = []
    first: tuple[int, datetime] | None = None
    paused_s = 0.0
    for line in re.findall(r"^Mk\d+=New Segment,(.*)$", marker_text, re.MULTILINE):
        fields = [part.strip() for part in line.split(",")]
        if len(fields) < 2 or not fields[1].isdecimal():
            continue
        sample, began = int(fields[1]) - 1, _parse_time(fields[-1] if len(fields) >= 5 else "")
        if first is not None and began is not None:
            late_s = (began - first[1]).total_seconds() - (sample - first[0]) / hz - paused_s
            if late_s < -MAX_OVERLAP_S:
                raise DataError(
                    f"{source}: a segment begins {-late_s:.3g} s before the one before it ends; mend its marker file"
                )
            if late_s >= MIN_PAUSE_S and sample > 0:
                pauses.append((sample, late_s))
                paused_s += late_s
                continue
        elif first is None and began is not None and sample >= 0:
            first = sample, began
        joins += [sample] if sample > 0 else []
    return Marks(tuple(pauses), tuple(joins))


MAX_OVERLAP_S = 1.0  # clocks of computers are put right now and then


def _parse_time(text: str) -> datetime | None:
    """The time of a marker: yyyymmddhhmmss and microseconds; None where it states none."""
    if not re.fullmatch(r"\d{20}", text) or not int(text):
        return None
    try:
        return datetime.strptime(text, "%Y%m%d%H%M%S%f")  # noqa: DTZ007  only differences count
    except ValueError:
        return None


def find_bad_intervals(marker_text: str, hz: float, channels: Sequence[str]) -> tuple[list[Annotation], list[str]]:
    """Find the bad intervals of a BrainVision recording, from the text of its marker file.

    A marker has a type, a description, a position and a length in samples, and the number of a channel, 0 for all.

    Args:
        channels: All that the header has, in its order.
    Returns:
        Marks, and what cannot be used of others, a line each.
    """
    found: list[Annotation] = []
    remarks: list[str] = []
    for number, kind, text in re.findall(r"^(Mk\d+)=([^,\n]*)(?:,(.*))?$", marker_text, re.MULTILINE):
        if not kind.strip().lower().startswith("bad"):
            continue
        fields = [part.strip() for part in text.split(",")]
        position, length, channel = (fields + [""] * 4)[1:4]
        if not (position.isdecimal() and length.isdecimal()):
            remarks.append(f"{number} of its marker file marks something bad without a place, which is not used")
            continue
        names: tuple[str, ...] = ()
        if channel.isdecimal() and 1 <= int(channel) <= len(channels):
            names = (channels[int(channel) - 1],)
        elif channel not in ("", "0", "-1"):
            remarks.append(f"{number} of its marker file marks channel {channel}, which is not there: all are bad")
        found.append(Annotation((int(position) - 1) / hz, int(length) / hz, "bad", names))
    return found, remarks


def describe_marks(marks: Marks) -> list[str]:
    """List what marks will change of what is stored, a line each."""
    found = {
        CUT_AT_START: [sample for sample, _ in marks.pauses if sample <= 0],
        PAUSED: [sample for sample, _ in marks.pauses if sample > 0] or [last for _, last in marks.blank if last > 0],
        JOINED: marks.joins,
        MARKED_BAD: marks.bad_s,
        CHANNEL_MARKED_BAD: marks.bad_channels_s,
    }
    return [remark for remark, spans in found.items() if spans]


def join_marks(first: Marks, second: Marks) -> Marks:
    """Put the marks of one file together, whose bad spans are on one clock."""
    return replace(
        first,
        pauses=tuple(sorted({*first.pauses, *second.pauses})),
        joins=tuple(sorted({*first.joins, *second.joins})),
        blank=(*first.blank, *second.blank),
        bad_s=(*first.bad_s, *second.bad_s),
        bad_channels_s=(*first.bad_channels_s, *second.bad_channels_s),
    )


def place_samples(
    values_CT: np.ndarray, hz: float, marks: Marks, channels: Sequence[str], source: str
) -> PlacedSamples:
    """Put the samples of a file on the clock on which it was recorded.

    Args:
        values_CT: (channels, samples), one after the other; changed where nothing was recorded.
    Raises:
        DataError: Pauses last longer than any recording.
    """
    n_times = values_CT.shape[1]
    remarks: list[str] = []
    pauses = [(sample, seconds) for sample, seconds in marks.pauses if 0 < sample < n_times]
    if len(pauses) < len(marks.pauses) and min(marks.pauses)[0] <= 0:
        remarks.append(CUT_AT_START)
    total_s = sum(seconds for _, seconds in pauses)
    if total_s > MAX_RECORDING_S:
        raise DataError(
            f"{source}: its pauses last {total_s:.0f} s together; a recording lasts at most {MAX_RECORDING_S} s: cut "
            "it there"
        )
    blank = [(max(first, 0), min(last, n_times)) for first, last in marks.blank if first < n_times and last > 0]
    for first, last in blank:
        values_CT[:, first:last] = np.nan
    missing_s = [(first / hz, last / hz) for first, last in blank]
    joins = [sample for sample in marks.joins if 0 < sample < n_times]
    ends = [sample for sample, _ in pauses]
    shifts = np.round(np.cumsum([0.0] + [seconds for _, seconds in pauses]) * hz).astype(int)

    def shift(sample: float) -> float:
        return sample + shifts[np.searchsorted(ends, sample, side="right")]

    if pauses:
        remarks.append(PAUSED)
        placed_CT = np.full((len(values_CT), n_times + int(shifts[-1])), np.nan, values_CT.dtype)
        for k, (first, last) in enumerate(zip([0, *ends], [*ends, n_times], strict=True)):
            placed_CT[:, first + shifts[k] : last + shifts[k]] = values_CT[:, first:last]
        missing_s = [(shift(a * hz) / hz, shift(b * hz - 1e-6) / hz) for a, b in missing_s]
        missing_s += [((e + shifts[k]) / hz, (e + shifts[k + 1]) / hz) for k, e in enumerate(ends)]
        values_CT = placed_CT
    elif blank:
        remarks.append(PAUSED)
    if joins:
        remarks.append(JOINED)

    def to_clock(span_s: Span) -> Span:
        if marks.is_on_real_clock or not pauses:
            return span_s
        return float(shift(span_s[0] * hz + 1e-6) / hz), float(shift(span_s[1] * hz - 1e-6) / hz)

    duration_s = values_CT.shape[1] / hz
    bad_s = [to_clock(span) for span in marks.bad_s]
    bad_s = [(max(a, 0.0), min(b, duration_s)) for a, b in bad_s if b > 0 and a < duration_s]
    remarks += [MARKED_BAD] if bad_s else []
    for name, span in marks.bad_channels_s:
        if name in channels:
            first_s, last_s = to_clock(span)
            row = values_CT[channels.index(name)]
            # Every sample that it touches; times in seconds are no whole samples by the last of their digits.
            row[max(0, int(first_s * hz + 1e-6)) : max(0, int(np.ceil(last_s * hz - 1e-6)))] = np.nan
            remarks.append(CHANNEL_MARKED_BAD)
    joins_s = [float(shift(sample) / hz) for sample in [*joins, *ends]]
    return PlacedSamples(
        values_CT,
        tuple(sorted((float(a), float(b)) for a, b in [*missing_s, *bad_s])),
        tuple(sorted(joins_s)),
        tuple(dict.fromkeys(remarks)),
    )
