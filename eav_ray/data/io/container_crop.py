"""The part of the picture that a container says is to be shown, which FFmpeg's libraries leave to their callers."""

import struct
from collections.abc import Iterator
from typing import NamedTuple


class Crop(NamedTuple):
    """Pixels of a stored frame that are cut off at each side."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0


SAMPLE_ENTRY_BYTES = 78  # of a film, before its boxes
TRACK, VIDEO = 0xAE, 0xE0  # of Matroska
CROPPED_SIDES = {0x54CC: "left", 0x54BB: "top", 0x54DD: "right", 0x54AA: "bottom"}


def read_clean_aperture(sample_descriptions: bytes) -> Crop:
    """Read the box `clap` of an MP4 or QuickTime film: width, height and middle of what is shown, as fractions.

    Args:
        sample_descriptions: The body of `stsd`.
    """
    entry = sample_descriptions[16:]  # of the first
    at = SAMPLE_ENTRY_BYTES
    while at + 8 <= len(entry):
        n_bytes, name = struct.unpack(">I4s", entry[at : at + 8])
        if name == b"clap" and n_bytes >= 40 and at + 40 <= len(entry):
            width, height = struct.unpack(">HH", entry[24:28])
            numbers = struct.unpack(">8i", entry[at + 8 : at + 40])
            wide, high, across, down = (n / d if d else 0.0 for n, d in zip(numbers[::2], numbers[1::2], strict=True))
            left, top = across + (width - wide) / 2, down + (height - high) / 2
            sides = (left, top, width - wide - left, height - high - top)
            return Crop(*(max(0, round(side)) for side in sides))
        if n_bytes < 8:
            break
        at += n_bytes
    return Crop()


def read_matroska_crops(tracks: bytes) -> list[Crop]:
    """Read the pixels that each film of a Matroska file leaves out.

    Args:
        tracks: The body of `Tracks`.
    """
    crops: list[Crop] = []
    for name, track in iter_elements(tracks):
        for inner, film in iter_elements(track) if name == TRACK else ():
            if inner == VIDEO:
                sides = {
                    CROPPED_SIDES[n]: int.from_bytes(value[:8], "big")
                    for n, value in iter_elements(film)
                    if n in CROPPED_SIDES
                }
                crops.append(Crop(**sides))
    return crops


def iter_elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Names and bodies of Matroska's elements, one after the other."""
    at = 0
    while at < len(data) and data[at]:
        n_name = 9 - data[at].bit_length()
        size_at = at + n_name
        if size_at >= len(data) or not data[size_at]:
            return
        n_size = 9 - data[size_at].bit_length()
        size = int.from_bytes(data[size_at : size_at + n_size], "big") & ((1 << 7 * n_size) - 1)
        body_at = size_at + n_size
        yield int.from_bytes(data[at:size_at], "big"), data[body_at : body_at + size]
        at = body_at + size
