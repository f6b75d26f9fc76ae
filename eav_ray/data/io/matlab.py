"""Numeric arrays of MATLAB files, v5 to v7.3, of which nobody knows who wrote them.

SciPy and h5py read them (pymatreader, over both, holds an array twice); what is here looks at what a file claims before
they do. A file of some kilobytes may claim, and unpack to, gigabytes, and an HDF5 file may point into other files.
"""

import contextlib
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np
import scipy.io
from scipy.io.matlab import MatReadError, matfile_version

from eav_ray.errors import DAMAGE_ERRORS, DataError, describe_error

MAX_VALUES = 2**28  # values in one array: four times a person of EAV, 2 GiB in double precision
COMPRESSED_ELEMENT, MATRIX_ELEMENT = 15, 14  # types of data elements of a v5 file
HEADER_BYTES = 1024  # bytes of an element that hold its flags, shape, name and the size of its values
# NameError: SciPy 1.17 has a branch that returns what it never set.
MATLAB_READ_ERRORS = (*DAMAGE_ERRORS, MatReadError, NameError, MemoryError, struct.error, zlib.error)


@contextlib.contextmanager
def _translate_errors(path: Path, what: str) -> Iterator[None]:
    """Errors and remarks of the libraries about a damaged file, as one line."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what matters raises; a shape that they remark on is checked here
        try:
            yield
        except DataError:
            raise
        except MATLAB_READ_ERRORS as error:
            raise DataError(f"{path} cannot be read{what} ({describe_error(error)}); download it again") from None


def read_array_shapes(path: Path, names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Shapes of those of the named arrays that a file holds, in MATLAB's order of axes, from its headers alone.

    Raises:
        DataError: No MATLAB file; an array claims more values than `MAX_VALUES`, or is not stored in this file.
    """
    with _translate_errors(path, ""):
        if h5py.is_hdf5(path):  # MATLAB v7.3, which stores axes reversed
            with h5py.File(path, "r") as file:
                shapes_by_name = {k: tuple(reversed(_require_local_array(file, k).shape)) for k in names if k in file}
        else:
            if matfile_version(str(path))[0] == 0:
                raise DataError(f"{path} is a MATLAB v4 file, or none at all; save it as v5 or v7.3")
            shapes_by_name = {name: tuple(map(int, s)) for name, s, _ in scipy.io.whosmat(str(path)) if name in names}
            _check_stated_sizes(path, shapes_by_name)
    for name, shape in shapes_by_name.items():
        if np.prod(shape, dtype=float) > MAX_VALUES:
            raise DataError(
                f"{path}: {name} claims the shape {shape}, more than {MAX_VALUES:,} values; download it again, or cut "
                "the person's recordings into several files and list them with data.dataset=recordings_table"
            )
    return shapes_by_name


def read_array(path: Path, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """One array whose shape `shapes` found.

    Raises:
        DataError: The file is damaged, or the array holds no real numbers.
    """
    with _translate_errors(path, " to its end"):
        if h5py.is_hdf5(path):
            with h5py.File(path, "r") as file:
                values = np.asarray(_require_local_array(file, name)).T
        else:
            values = np.asarray(scipy.io.loadmat(str(path), variable_names=[name])[name])
        values = values.reshape(shape)
    if values.dtype.kind not in "fiu":
        raise DataError(f"{path}: {name} holds {values.dtype}, not real numbers")
    return values


def _require_local_array(file: h5py.File, name: str) -> h5py.Dataset:
    """A dataset whose values lie in this file: HDF5 can point to any other file that the reader may open."""
    link, array = file.get(name, getlink=True), None
    if isinstance(link, h5py.HardLink):
        array = file[name]
    if not isinstance(array, h5py.Dataset) or array.external is not None or array.is_virtual:
        raise DataError(f"{file.filename}: {name} is no array stored in this file; save it from MATLAB again")
    if array.dtype.kind not in "fiu":  # before it is read: h5py takes opaque values for addresses of Python objects
        raise DataError(f"{file.filename}: {name} holds {array.dtype}, not real numbers")
    return array


def _check_stated_sizes(path: Path, shapes_by_name: dict[str, tuple[int, ...]]) -> None:
    """A v5 array states its size as a shape and in bytes; SciPy believes the bytes until it has unpacked them."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(126)
        order = "<" if file.read(2) == b"IM" else ">"
        while len(tag := file.read(8)) == 8:
            kind, length = struct.unpack(order + "II", tag)
            start = file.tell()
            head = file.read(min(length, HEADER_BYTES))
            name, claimed = "", 0
            with contextlib.suppress(struct.error):  # an object of MATLAB's, which is none of the arrays looked for
                if kind == COMPRESSED_ELEMENT:
                    name, claimed = _parse_array_header(zlib.decompressobj().decompress(head, HEADER_BYTES), order)
                elif kind == MATRIX_ELEMENT:
                    name, claimed = _parse_array_header(tag + head, order)
            shape = shapes_by_name.get(name)
            if shape is not None and claimed > 8 * np.prod(shape, dtype=float):
                raise DataError(
                    f"{path}: {name} has the shape {shape}, but claims {claimed:,} bytes; download it again"
                )
            if start + length > size:
                break
            file.seek(start + length)


def _parse_array_header(head: bytes, order: str) -> tuple[str, int]:
    """Name of an array, and the bytes that its values claim, from the beginning of its element."""
    offset, parts = 8, []  # behind the element's own tag: flags, shape, name, values
    for _ in range(3):
        data, offset = _parse_subelement(head, offset, order)
        parts.append(data)
    _, length = _parse_tag(head, offset, order)
    return parts[2].decode("latin-1"), length


def _parse_tag(head: bytes, offset: int, order: str) -> tuple[bool, int]:
    """Whether a part is a short one, with its data inside the tag, and its length in bytes."""
    first, second = struct.unpack_from(order + "II", head, offset)
    return (True, first >> 16) if first >> 16 else (False, second)


def _parse_subelement(head: bytes, offset: int, order: str) -> tuple[bytes, int]:
    short, length = _parse_tag(head, offset, order)
    start = offset + (4 if short else 8)
    return head[start : start + length], offset + 8 if short else start + -(-length // 8) * 8
