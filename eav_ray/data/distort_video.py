"""Video disturbed as decoded: frames of the file's own size and rate, before they are chosen and resized."""

import io

import av
import numpy as np
from PIL import Image, ImageFilter

from eav_ray.data.distort import Distortion, lapses
from eav_ray.data.manifest import LONGEST_S

DROPPED_S, FROZEN_S = 0.5, 2.0
GAMMA = 2.2  # of a picture's numbers: half of the light is not half of the number


class VideoDistortion:
    """What `video.read` takes: one distortion of one recording. Each is for one pass over the frames, in order."""

    def __init__(self, distortion: Distortion, recording: str) -> None:
        self._level, self._name = distortion.level, "" if distortion.harmless else distortion.name
        rng = distortion.rng(recording)
        self._block_s = {"dropped": DROPPED_S, "frozen": FROZEN_S}.get(self._name, 0.0)
        self._lost = lapses(rng, int(LONGEST_S / self._block_s) + 1, self._level) if self._block_s else np.zeros(0)
        self._square_position = rng.uniform(size=2)  # of the square, as shares of the room that it has
        self._held: av.VideoFrame | None = None

    def show(self, frame: av.VideoFrame, time_s: float) -> av.VideoFrame | None:
        """What is there in place of a frame of the file; None where it is lost. The first frame always comes."""
        lost = bool(self._block_s) and bool(self._lost[min(int(time_s / self._block_s), len(self._lost) - 1)])
        if self._held is None or not lost:
            self._held = frame
            return frame
        return None if self._name == "dropped" else self._held

    def picture(self, frame: av.VideoFrame) -> av.VideoFrame:
        """A frame that was chosen, as the camera would have seen it."""
        if self._name in ("", "dropped", "frozen"):
            return frame
        return av.VideoFrame.from_ndarray(self.pixels(frame.to_ndarray(format="rgb24")), format="rgb24")

    def pixels(self, x_HWC: np.ndarray) -> np.ndarray:
        """(height, width, 3) uint8 RGB, the same shape."""
        height, width = x_HWC.shape[:2]
        match self._name:
            case "blur":
                soft = ImageFilter.GaussianBlur(self._level / 100 * height)
                return np.array(Image.fromarray(x_HWC).filter(soft))
            case "darkness":
                grey = np.arange(256) / 255 * 2 ** (-self._level / GAMMA)
                return np.rint(255 * grey).astype(np.uint8)[x_HWC]
            case "occlusion":
                top, left, down, right = _square(height, width, self._level, self._square_position)
                hidden = x_HWC.copy()
                hidden[top:down, left:right] = 0
                return hidden
            case "compression":
                sink = io.BytesIO()
                Image.fromarray(x_HWC).save(sink, "JPEG", quality=max(1, round(self._level)))
                return np.array(Image.open(sink, formats=["JPEG"]))
            case _:
                return x_HWC


def _square(height: int, width: int, share: float, position: np.ndarray) -> tuple[int, int, int, int]:
    """Top, left, bottom and right of a square of that share of the picture; one that is too high becomes wider."""
    side = np.sqrt(share * height * width)
    high = min(height, side)
    wide = min(width, share * height * width / high)
    high = min(height, share * height * width / wide)
    top, left = (position * [height - high, width - wide]).tolist()
    return round(top), round(left), round(top + high), round(left + wide)
