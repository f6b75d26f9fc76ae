"""What every data set looks like to the rest of the system: a listing of recordings, and a way to read their EEG.

A *recording* is one interaction (20 s in EAV). A reader only lists and decodes; `data/preprocessing/windowing.py` cuts
windows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

MAX_RECORDING_S = 3600  # of one recording: longer files are damaged, hostile, or whole sessions
LISTENING = "listening"  # recordings of this task are only ever trained on


@dataclass(frozen=True)
class Recording:
    """One recording and where its raw signals lie. A modality that does not exist is None."""

    subject: str
    recording: str  # unique within the subject
    label: int  # index into DataSet.classes
    task: str
    order: int  # position in time within the subject, from 0
    eeg: str | None = None  # path of the file that holds this recording's EEG
    eeg_index: int = 0  # position on that file's recording axis, where it has one
    audio: str | None = None
    video: str | None = None

    @property
    def id(self) -> str:
        return f"{self.subject}/{self.recording}"


@dataclass(frozen=True)
class Problem:
    """One row of the table that `eav check` and preprocessing print: what cannot be used, and why."""

    subject: str
    recording: str  # "" where the whole person is concerned
    file: str
    reason: str  # what is wrong, and the way out


@dataclass(frozen=True)
class Listing:
    recordings: tuple[Recording, ...]
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class RawEEG:
    """EEG as recorded."""

    values_CT: np.ndarray = field(repr=False)  # (channels, samples), float, in the file's unit
    hz: float
    channels: tuple[str, ...]
    unit: str  # "microvolt", "volt", or "auto" where the file does not say


class DatasetReader(Protocol):
    """A reader. Construction fails with DataError where `root` is not such a data set."""

    name: str
    classes: tuple[str, ...]
    modalities: tuple[str, ...]  # what this data set can offer

    def scan(self) -> Listing:
        """List all recordings in (subject, order), and everything that had to be left out."""
        ...

    def session_recordings(self, recordings: Sequence[Recording]) -> list[Recording]:
        """All recordings of one person whose EEG was recorded one after the other with these, in that order.

        Args:
            recordings: Of one person, in order; the result contains them.
        """
        ...

    def read_eeg(self, recording: Recording) -> RawEEG:
        """Read one recording's EEG, scalp channels only.

        Raises:
            DataError: The file is missing, damaged or of the wrong layout.
        """
        ...
