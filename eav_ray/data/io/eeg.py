"""Read the EEG of one file through MNE, and what the file says of it: units, pauses, joins, marks.

What is done to it then: `data/preprocessing/eeg_clean.py`, `data/preprocessing/eeg_official.py`.
"""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import h5py
import mne
import numpy as np

from eav_ray.data.io import brainvision, edf, eeglab, fif, gdf, neuroscan
from eav_ray.data.io.eeg_checks import check_fif, check_format, check_hdf5, check_set_samples
from eav_ray.data.io.eeg_file import (
    MARKED_BAD,
    READ_ERRORS,
    EEGFile,
    MNEFile,
    MNEPathFile,
    StatedFacts,
    list_annotations,
)
from eav_ray.data.io.eeg_marks import (
    CUT_AT_START,
    Marks,
    describe_marks,
    find_bad_intervals,
    find_marks,
    find_segments,
    join_marks,
    place_samples,
)
from eav_ray.data.io.eeg_units import convert_units, is_no_voltage, read_units
from eav_ray.data.io.file_access import require_file
from eav_ray.data.io.mat5 import check_mat5, is_mat5
from eav_ray.data.recordings import RawEEG
from eav_ray.errors import DataError, describe_error

# Of files that `mne.io.read_raw` opens; of those in several parts the one that names the others.
SIGNAL_SUFFIXES = (".edf", ".bdf", ".gdf", ".vhdr", ".set", ".fif", ".cnt")

# What MNE makes volts of, as the fields of EDF and BDF are written; of any other unit it takes the numbers as they are.
EDF_SCALES = {"uV": 1e-6, "\u00b5V": 1e-6, "\u03bcV": 1e-6, "\x83\u00caV": 1e-6, "mV": 1e-3}
BRAINVISION_SCALES = {"V": 1.0, "mV": 1e-3, "\u00b5V": 1e-6, "uV": 1e-6, "nV": 1e-9}

NOT_ENDED = "the header does not say how many records there are: those that are there are used"
MISCOUNTED = "the header counts other records than the file holds: those that are there are used"
EPOCHS = (
    "it holds epochs and no recording; export the continuous recording, or each epoch as a file of its own, with a row "
    "each in the table"
)


class BrainVisionFile(MNEPathFile):
    """A BrainVision recording, by its header (.vhdr)."""

    def __init__(self, raw: mne.io.BaseRaw, path: Path) -> None:
        super().__init__(raw, path)
        self.units = dict(brainvision.read_header_units(path))  # as they are written, by channel
        self.types = tuple(map(self._find_type, self.names, self.types))

    def _find_type(self, name: str, kind: str) -> str:
        """MNE takes a channel for no EEG where it does not know how its unit is written, or no place is stated."""
        return "eeg" if kind == "misc" and not is_no_voltage(self.units.get(name, "uV")) else kind

    def _list_units(self, channels: Sequence[str]) -> tuple[list[str], list[float]]:
        units = [self.units.get(name, "uV") for name in channels]
        return units, [BRAINVISION_SCALES.get(unit.replace("\u00c2", ""), 1.0) for unit in units]

    def _check_samples(self, channels: Sequence[str]) -> None:
        if brainvision.is_cut_off(self.path, len(self.names)):
            raise DataError(f"{self.path} breaks off within a sample; copy it again")

    def _find_facts(self, hz: float) -> StatedFacts:
        text = brainvision.read_marker_text(self.path)
        segments = find_segments(text, hz, self.source)
        known = {*segments.joins, *(sample for sample, _ in segments.pauses)}
        joins = [n for n in brainvision.list_joins(self.path, len(self.raw.times)) if n not in known]
        # MNE does not say of which channel a marker is.
        annotations = list_annotations(self.raw.annotations, self.raw.first_time)
        annotations = [a for a in annotations if not a.description.strip().lower().startswith("bad")]
        intervals, remarks = find_bad_intervals(text, hz, self.names)
        marks = join_marks(find_marks([*annotations, *intervals], hz), segments)
        return StatedFacts(join_marks(marks, Marks(joins=tuple(joins))), remarks=tuple(remarks))


class EEGLABFile(MNEPathFile):
    """An EEGLAB recording (.set), in microvolts by convention."""

    def _list_units(self, channels: Sequence[str]) -> tuple[list[str], list[float]]:
        return ["uV"] * len(channels), [1e-6] * len(channels)

    def _find_facts(self, hz: float) -> StatedFacts:
        annotations = list_annotations(self.raw.annotations, self.raw.first_time)
        if any(a.description.lower() in ("boundary", "-99") for a in annotations):
            # MNE cuts the duration of a boundary at the end of what is left.
            annotations = list_annotations(mne.read_annotations(self.path), 0.0)
        marks = find_marks(annotations, hz)
        flags = eeglab.read_flags(self.path, len(self.names), len(self.raw.times))
        paused = [sample for sample, _ in marks.pauses]
        cuts = [(a, n / hz) for a, n in flags.cuts if all(abs(a - sample) > 1 for sample in paused)]
        marks = replace(
            marks,
            pauses=tuple(sorted([*marks.pauses, *cuts])),
            joins=tuple(join for join in marks.joins if all(abs(join - sample) > 1 for sample, _ in cuts)),
            bad_s=(*marks.bad_s, *((first / hz, last / hz) for first, last in flags.bad_samples)),
        )
        return StatedFacts(marks, {self.names[i]: why for i, why in flags.bad_channels.items()}, flags.remarks)


