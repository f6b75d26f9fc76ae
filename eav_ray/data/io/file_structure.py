"""What MP4, Matroska and AVI files say about themselves twice, which must agree.

FFmpeg takes the first of two statements that contradict each other, and reads what is left of a file that breaks off,
without a word.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from eav_ray.data.io.container_crop import Crop, read_clean_aperture, read_matroska_crops
from eav_ray.errors import DataError

MAX_DISAGREEMENT_S = 0.5  # lengths of one track; recorders round, and count the last frame or not
MAX_ELEMENTS = 100_000  # of one file
MAX_HEADER_BYTES = 64 * 2**20
UNKNOWN_LENGTHS, UNKNOWN_LENGTH_BYTES = (0, 4), 0x7FFFF000  # of an AVI file that its recorder could not finish
UNKNOWN_DURATIONS = (0, 0xFFFFFFFF, 2**64 - 1)
BOX_NAME = re.compile(rb"[A-Za-z0-9 \xa9\-_]{4}")
CONTAINER_BOXES = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts")
EBML, SEGMENT, CLUSTER, CRC = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75", 0xBF
TRACKS = b"\x16\x54\xae\x6b"
CHECKED_ELEMENTS = {b"\x15\x49\xa9\x66": "times", TRACKS: "streams"}


class Structure(NamedTuple):
    remarks: tuple[str, ...] = ()
    is_open_ended: bool = False  # it was written piece by piece, and does not state how many there are
    crops: tuple[Crop, ...] = ()  # of its films, in their order


def check_structure(path: str | Path) -> Structure:
    """Check a file that is an MP4, Matroska or AVI file by its first bytes; others pass.

    Raises:
        DataError: It breaks off, has no index, or contradicts itself.
    """
    try:
        with Path(path).open("rb") as file:
            file_bytes = file.seek(0, 2)
            file.seek(0)
            head = file.read(12)
            if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
                return _check_mp4(file, file_bytes, path)
            if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
                return _check_avi(file, file_bytes, path)
            if head[:4] == EBML:
                return _check_matroska(file, file_bytes, path)
    except DataError:
        raise
    except (struct.error, ValueError, IndexError, ArithmeticError) as error:
        reason = "a table is cut off"
        reason = str(error) if type(error) is ValueError else reason
        raise DataError(
            f"{path} has a header that contradicts itself ({reason}); remux it (`ffmpeg -i FILE -c copy NEW`) or leave "
            "it out"
        ) from None
    return Structure()


# MP4 and QuickTime


def _check_mp4(file: BinaryIO, file_bytes: int, path: str | Path) -> Structure:
    moov = b""
    names: set[bytes] = set()
    at = 0
    for _ in range(MAX_ELEMENTS):
        file.seek(at)
        head = file.read(16)
        if len(head) < 8:
            break
        n_bytes, name = struct.unpack(">I4s", head[:8])
        n_head = 8
        if n_bytes == 1 and len(head) == 16:
            n_bytes, n_head = struct.unpack(">Q", head[8:])[0], 16
        n_bytes = n_bytes or file_bytes - at  # 0: to the end of the file
        if n_bytes < n_head:
            raise ValueError(f"its part {name!r} has {n_bytes} bytes")
        if at + n_bytes > file_bytes and name != b"mdat":
            return Structure()  # it breaks off: FFmpeg says how much of it is there
        names.add(name)
        if name == b"moov" and n_bytes <= MAX_HEADER_BYTES:
            file.seek(at + n_head)
            moov = file.read(n_bytes - n_head)
        at += n_bytes
    if b"moov" not in names and names & {b"mdat", b"ftyp"} and b"moof" not in names:
        raise DataError(
            f"{path} has no index (moov), without which no frame is found: its recorder was stopped before its end, or "
            "it breaks off; copy it again, repair it with the recorder's program, or leave it out"
        )
    crops = _read_crops(moov)
    if b"moof" in names:  # each fragment states its own frames
        return Structure(is_open_ended=True, crops=crops)
    return Structure(_check_moov(moov, file_bytes, path) if moov else (), crops=crops)


def _read_crops(moov: bytes) -> tuple[Crop, ...]:
    tracks = [_find_boxes(body) for name, body in _iter_boxes(moov) if name == b"trak"]
    films = [boxes for boxes in tracks if boxes.get(b"hdlr", b"")[8:12] == b"vide"]
    return tuple(read_clean_aperture(boxes.get(b"stsd", b"")) for boxes in films)


class _Track(NamedTuple):
    shown_s: float | None  # by the header of the track, or its edit list
    is_edited: bool  # it has an edit list, which may show a part
    media_s: float | None
    frames_s: float  # of all its frames
    n_timed: int  # frames that have a time
    n_sized: int | None  # frames that have a size
    chunks: np.ndarray  # (chunks, 2) int64: where runs of its frames begin and end in the file


def _check_moov(moov: bytes, file_bytes: int, path: str | Path) -> tuple[str, ...]:
    remarks: list[str] = []
    movie_hz = 0
    chunks = np.zeros((0, 2), np.int64)
    for name, body in _iter_boxes(moov):
        if name == b"mvhd" and len(body) >= 32:
            movie_hz = struct.unpack(">I", body[20:24] if body[0] else body[12:16])[0]
        if name != b"trak":
            continue
        track = _read_track(body, movie_hz)
        if track is None:
            continue
        chunks = np.concatenate([chunks, track.chunks])
        if track.n_sized is not None and track.n_timed != track.n_sized:
            raise ValueError(f"{track.n_timed} frames have a time, {track.n_sized} have a size")
        for length_s, what in ((track.media_s, "its media"), (None if track.is_edited else track.shown_s, "the track")):
            if length_s is not None and abs(length_s - track.frames_s) > MAX_DISAGREEMENT_S:
                raise ValueError(f"its frames last {track.frames_s:.1f} s, {what} {length_s:.1f} s")
        if track.is_edited and track.shown_s is not None:
            if track.shown_s > track.frames_s + MAX_DISAGREEMENT_S:
                raise ValueError(
                    f"its edit list shows {track.shown_s:.1f} s of frames that last {track.frames_s:.1f} s"
                )
            if track.shown_s < track.frames_s - MAX_DISAGREEMENT_S:
                remarks.append("its edit list shows a part of it, and the rest was left out")
    chunks = chunks[chunks[:, 0].argsort(kind="stable")]
    if len(chunks) and chunks[:, 1].max() > file_bytes:
        raise DataError(
            f"{path} breaks off: it has {file_bytes} bytes, and its frames lie up to byte {chunks[:, 1].max()}; copy "
            "it again or leave it out"
        )
    if (chunks[1:, 0] < chunks[:-1, 1]).any():
        raise ValueError("some of its frames lie in the same place")
    return tuple(dict.fromkeys(remarks))


def _iter_boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Names and bodies of boxes, one after the other."""
    at = 0
    while at + 8 <= len(data):
        n_bytes, name = struct.unpack(">I4s", data[at : at + 8])
        if n_bytes < 8:
            return
        yield name, data[at + 8 : at + n_bytes]
        at += n_bytes


