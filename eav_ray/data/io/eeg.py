"""Read the EEG of one file through MNE.

What is done to it then: `data/preprocessing/eeg_clean.py`, `data/preprocessing/eeg_official.py`.
"""

import configparser
import mmap
import warnings
from collections.abc import Sequence
from pathlib import Path

import h5py
import mne
import numpy as np

from eav_ray.data.io.mat5 import check_mat5, is_mat5
from eav_ray.data.io.matlab import MATLAB_READ_ERRORS, has_sound_chunks
from eav_ray.data.recordings import RawEEG
from eav_ray.errors import DataError, describe_error

# What MNE's many readers raise on damaged files. MNE has no error class of its own for that.
READ_ERRORS = (*MATLAB_READ_ERRORS, AssertionError, configparser.Error)


# Of files that `mne.io.read_raw` opens; of those in several parts the one that names the others.
SIGNAL_SUFFIXES = (".edf", ".bdf", ".gdf", ".vhdr", ".set", ".fif", ".cnt")

NUMPY_TAG_PREFIX = b"NUMPY:"  # begins a tag of h5py


def open_eeg_file(path: str | Path) -> mne.io.BaseRaw:
    """Open a file of any format that `mne.io.read_raw` knows, without loading its samples.

    Raises:
        DataError: The file is missing, damaged, or of a format that MNE does not know.
    """
    if not Path(path).is_file():
        raise DataError(f"{path} is missing; expected an EEG file that mne.io.read_raw opens")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if h5py.is_hdf5(path):
                _check_hdf5(Path(path))
            elif is_mat5(Path(path)):
                check_mat5(Path(path))
            raw = _open_by_suffix(Path(path))
    except READ_ERRORS as error:
        raise DataError(f"{path} cannot be read as EEG ({describe_error(error)}); replace it or leave it out") from None
    if any("does not match the file size" in str(w.message) for w in caught):
        raw.close()
        raise DataError(f"{path} breaks off, or goes on: it is not as long as its header says; copy it again")
    return raw


def _check_hdf5(path: Path) -> None:
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


def _open_by_suffix(path: Path) -> mne.io.BaseRaw:
    match path.suffix.lower():
        case ".edf":
            # latin1 decodes any byte: for others MNE raises a bare Exception, and annotations are not used here.
            return mne.io.read_raw_edf(path, encoding="latin1", preload=False, verbose="WARNING")
        case ".bdf":
            return mne.io.read_raw_bdf(path, encoding="latin1", preload=False, verbose="WARNING")
        case _:
            return mne.io.read_raw(path, preload=False, verbose="WARNING")


def read_eeg_file(path: str | Path, channels: Sequence[str]) -> RawEEG:
    """Read the named channels of a file, in that order.

    MNE hands out volts; they become microvolts here, so that later steps need not guess.

    Returns:
        `values_CT` float64 (len(channels), samples), microvolts.
    Raises:
        DataError: As `open_eeg_file`; or a channel is missing.
    """
    raw = open_eeg_file(path)
    missing = [name for name in channels if name not in raw.ch_names]
    if missing:
        raise DataError(
            f"{path} has no channel {', '.join(missing)}; it has {', '.join(raw.ch_names)}; "
            "all recordings of a data set need the same channels"
        )
    try:
        return read_channels(raw, channels, str(path))
    finally:
        raw.close()


def read_channels(raw: mne.io.BaseRaw, channels: Sequence[str], source: str) -> RawEEG:
    """Read the named channels of an object of MNE, which it has, in that order.

    Args:
        raw: It hands out volts, whatever its file holds.
        channels: Names.
        source: What it is called in the error.

    Returns:
        `values_CT` float64 (len(channels), samples), microvolts.

    Raises:
        DataError: The samples cannot be read.
    """
    try:
        values_CT = np.asarray(raw.get_data(picks=np.array(channels), verbose="ERROR"), dtype=np.float64) * 1e6
    except READ_ERRORS as error:
        raise DataError(
            f"{source} cannot be read to its end ({describe_error(error)}); replace it or leave it out"
        ) from None
    return RawEEG(values_CT, float(raw.info["sfreq"]), tuple(channels), "microvolt")
