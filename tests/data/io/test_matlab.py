"""A MATLAB file is believed only as far as it is consistent, and only what lies in it is read."""

import struct
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
import scipy.sparse

from eav_ray.data.io import mat5, matlab
from eav_ray.data.io.eeg import open_eeg_file
from eav_ray.errors import DataError


def write_v5(path: Path, *, compressed: bool, **arrays: np.ndarray) -> None:
    scipy.io.savemat(path, arrays, do_compression=compressed)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16, np.uint8])
def test_shape_and_values_survive(tmp_path: Path, compressed: bool, dtype: type) -> None:
    values = np.arange(120).reshape(4, 5, 6).astype(dtype)
    write_v5(tmp_path / "a.mat", compressed=compressed, seg=values, other=np.zeros(3))
    assert matlab.read_array_shapes(tmp_path / "a.mat", ["seg", "absent"]) == {"seg": (4, 5, 6)}
    np.testing.assert_array_equal(matlab.read_array(tmp_path / "a.mat", "seg", (4, 5, 6)), values)


def element(kind: int, data: bytes) -> bytes:
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)


def bomb(path: Path, *, shape: tuple[int, int, int], claimed: int, compressed: bool) -> None:
    """A v5 file whose array `seg` has a shape, and claims so many bytes of single precision."""
    flags = element(6, struct.pack("<II", 7, 0))
    body = flags + element(5, struct.pack("<3i", *shape)) + element(1, b"seg")
    body += struct.pack("<II", 7, claimed) + bytes(min(claimed, 4096))
    matrix = struct.pack("<II", 14, len(body)) + body
    if compressed:
        packed = zlib.compress(matrix)
        matrix = struct.pack("<II", 15, len(packed)) + packed
    path.write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x0100) + b"IM" + matrix)


@pytest.mark.parametrize("compressed", [False, True])
def test_more_bytes_than_the_shape_holds_are_refused_unread(tmp_path: Path, compressed: bool) -> None:
    bomb(tmp_path / "a.mat", shape=(10, 30, 2), claimed=2**31, compressed=compressed)
    with pytest.raises(DataError, match=r"a\.mat: seg has the shape .* but claims 2,147,483,648 bytes"):
        matlab.read_array_shapes(tmp_path / "a.mat", ["seg"])


@pytest.mark.parametrize("compressed", [False, True])
def test_a_shape_beyond_any_person_is_refused(tmp_path: Path, compressed: bool) -> None:
    bomb(tmp_path / "a.mat", shape=(100_000, 30, 20_000), claimed=4096, compressed=compressed)
    with pytest.raises(DataError, match="more than 268,435,456 values"):
        matlab.read_array_shapes(tmp_path / "a.mat", ["seg"])


def test_an_hdf5_shape_beyond_any_person_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.mat", "w") as file:
        file.create_dataset("seg", shape=(20_000, 30, 100_000), dtype="f4", chunks=(1, 30, 1000))
    assert (tmp_path / "a.mat").stat().st_size < 100_000
    with pytest.raises(DataError, match="more than 268,435,456 values"):
        matlab.read_array_shapes(tmp_path / "a.mat", ["seg"])


@pytest.mark.parametrize("kind", ["external link", "soft link", "external storage", "virtual", "group"])
def test_hdf5_that_points_elsewhere_is_not_followed(tmp_path: Path, kind: str) -> None:
    with h5py.File(tmp_path / "secret.h5", "w") as other:
        other["x"] = np.zeros((2, 30, 10))
    (tmp_path / "secret.bin").write_bytes(bytes(4800))
    with h5py.File(tmp_path / "a.mat", "w") as file:
        match kind:
            case "external link":
                file["seg"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "x")
            case "soft link":
                file["seg"] = h5py.SoftLink("/other")
            case "external storage":
                where = [(str(tmp_path / "secret.bin"), 0, 4800)]
                file.create_dataset("seg", (2, 30, 10), "f8", external=where)
            case "virtual":
                layout = h5py.VirtualLayout((2, 30, 10), "f8")
                layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "x", (2, 30, 10))
                file.create_virtual_dataset("seg", layout)
            case _:
                file.create_group("seg")
    with pytest.raises(DataError, match="no array stored in this file"):
        matlab.read_array_shapes(tmp_path / "a.mat", ["seg"])


def test_cells_and_text_are_no_signal(tmp_path: Path) -> None:
    scipy.io.savemat(tmp_path / "a.mat", {"seg": np.array([["x"]], dtype=object)})
    with pytest.raises(DataError, match=r"a\.mat"):
        matlab.read_array(tmp_path / "a.mat", "seg", matlab.read_array_shapes(tmp_path / "a.mat", ["seg"])["seg"])


