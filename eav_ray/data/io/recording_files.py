"""List the files that make up one recording: the one that a data set names, and those that belong to it.

Many formats of EEG keep their samples beside a header, and long FIF files go on in further files. What a file names is
found as MNE finds it, but from its text and its tags alone: nothing of it is run, and samples are not read.
"""

import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import scipy.io

from eav_ray.data.io.mat5 import check_mat5, is_mat5
from eav_ray.data.io.matlab import MATLAB_READ_ERRORS, has_sound_chunks

MAX_HEADER_BYTES = 2**20  # of a header in text
MAX_SET_BYTES = 2**26  # of an EEGLAB file whose samples lie in another
MAX_NAME_BYTES = 4096
MAX_PARTS = 1000  # of a file that is numbered
MAX_FIF_TAGS = 10_000_000  # in one file
FIFF_REF_ROLE, FIFF_REF_FILE_NUM, FIFF_REF_FILE_NAME, FIFF_NEXT_FILE = 115, 117, 118, 2
# Of files with the same name, by the suffix of the one that a data set names: MNE looks for these.
SIBLING_SUFFIXES = {
    ".vhdr": (".vmrk",),
    ".ahdr": (".amrk",),
    ".set": (".fdt",),
    ".eeg": (".pnt", ".21e", ".log"),  # Nihon Kohden
    ".data": (".head",),  # Nicolet
    ".cdt": (".cdt.dpa", ".cdt.dpo", ".cdt.cef", ".cef"),  # Curry
    ".dap": (".dat", ".rs3", ".cef"),
    ".dat": (".dap", ".rs3", ".cef"),
    ".rs3": (".dat", ".dap", ".cef"),
    ".ns3": (".nev",),  # Blackrock
}
GZIPPED_FIF = ".fif.gz"


def list_sibling_files(path: str) -> tuple[str, ...]:
    """List the files that belong to a file by their names: those that exist; of a folder, all that is in it."""
    if os.path.isdir(path):
        return tuple(sorted(str(p) for p in Path(path).rglob("*") if p.is_file()))
    if path.lower().endswith(GZIPPED_FIF):
        return tuple(_list_numbered_parts(path))
    stem, suffix = os.path.splitext(path)
    found = []
    for ending in SIBLING_SUFFIXES.get(suffix.lower(), ()):
        # On some file systems both spellings are one file, which then counts once.
        found += [p for p in (stem + ending, stem + ending.upper()) if os.path.isfile(p)][:1]
    return tuple(found)


def find_named_files(path: str) -> tuple[str, ...]:
    """Find the files that a file names in its content, whether they exist or not.

    Returns:
        Paths; none where the file cannot be read, which whoever decodes it says.
    """
    find = {
        ".vhdr": _find_brainvision_files,
        ".ahdr": _find_brainvision_files,
        ".lay": _find_persyst_files,
        ".set": _find_eeglab_files,
        ".fif": _find_next_fif,
    }.get(os.path.splitext(path)[1].lower())
    if find is None or not os.path.isfile(path):
        return ()
    try:
        return tuple(dict.fromkeys(name for name in find(path) if "\0" not in name))
    except MATLAB_READ_ERRORS:
        return ()


def _read_header_text(path: str) -> str:
    with open(path, "rb") as file:
        data = file.read(MAX_HEADER_BYTES)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _find_brainvision_files(path: str) -> Iterator[str]:
    for _, name in re.findall(r"(?im)^[ \t]*(DataFile|MarkerFile)[ \t]*=[ \t]*(.*?)[ \t]*$", _read_header_text(path)):
        if name:
            yield os.path.join(os.path.dirname(path), name.rstrip("\r"))


def _find_persyst_files(path: str) -> Iterator[str]:
    for name in re.findall(r"(?im)^[ \t]*File[ \t]*=[ \t]*(.*?)\s*$", _read_header_text(path)):
        if name:
            yield os.path.join(os.path.dirname(path), re.split(r"[\\/]", name)[-1])


def _find_eeglab_files(path: str) -> Iterator[str]:
    name = _read_eeglab_data_name(path)
    if name.lower().endswith(".fdt"):
        yield os.path.join(os.path.dirname(path), name)


def _read_eeglab_data_name(path: str) -> str:
    """Read `EEG.data` or `data` where it is text: the name of the file with the samples; empty where it is samples."""
    if h5py.is_hdf5(path):
        with h5py.File(path, "r") as file:
            for place in ("EEG/data", "data"):
                if isinstance(file.get(place, getlink=True), h5py.HardLink) and _is_text(file[place]):
                    return "".join(map(chr, np.asarray(file[place]).ravel().tolist()))
        return ""
    if not is_mat5(Path(path)) or os.path.getsize(path) > MAX_SET_BYTES:
        return ""
    check_mat5(Path(path))
    names = ["EEG", "data"]
    tree = scipy.io.loadmat(path, variable_names=names, squeeze_me=True, struct_as_record=False)
    data = getattr(tree.get("EEG"), "data", tree.get("data"))
    return str(data) if isinstance(data, str) else ""


def _is_text(found: object) -> bool:
    """Tell whether something in an HDF5 file is a short text of MATLAB's, stored in this file.

    The type comes first: h5py may take opaque values for addresses (`eeg_checks.check_hdf5`).
    """
    return (
        isinstance(found, h5py.Dataset)
        and found.dtype == "uint16"
        and 0 < (found.size or 0) <= MAX_NAME_BYTES
        and found.external is None
        and not found.is_virtual
        and has_sound_chunks(found)
    )


def _find_next_fif(path: str) -> Iterator[str]:
    """Find the file in which a FIF file goes on: by its name, or by its number where there is no name."""
    is_next, name, number = False, "", -1
    with open(path, "rb") as file:
        for _ in range(MAX_FIF_TAGS):
            head = file.read(16)
            if len(head) < 16:
                break
            kind, _, size, following = struct.unpack(">iIii", head)
            if size < 0:
                break
            start = file.tell()
            if kind == FIFF_REF_ROLE and size == 4:
                is_next = struct.unpack(">i", file.read(4).ljust(4, b"\0"))[0] == FIFF_NEXT_FILE
            elif kind == FIFF_REF_FILE_NAME and is_next and size <= MAX_NAME_BYTES:
                name = file.read(size).rstrip(b"\0").decode("latin-1")
            elif kind == FIFF_REF_FILE_NUM and is_next and size == 4:
                number = struct.unpack(">i", file.read(4).ljust(4, b"\0"))[0]
            if following < 0 or 0 < following < start:
                break
            file.seek(following or start + size)
    folder, base = os.path.split(path)
    if name:
        yield os.path.join(folder, name)
    elif number >= 0:
        stem, dot, suffix = base.partition(".")
        yield os.path.join(folder, f"{re.sub(r'-[0-9]+$', '', stem)}-{number}{dot}{suffix}")


def _list_numbered_parts(path: str) -> Iterator[str]:
    """List the further parts of a file by number, as MNE writes them: `a_raw-1.fif.gz`, or `a_split-02_raw.fif.gz`."""
    stem = path[: -len(GZIPPED_FIF)]
    split = re.search(r"split-([0-9]+)", stem)
    for number in range(1, MAX_PARTS):
        if split:
            digits = f"{int(split[1]) + number:0{len(split[1])}}"
            part = f"{stem[: split.start(1)]}{digits}{stem[split.end(1) :]}"
        else:
            part = f"{stem}-{number}"
        if not os.path.isfile(part + path[-len(GZIPPED_FIF) :]):
            return
        yield part + path[-len(GZIPPED_FIF) :]
