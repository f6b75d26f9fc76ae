"""Check the structure of MATLAB v5 files before SciPy reads them.

SciPy 1.17 takes the type of an element for the number of a row in a table, whatever the file says: an unknown one ends
the process. The format: "MAT-File Format", The MathWorks, R2017b, chapter 1.
"""

import io
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from eav_ray.errors import DataError

COMPRESSED, MATRIX = 15, 14  # types of elements
NUMBERS = frozenset({1, 2, 3, 4, 5, 6, 7, 9, 12, 13})
TEXTS = NUMBERS | {16, 17, 18}
WHOLE, BYTES = frozenset({5, 6}), frozenset({1, 2, 16})
CELL, STRUCT, OBJECT, CHAR, SPARSE, FUNCTION, OPAQUE = 1, 2, 3, 4, 5, 16, 17  # classes of arrays
NUMERIC_CLASSES = range(6, 16)
IS_COMPLEX = 0x0800  # of the flags
MAX_DEPTH, MAX_ARRAYS = 64, 5_000_000  # structures within structures; arrays in one, seconds to look at
MAX_HEADER_BYTES = 2**20  # of a shape, a name or the names of fields
HEADER_SIZE, VERSION_AT = 128, 124  # of a file, bytes


@dataclass(frozen=True)
class ArrayHeader:
    """What a file states of an array before its values."""

    name: str
    array_class: int
    shape: tuple[int, ...]
    is_complex: bool
    n_bytes: int  # of its values, and of their places where it is sparse; 0 where they are no numbers

    @property
    def is_real(self) -> bool:
        """Whether it holds real numbers, sparse or not."""
        return (self.is_sparse or self.array_class in NUMERIC_CLASSES) and not self.is_complex

    @property
    def is_sparse(self) -> bool:
        """Whether it holds only the values that are not 0, and where they are."""
        return self.array_class == SPARSE


def is_mat5(path: Path) -> bool:
    """Whether a file begins as a MATLAB v5 file does, whatever its name."""
    with path.open("rb") as file:
        head = file.read(HEADER_SIZE)
    return len(head) == HEADER_SIZE and head[126:] in (b"IM", b"MI") and head[124:126] in (b"\x00\x01", b"\x01\x00")


def check_mat5(path: Path) -> None:
    """Walk through all arrays of a v5 file, without keeping their values.

    Raises:
        DataError: An element has a type that it cannot have, or goes beyond its file.
    """
    for walker in _iterate_arrays(path):
        walker.walk_matrix()


def read_array_headers(path: Path) -> list[ArrayHeader]:
    """Read what a v5 file states of its arrays, and none of their values.

    Raises:
        DataError: As `check_mat5`, of the headers.
    """
    return [walker.read_header() for walker in _iterate_arrays(path)]