def write_element_type(path: Path, kind: int, *, compressed: bool) -> None:
    """Write a file whose array says that its values are of a type."""
    body = element(6, struct.pack("<II", 7, 0)) + element(5, struct.pack("<3i", 2, 3, 4)) + element(1, b"seg")
    matrix = element(14, body + element(kind, bytes(96)))
    if compressed:
        packed = zlib.compress(matrix)
        matrix = struct.pack("<II", 15, len(packed)) + packed
    path.write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x0100) + b"IM" + matrix)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kind", [0, 8, 14, 15, 19, 115, 0x0107])
def test_a_type_that_is_none_is_refused_before_scipy_sees_it(tmp_path: Path, kind: int, compressed: bool) -> None:
    """SciPy 1.17 ends the process at it."""
    write_element_type(tmp_path / "a.mat", kind, compressed=compressed)
    with pytest.raises(DataError, match=rf"a\.mat is damaged \(a part of an array has the type {kind}, which"):
        matlab.read_array_shapes(tmp_path / "a.mat", ["seg"])
    with pytest.raises(DataError, match=rf"the type {kind}, which"):
        mat5.check_mat5(tmp_path / "a.mat")


KINDS: dict[str, tuple[Any, str]] = {
    "complex": (np.ones((2, 3)) * 1j, r"seg is an array of complex numbers; save real\(seg\) instead"),
    "sparse and complex": (scipy.sparse.eye(3, format="csc") * 1j, r"array of complex numbers; save real\(seg\)"),
    "text": ("text", "seg is text; save the numbers that it stands for"),
    "structure": ({"a": 1}, "seg is a structure; save the field of it that holds the numbers, under the name seg"),
    "cell": (np.array([1, "x"], object), r"seg is a cell array; save cell2mat\(seg\) or cat\(3, seg\{:\}\) instead"),
    "empty": (np.zeros((0, 30, 6)), "seg is empty; save it with its values"),
    "object": (
        scipy.io.matlab.MatlabObject(np.zeros((1, 1), [("a", "O")]), "ours"),
        r"seg is an object, such as a table, categorical or string; save double\(seg\) or table2array\(seg\) instead",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_holds_no_real_numbers_is_refused_unread_with_the_way_to_save_it(tmp_path: Path, kind: str) -> None:
    values, words = KINDS[kind]
    scipy.io.savemat(tmp_path / "a.mat", {"seg": values})
    with pytest.raises(DataError, match=rf"a\.mat: {words}" if words.startswith("seg") else words):
        matlab.read_array_shapes(tmp_path / "a.mat", ["seg"])


def test_an_array_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    write_v5(tmp_path / "a.mat", compressed=False, seg=np.ones((2, 3)))
    whole = (tmp_path / "a.mat").read_bytes()
    (tmp_path / "a.mat").write_bytes(whole + whole[128:])
    with pytest.raises(DataError, match="holds seg twice"):
        matlab.read_array_shapes(tmp_path / "a.mat", ["seg"])


@pytest.mark.parametrize("compressed", [False, True])
def test_whatever_scipy_writes_is_well_formed(tmp_path: Path, compressed: bool) -> None:
    deep = {"chanlocs": [{"labels": f"E{k}", "X": k / 3, "urchan": []} for k in range(9)], "data": np.ones((3, 40))}
    tree = {"EEG": deep, "cells": np.array([np.arange(3), "ä", [[]], 1j], object), "sparse": scipy.sparse.eye(5) * 1.0}
    scipy.io.savemat(tmp_path / "a.mat", tree, do_compression=compressed)
    assert mat5.is_mat5(tmp_path / "a.mat")
    mat5.check_mat5(tmp_path / "a.mat")
    (tmp_path / "b.mat").write_bytes((tmp_path / "a.mat").read_bytes()[:-20])
    with pytest.raises(DataError, match=r"b\.mat breaks off"):
        mat5.check_mat5(tmp_path / "b.mat")


def test_an_array_of_one_axis_and_flags_of_another_writer_are_read(tmp_path: Path) -> None:
    body = element(5, struct.pack("<II", 6, 0)) + element(5, struct.pack("<i", 4)) + element(1, b"seg")
    matrix = element(14, body + element(9, np.arange(4.0).tobytes()))
    path = tmp_path / "a.mat"
    path.write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x0100) + b"IM" + matrix)
    assert matlab.read_array_shapes(path, ["seg"]) == {"seg": (4,)}
    np.testing.assert_array_equal(matlab.read_array(path, "seg", (4,)), np.arange(4.0))


