"""Read the EEG of one file through MNE, and what the file says of it: units, pauses, joins, marks.

What is done to it then: `data/preprocessing/eeg_clean.py`, `data/preprocessing/eeg_official.py`.
"""

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import h5py
import mne
import numpy as np

from eav_ray.data.io import brainvision, edf
from eav_ray.data.io.eeg_checks import check_fif, check_hdf5, check_set_samples
from eav_ray.data.io.eeg_marks import (
    Annotation,
    Marks,
    describe_marks,
    find_marks,
    find_segments,
    join_marks,
    place_samples,
)
from eav_ray.data.io.eeg_units import MICROVOLTS, is_no_voltage, is_usual_unit, parse_unit
from eav_ray.data.io.mat5 import check_mat5, is_mat5
from eav_ray.data.recordings import RawEEG
from eav_ray.errors import DataError, describe_error

# What MNE's many readers raise on damaged files: it has no error class of its own for that, and raises bare exceptions.
READ_ERRORS = (Exception,)

# Of files that `mne.io.read_raw` opens; of those in several parts the one that names the others.
SIGNAL_SUFFIXES = (".edf", ".bdf", ".gdf", ".vhdr", ".set", ".fif", ".cnt")

# What MNE makes volts of, as the fields of EDF and BDF are written; of any other unit it takes the numbers as they are.
EDF_SCALES = {"uV": 1e-6, "\u00b5V": 1e-6, "\u03bcV": 1e-6, "\x83\u00caV": 1e-6, "mV": 1e-3}
BRAINVISION_SCALES = {"V": 1.0, "mV": 1e-3, "\u00b5V": 1e-6, "uV": 1e-6, "nV": 1e-9}

EEG_UNIT_KEY = "preprocessing.eeg.unit"
MARKED_BAD = "marked bad in the file"
NOT_ENDED = "the header does not say how many records there are: those that are there are used"
MISCOUNTED = "the header counts other records than the file holds: those that are there are used"
EPOCHS = (
    "it holds epochs and no recording; export the continuous recording, or each epoch as a file of its own, with a row "
    "each in the table"
)