def _iterate_arrays(path: Path) -> "Iterator[_Walker]":
    """Yields a walker at the beginning of each array; what it raises becomes an error that names the file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(VERSION_AT)
        order = "<" if file.read(4)[2:] == b"IM" else ">"
        while len(tag := file.read(8)) == 8:
            kind, length = struct.unpack(order + "II", tag)
            end = file.tell() + length
            if end > size:
                raise DataError(f"{path} breaks off: an array goes on beyond its end; download it again")
            if kind not in (COMPRESSED, MATRIX):
                raise DataError(
                    f"{path} is damaged (an element of type {kind} where an array should be); download it again"
                )
            inflated = io.BufferedReader(_Inflated(file, length)) if kind == COMPRESSED else None
            if inflated is None:
                file.seek(-8, io.SEEK_CUR)
            yield _Walker(inflated or file, order, path)
            file.seek(end)


class _Inflated(io.RawIOBase):
    """What a compressed element holds, bit by bit."""

    def __init__(self, file: BinaryIO, length: int) -> None:
        self._file, self._left, self._inflater = file, length, zlib.decompressobj()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        data = b""
        while not data and not self._inflater.eof:
            packed = self._inflater.unconsumed_tail
            if not packed:
                packed = self._file.read(min(self._left, 2**16))
                self._left -= len(packed)
            if not packed:
                break
            data = self._inflater.decompress(packed, len(buffer))
        buffer[: len(data)] = data
        return len(data)


class _Walker:
    """Goes through one array and what it holds, in the order in which it is stored."""

    def __init__(self, file: "BinaryIO | io.BufferedReader", order: str, path: Path) -> None:
        self._file, self._order, self._path, self._n_arrays = file, order, path, 0

    def walk_matrix(self) -> None:
        """Walk through an array, from its tag on.

        Raises:
            DataError: It is not well formed.
        """
        with self._name_file():
            self._walk_matrix(0)

    def read_header(self) -> ArrayHeader:
        """Read what comes before the values of an array.

        Raises:
            DataError: It is not well formed.
        """
        with self._name_file():
            header = self._take_header()
            if header is None:
                return ArrayHeader("", OPAQUE, (), False, 0)
            if header.is_sparse and header.is_real:
                return replace(header, n_bytes=sum(self._skip_data(NUMBERS) for _ in range(3)))
            if header.array_class not in NUMERIC_CLASSES:
                return header
            return replace(header, n_bytes=self._take_tag(NUMBERS)[1])

    @contextmanager
    def _name_file(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, struct.error, zlib.error) as error:
            raise DataError(f"{self._path} is damaged ({error}); download it again") from None

    def _walk_matrix(self, depth: int) -> None:
        self._n_arrays += 1
        if depth > MAX_DEPTH or self._n_arrays > MAX_ARRAYS:
            raise ValueError("structures are nested too deeply, or hold too many arrays")
        header = self._take_header()
        if header is None:
            return
        array_class, count = header.array_class, math.prod(header.shape)
        if array_class == OPAQUE:
            for _ in range(2):  # the system of types, the class
                self._take_data(BYTES)
            self._walk_matrix(depth + 1)
        elif array_class == SPARSE:
            self._skip_data(NUMBERS)
            self._skip_data(NUMBERS)
            self._skip_values(header)
        elif array_class == CHAR:
            self._skip_data(TEXTS)
        elif array_class in NUMERIC_CLASSES:
            self._skip_values(header)
        elif array_class in (CELL, STRUCT, OBJECT):
            if array_class == OBJECT:
                self._take_data(BYTES)  # the name of its class
            if array_class != CELL:
                count *= self._count_fields()
            # The file ends before a number of them that cannot be.
            for _ in range(count):
                self._walk_matrix(depth + 1)
        elif array_class == FUNCTION:
            self._walk_matrix(depth + 1)
        else:
            raise ValueError(f"an array of class {array_class}, which there is not")

    def _count_fields(self) -> int:
        (name_length,) = struct.unpack(self._order + "i", self._take_data(WHOLE, 4))
        names = self._take_data(BYTES)
        if name_length <= 0 or len(names) % name_length:
            raise ValueError("names of fields have no whole length")
        return len(names) // name_length

    def _take_header(self) -> ArrayHeader | None:
        """Take tag, flags, shape and name of an array; None of an empty one, which has none of them."""
        kind, length = struct.unpack(self._order + "II", self._take(8))
        if kind != MATRIX:
            raise ValueError(f"an element of type {kind} where an array should be")
        if length == 0:
            return None
        (flags, _) = struct.unpack(self._order + "II", self._take_data(WHOLE, 8))
        array_class, shape = flags & 0xFF, tuple[int, ...]()
        if array_class != OPAQUE:
            data = self._take_data(WHOLE)
            shape = struct.unpack(f"{self._order}{len(data) // 4}i", data)
            if len(data) % 4 or not shape or min(shape) < 0:
                raise ValueError(f"an array has the shape {shape}")
        name = self._take_data(BYTES).decode("latin-1")
        return ArrayHeader(name, array_class, shape, bool(flags & IS_COMPLEX), 0)

    def _skip_values(self, header: ArrayHeader) -> None:
        for _ in range(2 if header.is_complex else 1):
            self._skip_data(NUMBERS)

    def _take_data(self, allowed: frozenset[int], n_bytes: int = -1) -> bytes:
        """Take the data of a part.

        Args:
            n_bytes: So many it must be, if not -1.
        """
        short, length = self._take_tag(allowed)
        data = short if short is not None else self._take(min(length, MAX_HEADER_BYTES + 1))
        if len(data) > MAX_HEADER_BYTES or n_bytes not in (-1, len(data)):
            raise ValueError(f"a part of a header has {length} bytes")
        if short is None:
            self._take(-length % 8)
        return data

    def _skip_data(self, allowed: frozenset[int]) -> int:
        """Skip the data of a part; returns their length in bytes."""
        short, length = self._take_tag(allowed)
        left = 0 if short is not None else length + -length % 8
        while left:
            left -= len(self._take(min(left, 2**20)))
        return length

    def _take_tag(self, allowed: frozenset[int]) -> tuple[bytes | None, int]:
        """Take a tag: the data of a short part, which lies within it, and the length in bytes."""
        tag = self._take(8)
        first, second = struct.unpack(self._order + "II", tag)
        kind, length = (first & 0xFFFF, first >> 16) if first >> 16 else (first, second)
        if kind not in allowed:
            raise ValueError(f"a part of an array has the type {kind}, which it cannot have")
        if first >> 16 and length > 4:
            raise ValueError("a short part is longer than its tag")
        return (tag[4 : 4 + length] if first >> 16 else None), length

    def _take(self, n_bytes: int) -> bytes:
        data = self._file.read(n_bytes)
        if len(data) < n_bytes:
            raise ValueError("an array goes on beyond its end")
        return data