def _find_boxes(data: bytes) -> dict[bytes, bytes]:
    """The boxes of a track at all depths, the first of a name; raises ValueError where a name is none."""
    found: dict[bytes, bytes] = {}
    for name, body in _iter_boxes(data):
        if not BOX_NAME.fullmatch(name):
            raise ValueError("a box has no name")
        found.setdefault(name, body)
        if name in CONTAINER_BOXES:
            found = _find_boxes(body) | found
    return found


def _read_track(body: bytes, movie_hz: int) -> _Track | None:
    boxes = _find_boxes(body)
    if boxes.get(b"hdlr", b"")[8:12] not in (b"vide", b"soun"):
        return None
    if b"mdhd" not in boxes or b"stts" not in boxes:
        raise ValueError("it has no times")
    mdhd, stts = boxes[b"mdhd"], boxes[b"stts"]
    media_hz, media = struct.unpack(">IQ", mdhd[20:32]) if mdhd[0] else struct.unpack(">II", mdhd[12:20])
    (n_entries,) = struct.unpack(">I", stts[4:8])
    entries = list(struct.iter_unpack(">II", stts[8 : 8 + 8 * n_entries]))
    if not entries:
        return None  # its frames are in fragments, or there are none
    tkhd = boxes.get(b"tkhd", b"")
    shown = struct.unpack(">Q", tkhd[28:36])[0] if tkhd[:1] == b"\1" else struct.unpack(">I", tkhd[20:24])[0]
    shown_s = shown / movie_hz if movie_hz and shown not in UNKNOWN_DURATIONS else None
    is_edited = b"elst" in boxes
    if is_edited and movie_hz:
        elst = boxes[b"elst"]
        layout = ">Qqi" if elst[0] else ">Iii"
        (n_edits,) = struct.unpack(">I", elst[4:8])
        n_bytes = struct.calcsize(layout) * n_edits
        edits = list(struct.iter_unpack(layout, elst[8 : 8 + n_bytes])) if len(elst) >= 8 + n_bytes else []
        if any(rate != 1 << 16 for _, start, rate in edits if start >= 0):
            raise ValueError("it plays at another speed")
        lasting = sum(duration for duration, start, _ in edits if start >= 0)
        shown_s = lasting / movie_hz if lasting not in UNKNOWN_DURATIONS else None
    n_sized = struct.unpack(">I", boxes[b"stsz"][8:12])[0] if b"stsz" in boxes else None
    return _Track(
        shown_s,
        is_edited,
        media / media_hz if media not in UNKNOWN_DURATIONS else None,
        sum(count * delta for count, delta in entries) / media_hz,
        sum(count for count, _ in entries),
        n_sized,
        _list_chunks(boxes, n_sized),
    )


