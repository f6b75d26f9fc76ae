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
from typing import Any

import h5py
import numpy as np
import scipy.io
import scipy.sparse
from scipy.io.matlab import MatReadError

from eav_ray.data.io import mat5
from eav_ray.data.io.mat5 import ArrayHeader, is_mat5, read_array_headers
from eav_ray.errors import DAMAGE_ERRORS, DataError, describe_error

MAX_VALUES = 2**28  # values in one array: four times a person of EAV, 2 GiB in double precision
# NameError: SciPy 1.17 has a branch that returns what it never set.
MATLAB_READ_ERRORS = (*DAMAGE_ERRORS, MatReadError, NameError, MemoryError, struct.error, zlib.error)

# What is no array of numbers, and which expression of MATLAB makes one of it.
OTHER_KINDS = {
    "cell": ("a cell array", "cell2mat({}) or cat(3, {}{:})"),
    "struct": ("a structure", "the field of it that holds the numbers, under the name {}"),
    "object": ("an object, such as a table, categorical or string", "double({}) or table2array({})"),
    "char": ("text", "the numbers that it stands for"),
    "function": ("a function", "the numbers that it gives"),
    "complex": ("an array of complex numbers", "real({})"),
    "empty": ("empty", "it with its values"),
}
V5_KINDS = {
    mat5.CELL: "cell",
    mat5.STRUCT: "struct",
    mat5.OBJECT: "object",
    mat5.CHAR: "char",
    mat5.FUNCTION: "function",
    mat5.OPAQUE: "object",
}
HDF5_KINDS = {"cell": "cell", "struct": "struct", "char": "char", "string": "object", "function_handle": "function"}
HDF5Item = h5py.Group | h5py.Dataset | h5py.Datatype
SPARSE_PARTS = ("data", "ir", "jc")  # of the group that is a sparse array in HDF5: values, their rows, begin of columns


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
                shapes_by_name = {k: _read_hdf5_shape(file, k) for k in names if k in file}
        else:
            if not is_mat5(path):
                raise DataError(f"{path} is a MATLAB v4 file, or none at all; save it as v5 or v7.3")
            shapes_by_name = _read_v5_shapes(path, names)
    for name, shape in shapes_by_name.items():
        if 0 in shape:
            raise _refuse_kind(path, name, "empty")
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
                group = _find_sparse_group(file, name)
                values = _read_sparse(file, group, name, shape) if group is not None else _read_dense(file, name)
        else:
            values = _fill_in(scipy.io.loadmat(str(path), variable_names=[name])[name])
        values = values.reshape(shape)
    if values.dtype.kind not in "fiub":
        raise DataError(f"{path}: {name} holds {values.dtype}, not real numbers")
    return values


def has_sound_chunks(array: h5py.Dataset) -> bool:
    """Whether the parts of an array of HDF5 can be parts of it: where they have more axes, HDF5 takes all memory."""
    chunks = array.chunks
    return chunks is None or (len(chunks) == array.ndim and np.prod(chunks, dtype=float) <= MAX_VALUES)


def _refuse_kind(path: str | Path, name: str, kind: str) -> DataError:
    """Make the error that says what an array is, and how to save it."""
    what, expression = OTHER_KINDS[kind]
    return DataError(f"{path}: {name} is {what}; save {expression.replace('{}', name)} instead")


def _fill_in(values: Any) -> np.ndarray:
    """Make an array of a sparse one, with its zeros; others stay as they are."""
    if scipy.sparse.issparse(values):
        values.check_format(full_check=True)  # toarray() writes wherever the file says
        values = values.toarray()
    return np.asarray(values)


def _find_sparse_group(file: h5py.File, name: str) -> h5py.Group | None:
    """Find the group that is a sparse array; None where there is none."""
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        return None
    item = file[name]
    return item if isinstance(item, h5py.Group) and "MATLAB_sparse" in item.attrs else None


