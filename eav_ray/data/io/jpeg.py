"""How video windows are stored: as JPEG, a ninth of the bytes of raw frames, or raw (docs/decisions/0008)."""

import contextlib
import io
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
from PIL import Image, UnidentifiedImageError

from eav_ray.config import VideoPreprocessing
from eav_ray.errors import DataError

SHAPE_KEY = b"shape"  # metadata of a column of JPEG windows: frames, height, width, 3
N_DECODE_THREADS = 4  # Pillow decodes without Python's global lock


def make_video_field(preprocessing: VideoPreprocessing, window_s: int) -> pa.Field:
    """The column `video` of a shard: a fixed-shape tensor of uint8, or a list of JPEG files, one a frame."""
    shape = (preprocessing.fps * window_s, preprocessing.size, preprocessing.size, 3)
    if preprocessing.codec == "raw":
        return pa.field("video", pa.fixed_shape_tensor(pa.uint8(), shape))
    return pa.field("video", pa.list_(pa.binary(), shape[0]), metadata={SHAPE_KEY: ",".join(map(str, shape)).encode()})


def encode_frames(frames_FHWC: np.ndarray, preprocessing: VideoPreprocessing) -> np.ndarray | list[bytes]:
    """One window as it is stored. JPEG without colour subsampling; a window without video takes no bytes."""
    if preprocessing.codec == "raw":
        return frames_FHWC
    if not frames_FHWC.any():
        return [b""] * len(frames_FHWC)
    files: list[bytes] = []
    for number, frame in enumerate(frames_FHWC):
        if number and np.array_equal(frame, frames_FHWC[number - 1]):  # the last frame, held to the window's end
            files.append(files[-1])
            continue
        sink = io.BytesIO()
        Image.fromarray(frame).save(sink, "JPEG", quality=preprocessing.quality, subsampling=0)
        files.append(sink.getvalue())
    return files


def decode_frames(windows: Iterable[Iterable[bytes]], shape: tuple[int, ...]) -> np.ndarray:
    """Windows of JPEG files to (windows, *shape) uint8; no bytes are a black frame.

    Raises:
        DataError: A file is not a JPEG of that shape.
    """
    files = [file for window in windows for file in window]
    frames = np.zeros((len(files), *shape[1:]), dtype=np.uint8)

    def decode_one(i: int) -> None:
        if files[i]:
            frames[i] = _decode_jpeg(files[i], shape[1:])

    if len(files) < 2 * N_DECODE_THREADS:
        for i in range(len(files)):
            decode_one(i)
    else:
        with ThreadPoolExecutor(N_DECODE_THREADS) as pool:
            list(pool.map(decode_one, range(len(files)), chunksize=8))
    return frames.reshape(-1, *shape)


def _decode_jpeg(file: bytes, shape: tuple[int, ...]) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(file), formats=["JPEG"]) as image:  # which is decoded by `np.asarray`
            found = (image.height, image.width, len(image.getbands()))
            if found == shape:
                return np.asarray(image)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError) as error:
        raise DataError(f"a stored frame is not a JPEG file ({error}); preprocess again") from None
    raise DataError(f"a stored frame has shape {found}, not {shape}; preprocess again")


def read_jpeg_window_shape(column: pa.Field) -> tuple[int, ...] | None:
    """Shape of one window of a column of JPEG files; None for any other column.

    Raises:
        DataError: The column says a shape that is none, or not that of its lists.
    """
    text = (column.metadata or {}).get(SHAPE_KEY)
    if text is None or isinstance(column.type, pa.FixedShapeTensorType):
        return None
    with contextlib.suppress(ValueError):  # no numbers
        shape = tuple(map(int, text.decode().split(",")))
        kind = column.type
        is_list = pa.types.is_fixed_size_list(kind) and kind.list_size == shape[0] and kind.value_type == pa.binary()
        if len(shape) == 4 and min(shape) > 0 and is_list:
            return shape
    raise DataError(f"the column {column.name} of a shard says no shape that its frames have; preprocess again")
