"""The last seconds of signals that arrive in pieces, each on the clock of its time stamps."""

import bisect
from dataclasses import dataclass, field

import numpy as np

from eav_ray.data.io.video import find_tolerances

JITTER_S = 0.02  # a piece whose time is off by less follows the one before: its samples keep better time
CLOCK_CORRECTION = (
    0.1  # of what such a piece is off, so that a clock that is slow by some 100 ppm tears no gap once in a while
)
MAX_FRAME_S = 1.0  # a frame is shown until the next, but no longer than this: what comes later was not there


class SampleBuffer:
    """A sampled signal on the grid of its own rate; where nothing came, there is nothing.

    Args:
        keep_s: Older samples are forgotten.
    """

    def __init__(self, n_chans: int, hz: float, keep_s: float) -> None:
        self.n_chans, self.hz = n_chans, hz
        self._capacity = int(np.ceil(keep_s * hz))
        # Twice the room, so that samples are moved up once in a while only.
        self._x_CT = np.zeros((n_chans, 2 * self._capacity), np.float32)
        self._received_T = np.zeros(2 * self._capacity, bool)
        self._origin_s: float | None = None  # time of sample 0
        self._first_sample = 0  # number of the first sample that the array has room for
        self._end_sample = 0  # number of the sample after the last

    def push(self, time_s: float, x_CT: np.ndarray) -> None:
        """Take a piece that begins at a time. What is there already stays."""
        if self._origin_s is None:
            self._origin_s = time_s
        offset = (time_s - self._origin_s) * self.hz - self._end_sample
        start = round(offset) + self._end_sample
        if abs(offset) <= JITTER_S * self.hz:
            start = self._end_sample
            self._origin_s += CLOCK_CORRECTION * offset / self.hz
        stop = start + x_CT.shape[1]
        if stop > self._first_sample + self._received_T.size:
            self._make_room(stop)
        first = max(start, self._first_sample)
        if stop <= first:
            return  # too late
        piece, target = x_CT[:, first - start :], slice(first - self._first_sample, stop - self._first_sample)
        new_T = ~self._received_T[target]
        if new_T.all():
            self._x_CT[:, target] = piece
        else:
            self._x_CT[:, target][:, new_T] = piece[:, new_T]
        self._received_T[target] = True
        self._end_sample = max(self._end_sample, stop)

    def _make_room(self, stop: int) -> None:
        """Make room up to a sample, by forgetting what is older than is kept."""
        base = max(self._first_sample, stop - self._capacity)
        n_kept = max(self._first_sample + self._received_T.size - base, 0)
        for array in (self._x_CT, self._received_T):
            array[..., :n_kept] = array[..., array.shape[-1] - n_kept :].copy()
            array[..., n_kept:] = 0
        self._first_sample = base

    @property
    def end_s(self) -> float:
        return (self._origin_s or 0.0) + self._end_sample / self.hz

    def read_span(self, start_s: float, seconds: float) -> tuple[np.ndarray, np.ndarray]:
        """A stretch of time: samples (channels, n), zero where nothing came, and (n,) whether it did."""
        n = round(seconds * self.hz)
        x_CT, received_T = np.zeros((self.n_chans, n), np.float32), np.zeros(n, bool)
        if self._origin_s is not None:
            start = round((start_s - self._origin_s) * self.hz) - self._first_sample
            first, last = max(start, 0), min(start + n, self._received_T.size)
            if first < last:
                x_CT[:, first - start : last - start] = self._x_CT[:, first:last]
                received_T[first - start : last - start] = self._received_T[first:last]
        return x_CT, received_T

    def read_last_contiguous(self, stop_s: float) -> tuple[np.ndarray, float]:
        """What came without a gap up to a time: samples (channels, n), and the time of the first; none, where nothing.

        The last run that ends before that time, of at most `keep_s`.
        """
        if self._origin_s is None:
            return np.zeros((self.n_chans, 0), np.float32), stop_s
        stop = min(max(round((stop_s - self._origin_s) * self.hz) - self._first_sample, 0), self._received_T.size)
        received = np.flatnonzero(self._received_T[:stop])
        if not received.size:
            return np.zeros((self.n_chans, 0), np.float32), stop_s
        last = received[-1] + 1
        gaps = np.flatnonzero(~self._received_T[:last])
        first = max(gaps[-1] + 1 if gaps.size else 0, last - self._capacity)
        return self._x_CT[:, first:last].copy(), self._origin_s + (first + self._first_sample) / self.hz


