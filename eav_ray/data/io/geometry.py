"""Decoded frames as a player shows them: upright, whole instead of interlaced, of standard range, of square pixels."""

import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import TypeVar

import av
import av.error
import av.filter
import numpy as np

from eav_ray.data.io.container_crop import Crop
from eav_ray.data.io.dynamic_range import TRANSFERS, map_to_standard_range
from eav_ray.data.io.limits import MAX_FRAME_PIXELS
from eav_ray.errors import DataError

MAX_PIXEL_ASPECT = 8  # anamorphic film has up to 2.4; beyond this a header is damaged
Facts = TypeVar("Facts")
Steps = tuple[tuple[str, str], ...]  # of a filter graph: names and arguments


class FilterGraph:
    """A chain of FFmpeg's filters that gives a frame for each frame; made anew where frames change their format."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self._format: tuple[object, ...] = ()
        self._graph: av.filter.Graph | None = None

    def push(self, frame: av.VideoFrame) -> list[av.VideoFrame]:
        """Give a frame; returns what comes out by now, of an earlier format first."""
        form = (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range, frame.color_trc)
        done = self.flush() if form != self._format else []
        if (graph := self._graph) is None:
            self._format, self._graph = form, (graph := self._build(frame))
        graph.push(frame)
        return done + self._pull()

    def flush(self) -> list[av.VideoFrame]:
        """Return what still waits."""
        if self._graph is None:
            return []
        self._graph.push(None)
        done = self._pull()
        self._graph = None
        return done

    def _build(self, frame: av.VideoFrame) -> av.filter.Graph:
        graph = av.filter.Graph()
        graph.threads = 1  # Ray runs one task a core
        time_base = frame.time_base or Fraction(1, 1000)
        nodes = [graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=time_base)]
        nodes += [graph.add(name, arguments) for name, arguments in self._steps]
        graph.link_nodes(*nodes, graph.add("buffersink")).configure()
        return graph

    def _pull(self) -> list[av.VideoFrame]:
        assert self._graph is not None
        done: list[av.VideoFrame] = []
        while True:
            try:
                frame = self._graph.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return done
            assert isinstance(frame, av.VideoFrame)
            done.append(frame)


def deinterlace(
    items: Iterable[tuple[av.VideoFrame, Facts]], remarks: set[str]
) -> Iterator[tuple[av.VideoFrame, Facts]]:
    """Make whole frames of interlaced ones; what comes with a frame stays with it.

    The filter needs the frame before and after, so from the first interlaced frame on all frames pass it.
    """
    graph: FilterGraph | None = None
    waiting: list[Facts] = []
    for frame, facts in items:
        if graph is None and frame.interlaced_frame:
            graph = FilterGraph((("bwdif", "mode=send_frame:deint=interlaced"),))
            remarks.add("interlaced; whole frames were made of its half frames")
        if graph is None:
            yield frame, facts
            continue
        frame.pts = len(waiting) if frame.pts is None else frame.pts
        waiting.append(facts)
        for done in graph.push(frame):
            yield done, waiting.pop(0)
    if graph is not None:
        for done in graph.flush():
            if waiting:
                yield done, waiting.pop(0)


class FrameCorrector:
    """Turn decoded frames into what a player shows.

    The matrix and range of colours need no step: FFmpeg's conversion to RGB follows them frame by frame.

    Attributes:
        remarks: What was changed, as the file says.
    """

    def __init__(self, path: object, pixel_aspect: Fraction | None, crop: Crop, *, square_pixels: bool) -> None:
        """
        Args:
            pixel_aspect: Width of a pixel by its height.
            crop: What the container cuts off.
            square_pixels: Stretch frames until pixels are square, which a part that is cut out of them needs. A whole
                frame becomes a square anyhow, and the shape of its pixels nothing to it.
        """
        self._path, self._crop, self._square_pixels = path, crop, square_pixels
        self._pixel_aspect = float(pixel_aspect or 1)
        self._graphs: dict[Steps, FilterGraph] = {}
        self._size = (0, 0)
        self.remarks: set[str] = set()

    def correct(self, frame: av.VideoFrame) -> av.VideoFrame:
        """Correct one frame.

        Raises:
            DataError: What it says of its turn, its edges or its pixels means nothing.
        """
        if self._size not in ((0, 0), (frame.width, frame.height)):
            self.remarks.add("its frames change their size")
        self._size = (frame.width, frame.height)
        if any(component.is_alpha for component in frame.format.components):
            self.remarks.add("its transparency was left out")
        steps: list[tuple[str, str]] = []
        matrix = frame.side_data.get("DISPLAYMATRIX")
        if any(self._crop):
            frame = self._cut(frame)
        if transfer := TRANSFERS.get(int(frame.color_trc)):
            frame = map_to_standard_range(frame)
            self.remarks.add(f"its high dynamic range ({transfer}) was mapped to the standard one")
        if self._square_pixels and not math.isclose(self._pixel_aspect, 1, rel_tol=1e-3):
            steps.append(("scale", self._describe_stretch(frame)))
        if matrix is not None:
            steps += self._list_turns(np.frombuffer(matrix, "<i4", 9))
        return self._filter(frame, tuple(steps)) if steps else frame

    def _cut(self, frame: av.VideoFrame) -> av.VideoFrame:
        left, top, right, bottom = self._crop
        wide, high = frame.width - left - right, frame.height - top - bottom
        if wide < 1 or high < 1:
            raise DataError(f"{self._path} says that nothing of its picture is to be shown; convert it")
        self.remarks.add("its edges were cut off, as its file says")
        return self._filter(frame, (("crop", f"{wide}:{high}:{left}:{top}"),))

    def _filter(self, frame: av.VideoFrame, steps: Steps) -> av.VideoFrame:
        frame.pts = 0 if frame.pts is None else frame.pts
        return self._graphs.setdefault(steps, FilterGraph(steps)).push(frame)[-1]

    def _describe_stretch(self, frame: av.VideoFrame) -> str:
        aspect = self._pixel_aspect
        if not 1 / MAX_PIXEL_ASPECT <= aspect <= MAX_PIXEL_ASPECT:
            raise DataError(
                f"{self._path} says that its pixels are {aspect:g} times as wide as high; convert it, or set "
                "preprocessing.video.crop=none, which needs no shape of pixels"
            )
        self.remarks.add("its pixels, which are not square, were stretched, as its file says")
        wide, high = (frame.width * aspect, frame.height) if aspect > 1 else (frame.width, frame.height / aspect)
        shrink = min(1.0, MAX_FRAME_PIXELS / max(wide, high))
        return f"{max(1, round(wide * shrink))}:{max(1, round(high * shrink))}"

    def _list_turns(self, matrix: np.ndarray) -> Steps:
        """List the filters that turn a frame as its display matrix says; ffmpeg's `autorotate` has the same."""
        a, b, _, c, d = (float(value) for value in matrix[:5])
        if not (math.hypot(a, c) and math.hypot(b, d)):
            raise DataError(f"{self._path} says that it is turned in a way that means nothing; convert it")
        clockwise = math.degrees(math.atan2(b / math.hypot(b, d), a / math.hypot(a, c))) % 360
        mirrored = a * d - b * c < 0
        quarter = round(clockwise / 90) % 4
        if abs(clockwise - 90 * round(clockwise / 90)) > 1:
            self.remarks.add(f"turned by {clockwise:.0f} degrees, as its file says")
            return (("rotate", f"{clockwise}*PI/180"),)
        match quarter:
            case 0:
                steps = (("vflip", ""),) if d < 0 else ()
            case 1:
                steps = (("transpose", "cclock_flip" if c > 0 else "clock"),)
            case 2:
                steps = (*((("hflip", ""),) if a < 0 else ()), *((("vflip", ""),) if d < 0 else ()))
            case _:
                steps = (("transpose", "clock_flip" if c < 0 else "cclock"),)
        if steps:
            turn = f"turned by {90 * quarter} degrees" if quarter else ""
            words = " and ".join(w for w in ("mirrored" if mirrored else "", turn) if w)
            self.remarks.add(f"{words}, as its file says")
        return steps
