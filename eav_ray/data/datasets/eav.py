"""EAV: 42 people, EEG, audio and video of conversations with five emotions.

Lee et al. 2024, Scientific Data 11:1026, doi:10.1038/s41597-024-03838-4. What is known about the files, and the
oddities that were seen, are written where they are handled.

The three-digit prefix of a media file is the key: the position, from 1, on the recording axis of the person's EEG file
and of the label matrix. It joins the modalities. The number after `Trial_` differs between audio and video and means
nothing here.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np

from eav_ray.config import DataConfig, ModalityName
from eav_ray.data.io import matlab
from eav_ray.data.io.file_access import is_file, is_folder, list_folder
from eav_ray.data.recordings import LISTENING, DatasetReader, Listing, Problem, RawEEG, Recording, list_as_left_out
from eav_ray.errors import DataError
from eav_ray.words import format_count

EAV_CLASSES = ("Neutral", "Sadness", "Anger", "Happiness", "Calmness")
TASKS = (LISTENING, "speaking")  # by label row % 2; the official comments have it the wrong way round
# fmt: off
EAV_CHANNELS = (
    "Fp1", "Fp2", "F7", "F3", "Fz", "F4", "F8", "FC5", "FC1", "FC2", "FC6", "T7", "C3", "Cz", "C4",
    "T8", "CP5", "CP1", "CP2", "CP6", "P7", "P3", "Pz", "P4", "P8", "PO9", "O1", "Oz", "O2", "PO10",
)
# fmt: on
EEG_HZ = 500.0
SYNTHETIC_MARKER = "synthetic.json"  # in the folder of a person whom `synthetic` drew
EEG_VARIABLES = ("seg", "seg1")
SUBJECT_FOLDER_PATTERN = re.compile(r"subject0*([1-9]\d*)", re.IGNORECASE)
MEDIA_NAME_PATTERN = re.compile(r"(\d{3})_trial_\d+_([a-z]+)_([a-z]+?)(?:_aud)?", re.IGNORECASE)


class EAV(DatasetReader):
    """Reader of `root/subject*/{EEG,Audio,Video}`.

    Args:
        root: The folder that contains `subject1` (or `subject01`) and so on.
        tasks: Which of speaking and listening to list.
        subjects: Only look at these, for example `subject1`; all where empty.
    Raises:
        DataError: No subject folder inside.
    """

    name = "eav"
    classes: tuple[str, ...] = EAV_CLASSES
    modalities: tuple[ModalityName, ...] = ("audio", "eeg", "video")
    channels: tuple[str, ...] = EAV_CHANNELS

    @classmethod
    def open(cls, data: DataConfig) -> Self:
        return cls(data.root, data.tasks, data.subjects)

    def __init__(self, root: str, tasks: Sequence[str] = ("speaking",), subjects: Sequence[str] = ()) -> None:
        self.root = Path(root).expanduser().absolute()
        self.tasks = tuple(tasks)
        self.folders: dict[int, list[Path]] = {}
        for folder in list_folder(self.root) if is_folder(self.root) else ():
            if (match := SUBJECT_FOLDER_PATTERN.fullmatch(folder.name)) and is_folder(folder):
                self.folders.setdefault(int(match[1]), []).append(folder)
        if not self.folders:
            raise DataError(
                f"{self.root} is not an EAV folder: no subject*/ inside; expected subject1/EEG, subject1/Audio and "
                "subject1/Video; set data.root to the folder that contains subject1"
            )
        # People who were drawn in this layout carry a file that says so: published results are not of them.
        all_folders = [path for paths in self.folders.values() for path in paths]
        self.is_real = not any(is_file(path / SYNTHETIC_MARKER) for path in all_folders)
        if subjects:
            self.folders = {n: paths for n, paths in self.folders.items() if f"subject{n}" in subjects}
        self._cached_eeg: tuple[str, np.ndarray] | None = None

    def scan(self) -> Listing:
        """List recordings by names, label matrices and the headers of the EEG files; no signal is read.

        Left out are recordings whose file name and label disagree, that exist twice, or of which no modality is there;
        and people without labels. One missing modality costs that modality only.
        """
        recordings: list[Recording] = []
        problems: list[Problem] = []
        for number in sorted(self.folders):
            subject_folder = _SubjectFolder(f"subject{number}", self.folders[number], self.tasks)
            recordings += subject_folder.recordings
            problems += subject_folder.problems
        return Listing(tuple(recordings), tuple(problems))

    def session_recordings(self, recordings: Sequence[Recording]) -> list[Recording]:
        """All of the person's file, listening included, whatever `tasks` lists.

        Raises:
            DataError: The file is missing, damaged, or not (samples, 30, recordings).
        """
        first = recordings[0]
        _, (_, _, count) = _read_eeg_header(Path(first.get_eeg_file()))
        return [replace(first, recording=f"{i + 1:03d}", eeg_index=i) for i in range(count)]

    def read_eeg(self, recording: Recording) -> RawEEG:
        """One recording, (30, samples) at 500 Hz, in the file's unit, which it does not state.

        A person's recordings share one file of some 240 MB, so the file that was read last is kept.

        Raises:
            DataError: The file is missing, damaged, or not (samples, 30, recordings).
        """
        path = recording.get_eeg_file()
        if self._cached_eeg is None or self._cached_eeg[0] != path:
            self._cached_eeg = None  # first let go of the old one: two do not fit every worker
            self._cached_eeg = (path, _load_eeg(Path(path)))
        values_TCN = self._cached_eeg[1]
        if not 0 <= recording.eeg_index < values_TCN.shape[2]:
            raise DataError(
                f"{path} holds {format_count(values_TCN.shape[2], 'recording')}, so none for key "
                f"{recording.eeg_index + 1:03d}"
            )
        return RawEEG(values_TCN[:, :, recording.eeg_index].T, EEG_HZ, EAV_CHANNELS, "auto")


class _SubjectFolder:
    """What the folder of one person holds, in `recordings` and `problems`."""

    def __init__(self, subject: str, folders: list[Path], tasks: tuple[str, ...]) -> None:
        self.subject, self.folder = subject, folders[0]
        self.recordings: list[Recording] = []
        self.problems: list[Problem] = []
        if len(folders) > 1:
            names = " and ".join(f.name for f in folders)
            self._report("", folders[1], f"{names} name the same person; remove one")
            return
        try:
            labels_N = _read_labels(self._find_eeg_file("eeg_label"))
        except DataError as error:
            self._report("", self.folder / "EEG", f"{error}; without labels nothing of this person can be used")
            return
        untrusted_keys: set[int] = set()
        eeg = self._find_eeg(len(labels_N))
        video = self._find_media("Video", ".mp4", labels_N, untrusted_keys)
        audio = self._find_media("Audio", ".wav", labels_N, untrusted_keys) if "speaking" in tasks else {}
        for index, row in enumerate(labels_N):
            key = index + 1
            if row is None:
                self._report(f"{key:03d}", self.folder / "EEG", f"column {key} of the label matrix is not one-hot")
                continue
            task = TASKS[row % 2]
            if task not in tasks or key in untrusted_keys:
                continue
            if video is not None and key not in video:
                self._report(f"{key:03d}", self.folder / "Video", f"no video file begins with {key:03d}_")
            if task == "speaking" and audio is not None and key not in audio:
                self._report(f"{key:03d}", self.folder / "Audio", f"no audio file begins with {key:03d}_")
            recording = Recording(self.subject, f"{key:03d}", row // 2, task, index, eeg=eeg, eeg_index=index)
            sound = (audio or {}).get(key) if task == "speaking" else None
            recording = replace(recording, audio=sound, video=(video or {}).get(key))
            if recording.eeg or recording.audio or recording.video:
                self.recordings.append(recording)
            else:
                reason = "neither EEG, audio nor video can be used; left out"
                list_as_left_out(self.problems, Problem(self.subject, recording.recording, str(self.folder), reason))

    def _report(self, recording: str, file: Path, reason: str) -> None:
        self.problems.append(Problem(self.subject, recording, str(file), reason))

    def _find_eeg_file(self, ending: str) -> Path:
        """The person's one EEG file with that ending; `subject01` may stand for `subject1` here too."""
        name = re.compile(rf"subject0*{self.subject.removeprefix('subject')}_{ending}\.mat", re.IGNORECASE)
        found = [p for p in _list_files(self.folder / "EEG") if name.fullmatch(p.name)]
        if len(found) != 1:
            existing = " and ".join(p.name for p in found) or "nothing of that kind"
            raise DataError(f"expected one file EEG/{self.subject}_{ending}.mat, found {existing}")
        return found[0]

    def _find_eeg(self, n_labels: int) -> str | None:
        try:
            path = self._find_eeg_file("eeg")
            _, shape = _read_eeg_header(path)
            count = shape[2]
            if count != n_labels:
                raise DataError(
                    f"{path} holds {format_count(count, 'recording')}, but the label matrix {n_labels}; download it "
                    "again"
                )
        except DataError as error:
            self._report("", self.folder / "EEG", f"{error}; this person's EEG is not used")
            return None
        return str(path)

    def _find_media(
        self, kind: str, suffix: str, labels_N: list[int | None], untrusted_keys: set[int]
    ) -> dict[int, str] | None:
        """Map each key to its path; return None where the folder has no such file at all.

        Keys that cannot be trusted go to `untrusted_keys`.
        """
        paths_by_key: dict[int, list[Path]] = {}
        for path in _list_files(self.folder / kind):
            if path.suffix.lower() != suffix:
                continue
            match = MEDIA_NAME_PATTERN.fullmatch(path.stem)
            if match is None:
                expected = f"002_Trial_02_Speaking_Neutral{'_Aud' if kind == 'Audio' else ''}{suffix}"
                prefix = path.name[:3] if path.name[:3].isdecimal() else ""
                self._report(prefix, path, f"expected a name like {expected}")
                untrusted_keys |= {int(prefix)} if prefix else set()
                continue
            key = int(match[1])
            if not 1 <= key <= len(labels_N):
                self._report(match[1], path, f"key {match[1]} is outside 001 to {len(labels_N):03d}; rename it")
                continue
            paths_by_key.setdefault(key, []).append(path)
            row = labels_N[key - 1]
            labelled = None if row is None else f"{TASKS[row % 2]} {EAV_CLASSES[row // 2]}"
            if labelled is not None and f"{match[2]} {match[3]}".lower() != labelled.lower():
                untrusted_keys.add(key)
                stated = f"{match[2]} {match[3]}, the label matrix {labelled}"
                self._report(match[1], path, f"its name says {stated}; left out, as one of them must be wrong")
        if not paths_by_key:
            reason = f"no {suffix} file that can be used; recordings have no {kind.lower()}"
            self._report("", self.folder / kind, reason)
            return None
        for key, paths in paths_by_key.items():
            if len(paths) > 1:
                untrusted_keys.add(key)
                names = ", ".join(p.name for p in paths)
                self._report(f"{key:03d}", paths[1], f"{len(paths)} files have key {key:03d} ({names}); keep one")
        return {key: str(paths[0]) for key, paths in paths_by_key.items()}


