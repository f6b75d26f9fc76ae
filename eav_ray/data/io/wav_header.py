"""The header of a WAVE file: whether it is finished, and whether what it says agrees with itself.

libsndfile believes the first of two statements that contradict each other and reads on without a word.
"""

import struct
from pathlib import Path
from typing import BinaryIO, NamedTuple

from eav_ray.errors import DataError

UNKNOWN_LENGTH_BYTES = 0x7FFFF000  # recorders that cannot go back to the header write a length like 0xFFFFFFFF
MAX_CHUNKS = 1000
MAX_DISAGREEMENT_S, MAX_DISAGREEMENT_SHARE = 0.5, 0.2  # of lengths: bytes a second are a mean
PCM, FLOAT, ALAW, MULAW, EXTENSIBLE = 1, 3, 6, 7, 0xFFFE
BITS_BY_CODING = {ALAW: (8,), MULAW: (8,), 2: (4,), 0x11: (4,)}  # 2 and 0x11: ADPCM


class WavHeader(NamedTuple):
    is_unfinished: bool  # it states no length: its recorder was stopped, or could not go back
    has_length_of_zero: bool  # which libsndfile takes at its word
    is_compressed: bool  # in a coding of which libsndfile knows few
    bytes_per_s: int  # 0: nothing confirms its sampling rate
    n_bytes: int  # of samples
    has_rest: bool  # something that is no sound follows the file's stated end


def require_stated_length(header: WavHeader, decoded_s: float, path: str | Path) -> None:
    """Raise DataError where compressed sound lasts otherwise than its bytes a second say: it is of another coding."""
    if header.is_compressed and header.bytes_per_s:
        stated_s = header.n_bytes / header.bytes_per_s
        if abs(decoded_s - stated_s) > MAX_DISAGREEMENT_S + MAX_DISAGREEMENT_SHARE * stated_s:
            reason = f"it states {stated_s:.1f} s of sound, and {decoded_s:.1f} s decode"
            raise DataError(
                f"{path} has a header that contradicts itself ({reason}); save it anew with a sound editor, or leave "
                "it out"
            )


def is_wav(head: bytes) -> bool:
    """Tell by the first 12 bytes whether a file is RIFF, RIFX (big-endian) or RF64 (beyond 4 GiB) with sound."""
    return head[:4] in (b"RIFF", b"RIFX", b"RF64") and head[8:12] == b"WAVE"


def check_wav_header(path: str | Path) -> WavHeader:
    """Walk the chunks of a file.

    Raises:
        DataError: It has no samples, states more of them than there are, or contradicts itself.
    """
    with Path(path).open("rb") as file:
        file_bytes = file.seek(0, 2)
        file.seek(0)
        try:
            return _walk(file, file_bytes, path)
        except DataError:
            raise
        except ValueError as error:
            raise DataError(
                f"{path} has a header that contradicts itself ({error}); save it anew with a sound editor, or leave it "
                "out"
            ) from None


def _walk(file: BinaryIO, file_bytes: int, path: str | Path) -> WavHeader:
    head = file.read(12)
    order = ">" if head[:4] == b"RIFX" else "<"
    riff_end = 8 + struct.unpack(order + "I", head[4:8])[0]
    at, block_bytes, long_bytes = 12, 0, 0
    is_compressed, bytes_per_s = False, 0
    found: WavHeader | None = None
    is_padded = False
    for _ in range(MAX_CHUNKS):
        file.seek(at)
        chunk = file.read(8)
        if len(chunk) < 8:
            break
        name, n_bytes = struct.unpack(order + "4sI", chunk)
        if is_padded and not _is_chunk_name(name) and _has_chunk(file, at - 1, file_bytes, order):
            at, is_padded = at - 1, False  # some writers leave out the byte that makes a length even
            continue
        if found is not None and not _is_chunk_name(name):
            if at < min(riff_end, file_bytes) and not _is_padding(file, at):
                raise ValueError(f"its samples end at byte {at}, and no chunk follows")
            return found._replace(has_rest=not _is_padding(file, at))
        match name:
            case b"ds64":
                long_bytes = struct.unpack("<QQ", file.read(16).ljust(16, b"\0"))[1]
            case b"fmt ":
                block_bytes, is_compressed, bytes_per_s = _check_format(file.read(min(n_bytes, 64)), order)
            case b"data" if found is not None:
                raise ValueError("its samples lie in two places")
            case b"data":
                there = file_bytes - at - 8
                n_bytes = long_bytes if n_bytes == 0xFFFFFFFF and long_bytes else n_bytes
                if not block_bytes:
                    raise ValueError("its samples have no format")
                if n_bytes == 0 and there >= block_bytes and not _has_chunk(file, at + 8, file_bytes, order):
                    return WavHeader(True, True, is_compressed, bytes_per_s, there, False)
                if n_bytes >= UNKNOWN_LENGTH_BYTES and n_bytes > there:
                    return WavHeader(True, False, is_compressed, bytes_per_s, there, False)
                if n_bytes > there:
                    raise DataError(
                        f"{path} breaks off: {there} of {n_bytes} bytes of samples are there; copy it again or leave "
                        "it out"
                    )
                found = WavHeader(False, False, is_compressed, bytes_per_s, n_bytes, False)
        is_padded = bool(n_bytes % 2)
        at += 8 + n_bytes + is_padded
        if at > file_bytes + 1 and found is None:
            raise ValueError(f"its chunk {name!r} is longer than the file")
    if found is None:
        raise DataError(f"{path} holds no audio samples; replace it or leave it out")
    return found


def _check_format(fmt: bytes, order: str) -> tuple[int, bool, int]:
    """Check the numbers that follow from each other.

    Returns:
        The bytes of one sample of all channels, whether they are compressed, and bytes a second as stated.
    """
    if len(fmt) < 16:
        raise ValueError("its format is cut off")
    coding, channels, hz, bytes_per_s, block_bytes, bits = struct.unpack(order + "HHIIHH", fmt[:16])
    if coding == EXTENSIBLE and len(fmt) >= 26:
        (coding,) = struct.unpack(order + "H", fmt[24:26])
    if bits not in BITS_BY_CODING.get(coding, (bits,)):
        raise ValueError(f"coding {coding} has no samples of {bits} bits")
    is_compressed = coding not in (PCM, FLOAT, ALAW, MULAW)
    if not is_compressed:
        if block_bytes != channels * -(-bits // 8) or not block_bytes:
            raise ValueError(f"{channels} channels of {bits} bits are not {block_bytes} bytes a sample")
        if bytes_per_s not in (0, hz * block_bytes):
            raise ValueError(f"{hz} samples a second of {block_bytes} bytes are not {bytes_per_s} bytes a second")
    return max(1, block_bytes), is_compressed, bytes_per_s


def _is_chunk_name(name: bytes) -> bool:
    return all(32 <= byte < 127 for byte in name)


def _has_chunk(file: BinaryIO, at: int, file_bytes: int, order: str) -> bool:
    """Whether a chunk that fits into the file lies at a place."""
    file.seek(at)
    chunk = file.read(8)
    if len(chunk) < 8 or not _is_chunk_name(chunk[:4]):
        return False
    return at + 8 + struct.unpack(order + "I", chunk[4:])[0] <= file_bytes + 1


def _is_padding(file: BinaryIO, at: int) -> bool:
    """Whether only zeros follow, looked for in the next 64 KiB."""
    file.seek(at)
    return not any(file.read(1 << 16))
