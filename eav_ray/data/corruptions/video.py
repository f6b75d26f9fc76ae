"""Video corrupted as decoded: frames of the file's own size and rate, before they are chosen and resized."""

import io

import av
import numpy as np
from PIL import Image, ImageFilter

from eav_ray.data.corruptions.base import Corruption, draw_lost_blocks
from eav_ray.data.recordings import MAX_RECORDING_S

DROPPED_S, FROZEN_S = 0.5, 2.0
GAMMA = 2.2  # of a picture's numbers: half of the light is not half of the number


class VideoCorruption:
    """One corruption of one recording, as `video.read_video` takes it; for one pass over the frames, in order."""

    def __init__(self, corruption: Corruption, recording: str) -> None:
        self._level, self._name = corruption.level, "" if corruption.is_identity else corruption.name
        rng = corruption.make_rng(recording)
        self._block_s = {"dropped": DROPPED_S, "frozen": FROZEN_S}.get(self._name, 0.0)
        n_blocks = int(MAX_RECORDING_S / self._block_s) + 1 if self._block_s else 0
        self._is_lost = draw_lost_blocks(rng, n_blocks, self._level) if n_blocks else np.zeros(0)
        self._square_position = rng.uniform(size=2)  # of the square, as shares of the room that it has
        self._last_frame: av.VideoFrame | None = None

    def replace_lost_frame(self, frame: av.VideoFrame, time_s: float) -> av.VideoFrame | None:
        """What is there in place of a frame of the file; None where it is lost. The first frame always comes."""
        lost = bool(self._block_s) and bool(self._is_lost[min(int(time_s / self._block_s), len(self._is_lost) - 1)])
        if self._last_frame is None or not lost:
            self._last_frame = frame
            return frame
        return None if self._name == "dropped" else self._last_frame

    def corrupt_frame(self, frame: av.VideoFrame) -> av.VideoFrame:
        """A frame that was chosen, as the camera would have seen it."""
        if self._name in ("", "dropped", "frozen"):
            return frame
        return av.VideoFrame.from_ndarray(self.corrupt_pixels(frame.to_ndarray(format="rgb24")), format="rgb24")

    def corrupt_pixels(self, x_HWC: np.ndarray) -> np.ndarray:
        """(height, width, 3) uint8 RGB, the same shape."""
        height, width = x_HWC.shape[:2]
        match self._name:
            case "blur":
                blur = ImageFilter.GaussianBlur(self._level / 100 * height)
                return np.array(Image.fromarray(x_HWC).filter(blur))
            case "darkness":
                brightness_table = np.arange(256) / 255 * 2 ** (-self._level / GAMMA)
                return np.rint(255 * brightness_table).astype(np.uint8)[x_HWC]
            case "occlusion":
                top, left, down, right = _locate_square(height, width, self._level, self._square_position)
                hidden = x_HWC.copy()
                hidden[top:down, left:right] = 0
                return hidden
            case "compression":
                sink = io.BytesIO()
                Image.fromarray(x_HWC).save(sink, "JPEG", quality=max(1, round(self._level)))
                return np.array(Image.open(sink, formats=["JPEG"]))
            case _:
                return x_HWC


def _locate_square(height: int, width: int, share: float, position: np.ndarray) -> tuple[int, int, int, int]:
    """Top, left, bottom and right of a square of that share of the picture; one that is too high becomes wider."""
    side = np.sqrt(share * height * width)
    high = min(height, side)
    wide = min(width, share * height * width / high)
    high = min(height, share * height * width / wide)
    top, left = (position * [height - high, width - wide]).tolist()
    return round(top), round(left), round(top + high), round(left + wide)