def _list_files(folder: Path) -> Iterator[Path]:
    """The visible files of a folder, sorted: the system's own order differs between machines."""
    if is_folder(folder):
        yield from (p for p in list_folder(folder) if is_file(p) and not p.name.startswith("."))


def _read_labels(path: Path) -> list[int | None]:
    """The row 0 to 9 of each recording; None for a column that is not one-hot.

    `row // 2` is the class and `row % 2` the task. The matrix is (10, n), or transposed.
    """
    shapes = matlab.read_array_shapes(path, ["label"])
    if "label" not in shapes:
        raise DataError(f'{path} must hold "label" of shape (10, recordings); it has no such array')
    matrix = matlab.read_array(path, "label", shapes["label"]).astype(np.float64)
    if matrix.ndim != 2 or 10 not in matrix.shape:
        raise DataError(f'{path} must hold "label" of shape (10, recordings); it has {matrix.shape}')
    if matrix.shape[0] != 10 or (matrix.shape[1] == 10 and (matrix.sum(axis=0) != 1).any()):
        matrix = matrix.T
    one_hot = (matrix.sum(axis=0) == 1) & (matrix.max(axis=0) == 1) & (matrix.min(axis=0) == 0)
    return [int(column.argmax()) if good else None for column, good in zip(matrix.T, one_hot, strict=True)]


def _read_eeg_header(path: Path) -> tuple[str, tuple[int, int, int]]:
    """Name and shape (samples, 30, recordings) of the EEG array, from the header alone."""
    shapes = matlab.read_array_shapes(path, EEG_VARIABLES)
    if len(shapes) != 1:
        raise DataError(f"{path} must hold one array seg or seg1; it has {' and '.join(shapes) or 'neither'}")
    ((name, shape),) = shapes.items()
    if len(shape) == 2:  # MATLAB drops a last axis of length one
        shape = (*shape, 1)
    if len(shape) != 3 or shape[1] != len(EAV_CHANNELS):
        raise DataError(
            f"{path}: {name} has shape {shape}; it must be (samples, {len(EAV_CHANNELS)} channels, recordings): turn "
            "its axes with permute and save it again"
        )
    return name, (int(shape[0]), int(shape[1]), int(shape[2]))


def _load_eeg(path: Path) -> np.ndarray:
    """The whole array of one person, (samples, 30, recordings)."""
    if not is_file(path):
        raise DataError(f"{path} is missing")
    return matlab.read_array(path, *_read_eeg_header(path))