def test_files_that_matlab_wrote_are_well_formed() -> None:
    """SciPy brings some along, of many versions and on many processors."""
    folder = Path(scipy.io.__file__).parent / "matlab/tests/data"
    if not folder.is_dir():
        pytest.skip("this SciPy came without its tests")
    names = [p for p in sorted(folder.glob("test*.mat")) if mat5.is_mat5(p)]
    assert len(names) > 50
    for path in names:
        mat5.check_mat5(path)


def test_hdf5_whose_parts_have_more_axes_than_the_whole_is_refused(tmp_path: Path) -> None:
    """HDF5 takes memory for it until there is none."""
    path = tmp_path / "a.mat"
    with h5py.File(path, "w") as file:
        file.create_dataset("seg", data=np.ones((3, 30, 40), np.float32), chunks=(2, 30, 40), compression="gzip")
    whole = bytearray(path.read_bytes())
    at = whole.index(struct.pack("<BBBB4xQQQ", 1, 3, 1, 0, 3, 30, 40))  # version, rank, flags: a dataspace message
    whole[at + 1] = 1
    path.write_bytes(whole)
    with pytest.raises(DataError, match="parts of another shape"):
        matlab.read_array_shapes(path, ["seg"])
    path.rename(tmp_path / "a.set")
    with pytest.raises(DataError, match="parts of another shape"):
        open_eeg_file(tmp_path / "a.set")


def write_opaque(path: Path) -> None:
    """Write what MATLAB writes of a table: an object of a class that the file does not describe."""
    body = element(6, struct.pack("<II", 17, 0)) + element(1, b"seg") + element(1, b"MCOS") + element(1, b"table")
    path.write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x0100) + b"IM" + element(14, body))


def test_a_table_of_matlab_is_refused_with_the_way_to_save_it(tmp_path: Path) -> None:
    write_opaque(tmp_path / "a.mat")
    with pytest.raises(
        DataError, match=r"seg is an object, such as a table, .*; save double\(seg\) or table2array\(seg\)"
    ):
        matlab.read_array_shapes(tmp_path / "a.mat", ["seg"])


def write_sparse_v73(path: Path, matrix: scipy.sparse.csc_array, **changed: np.ndarray | None) -> None:
    parts = {"data": matrix.data, "ir": matrix.indices.astype(np.uint64), "jc": matrix.indptr.astype(np.uint64)}
    with h5py.File(path, "w", userblock_size=512) as file:
        group = file.create_group("label")
        group.attrs["MATLAB_sparse"], group.attrs["MATLAB_class"] = np.uint64(matrix.shape[0]), np.bytes_("double")
        for name, values in (parts | changed).items():
            if values is not None:
                group[name] = values


@pytest.mark.parametrize("version", ["v5", "v5 compressed", "v7.3"])
@pytest.mark.parametrize("dtype", [float, bool])
@pytest.mark.parametrize("shape", [(10, 7), (7, 10), (10, 1)])
def test_sparse_arrays_are_read(tmp_path: Path, version: str, dtype: type, shape: tuple[int, int]) -> None:
    values = np.random.default_rng(0).random(shape) > 0.7
    values[:, 0] = False
    matrix, path = scipy.sparse.csc_array(values.astype(dtype)), tmp_path / "a.mat"
    if version == "v7.3":
        write_sparse_v73(path, scipy.sparse.csc_array(values.astype(np.uint8 if dtype is bool else float)))
    else:
        scipy.io.savemat(path, {"label": matrix}, do_compression=version.endswith("compressed"))
    assert matlab.read_array_shapes(path, ["label"]) == {"label": shape}
    np.testing.assert_array_equal(matlab.read_array(path, "label", shape), values.astype(float))


def test_a_sparse_array_of_nothing_is_zero(tmp_path: Path) -> None:
    write_sparse_v73(tmp_path / "a.mat", scipy.sparse.csc_array((10, 4)), data=None, ir=None)
    assert matlab.read_array_shapes(tmp_path / "a.mat", ["label"]) == {"label": (10, 4)}
    assert not matlab.read_array(tmp_path / "a.mat", "label", (10, 4)).any()


