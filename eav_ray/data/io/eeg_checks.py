"""Look at EEG files before they are read: what could hang or run code, and whether their samples are all there."""

import mmap
import os
from pathlib import Path

import h5py
import mne

from eav_ray.data.io.matlab import has_sound_chunks
from eav_ray.errors import DataError

# What laboratories have and MNE does not open as one file: what it is, and how to convert it.
OTHER_FORMATS = {
    ".mff": (
        "a recording of EGI",
        "export it from Net Station as EDF+, or save it once by mne.io.read_raw_egi(...).save('NAME_raw.fif')",
    ),
    ".nwb": (
        "a file of Neurodata Without Borders",
        "read its ElectricalSeries by pynwb, and save it as FIF (mne.io.RawArray(...).save) or EDF",
    ),
    ".xdf": (
        "a file of the Lab Streaming Layer, whose streams have clocks of their own",
        "load it by pyxdf or MNELAB, and save the stream of EEG as FIF or EDF",
    ),
    ".avg": ("an average of Neuroscan and no recording", "give the .cnt file that it was made of"),
}
OTHER_FORMATS[".xdfz"] = OTHER_FORMATS[".xdf"]
NEUROSCAN_HEAD, RIFF_HEADS = b"Version 3", (b"RIFF", b"RF64")
NUMPY_TAG_PREFIX = b"NUMPY:"  # begins a tag of h5py
FDT_SAMPLE_BYTES = 4


def check_format(path: Path) -> None:
    """Check that a path is none of a format that laboratories have and that is not read.

    Raises:
        DataError: It is; says how to convert it.
    """
    what, way = OTHER_FORMATS.get(path.suffix.lower(), ("", ""))
    if path.suffix.lower() == ".eeg" and os.path.isfile(path):
        if header := next(
            (p for p in (path.with_suffix(".vhdr"), path.with_suffix(".VHDR")) if os.path.isfile(p)), None
        ):
            what, way = "the samples of a BrainVision recording", f"give its header, {header.name}"
        elif _read_head(path).startswith(NEUROSCAN_HEAD):
            what, way = "epochs of Neuroscan and no recording", "give the .cnt file that they were cut from"
    elif path.suffix.lower() == ".cnt" and os.path.isfile(path) and _read_head(path).startswith(RIFF_HEADS):
        what, way = "a recording of ANT Neuro", "export it as EDF or BrainVision (eego, asa)"
    if what:
        raise DataError(f"{path} is {what}, which is not read; {way}")


def _read_head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(16)
    except OSError:  # whoever opens it says so
        return b""


def check_fif(path: Path) -> None:
    """Refuse a FIF file whose tags lead back to one before, which MNE would follow without end.

    Raises:
        ValueError: They do.
    """
    seen: set[int] = set()
    place = 0
    with path.open("rb") as file:
        while place not in seen:
            seen.add(place)
            file.seek(place)
            head = file.read(16)
            if len(head) < 16:
                return
            size, following = (
                int.from_bytes(head[8:12], "big", signed=True),
                int.from_bytes(head[12:], "big", signed=True),
            )
            place = following if following else place + 16 + size
            if following < 0 or place < 0:
                return
    raise ValueError("its tags lead in a circle")


def check_hdf5(path: Path) -> None:
    """Refuse an HDF5 file that could make h5py, through which MNE reads it, follow an address that the file states.

    HDF5 can hold opaque values with a tag. Those that a tag declares to be objects of NumPy are taken into memory as
    they are: as addresses of Python objects, so that whoever wrote the file says what is run.

    Raises:
        ValueError: There is such a tag somewhere, a link to another file, where there may be one, or an array
            whose parts are of another shape.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data.find(NUMPY_TAG_PREFIX) >= 0:
            raise ValueError("it holds values of no type that EEG has, which can run code when they are read")
    with h5py.File(path, "r") as links:
        if links.visititems_links(lambda _, link: isinstance(link, h5py.ExternalLink) or None):
            raise ValueError("it points into another file")
        if links.visititems(lambda _, found: (isinstance(found, h5py.Dataset) and not has_sound_chunks(found)) or None):
            raise ValueError("an array in it has parts of another shape than the whole")


def check_set_samples(raw: mne.io.BaseRaw, path: Path) -> None:
    """Check that the samples beside an EEGLAB file (.fdt) are as many as it states.

    Raises:
        DataError: They are not.
    """
    data = next((Path(name) for name in raw.filenames if name and Path(name).suffix.lower() == ".fdt"), None)
    if data is None:
        return
    stated, there = FDT_SAMPLE_BYTES * len(raw.ch_names) * len(raw.times), data.stat().st_size
    if stated != there:
        raise DataError(f"{path} states {stated} bytes of samples, and {data} has {there}; copy both again")