def _list_chunks(boxes: dict[bytes, bytes], n_sized: int | None) -> np.ndarray:
    """Where runs of frames begin and end in the file, (chunks, 2) int64; none where the tables are of another kind."""
    offsets_box, stsc, stsz = (
        boxes.get(b"stco", boxes.get(b"co64", b"")),
        boxes.get(b"stsc", b""),
        boxes.get(b"stsz", b""),
    )
    if not offsets_box or len(stsc) < 20 or not n_sized:
        return np.zeros((0, 2), np.int64)
    (n_chunks,) = struct.unpack(">I", offsets_box[4:8])
    starts = np.frombuffer(offsets_box, ">u4" if b"stco" in boxes else ">u8", n_chunks, 8).astype(np.int64)
    (one_size,) = struct.unpack(">I", stsz[4:8])
    runs = np.frombuffer(stsc, ">u4", 3 * struct.unpack(">I", stsc[4:8])[0], 8).reshape(-1, 3).astype(np.int64)
    frames_by_chunk = np.repeat(runs[:, 1], np.diff(np.append(runs[:, 0], n_chunks + 1)))
    if frames_by_chunk.sum() != n_sized or runs[0, 0] != 1:
        raise ValueError("its chunks have other numbers of frames")
    ends = np.cumsum(frames_by_chunk)
    if one_size:
        # Samples of sound as such may be counted one by one here, whatever the size of one is said to be.
        return np.zeros((0, 2), np.int64)
    total = np.concatenate([[0], np.cumsum(np.frombuffer(stsz, ">u4", n_sized, 12).astype(np.int64))])
    return np.stack([starts, starts + total[ends] - total[ends - frames_by_chunk]], 1)


# AVI


def _check_avi(file: BinaryIO, file_bytes: int, path: str | Path) -> Structure:
    """Compare the lengths of the parts with the file: beyond a GiB there are several."""
    at = 0
    for _ in range(MAX_ELEMENTS):
        file.seek(at)
        head = file.read(12)
        if len(head) < 12 or head[:4] != b"RIFF":
            break
        (n_bytes,) = struct.unpack("<I", head[4:8])
        if n_bytes in UNKNOWN_LENGTHS or n_bytes >= UNKNOWN_LENGTH_BYTES:  # its recorder was stopped before its end
            return Structure(("its header states no length, as if its recorder was stopped; what is there is used",))
        end = at + 8 + n_bytes
        if end > file_bytes:
            raise DataError(f"{path} breaks off: {file_bytes} of {end} bytes are there; copy it again or leave it out")
        at = end + n_bytes % 2
    return Structure()


# Matroska and WebM


def _check_matroska(file: BinaryIO, file_bytes: int, path: str | Path) -> Structure:
    """Compare the length of the segment with the file, and checksums with what they are of."""
    file.seek(0)
    is_open_ended, crops = False, list[Crop]()
    for _ in range(MAX_ELEMENTS):
        name, n_bytes = _read_element(file)
        if not name:
            break
        start = file.tell()
        if name == SEGMENT:
            if n_bytes is not None and start + n_bytes > file_bytes:
                raise DataError(
                    f"{path} breaks off: {file_bytes} of {start + n_bytes} bytes are there; copy it again or leave "
                    "it out"
                )
            is_open_ended = n_bytes is None
            continue  # its children follow
        if name == CLUSTER or n_bytes is None:
            break
        if name in CHECKED_ELEMENTS and n_bytes <= MAX_HEADER_BYTES:
            body = file.read(n_bytes)
            if body[:2] == bytes([CRC, 0x84]) and zlib.crc32(body[6:]).to_bytes(4, "little") != body[2:6]:
                raise ValueError(f"the checksum of what it says of its {CHECKED_ELEMENTS[name]} is wrong")
            crops += read_matroska_crops(body) if name == TRACKS else []
        if start + n_bytes > file_bytes:
            break
        file.seek(start + n_bytes)
    return Structure(is_open_ended=is_open_ended, crops=tuple(crops))


def _read_element(file: BinaryIO) -> tuple[bytes, int | None]:
    """Read the name of an element and how long it is, None where it does not say; no name at the end of the file."""
    first = file.read(1)
    n_name = 9 - first[0].bit_length() if first and first[0] else 0
    if not 1 <= n_name <= 4:
        return b"", None
    name = first + file.read(n_name - 1)
    first = file.read(1)
    if not first or not first[0]:
        return b"", None
    n_size = 9 - first[0].bit_length()
    value = first[0] & (0xFF >> n_size)
    for byte in file.read(n_size - 1):
        value = value << 8 | byte
    return name, None if value == (1 << 7 * n_size) - 1 else value
