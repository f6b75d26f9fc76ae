"""An EEG file that is open, whatever its format, and what MNE opens."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import mne
import numpy as np

from eav_ray.data.io.eeg_marks import Annotation, Marks, describe_marks, find_marks, place_samples
from eav_ray.data.io.eeg_units import convert_units, read_units
from eav_ray.data.recordings import RawEEG
from eav_ray.errors import DataError, describe_error

# What MNE's many readers raise on damaged files: it has no error class of its own for that, and raises bare exceptions.
READ_ERRORS = (Exception,)

MARKED_BAD = "marked bad in the file"


@dataclass(frozen=True)
class StatedFacts:
    """What a file says of its channels and of its time, beside its samples.

    Attributes:
        bad_channels: Names of channels that are bad, and who says so.
        remarks: What else it says that changes what is stored, or cannot be used, in a line each.
    """

    marks: Marks = Marks()
    bad_channels: Mapping[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


class EEGFile:
    """An EEG file that is open, or an object of MNE.

    Attributes:
        source: What it is called in errors.
        names: Of all its channels, as they are written.
        types: Of each, in MNE's words ("eeg", "eog", "stim", "misc", ...), as the file states or MNE takes them.
        placed: Names of those of which the file states a place on the head.
        duration_s: By its header; 0 where there are pauses, which only reading shows.
    """

    source: str
    names: tuple[str, ...]
    types: tuple[str, ...]
    placed: frozenset[str] = frozenset()
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
            except DataError:
                raise
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

    def __init__(self, raw: mne.io.BaseRaw, source: str) -> None:
        self.raw, self.source = raw, source
        self.names = tuple(raw.ch_names)
        self.types = tuple(raw.get_channel_types())
        self.duration_s = raw.n_times / float(raw.info["sfreq"])
        places = [np.asarray(channel["loc"][:3]) for channel in raw.info["chs"]]
        self.placed = frozenset(n for n, x in zip(self.names, places, strict=True) if np.isfinite(x).all() and x.any())

    @cached_property
    def facts(self) -> StatedFacts:
        """What the file says of its channels and its time."""
        return self._find_facts(float(self.raw.info["sfreq"]))

    def close(self) -> None:
        self.raw.close()

    def _read(self, channels: Sequence[str]) -> RawEEG:
        values_CT = np.asarray(self.raw.get_data(picks=np.array(channels), verbose="ERROR"), dtype=np.float64)
        hz = float(self.raw.info["sfreq"])
        self._check_samples(channels)
        raw = convert_units(values_CT, hz, channels, *self._list_units(channels))
        placed = place_samples(raw.values_CT, hz, self.facts.marks, channels, self.source)
        return replace(
            raw,
            values_CT=placed.values_CT,
            bad_channels={name: why for name, why in self.facts.bad_channels.items() if name in channels},
            missing_s=placed.missing_s,
            joins_s=placed.joins_s,
            remarks=(*raw.remarks, *self._describe_projections(channels), *self.facts.remarks, *placed.remarks),
        )

    def _describe_header(self, channels: Sequence[str]) -> tuple[str, ...]:
        self._check_samples(channels)
        units, _ = self._list_units(channels)
        bad: dict[str, list[str]] = {}
        for name, why in self.facts.bad_channels.items():
            if name in channels:
                bad.setdefault(why, []).append(name)
        return (
            *(read_units(units).remarks),
            *self._describe_projections(channels),
            *self.facts.remarks,
            *describe_marks(self.facts.marks),
            *(f"{why}: {', '.join(names)}" for why, names in bad.items()),
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

    def _check_samples(self, channels: Sequence[str]) -> None:
        """Raise DataError where the samples of some channels cannot be what the header says."""

    def _list_units(self, channels: Sequence[str]) -> tuple[list[str], list[float]]:
        """List the unit of each channel as it is written, and by what MNE multiplied its numbers."""
        return ["V"] * len(channels), [1.0] * len(channels)

    def _find_facts(self, hz: float) -> StatedFacts:
        annotations = list_annotations(self.raw.annotations, self.raw.first_time)
        return StatedFacts(find_marks(annotations, hz), dict.fromkeys(self.raw.info["bads"], MARKED_BAD))


class MNEPathFile(MNEFile):
    """What `mne.io.read_raw` opens of a path, where more is read of the file than MNE hands on."""

    def __init__(self, raw: mne.io.BaseRaw, path: Path) -> None:
        super().__init__(raw, str(path))
        self.path = path


def list_annotations(annotations: mne.Annotations, first_s: float) -> list[Annotation]:
    """List what MNE read, in seconds since the first sample."""
    return [
        Annotation(float(onset) - first_s, float(duration), str(text), tuple(names))
        for onset, duration, text, names in zip(
            annotations.onset, annotations.duration, annotations.description, annotations.ch_names, strict=True
        )
    ]
