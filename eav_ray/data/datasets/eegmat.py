"""PhysioNet "EEG During Mental Arithmetic Tasks": rest against arithmetic, EEG only.

Zyma et al. 2019, doi:10.3390/data4010014. 19 scalp channels at 500 Hz; `SubjectNN_1.edf` is rest, `_2` arithmetic.
"""

import re
from dataclasses import replace
from pathlib import Path

from eav_ray.config import ModalityName
from eav_ray.data.io import eeg
from eav_ray.data.recordings import DatasetReader, Listing, Problem, RawEEG, Recording
from eav_ray.errors import DataError

# The file also has "EEG A2-A1", the two ears against each other, and an ECG: neither is scalp.
# fmt: off
EEGMAT_CHANNELS = (
    "Fp1", "Fp2", "F3", "F4", "F7", "F8", "T3", "T4", "C3", "C4", "T5", "T6", "P3", "P4", "O1", "O2", "Fz", "Cz", "Pz",
)
# fmt: on
FILE_PATTERN = re.compile(r"Subject(\d\d)_([12])\.edf")


class EEGMAT(DatasetReader):
    """Reader of `root/SubjectNN_1.edf` and `_2.edf`.

    Args:
        root: The folder of the files, or one that contains them in `eegmat/`.
    Raises:
        DataError: There is no such file.
    """

    name = "eegmat"
    classes: tuple[str, ...] = ("rest", "arithmetic")
    modalities: tuple[ModalityName, ...] = ("eeg",)
    channels: tuple[str, ...] = EEGMAT_CHANNELS

    def __init__(self, root: str) -> None:
        given = Path(root).expanduser().absolute()
        for folder in (given, given / "eegmat"):
            self.files = {
                (match[1], match[2]): path
                for path in sorted(folder.glob("Subject*.edf"))
                if (match := FILE_PATTERN.fullmatch(path.name))
            }
            if self.files:
                return
        raise DataError(f"{given} is not an EEGMAT folder: no SubjectNN_1.edf inside; set data.root to that folder")

    def scan(self) -> Listing:
        """Two recordings a person, `rest` and `arithmetic`; a missing one is a problem, the other is kept."""
        recordings: list[Recording] = []
        problems: list[Problem] = []
        for number in sorted({number for number, _ in self.files}):
            subject = f"subject{number}"
            for label, name in enumerate(self.classes):
                condition = str(label + 1)
                path = self.files.get((number, condition))
                if path is None:
                    file = f"Subject{number}_{condition}.edf"
                    problems.append(Problem(subject, name, file, f"{file} is missing; download it from PhysioNet"))
                else:
                    recordings.append(Recording(subject, name, label, "cognitive", label, eeg=str(path)))
        return Listing(tuple(recordings), tuple(problems))

    def read_eeg(self, recording: Recording) -> RawEEG:
        """The 19 scalp channels, (19, samples), microvolts, named as in the 10-20 system without the prefix "EEG ".

        Raises:
            DataError: The file is missing, damaged, or lacks a channel.
        """
        raw = eeg.read_eeg_file(recording.get_eeg_file(), [f"EEG {name}" for name in EEGMAT_CHANNELS])
        return replace(raw, channels=EEGMAT_CHANNELS)
