"""Frames of high dynamic range (BT.2100: PQ and HLG) as pictures of the standard range (BT.709).

FFmpeg's own mapping (`scale=out_transfer`) takes 14 s for the first frame of each film, so that this one is ours.
"""

from functools import lru_cache

import av
import numpy as np

TRANSFERS = {16: "PQ", 18: "HLG"}  # by their numbers in ITU-T H.273
DIFFUSE_WHITE = 203.0  # cd/m2, BT.2408: what white paper has, and about what the standard range ends with
PEAK = 1000.0  # cd/m2 of the screens that films are made for; of HLG by its definition (BT.2100)
BT2020_TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)
LONGEST_SIDE = 1024  # pixels; larger frames are made smaller before, which stored pictures do not show
STANDARD_GAMMA = 2.4  # of a screen, BT.1886
N_STEPS = 4096  # of the last table


def map_to_standard_range(frame: av.VideoFrame) -> av.VideoFrame:
    """Map one frame; returns it as rgb24, without what else the frame says.

    Light above diffuse white is compressed (Reinhard's curve, which ends at 1000 cd/m2), and colours beyond BT.709 are
    cut off.
    """
    scale = min(1.0, LONGEST_SIDE / max(frame.width, frame.height))
    wide, high = (max(1, round(n * scale)) for n in (frame.width, frame.height))
    rgb_HWC = np.asarray(frame.reformat(wide, high, format="rgb48le", interpolation="AREA").to_ndarray(), np.uint16)
    light_HWC = _list_light(int(frame.color_trc))[rgb_HWC]
    if TRANSFERS[int(frame.color_trc)] == "HLG":  # its screen's light depends on the brightness of all three
        luminance = light_HWC @ np.array([0.2627, 0.678, 0.0593], np.float32)
        light_HWC *= (PEAK / DIFFUSE_WHITE) * luminance[..., None] ** 0.2
    if int(frame.color_primaries) == 9:
        light_HWC = light_HWC @ BT2020_TO_BT709.T
    brightest = np.maximum(light_HWC.max(-1, keepdims=True), 1e-6)
    light_HWC *= (1 + brightest / (PEAK / DIFFUSE_WHITE) ** 2) / (1 + brightest)
    steps = np.rint(np.clip(light_HWC, 0, 1) ** 0.5 * (N_STEPS - 1)).astype(np.uint16)  # fine where eyes are
    return av.VideoFrame.from_ndarray(_list_standard_codes()[steps], format="rgb24")


@lru_cache(maxsize=2)
def _list_light(transfer: int) -> np.ndarray:
    """(65536,) float32: light by the code of 16 bits; 1 is diffuse white for PQ, the screen's most for HLG."""
    code = np.arange(65536) / 65535
    if TRANSFERS[transfer] == "PQ":
        power = code ** (32 / 2523)
        light = np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)
        return (10_000 / DIFFUSE_WHITE * light ** (16384 / 2610)).astype(np.float32)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12).astype(np.float32)


@lru_cache(maxsize=1)
def _list_standard_codes() -> np.ndarray:
    """(N_STEPS,) uint8: codes of a screen's standard range by the square root of light."""
    light = (np.arange(N_STEPS) / (N_STEPS - 1)) ** 2
    return np.rint(255 * light ** (1 / STANDARD_GAMMA)).astype(np.uint8)