def _read_hdf5_shape(file: h5py.File, name: str) -> tuple[int, ...]:
    """The shape of an array, sparse or not, in MATLAB's order of axes."""
    group = _find_sparse_group(file, name)
    if group is None:
        return tuple(reversed(_require_local_array(file, name).shape))
    columns = _require_local_array(file, f"{name}/jc").shape
    if len(columns) != 1 or columns[0] > MAX_VALUES:
        raise DataError(f"{file.filename}: {name} has columns of the shape {columns}; save full({name}) instead")
    return int(_read_attribute(group, "MATLAB_sparse") or 0), columns[0] - 1


def _read_dense(file: h5py.File, name: str) -> np.ndarray:
    return np.asarray(_require_local_array(file, name)).T


def _read_sparse(file: h5py.File, group: h5py.Group, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A sparse array; where all of its values are 0, MATLAB writes none, and no rows of them."""
    parts: list[np.ndarray] = []
    for part, kind in zip(SPARSE_PARTS, (np.float64, np.int64, np.int64), strict=True):
        if part != "jc" and part not in group:
            parts.append(np.zeros(0, kind))
            continue
        array = _require_local_array(file, f"{name}/{part}")
        if np.prod(array.shape, dtype=float) > np.prod(shape, dtype=float) + shape[1] + 1:
            raise DataError(
                f"{file.filename}: {name} holds more values than its shape {shape}; save full({name}) instead"
            )
        parts.append(np.asarray(array).astype(kind))
    return _fill_in(scipy.sparse.csc_array(tuple(parts), shape=shape))


def _read_attribute(item: HDF5Item, name: str) -> Any:
    """A text or a number that MATLAB wrote beside an array; None where there is none.

    Its type is looked at before it is read: h5py takes opaque values for addresses of Python objects.
    """
    if name not in item.attrs:
        return None
    stated = item.attrs.get_id(name)
    if stated.shape not in ((), (1,)) or (stated.dtype.kind not in "Siu" and not h5py.check_string_dtype(stated.dtype)):
        return None
    value = np.asarray(item.attrs[name]).reshape(-1)[0]
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _require_local_array(file: h5py.File, name: str) -> h5py.Dataset:
    """A dataset whose values lie in this file: HDF5 can point to any other file that the reader may open."""
    link, array = file.get(name, getlink=True), None
    if isinstance(link, h5py.HardLink):
        array = file[name]
        _refuse_other_kinds(array, file.filename, name)
    if not isinstance(array, h5py.Dataset) or array.external is not None or array.is_virtual:
        raise DataError(f"{file.filename}: {name} is no array stored in this file; save it from MATLAB again")
    if not has_sound_chunks(array):
        raise DataError(f"{file.filename}: {name} has parts of another shape than the whole; download it again")
    if array.dtype.kind not in "fiu":  # before it is read: h5py takes opaque values for addresses of Python objects
        raise DataError(f"{file.filename}: {name} holds {array.dtype}, not real numbers")
    return array


def _refuse_other_kinds(item: HDF5Item, path: str, name: str) -> None:
    """Raise DataError for what MATLAB says is no array of numbers, though HDF5 holds numbers for it."""
    matlab_class = str(_read_attribute(item, "MATLAB_class") or "")
    if "MATLAB_object_decode" in item.attrs:
        raise _refuse_kind(path, name, "object")
    if matlab_class in HDF5_KINDS:
        raise _refuse_kind(path, name, HDF5_KINDS[matlab_class])
    if _read_attribute(item, "MATLAB_empty"):
        raise _refuse_kind(path, name, "empty")
    if isinstance(item, h5py.Dataset) and item.dtype.names and set(item.dtype.names) == {"real", "imag"}:
        raise _refuse_kind(path, name, "complex")


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
            raise _refuse_kind(path, name, V5_KINDS.get(header.array_class, "complex"))
        if header.n_bytes > _count_most_bytes(header):
            raise DataError(
                f"{path}: {name} has the shape {shape}, but claims {header.n_bytes:,} bytes; download it again"
            )
        shapes_by_name[name] = shape
    return shapes_by_name


def _count_most_bytes(header: ArrayHeader) -> float:
    """How many bytes the values of an array may have: 8 each; where it is sparse, a row each and columns too."""
    n_values = np.prod(header.shape, dtype=float)
    return 8 * (2 * n_values + header.shape[-1] + 1) if header.is_sparse else 8 * n_values
