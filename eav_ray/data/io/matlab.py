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
from scipy.io.matlab import MatReadError

from eav_ray.data.io.mat5 import is_mat5, read_array_headers
from eav_ray.errors import DAMAGE_ERRORS, DataError, describe_error

MAX_VALUES = 2**28  # values in one array: four times a person of EAV, 2 GiB in double precision
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
            if not is_mat5(path):
                raise DataError(f"{path} is a MATLAB v4 file, or none at all; save it as v5 or v7.3")
            shapes_by_name = _read_v5_shapes(path, names)
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


def has_sound_chunks(array: h5py.Dataset) -> bool:
    """Whether the parts of an array of HDF5 can be parts of it: where they have more axes, HDF5 takes all memory."""
    chunks = array.chunks
    return chunks is None or (len(chunks) == array.ndim and np.prod(chunks, dtype=float) <= MAX_VALUES)


def _require_local_array(file: h5py.File, name: str) -> h5py.Dataset:
    """A dataset whose values lie in this file: HDF5 can point to any other file that the reader may open."""
    link, array = file.get(name, getlink=True), None
    if isinstance(link, h5py.HardLink):
        array = file[name]
    if not isinstance(array, h5py.Dataset) or array.external is not None or array.is_virtual:
        raise DataError(f"{file.filename}: {name} is no array stored in this file; save it from MATLAB again")
    if not has_sound_chunks(array):
        raise DataError(f"{file.filename}: {name} has parts of another shape than the whole; download it again")
    if array.dtype.kind not in "fiu":  # before it is read: h5py takes opaque values for addresses of Python objects
        raise DataError(f"{file.filename}: {name} holds {array.dtype}, not real numbers")
    return array


def _read_v5_shapes(path: Path, names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """An array states its size as a shape and in bytes; SciPy believes the bytes until it has unpacked them."""
    shapes_by_name: dict[str, tuple[int, ...]] = {}
    for header in read_array_headers(path):
        name, shape = header.name, header.shape
        if name not in names:
            continue
        if name in shapes_by_name:
            raise DataError(f"{path} holds {name} twice; save it from MATLAB again")
        if not header.is_real:
            raise DataError(f"{path}: {name} holds no real numbers; save it from MATLAB again")
        if header.n_bytes > 8 * np.prod(shape, dtype=float):
            raise DataError(
                f"{path}: {name} has the shape {shape}, but claims {header.n_bytes:,} bytes; download it again"
            )
        shapes_by_name[name] = shape
    return shapes_by_name