class EEGFile:
    """An EEG file that is open, or an object of MNE.

    Attributes:
        source: What it is called in errors.
        names: Of all its channels, as they are written.
        types: Of each, in MNE's words ("eeg", "eog", "stim", "misc", ...), as the file states or MNE takes them.
        duration_s: By its header; 0 where there are pauses, which only reading shows.
    """

    source: str
    names: tuple[str, ...]
    types: tuple[str, ...]
    duration_s: float

    def require_channels(self, channels: Sequence[str]) -> None:
        """Raise DataError where a named channel is missing, or there twice."""
        if missing := [name for name in channels if name not in self.names]:
            raise DataError(
                f"{self.source} has no channel {', '.join(missing)}; it has {', '.join(self.names)}; "
                "all recordings of a data set need the same channels"
            )
        if twice := [name for name in channels if self.names.count(name) > 1]:
            raise DataError(f"{self.source} has more than one channel {', '.join(twice)}; rename one")

    def read(self, channels: Sequence[str]) -> RawEEG:
        """Read the named channels, in that order.

        Raises:
            DataError: As `require_channels`, or the samples or what the header states of them cannot be used.
        """
        self.require_channels(channels)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters is checked here
            try:
                return self._read(channels)
            except DataError:
                raise
            except READ_ERRORS as error:
                raise DataError(
                    f"{self.source} cannot be read to its end ({describe_error(error)}); replace it or leave it out"
                ) from None

    def describe_header(self, channels: Sequence[str]) -> tuple[str, ...]:
        """List what the file says of the named channels and of its time that will change what is stored, a line each.

        Raises:
            DataError: What it says cannot be used.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return self._describe_header(channels)
            except READ_ERRORS as error:
                raise DataError(
                    f"{self.source} cannot be read as EEG ({describe_error(error)}); replace it or leave it out"
                ) from None

    def _read(self, channels: Sequence[str]) -> RawEEG:
        raise NotImplementedError

    def _describe_header(self, channels: Sequence[str]) -> tuple[str, ...]:
        raise NotImplementedError

    def close(self) -> None:
        """Close the file."""


class MNEFile(EEGFile):
    """What `mne.io.read_raw` opens, or an object of MNE."""

    def __init__(self, raw: mne.io.BaseRaw, source: str, path: Path | None = None) -> None:
        self.raw, self.source, self.path = raw, source, path
        self.names = tuple(raw.ch_names)
        self.types = tuple(raw.get_channel_types())
        self.duration_s = raw.n_times / float(raw.info["sfreq"])
        self.units: dict[str, str] = {}  # as they are written, by channel
        if path is not None and path.suffix.lower() in (".vhdr", ".ahdr"):
            self.units = dict(brainvision.read_header_units(path))
            self.types = tuple(map(self._find_type, self.names, self.types))

    def _find_type(self, name: str, kind: str) -> str:
        """MNE takes a channel for no EEG where it does not know how its unit is written, or no place is stated."""
        return "eeg" if kind == "misc" and not is_no_voltage(self.units.get(name, "uV")) else kind

    def close(self) -> None:
        self.raw.close()

    def _read(self, channels: Sequence[str]) -> RawEEG:
        values_CT = np.asarray(self.raw.get_data(picks=np.array(channels), verbose="ERROR"), dtype=np.float64)
        hz = float(self.raw.info["sfreq"])
        if self._is_brainvision and self.path and brainvision.is_cut_off(self.path, len(self.names)):
            raise DataError(f"{self.path} breaks off within a sample; copy it again")
        raw = convert_units(values_CT, hz, channels, *self._list_units(channels))
        placed = place_samples(raw.values_CT, hz, self._find_marks(hz), channels, self.source)
        bad = {name: MARKED_BAD for name in self.raw.info["bads"] if name in channels}
        return replace(
            raw,
            values_CT=placed.values_CT,
            bad_channels=bad,
            missing_s=placed.missing_s,
            joins_s=placed.joins_s,
            remarks=(*raw.remarks, *self._describe_projections(channels), *placed.remarks),
        )

    def _describe_projections(self, channels: Sequence[str]) -> list[str]:
        """Name what the file would have projected out; an average reference, which comes later, does not count."""
        average = mne.io.constants.FIFF.FIFFV_PROJ_ITEM_EEG_AVREF
        names = [
            proj["desc"]
            for proj in self.raw.info["projs"]
            if not proj["active"] and proj["kind"] != average and set(channels) & set(proj["data"]["col_names"])
        ]
        return (
            [f"projections that the file states and has not applied are left out: {', '.join(names)}"] if names else []
        )

    def _describe_header(self, channels: Sequence[str]) -> tuple[str, ...]:
        bad = [name for name in self.raw.info["bads"] if name in channels]
        units, _ = self._list_units(channels)
        marks = self._find_marks(float(self.raw.info["sfreq"]))
        return (
            *(read_units(units).remarks),
            *self._describe_projections(channels),
            *describe_marks(marks),
            *([f"{MARKED_BAD}: {', '.join(bad)}"] if bad else []),
        )

    @property
    def _suffix(self) -> str:
        return self.path.suffix.lower() if self.path else ""

    @property
    def _is_brainvision(self) -> bool:
        return self._suffix in (".vhdr", ".ahdr")

    def _list_units(self, channels: Sequence[str]) -> tuple[list[str], list[float]]:
        """List the unit of each channel as it is written, and by what MNE multiplied its numbers."""
        if self._is_brainvision:
            units = [self.units.get(name, "uV") for name in channels]
            return units, [BRAINVISION_SCALES.get(unit.replace("\u00c2", ""), 1.0) for unit in units]
        if self._suffix == ".set":  # by convention
            return ["uV"] * len(channels), [1e-6] * len(channels)
        return ["V"] * len(channels), [1.0] * len(channels)

    def _find_marks(self, hz: float) -> Marks:
        annotations = list_annotations(self.raw.annotations, self.raw.first_time)
        marks, suffix = Marks(), self._suffix
        if self.path and suffix == ".set" and any(a.description.lower() in ("boundary", "-99") for a in annotations):
            # MNE cuts the duration of a boundary at the end of what is left.
            annotations = list_annotations(mne.read_annotations(self.path), 0.0)
        if self.path and self._is_brainvision:
            marks = find_segments(brainvision.read_marker_text(self.path), hz, self.source)
            known = {*marks.joins, *(sample for sample, _ in marks.pauses)}
            joins = [n for n in brainvision.list_joins(self.path, len(self.raw.times)) if n not in known]
            marks = join_marks(marks, Marks(joins=tuple(joins)))
        return join_marks(find_marks(annotations, hz), marks)


class EDFFile(EEGFile):
    """An EDF, EDF+, BDF or BDF+ file, whose header is read here."""

    def __init__(self, path: Path) -> None:
        self.path, self.source = path, str(path)
        self.header = edf.read_edf_header(path)
        kept = [i for i, is_list in enumerate(self.header.is_annotation) if not is_list]
        self.names = tuple(self.header.labels[i] for i in kept)
        self.types = tuple("misc" if is_no_voltage(self.header.units[i]) else "eeg" for i in kept)
        self.duration_s = 0.0 if self.header.is_discontinuous else self.header.n_records * self.header.record_s

    def _read(self, channels: Sequence[str]) -> RawEEG:
        header = self.header
        indices = [header.labels.index(name) for name in channels]
        hz = edf.check_channels(header, indices)
        per_record = header.n_samples[indices[0]]
        marks = self._find_marks(hz, per_record)
        read = mne.io.read_raw_bdf if header.sample_bytes == 3 else mne.io.read_raw_edf
        # latin1 decodes any byte: for others MNE raises a bare Exception, and annotations are read here.
        # Channels of a higher rate than these would have MNE resample all.
        raw = read(self.path, include=list(channels), encoding="latin1", preload=False, verbose="ERROR")
        try:
            values_CT = np.asarray(raw.get_data(picks=np.array(channels), verbose="ERROR"), dtype=np.float64)
        finally:
            raw.close()
        if values_CT.shape[1] != header.n_records * per_record:
            raise DataError(f"{self.path} is not as long as its header says; copy it again")
        units = [header.units[i] for i in indices]
        scales = [EDF_SCALES.get(unit.strip(edf.BLANKS), 1.0) for unit in units]
        found = convert_units(values_CT, hz, channels, units, scales)
        placed = place_samples(found.values_CT, hz, marks, channels, self.source)
        return replace(
            found,
            values_CT=placed.values_CT,
            missing_s=placed.missing_s,
            joins_s=placed.joins_s,
            remarks=(*self._describe_records(), *found.remarks, *placed.remarks),
        )

    def _describe_header(self, channels: Sequence[str]) -> tuple[str, ...]:
        indices = [self.header.labels.index(name) for name in channels]
        hz = edf.check_channels(self.header, indices)
        marks = self._find_marks(hz, self.header.n_samples[indices[0]])
        units = read_units([self.header.units[i] for i in indices])
        return (*self._describe_records(), *units.remarks, *describe_marks(marks))

    def _describe_records(self) -> list[str]:
        if self.header.stated_records == self.header.n_records:
            return []
        return [NOT_ENDED if self.header.stated_records == -1 else MISCOUNTED]

    def _find_marks(self, hz: float, per_record: int) -> Marks:
        marks = find_marks(edf.list_annotations(self.header), hz, is_on_real_clock=True)
        pauses = tuple((k * per_record, late_s) for k, late_s in edf.find_gaps(self.header))
        return join_marks(marks, Marks(pauses=pauses))


def open_eeg_file(path: str | Path) -> EEGFile:
    """Open a file of any format that `mne.io.read_raw` knows, without loading its samples.

    Raises:
        DataError: The file is missing, damaged, or of a format that MNE does not know.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} is missing; expected an EEG file that mne.io.read_raw opens")
    if path.suffix.lower() in (".edf", ".bdf"):
        return EDFFile(path)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if h5py.is_hdf5(path):
                check_hdf5(path)
            elif is_mat5(path):
                check_mat5(path)
            elif path.suffix.lower() == ".fif":
                check_fif(path)
            elif path.suffix.lower() in (".vhdr", ".ahdr"):
                brainvision.check_header(path)
            raw = mne.io.read_raw(path, preload=False, verbose="WARNING")
            if any("does not match the file size" in str(w.message) for w in caught):
                raw.close()
                raise DataError(f"{path} breaks off, or goes on: it is not as long as its header says; copy it again")
            try:
                check_set_samples(raw, path)
            except DataError:
                raw.close()
                raise
            return MNEFile(raw, str(path), path)
    except DataError:
        raise
    except READ_ERRORS as error:
        if "number of trials is" in str(error) or path.name.lower().endswith(("-epo.fif", "_epo.fif", "-epo.fif.gz")):
            raise DataError(f"{path} cannot be read as EEG: {EPOCHS}") from None
        raise DataError(f"{path} cannot be read as EEG ({describe_error(error)}); replace it or leave it out") from None


