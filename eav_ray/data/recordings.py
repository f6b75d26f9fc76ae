"""What every data set looks like to the rest of the system: a listing of recordings, and a way to read their EEG.

A *recording* is one interaction (20 s in EAV). A reader only lists and decodes; `data/preprocessing/windowing.py` cuts
windows.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np

from eav_ray.config import MODALITIES, DataConfig, ModalityName
from eav_ray.config.kinds import DatasetKind
from eav_ray.errors import DataError

MAX_RECORDING_S = 3600  # of one recording: longer files are damaged, hostile, or whole sessions
Span = tuple[float, float]  # from, to: seconds since the recording began

TARGET_PREFIX = (
    "target_"  # of columns of shards and predictions with a true number, before its position in data.targets
)
UNKNOWN_LABEL = -1  # of recordings that are predicted, and of which nobody says what they are
TRUTH_NOTE = "training needs labels or numbers, `eav predict` does not"
LISTENING = "listening"  # recordings of this task are only ever trained on


@dataclass(frozen=True)
class SignalMarks:
    """What tables beside an EEG file say of the signals in it.

    Attributes:
        missing_s: Spans that are not to be used, on the clock of the file.
        joins_s: Times at which it was joined.
        bad_channels: Names of channels that are bad, and why.
        problem: Why the tables cannot be used; empty where they can.
    """

    missing_s: tuple[Span, ...] = ()
    joins_s: tuple[float, ...] = ()
    bad_channels: Mapping[str, str] = field(default_factory=dict, hash=False)
    problem: str = ""


@dataclass(frozen=True)
class GivenFeatures:
    """Features of one recording that somebody else has computed: a row of a table, or a file of rows with times."""

    path: str
    values: tuple[float, ...] = ()  # of a table's row; none: `path` is a file of this recording alone
    hz: float = 0.0  # rows per second of such a file, where it holds no times
    marks: SignalMarks = SignalMarks()  # of signals in the EEG file of the recording


@dataclass(frozen=True)
class Recording:
    """One recording and where its raw signals lie. A modality that does not exist is None."""

    subject: str
    recording: str  # unique within the subject
    label: int  # index into DataSet.classes; -1 where it is not known, of recordings that are predicted
    task: str
    order: int  # position in time within the subject, from 0
    eeg: str | None = None  # path of the file that holds this recording's EEG
    eeg_index: int = 0  # position on that file's recording axis, where it has one
    audio: str | None = None
    video: str | None = None
    features: Mapping[str, GivenFeatures] = field(default_factory=dict, hash=False)  # by the name of the modality
    # By modality: the part of its file that is this recording, seconds; the whole file where nothing stands.
    spans_s: Mapping[str, Span] = field(default_factory=dict, hash=False)
    targets: tuple[float, ...] = ()  # numbers that are predicted in place of the label (`data.targets`), in their order

    def get_source(self, modality: str) -> str | None:
        """Return the file that a modality of this recording lies in; None where it does not exist."""
        if modality in MODALITIES:
            return getattr(self, modality)
        given = self.features.get(modality)
        return given.path if given else None

    @property
    def id(self) -> str:
        return f"{self.subject}/{self.recording}"

    def name_targets(self) -> dict[str, float]:
        """Name the numbers that are predicted by the columns of shards that hold them; none of classes."""
        return dict(zip(name_target_columns(len(self.targets)), self.targets, strict=True))

    def get_eeg_file(self) -> str:
        """Return the path of the EEG; raises DataError where there is none."""
        if self.eeg is None:
            raise DataError(f"{self.id} has no EEG file")
        return self.eeg


@dataclass(frozen=True)
class Problem:
    """One row of the table that `eav check` and preprocessing print: what cannot be used, and why."""

    subject: str
    recording: str  # "" where the whole person is concerned
    file: str
    reason: str  # what is wrong, and the way out


def list_as_left_out(problems: list[Problem], left_out: Problem) -> None:
    """List a recording as left out: a row of its own, or the end of the last rows where they are of it already."""
    file, reasons = left_out.file, [left_out.reason]
    while problems and (problems[-1].subject, problems[-1].recording) == (left_out.subject, left_out.recording):
        earlier = problems.pop()
        file, reasons = earlier.file, [earlier.reason, *reasons]
    problems.append(replace(left_out, file=file, reason="; ".join(reasons)))


@dataclass(frozen=True)
class Listing:
    recordings: tuple[Recording, ...]
    problems: tuple[Problem, ...] = ()
    remarks: tuple[str, ...] = ()  # how tables were understood, where that may not be as it was meant, a line each


@dataclass(frozen=True)
class RawEEG:
    """EEG as recorded.

    Attributes:
        values_CT: Not a number where nothing was recorded.
        bad_channels: Channels that the file itself calls bad, and in which words.
        missing_s: Where nothing was recorded, or the file says that it is not to be used.
        joins_s: Times at which two pieces meet that were not recorded one after the other: no filter may see across.
        stated_unit: The unit that the file states for its numbers, where they were brought to microvolts.
        remarks: What the file says of itself that changed what is stored, in a line each.
    """

    values_CT: np.ndarray = field(repr=False)  # (channels, samples), float, in the file's unit
    hz: float
    channels: tuple[str, ...]
    unit: str  # "microvolt", "volt", or "auto" where the file does not say
    bad_channels: Mapping[str, str] = field(default_factory=dict, hash=False)
    missing_s: tuple[Span, ...] = ()
    joins_s: tuple[float, ...] = ()
    stated_unit: str = ""
    remarks: tuple[str, ...] = ()
    mains_hz: float = 0.0  # frequency of the mains where it was recorded; 0 where nothing says so


def name_target_columns(n_targets: int) -> list[str]:
    """Name the columns of shards that hold the numbers that are predicted."""
    return [f"{TARGET_PREFIX}{number}" for number in range(n_targets)]


def list_target_columns(columns: Iterable[str]) -> list[str]:
    """List the columns of a table of windows that hold the numbers that are predicted, in their order."""
    ends = (c.removeprefix(TARGET_PREFIX) for c in columns if c.startswith(TARGET_PREFIX))
    return [f"{TARGET_PREFIX}{end}" for end in sorted((end for end in ends if end.isdecimal()), key=int)]


def shift_spans(spans_s: Sequence[Span], start_s: float, end_s: float) -> tuple[Span, ...]:
    """Keep what of some spans lies between two times, in seconds since the first of them."""
    return tuple(
        (max(first_s, start_s) - start_s, min(last_s, end_s) - start_s)
        for first_s, last_s in spans_s
        if first_s < end_s and last_s >= start_s
    )


def measure_overlap(spans_s: Sequence[Span], start_s: float, end_s: float) -> float:
    """Measure how many seconds between two times lie in any of some spans, which may overlap."""
    covered_s, reached_s = 0.0, start_s
    for first_s, last_s in sorted(spans_s):
        covered_s += max(0.0, min(last_s, end_s) - max(first_s, reached_s))
        reached_s = max(reached_s, last_s)
    return covered_s


class DatasetReader(DatasetKind):
    """Read one data set: list its recordings, and decode their EEG.

    Attributes:
        name: What `data.dataset` calls it; for a reader of this package also the name of its module.
        classes: Names of the classes, by label.
        modalities: What the data set can offer.
        channels: Names of the EEG channels, where they are known without reading a recording.
        wanted_channels: Those that the experiment wants (`preprocessing.eeg.channels`); all where it names none.
        is_real: False where the recordings are synthetic: published results are not of them.
        reads_targets: Whether its own tables can hold the numbers that are predicted (`data.targets`).
    """

    classes: tuple[str, ...] = ()
    modalities: tuple[ModalityName, ...] = ()
    channels: tuple[str, ...] = ()
    wanted_channels: tuple[str, ...] = ()
    is_real: bool = True
    reads_targets: bool = False

    @cached_property
    def eeg_durations_s(self) -> dict[str, float]:
        """Seconds of the EEG files that `check_eeg_channels` has opened, by path."""
        return {}

    @classmethod
    def open(cls, data: DataConfig) -> Self:
        """Open the data set that the section `data` of an experiment describes.

        Raises:
            DataError: `data.root` is not such a data set.
        """
        return cls(data.root)

    @classmethod
    def open_unlabelled(cls, data: DataConfig) -> Self:
        """Open the data set to predict its recordings, whose labels and numbers need not be known.

        A label that is not known is `UNKNOWN_LABEL`, a number NaN. By default they must be known, as for training.
        """
        return cls.open(data)

    def __init__(self, root: str) -> None:
        self.root = Path(root).expanduser().absolute()

    def scan(self) -> Listing:
        """List all recordings in (subject, order), and everything that had to be left out."""
        raise NotImplementedError

    def check_eeg_channels(self, recordings: Sequence[Recording]) -> tuple[tuple[str, ...], tuple[Problem, ...]]:
        """Look at the channels of EEG files, without their samples.

        Returns:
            What is to be said of the whole data set, in a line each; and the files that cannot be used.
        """
        return (), ()

    def session_recordings(self, recordings: Sequence[Recording]) -> list[Recording]:
        """List all recordings of one subject whose EEG was recorded one after the other with these, in that order.

        Args:
            recordings: Of one subject, in order; the result contains them.
        """
        return list(recordings)

    def list_companion_files(self, recording: Recording) -> tuple[str, ...]:
        """List files besides the recording's own that `read_eeg` looks at, such as tables of channels or of events.

        A recording is made anew where one of them changes. Files that belong to others by their format (`.eeg` of a
        `.vhdr`) are found anyway, and what `scan` takes from labels counts as it stands in the recording.
        """
        return ()

    def find_signal_marks(self, recording: Recording) -> SignalMarks:
        """Find what tables beside a recording's EEG file say of signals other than EEG in it."""
        return SignalMarks()

    def read_eeg(self, recording: Recording) -> RawEEG:
        """Read one recording's EEG, scalp channels only.

        Raises:
            DataError: The file is missing, damaged or of the wrong layout, or the data set has no EEG.
        """
        raise DataError(
            f"{recording.id}: {self.name} has no EEG; set data.modalities=[{','.join(self.modalities)}] or fewer"
        )


class TransformedReader(DatasetReader):
    """Read a data set whose EEG is changed on its way.

    Args:
        transform: Makes what is read of a recording's EEG.
    """

    def __init__(self, reader: DatasetReader, transform: Callable[[RawEEG, Recording], RawEEG]) -> None:
        self._reader, self._transform = reader, transform

    @property  # what is wanted is asked of the data set itself
    def wanted_channels(self) -> tuple[str, ...]:
        return self._reader.wanted_channels

    @wanted_channels.setter
    def wanted_channels(self, names: tuple[str, ...]) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self._reader.wanted_channels = names

    def session_recordings(self, recordings: Sequence[Recording]) -> list[Recording]:
        return self._reader.session_recordings(recordings)

    def list_companion_files(self, recording: Recording) -> tuple[str, ...]:
        return self._reader.list_companion_files(recording)

    def read_eeg(self, recording: Recording) -> RawEEG:
        self._reader.wanted_channels = self.wanted_channels
        return self._transform(self._reader.read_eeg(recording), recording)