@pytest.mark.parametrize(
    "changed",
    [
        {"ir": np.array([0, 2**40, 2], np.uint64)},  # where a value would be written that is not this array's
        {"ir": np.array([0, 2**63, 2], np.uint64)},
        {"jc": np.array([0, 1, 2, 2**40], np.uint64)},
        {"jc": np.array([0, 3, 1, 3], np.uint64)},
        {"jc": np.array([[0, 1, 2, 3]], np.uint64)},
        {"data": np.ones(2)},
        {"data": np.ones(1000), "ir": np.zeros(1000, np.uint64)},
        {"ir": None},
    ],
    ids=str,
)
def test_a_sparse_array_that_points_elsewhere_is_refused(tmp_path: Path, changed: dict[str, Any]) -> None:
    write_sparse_v73(tmp_path / "a.mat", scipy.sparse.csc_array(np.eye(3)), **changed)
    with pytest.raises(DataError, match=r"a\.mat"):
        shape = matlab.read_array_shapes(tmp_path / "a.mat", ["label"])["label"]
        matlab.read_array(tmp_path / "a.mat", "label", shape)


def test_a_sparse_array_of_v5_that_points_elsewhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, {"label": scipy.sparse.csc_array(np.eye(3))})
    whole, rows = path.read_bytes(), struct.pack("<3i", 0, 1, 2)
    assert whole.count(rows) == 2  # the rows, and the beginning of the columns
    path.write_bytes(whole.replace(rows, struct.pack("<3i", 0, 1, 2**30), 1))
    with pytest.raises(DataError, match=r"a\.mat cannot be read to its end"):
        matlab.read_array(path, "label", (3, 3))


def test_a_sparse_array_that_claims_too_much_is_refused_unread(tmp_path: Path) -> None:
    body = element(6, struct.pack("<II", 5, 0)) + element(5, struct.pack("<2i", 10, 3)) + element(1, b"label")
    body += element(5, bytes(2**20)) + element(5, bytes(16)) + element(9, bytes(8))
    packed = zlib.compress(element(14, body))
    path = tmp_path / "a.mat"
    path.write_bytes(
        b"MATLAB 5.0 MAT-file".ljust(124)
        + struct.pack("<H", 0x0100)
        + b"IM"
        + struct.pack("<II", 15, len(packed))
        + packed
    )
    with pytest.raises(DataError, match=r"label has the shape \(10, 3\), but claims 1,048,600 bytes"):
        matlab.read_array_shapes(path, ["label"])
    scipy.io.savemat(path, {"label": scipy.sparse.csc_array((100_000, 100_000))})
    with pytest.raises(DataError, match="more than 268,435,456 values"):
        matlab.read_array_shapes(path, ["label"])


def write_hdf5(path: Path, values: np.ndarray, **attributes: Any) -> None:
    with h5py.File(path, "w", userblock_size=512) as file:
        file.create_dataset("seg", data=values).attrs.update(attributes)


@pytest.mark.parametrize(
    ("values", "attributes", "words"),
    [
        (np.zeros((4, 2), np.uint16), {"MATLAB_class": np.bytes_("char")}, "seg is text"),
        (np.zeros((4, 2), np.uint64), {"MATLAB_class": np.bytes_("cell")}, "seg is a cell array"),
        (np.zeros(6, np.uint32), {"MATLAB_class": np.bytes_("table"), "MATLAB_object_decode": 3}, "seg is an object"),
        (np.array([0, 30], np.uint64), {"MATLAB_class": np.bytes_("double"), "MATLAB_empty": 1}, "seg is empty"),
        (np.zeros(3, [("real", "f8"), ("imag", "f8")]), {"MATLAB_class": np.bytes_("double")}, "of complex numbers"),
    ],
)
def test_what_hdf5_stores_as_numbers_is_believed_to_be_what_matlab_says(
    tmp_path: Path, values: np.ndarray, attributes: dict[str, Any], words: str
) -> None:
    """Text, objects and empty arrays are whole numbers in the file."""
    write_hdf5(tmp_path / "a.mat", values, **attributes)
    with pytest.raises(DataError, match=words):
        matlab.read_array_shapes(tmp_path / "a.mat", ["seg"])


def test_an_attribute_of_opaque_values_is_not_read(tmp_path: Path) -> None:
    write_hdf5(tmp_path / "a.mat", np.zeros((2, 3)))
    with h5py.File(tmp_path / "a.mat", "r+") as file:
        address = np.zeros((), h5py.opaque_dtype(np.dtype("datetime64[s]")))
        file["seg"].attrs.create("MATLAB_class", address, dtype=address.dtype)
    assert matlab.read_array_shapes(tmp_path / "a.mat", ["seg"]) == {"seg": (3, 2)}
