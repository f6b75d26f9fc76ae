"""Find the pieces of an EEG recording that filters may see as one signal, and mend lost samples."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from eav_ray.data.recordings import RawEEG, Span
from eav_ray.errors import DataError

# Lost samples that are bridged by a line: half a period of 5 Hz. What a line lacks is weak EEG of higher frequencies.
MAX_BRIDGED_S = 0.1
MAX_LOST_SHARE = 0.1  # of a channel's samples: above, it is bad; below, the spans are missing
MAX_VALUE = float(np.sqrt(np.finfo(np.float32).max))  # whose square single precision still holds
MIN_FLAT_S = 1.0  # in which no channel changes: no EEG is that still, so nothing was connected

BRIDGED = "single lost samples are bridged"
LOST = "spans of lost samples are missing"
FLAT = "spans in which no channel changes are missing"

Piece = tuple[int, int]  # samples, from and to


@dataclass(frozen=True)
class Pieces:
    """What can be filtered of one recording.

    Attributes:
        values_CT: Finite in all pieces, but for `lost_channels`.
        pieces: Samples of each; what lies between them is missing.
        lost_channels: (channels,) bool: those that lack too much.
        missing: Spans of samples that are missing, those between pieces included.
        is_whole: Whether all is one piece and nothing is missing.
    """

    values_CT: np.ndarray = field(repr=False)
    pieces: tuple[Piece, ...]
    lost_channels: np.ndarray
    missing: tuple[Piece, ...]
    remarks: tuple[str, ...] = ()

    @property
    def is_whole(self) -> bool:
        return self.pieces == ((0, self.values_CT.shape[1]),) and not self.missing


def find_pieces(raw: RawEEG, min_s: float) -> Pieces:
    """Find the pieces of a recording, and mend them: short losses are bridged, longer ones are missing.

    Args:
        raw: Its values are left alone.
        min_s: A shorter piece is missing.
    Raises:
        DataError: Values are larger than any that are recorded.
    """
    x_CT, hz = raw.values_CT, raw.hz
    n_chans, n_times = x_CT.shape
    finite_CT = np.isfinite(x_CT)
    known = x_CT if finite_CT.all() else x_CT[finite_CT]
    largest = max(float(known.max()), -float(known.min())) if known.size else 0.0
    if largest > MAX_VALUE:
        raise DataError(f"EEG holds values up to {largest:.3g}, which nothing records; replace it or leave it out")
    lost_C = np.zeros(n_chans, dtype=bool)
    remarks: list[str] = []
    gone_T = np.zeros(n_times, dtype=bool)  # of which nothing can be used, and across which nothing may be filtered
    if not finite_CT.all():
        lost_C = np.asarray(~finite_CT.any(axis=1))
        if not lost_C.all():
            x_CT = x_CT.copy()
            gone_T, lost_C, remarks = _mend(x_CT, finite_CT, lost_C, hz)
    gone = _find_runs(gone_T)
    flat = [(a, b) for a, b in _find_flat_spans(x_CT, ~lost_C, hz) if not gone_T[a:b].all()]
    if flat:
        remarks.append(FLAT)
    for first, last in flat:
        gone_T[first:last] = True
    cuts = {round(second * hz) for second in raw.joins_s}
    pieces: list[Piece] = []
    for first, last in _find_runs(~gone_T):
        edges = [first, *sorted(c for c in cuts if first < c < last), last]
        pieces += [(a, b) for a, b in zip(edges, edges[1:], strict=False) if b - a >= min_s * hz]
    covered_T = np.zeros(n_times, dtype=bool)
    for first, last in pieces:
        covered_T[first:last] = True
    for first_s, last_s in raw.missing_s:
        covered_T[max(0, round(first_s * hz)) : max(0, round(last_s * hz))] = False
    if len(gone) > 0 and LOST not in remarks and not _are_stated(gone, raw.missing_s, hz):
        remarks.append(LOST)
    return Pieces(x_CT, tuple(pieces), lost_C, tuple(_find_runs(~covered_T)), tuple(remarks))


def _mend(
    x_CT: np.ndarray, finite_CT: np.ndarray, lost_C: np.ndarray, hz: float
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Bridge short losses in place.

    Returns:
        (samples,) bool, which are missing; (channels,) bool, which channels lack too much; remarks.
    """
    longest = max(1, int(MAX_BRIDGED_S * hz))
    live_C = ~lost_C
    mostly_T = finite_CT[live_C].sum(axis=0) * 2 >= live_C.sum()
    gone_T = np.zeros(x_CT.shape[1], dtype=bool)
    for first, last in _find_runs(~mostly_T):
        gone_T[first:last] = last - first > longest
    there_T = ~gone_T
    share_C = 1 - finite_CT[:, there_T].mean(axis=1) if there_T.any() else np.ones(len(x_CT))
    lost_C = lost_C | (share_C > MAX_LOST_SHARE)
    remarks: list[str] = []
    for c in np.flatnonzero(~lost_C & ~finite_CT.all(axis=1)):
        runs = _find_runs(~finite_CT[c] & there_T)
        for first, last in runs:
            if last - first > longest:
                gone_T[first:last] = True
        if runs:
            remarks = [BRIDGED]
            good = np.flatnonzero(finite_CT[c])
            holes = np.flatnonzero(~finite_CT[c])
            x_CT[c, holes] = np.interp(holes, good, x_CT[c, good])
    # A channel that is not known in what is missing is known outside of it.
    x_CT[:, gone_T] = 0.0
    x_CT[lost_C] = 0.0
    return gone_T, lost_C, remarks


def _find_flat_spans(x_CT: np.ndarray, used_C: np.ndarray, hz: float) -> list[Piece]:
    """Find spans of at least a second in which no channel changes, of those that ever do."""
    shortest = int(MIN_FLAT_S * hz)
    if x_CT.shape[1] <= shortest:
        return []
    still_T = np.ones(x_CT.shape[1] - 1, dtype=bool)
    any_live = False
    for row_T in (x_CT[c] for c in np.flatnonzero(used_C)):
        same_T = row_T[1:] == row_T[:-1]
        if same_T.all():
            continue  # flat throughout: a bad channel
        any_live = True
        still_T &= same_T
        if still_T.sum() < shortest - 1:
            return []
    if not any_live:
        return []
    return [(a, b + 1) for a, b in _find_runs(still_T) if b + 1 - a >= shortest]


def _find_runs(wanted_T: np.ndarray) -> list[Piece]:
    """Find runs of True: from and to."""
    if not wanted_T.any():
        return []
    edges = np.flatnonzero(np.diff(np.concatenate([[False], wanted_T, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _are_stated(spans: Iterable[Piece], missing_s: Sequence[Span], hz: float) -> bool:
    """Tell whether the file itself says of all spans that they are missing."""
    return all(any(a / hz >= f - 1 / hz and b / hz <= t + 1 / hz for f, t in missing_s) for a, b in spans)


def to_seconds(spans: Iterable[Piece], hz: float) -> tuple[Span, ...]:
    """Turn samples into seconds."""
    return tuple((first / hz, last / hz) for first, last in spans)
