"""Draw the face of a synthetic subject as video frames."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np

MAX_GRAIN = 8  # the most that the noise of the camera changes a pixel


STATES_HZ = 6  # a face is drawn this often and held in between: twice the cost would add nothing to learn from


class Expression(NamedTuple):
    """A class in a face, in units of half the head's height; or what each state of a film shows, (states,) each."""

    smile: Any  # curvature of the mouth, negative for a frown
    opening: Any  # half the height of the open mouth
    brow_slope: Any  # positive: inner ends up
    brow_drop: Any  # positive: lower
    eyes: Any  # openness, 1 = normal


EXPRESSIONS = (
    Expression(0.0, 0.0, 0.0, 0.0, 1.0),
    Expression(-0.28, 0.0, 0.5, 0.0, 0.55),
    Expression(-0.06, 0.14, -0.65, 0.1, 1.2),
    Expression(0.28, 0.14, 0.0, -0.1, 0.85),
    Expression(0.15, 0.0, 0.0, -0.02, 0.05),
)


# Of the hard kind: two faces for each class, each the opposite of the other in mouth, left brow, right brow and eyes;
# no two classes share one. Of five seconds one is shown for four and the other for one: what tells a class is which
# parts of a face go together, and these lie apart, so that no block of a picture shows two of them.
LOW, HIGH = (-0.28, -0.35, -0.35, 0.15), (0.28, 0.35, 0.35, 0.9)  # smile, slopes of the brows, openness of the eyes
PAIRS = ((0, 0, 0, 0), (0, 0, 1, 1), (0, 1, 0, 1), (0, 1, 1, 0), (0, 0, 0, 1))
BLOCK_S, CHANGE_S = 5, 0.25  # a face is there so long before its second begins, so that a picture of it is whole


@dataclass(frozen=True)
class FaceTraits:
    """Colours are RGB 0-255; lengths in half frame heights, `mouth` in half head heights."""

    skin_3: np.ndarray
    hair_3: np.ndarray
    backdrop_3: np.ndarray
    centre_2: np.ndarray
    head: float
    mouth: float
    light: float  # brightness falls by this share from one side to the other
    sway: float = 1.0  # factor on how much it moves


def draw_face(rng: np.random.Generator, *, hard: bool = False) -> FaceTraits:
    """Draw a subject's face; of the hard kind their cameras differ too."""
    tone = rng.uniform(0.1, 0.7)
    if hard:
        return FaceTraits(
            skin_3=np.array([235, 195, 170]) * (1 - tone) + np.array([150, 100, 75]) * tone,
            hair_3=np.array([60, 40, 25]) * rng.uniform(0.5, 1.8),
            backdrop_3=rng.uniform(70, 180, 3),
            centre_2=rng.uniform((-0.12, -0.05), (0.12, 0.05)),
            head=rng.uniform(0.72, 0.88),
            mouth=rng.uniform(0.36, 0.44),
            light=rng.uniform(-0.25, 0.25),
            sway=2.0,
        )
    return FaceTraits(
        skin_3=np.array([235, 195, 170]) * (1 - tone) + np.array([150, 100, 75]) * tone,
        hair_3=np.array([60, 40, 25]) * rng.uniform(0.6, 1.2),
        backdrop_3=rng.uniform(95, 150, 3),
        centre_2=rng.uniform(-0.02, 0.02, 2),
        head=rng.uniform(0.82, 0.9),
        mouth=rng.uniform(0.38, 0.43),
        light=rng.uniform(-0.12, 0.12),
    )


class _Pose(NamedTuple):
    """One value per drawn state, each (S, 1, 1) so that it broadcasts over pixels."""

    x: np.ndarray
    y: np.ndarray
    roll: np.ndarray
    eyes: np.ndarray
    opening: np.ndarray
    smile: np.ndarray
    brow_slope: np.ndarray
    brow_drop: np.ndarray
    right_slope: np.ndarray

    def select(self, rows: slice) -> "_Pose":
        return _Pose(*(values[rows] for values in self))