def list_annotations(annotations: mne.Annotations, first_s: float) -> list[Annotation]:
    """List what MNE read, in seconds since the first sample."""
    return [
        Annotation(float(onset) - first_s, float(duration), str(text), tuple(names))
        for onset, duration, text, names in zip(
            annotations.onset, annotations.duration, annotations.description, annotations.ch_names, strict=True
        )
    ]


def convert_units(
    values_CT: np.ndarray, hz: float, channels: Sequence[str], units: Sequence[str], scales: Sequence[float]
) -> RawEEG:
    """Bring values that MNE hands out to microvolts where their unit is known, else to the numbers of the file.

    Where some channels state a unit and others none, those take the commonest of the stated ones.

    Args:
        values_CT: What MNE made of the numbers; changed in place.
        units: As they are written.
        scales: By which MNE multiplied the numbers of each channel.
    """
    read = read_units(units)
    to_unit = [MICROVOLTS.get(unit, 1.0) / scale for unit, scale in zip(read.units, scales, strict=True)]
    values_CT *= np.array(to_unit)[:, None]
    stated = set(read.units) - {"auto"}
    return RawEEG(
        values_CT,
        hz,
        tuple(channels),
        "microvolt" if stated else "auto",
        remarks=read.remarks,
        stated_unit=stated.pop() if len(stated) == 1 else "",
    )