class FIFFile(MNEPathFile):
    """A FIF recording, of which nothing may have been saved at first."""

    def _find_facts(self, hz: float) -> StatedFacts:
        is_cut = self.raw.first_samp > fif.read_first_sample(self.path)
        if is_cut and self.raw.annotations.orig_time is None and len(self.raw.annotations):
            # MNE counts the marks of the file from where it says that it begins, and skips from the first saved sample.
            raise DataError(
                f"{self.path} has no date, and nothing was saved at its beginning, so that the times of its marks are "
                "not certain; save the original again with a date (raw.set_meas_date)"
            )
        return replace(super()._find_facts(hz), remarks=(CUT_AT_START,) if is_cut else ())


class NeuroscanFile(MNEPathFile):
    """A Neuroscan recording (.cnt)."""

    def _find_facts(self, hz: float) -> StatedFacts:
        bad = neuroscan.find_bad_channels(self.path, self.names)
        return replace(super()._find_facts(hz), bad_channels=dict.fromkeys(bad, MARKED_BAD))


class GDFFile(MNEPathFile):
    """A GDF recording, whose units, rates and events are read here."""

    def __init__(self, raw: mne.io.BaseRaw, path: Path, header: gdf.GDFHeader) -> None:
        super().__init__(raw, path)
        self.header = header
        self.types = tuple(
            "misc" if kind == "eeg" and (is_no_voltage(unit) or unit.startswith(gdf.OTHER_UNIT)) else kind
            for unit, kind in zip(header.units, self.types, strict=True)
        )

    def _list_units(self, channels: Sequence[str]) -> tuple[list[str], list[float]]:
        indices = [self.names.index(name) for name in channels]
        return [self.header.units[i] for i in indices], [self.header.scales[i] for i in indices]

    def _check_samples(self, channels: Sequence[str]) -> None:
        self.header.check_channels([self.names.index(name) for name in channels])

    def _find_facts(self, hz: float) -> StatedFacts:
        annotations, remarks = self.header.list_annotations(self.names)
        return StatedFacts(find_marks(annotations, hz), remarks=tuple(remarks))


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
    check_format(path)
    require_file(path, "an EEG file that mne.io.read_raw opens")
    if path.suffix.lower() in (".edf", ".bdf"):
        return EDFFile(path)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            return _open_with_mne(path, caught)
    except DataError:
        raise
    except READ_ERRORS as error:
        if "number of trials is" in str(error) or path.name.lower().endswith(("-epo.fif", "_epo.fif", "-epo.fif.gz")):
            raise DataError(f"{path} cannot be read as EEG: {EPOCHS}") from None
        raise DataError(f"{path} cannot be read as EEG ({describe_error(error)}); replace it or leave it out") from None


def _open_with_mne(path: Path, caught: Sequence[warnings.WarningMessage]) -> EEGFile:
    """Open a file through MNE, whose warnings are in `caught`, after a look at what could harm."""
    suffix = path.suffix.lower()
    header = None
    if h5py.is_hdf5(path):
        check_hdf5(path)
    elif is_mat5(path):
        check_mat5(path)
    elif suffix == ".fif":
        check_fif(path)
    elif suffix in (".vhdr", ".ahdr"):
        brainvision.check_header(path)
    elif suffix == ".gdf":
        header = gdf.read_gdf_header(path)
    # Of the readers of a suffix that several formats have, MNE does not say what they found.
    read = mne.io.read_raw_cnt if suffix == ".cnt" else mne.io.read_raw
    raw = read(path, preload=False, verbose="WARNING")
    try:
        if any("does not match the file size" in str(w.message) for w in caught):
            raise DataError(f"{path} breaks off, or goes on: it is not as long as its header says; copy it again")
        check_set_samples(raw, path)
        if suffix in (".vhdr", ".ahdr"):
            return BrainVisionFile(raw, path)
        if suffix == ".set":
            return EEGLABFile(raw, path)
        if path.name.lower().endswith((".fif", ".fif.gz")):
            return FIFFile(raw, path)
        if suffix == ".cnt":
            return NeuroscanFile(raw, path)
        return GDFFile(raw, path, header) if header else MNEFile(raw, str(path))
    except READ_ERRORS:
        raw.close()
        raise


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