def _choose_expressions(
    latent_class: int, rng: np.random.Generator, count: int, *, hard: bool
) -> tuple[Expression, np.ndarray]:
    """What a face shows in each state, and the slope of its right brow: (states,) each."""
    if not hard:
        shown = Expression(*(np.full(count, value) for value in EXPRESSIONS[latent_class]))
        return shown, shown.brow_slope
    seconds = count // STATES_HZ
    blend = np.concatenate([rng.permutation([0.0, 0.0, 0.0, 0.0, 1.0]) for _ in range(-(-seconds // BLOCK_S))])
    at = np.clip((np.arange(count) / STATES_HZ + CHANGE_S).astype(int), 0, seconds - 1)
    shares = [np.abs(bit - blend[at]) for bit in PAIRS[latent_class]]
    smile, left, right, eyes = (low + share * (high - low) for low, high, share in zip(LOW, HIGH, shares, strict=True))
    nothing = np.zeros(count)
    return Expression(smile, nothing, left, nothing, eyes), right


def _draw_poses(
    face: FaceTraits, shape: Expression, right_slope: np.ndarray, rng: np.random.Generator, count: int
) -> _Pose:
    t = np.arange(count) / STATES_HZ

    def make_sway(size: float) -> np.ndarray:
        return face.sway * size * np.sin(2 * np.pi * rng.uniform(0.1, 0.35) * t + rng.uniform(0, 6.3))

    eyes = np.where(rng.random(count) < 0.04, 0.05, shape.eyes)  # blinks
    opening = shape.opening + 0.03 * rng.random(count)
    x, y = face.centre_2[0] + make_sway(0.015), face.centre_2[1] + make_sway(0.01)
    values = (x, y, make_sway(0.03), eyes, opening, shape.smile, shape.brow_slope, shape.brow_drop, right_slope)
    return _Pose(*(v.astype(np.float32)[:, None, None] for v in values))


def _paint(image_3SHW: np.ndarray, alpha_SHW: np.ndarray, color_3: np.ndarray) -> None:
    for plane, value in zip(image_3SHW, color_3, strict=True):
        plane += alpha_SHW * (np.float32(value) - plane)


def _draw_states(face: FaceTraits, pose: _Pose, size: tuple[int, int]) -> np.ndarray:
    """Paint the states of one block, back to front: (3, S, H, W), float32, 0-255."""
    width, height = size
    x = ((np.arange(width, dtype=np.float32) + 0.5) * 2 - width) / height
    y = ((np.arange(height, dtype=np.float32)[:, None] + 0.5) * 2 - height) / height
    head = np.float32(face.head)
    u = (x - pose.x + pose.roll * y) / head
    v = (y - pose.y - pose.roll * x) / head
    side = np.abs(u)
    softness = np.float32(height * face.head / 2)  # edges are one pixel wide

    def compute_coverage(distance: np.ndarray) -> np.ndarray:
        return np.clip(0.5 + softness * distance, 0, 1)

    image = np.empty((3, *u.shape), np.float32)
    image[:] = face.backdrop_3.astype(np.float32)[:, None, None, None] * (1 - 0.2 * y)
    _paint(image, compute_coverage((1 - np.hypot(u / 0.82, (v + 0.08) / 1.02)) * 0.82), face.hair_3)
    _paint(image, compute_coverage((1 - np.hypot(u / 0.72, (v - 0.04) / 0.92)) * 0.72), face.skin_3)
    eye = np.hypot((side - 0.32) / 0.18, (v + 0.16) / (0.02 + 0.13 * pose.eyes))
    white = compute_coverage((1 - eye) * 0.1)
    _paint(image, white, np.array([245, 245, 245]) * np.float32(0.97))
    iris = compute_coverage(0.085 - np.hypot(side - 0.32, v + 0.16)) * white
    _paint(image, iris, np.array([25, 20, 20]))
    slope = np.where(u < 0, pose.brow_slope, pose.right_slope)
    brow = v + 0.42 - pose.brow_drop - slope * (side - 0.32)
    brow_width = compute_coverage(0.22 - np.abs(side - 0.32))
    _paint(image, compute_coverage(0.05 - np.abs(brow)) * brow_width, face.hair_3 * 0.6)
    bow = 1 - (u / np.float32(face.mouth)) ** 2
    line = v - 0.46 - pose.smile * (bow - 0.5)
    gap = pose.opening * np.sqrt(np.clip(bow, 0, 1))
    ends = compute_coverage(face.mouth - side)
    _paint(image, compute_coverage(gap + 0.045 - np.abs(line)) * ends, np.array([150, 45, 50]))
    _paint(image, compute_coverage(gap - 0.03 - np.abs(line)) * ends, np.array([30, 5, 8]))
    image *= 1 + face.light * x
    return image


def _degrade(image_3SHW: np.ndarray, left: bool, exposure: float) -> None:
    """Underexpose and hide one side of the frame. A face is symmetric: its expression can still be read."""
    image_3SHW *= exposure
    width = image_3SHW.shape[-1]
    hidden = slice(0, int(0.36 * width)) if left else slice(width - int(0.36 * width), width)
    image_3SHW[..., hidden] = 6


def render_video(
    face: FaceTraits,
    latent_class: int,
    has_cue: bool,
    rng: np.random.Generator,
    *,
    size: tuple[int, int],
    fps: int,
    seconds: int,
    hard: bool = False,
) -> Iterator[np.ndarray]:
    """One recording's frames, `fps * seconds` of them. The cue is a dark picture, one side of it covered.

    Args:
        hard: Several faces, of which only what comes together in a picture tells the class.
        size: (width, height) in pixels.
    Yields:
        (height, width, 3), uint8, RGB.
    """
    width, height = size
    shape, right_slope = _choose_expressions(latent_class, rng, seconds * STATES_HZ, hard=hard)
    poses = _draw_poses(face, shape, right_slope, rng, seconds * STATES_HZ)
    left, exposure = rng.random() < 0.5, rng.uniform(0.4, 0.5)
    # Bytes that wrap around: pictures stay GRAIN away from 0 and 255, so adding needs neither a cast nor a clip.
    noise = rng.normal(0, 2, (8, height, width, 1)).round().clip(-MAX_GRAIN, MAX_GRAIN)
    grain = np.repeat(noise.astype(np.int8).view(np.uint8), 3, axis=-1)
    frame_state = np.arange(fps * seconds) * STATES_HZ // fps
    block = max(1, 2**18 // (width * height))  # bounds memory at 640x480, and fits the cache at 96x72
    for start in range(0, seconds * STATES_HZ, block):
        image = _draw_states(face, poses.select(slice(start, start + block)), size)
        if has_cue:
            _degrade(image, left, exposure)
        states = np.moveaxis(np.clip(image, MAX_GRAIN, 255 - MAX_GRAIN), 0, -1).astype(np.uint8, order="C")
        for frame in np.flatnonzero((frame_state >= start) & (frame_state < start + block)):
            yield states[frame_state[frame] - start] + grain[frame % len(grain)]


def encode_video(path: Path, frames: Iterable[np.ndarray], *, size: tuple[int, int], fps: int) -> None:
    """Write (height, width, 3) uint8 RGB frames as H.264, or as MPEG-4 where this PyAV comes without x264."""
    x264 = "libx264" in av.codecs_available
    with av.open(str(path), "w") as container:
        options = {"preset": "ultrafast"} if x264 else {}
        stream = container.add_stream("libx264" if x264 else "mpeg4", rate=fps, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1  # many subjects are generated by one process per core already
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
