"""Read which channels and samples an EEGLAB file (.set) calls bad, which MNE does not hand on.

EEGLAB itself, clean_rawdata and PREP keep it in `chanlocs`, `reject` and `etc`.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import scipy.io

from eav_ray.data.io.matlab import has_sound_chunks

Tree = Mapping[str, Any]

PARTS = ("chanlocs", "reject", "etc")
MAX_FLAGS = 2**28  # of one array
BAD_WORDS = ("bad", "1", "true", "yes")
REJECTED_CHANNELS = re.compile(r"rej(?:manual|jp|kurt|thresh|const|freq|global)E")
# What PREP writes; a channel that was interpolated holds nothing of its own.
PREP_LISTS = {"interpolatedChannelNumbers": "interpolated by PREP", "stillNoisyChannelNumbers": "noisy, as PREP found"}


class EEGLABFlags(NamedTuple):
    """What a file says is not to be used.

    Attributes:
        bad_channels: Positions of channels, from 0, and which field says so.
        bad_samples: Spans of samples.
        cuts: (sample, number): before this sample so many were cut out.
        remarks: What a field says that cannot be used, in a line each.
    """

    bad_channels: Mapping[int, str] = {}
    bad_samples: tuple[tuple[int, int], ...] = ()
    cuts: tuple[tuple[int, int], ...] = ()
    remarks: tuple[str, ...] = ()


def read_flags(path: Path, n_channels: int, n_times: int) -> EEGLABFlags:
    """Read what the fields of a file that MNE opens say of its channels and samples.

    Args:
        path: A file that `eeg_checks` lets through.
    Raises:
        Exception: As SciPy and h5py raise it of a damaged file.
    """
    tree = _read_hdf5(path) if h5py.is_hdf5(path) else _read_v5(path)
    etc, reject = (part if isinstance(part, Mapping) else {} for part in (tree.get("etc"), tree.get("reject")))
    bad: dict[int, str] = {}
    remarks: list[str] = []

    def add(flags: np.ndarray, field: str) -> None:
        if not flags.any():
            return
        if len(flags) != n_channels:
            remarks.append(f"EEG.{field} is of {len(flags)} channels, the recording of {n_channels}: it is not used")
            return
        for i in np.flatnonzero(flags).tolist():
            bad.setdefault(i, f"bad in EEG.{field}")

    for field, words in _list_location_flags(tree.get("chanlocs")).items():
        add(np.array([_is_true(word) for word in words]), f"chanlocs.{field}")
    for field, values in reject.items():
        if REJECTED_CHANNELS.fullmatch(field):
            add(_to_flags(values), f"reject.{field}")
    if n_components := int(_to_flags(reject.get("gcompreject")).sum()):
        remarks.append(
            f"EEG.reject.gcompreject marks {n_components} components of an ICA, which are not taken out: do it in "
            "EEGLAB, or see preprocessing.eeg.artefacts"
        )
    is_good = _to_flags(etc.get("clean_channel_mask"))
    if is_good.sum() != n_channels or len(is_good) == n_channels:  # else those that were bad are gone
        add(~is_good, "etc.clean_channel_mask")
    prep = etc.get("noiseDetection")
    for field, why in PREP_LISTS.items():
        for number in _to_numbers(prep.get(field)) if isinstance(prep, Mapping) else ():
            if 1 <= number <= n_channels:
                bad.setdefault(int(number) - 1, why)
    bad_samples, cuts = _read_sample_mask(_to_flags(etc.get("clean_sample_mask")), n_times, remarks)
    return EEGLABFlags(bad, bad_samples, cuts, tuple(remarks))


def _read_sample_mask(
    is_good: np.ndarray, n_times: int, remarks: list[str]
) -> tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]]:
    """Read the mask of clean samples: of those that are there, or of those that were there before some were cut out."""
    if is_good.all():
        return (), ()
    edges = np.flatnonzero(np.diff(is_good, prepend=True, append=True)).tolist()
    spans = list(zip(edges[::2], edges[1::2], strict=True))
    if len(is_good) == n_times:
        return tuple(spans), ()
    if is_good.sum() != n_times:
        remarks.append(
            f"EEG.etc.clean_sample_mask is of {len(is_good)} samples, {int(is_good.sum())} of them good, the recording "
            f"of {n_times}: it is not used"
        )
        return (), ()
    n_kept = np.cumsum(is_good)
    return (), tuple((int(n_kept[first - 1]) if first else 0, last - first) for first, last in spans)


def _list_location_flags(found: Any) -> dict[str, Sequence[Any]]:
    """List what `chanlocs` says of each channel, by field: `badchan`, and `status` as BIDS has it."""
    if isinstance(found, Mapping):  # of one channel, or of lists of all
        labels = found.get("labels")
        locations = [found]
        if isinstance(labels, list | np.ndarray):
            columns = {k: v for k, v in found.items() if isinstance(v, list | np.ndarray) and len(v) == len(labels)}
            return {field: list(columns[field]) for field in ("badchan", "status") if field in columns}
    else:
        locations = [x for x in found if isinstance(x, Mapping)] if isinstance(found, list | np.ndarray) else []
    return {
        field: [location.get(field) for location in locations]
        for field in ("badchan", "status")
        if any(field in location for location in locations)
    }


def _is_true(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip().lower() in BAD_WORDS
    return bool(_to_flags(value).any())


def _to_flags(value: Any) -> np.ndarray:
    """Read an array of numbers as flags, (n,) bool; empty where it is something else."""
    return _to_numbers(value) != 0


def _to_numbers(value: Any) -> np.ndarray:
    numbers = np.asarray([] if value is None else value)
    return np.nan_to_num(numbers.astype(np.float64).ravel()) if numbers.dtype.kind in "fiub" else np.zeros(0)


def _read_v5(path: Path) -> Tree:
    tree = scipy.io.loadmat(str(path), variable_names=["EEG", *PARTS], simplify_cells=True)
    for _ in range(2):  # it may lie in itself
        tree = tree["EEG"] if isinstance(tree.get("EEG"), Mapping) else tree
    return tree


def _read_hdf5(path: Path) -> Tree:
    with h5py.File(path, "r") as file:
        eeg = file["EEG"] if isinstance(file.get("EEG", getlink=True), h5py.HardLink) else file
        return {part: _read_item(file, eeg, part) for part in PARTS} if isinstance(eeg, h5py.Group) else {}


def _read_item(file: h5py.File, group: h5py.Group, name: str, depth: int = 0) -> Any:
    """Read what has a name in a group: a mapping, a list, numbers, a text, or None for all else."""
    if not isinstance(group.get(name, getlink=True), h5py.HardLink) or depth > 2:
        return None
    item = group[name]
    if isinstance(item, h5py.Group):
        return {str(key): _read_item(file, item, str(key), depth + 1) for key in item}
    return _read_array(file, item) if isinstance(item, h5py.Dataset) else None


def _read_array(file: h5py.File, item: h5py.Dataset, depth: int = 0) -> Any:
    # The type comes first: h5py may take opaque values for addresses (`eeg_checks.check_hdf5`).
    kind = item.dtype.kind
    if "MATLAB_empty" in item.attrs or item.external is not None or item.is_virtual or not has_sound_chunks(item):
        return None
    if (item.size or 0) > MAX_FLAGS:
        return None
    if item.dtype == h5py.ref_dtype and depth == 0:  # of the fields of an array of structures
        targets = [file[reference] if reference else None for reference in np.asarray(item).ravel()]
        return [_read_array(file, t, depth + 1) if isinstance(t, h5py.Dataset) else None for t in targets]
    if item.dtype == "uint16":
        return np.asarray(item).astype("<u2").tobytes().decode("utf-16-le", "replace")
    return np.asarray(item).ravel() if kind in "fiub" else None