class ReadUnits(NamedTuple):
    units: list[str]  # of each channel: a key of `MICROVOLTS`; all "auto" where none is known
    remarks: tuple[str, ...]


def read_units(written: Sequence[str]) -> ReadUnits:
    """Read the units of channels as they are written; a channel without one takes the commonest of the others."""
    units = [parse_unit(unit) for unit in written]
    remarks = []
    for unit, text in dict.fromkeys(zip(units, written, strict=True)):
        if unit == "auto":
            remarks.append(f"unit {text.strip()!r} is none that is known: {EEG_UNIT_KEY} decides, or the amplitude")
        elif not is_usual_unit(text):
            remarks.append(f"unit {text.strip()!r} is read as {unit}")
    known = Counter(unit for unit in units if unit != "auto")
    if known and "auto" in units:
        commonest = known.most_common(1)[0][0]
        remarks.append(f"channels without a known unit are taken as {commonest}, as the others")
        units = [commonest if unit == "auto" else unit for unit in units]
    return ReadUnits(units, tuple(remarks))


def read_eeg_file(path: str | Path, channels: Sequence[str]) -> RawEEG:
    """Read the named channels of a file, in that order.

    Returns:
        `values_CT` float64 (len(channels), samples), microvolts, or as the file has them where it states no known unit.
    Raises:
        DataError: As `open_eeg_file` and `EEGFile.read`.
    """
    file = open_eeg_file(path)
    try:
        return file.read(channels)
    finally:
        file.close()