@dataclass(eq=False)
class Frame:
    time_s: float
    jpeg: bytes
    resized: np.ndarray | None = field(default=None, repr=False)  # of the size of a stored frame, once it was wanted
    is_undecodable: bool = False  # it was wanted, and cannot be decoded


class FrameBuffer:
    """Single frames, in the order of their times.

    Args:
        keep_s: Older frames are forgotten,
        max_frames: as are those before the newest so many,
        max_bytes: or before the newest of so many bytes.
    """

    def __init__(self, keep_s: float, max_frames: int, max_bytes: int = 64 * 2**20) -> None:
        self._keep_s, self._max_frames, self._max_bytes = keep_s, max_frames, max_bytes
        self._frames: list[Frame] = []

    def push(self, time_s: float, jpeg: bytes) -> None:
        at = len(self._frames)
        while at and self._frames[at - 1].time_s > time_s:
            at -= 1
        if at and self._frames[at - 1].time_s == time_s:
            return  # what is there already stays
        self._frames.insert(at, Frame(time_s, jpeg))
        oldest = self._frames[-1].time_s - self._keep_s
        drop = sum(f.time_s < oldest for f in self._frames)
        del self._frames[: max(drop, len(self._frames) - self._max_frames)]
        while sum(len(f.jpeg) for f in self._frames) > self._max_bytes:
            del self._frames[0]

    @property
    def end_s(self) -> float:
        return self._frames[-1].time_s if self._frames else 0.0

    def list_frames_before(self, stop_s: float) -> list[Frame]:
        return [f for f in self._frames if f.time_s < stop_s]


class RowBuffer:
    """Rows of features, in the order of their times.

    Args:
        keep_s: Older rows are forgotten,
        max_rows: as are those before the newest so many.
    """

    def __init__(self, keep_s: float, max_rows: int) -> None:
        self._keep_s, self._max_rows = keep_s, max_rows
        self._times: list[float] = []
        self._rows: list[np.ndarray] = []

    def push(self, time_s: float, row: np.ndarray) -> None:
        at = bisect.bisect_left(self._times, time_s)
        if at < len(self._times) and self._times[at] == time_s:
            return  # what is there already stays
        self._times.insert(at, time_s)
        self._rows.insert(at, row)
        first_kept = bisect.bisect_left(self._times, self._times[-1] - self._keep_s)
        drop = max(first_kept, len(self._times) - self._max_rows)
        del self._times[:drop], self._rows[:drop]

    def read_span(self, start_s: float, stop_s: float) -> tuple[np.ndarray, np.ndarray]:
        """Rows from a time on and before another: (n,) their times, (n, features)."""
        first, last = bisect.bisect_left(self._times, start_s), bisect.bisect_left(self._times, stop_s)
        if first == last:
            return np.zeros(0), np.zeros((0, 0), np.float32)
        return np.array(self._times[first:last]), np.stack(self._rows[first:last])


def select_frames(
    times: np.ndarray, start_s: float, stop_s: float, fps: int, n_frames: int
) -> tuple[np.ndarray, float]:
    """Which frames a window has, by the rule of `video.read_video`: frame k is the first whose time is at least k /
    fps; where frames come more slowly, and in gaps, it is the one on screen.

    The end is bridged by the last frame.

    Args:
        times: Of the frames there are, ascending, seconds.
        stop_s: Up to here something can have come; at most the window's end.
        n_frames: Frames of a window, fps * its length.
    Returns:
        (count,) numbers of frames, empty where there is none in the window; and the seconds that frames speak of.
    """
    steps = np.diff(times)
    frame_s, average_s = (float(np.median(steps)), float(steps.mean())) if steps.size else (1 / fps, 1 / fps)
    slack_s, early_s = find_tolerances(frame_s, average_s, fps)
    inside = np.flatnonzero(times >= start_s - slack_s)
    if not inside.size:
        return np.zeros(0, int), 0.0
    wanted_s = start_s + np.arange(n_frames) / fps
    positions = np.minimum(np.searchsorted(times, wanted_s - slack_s), len(times) - 1)
    positions -= (times[positions] > wanted_s + early_s) & (positions > 0)
    ends = np.minimum(np.append(times[1:], times[-1] + frame_s), times + MAX_FRAME_S)
    covered_s = np.clip(ends, start_s, stop_s) - np.clip(times, start_s, stop_s)
    return positions, float(covered_s.sum())
