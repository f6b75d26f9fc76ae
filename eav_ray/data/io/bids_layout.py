"""Find what belongs together in a BIDS data set, by names alone: https://bids-specification.readthedocs.io.

mne-bids knows the names and which sidecar belongs to a file. Signals are not read through it: it opens files without
the checks of `eeg.open_eeg_file`.
"""

import json
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mne_bids

from eav_ray.data.io.file_access import is_file, is_folder, list_folder
from eav_ray.errors import DataError, describe_error

EEG_SUFFIXES = (".edf", ".bdf", ".vhdr", ".set")
COMPANION_SUFFIXES = (".eeg", ".vmrk", ".dat", ".fdt", ".json", ".tsv", ".tsv.gz")  # of other files, or sidecars
MEDIA_SUFFIXES = {
    "audio": (".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".aac"),
    "video": (".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v", ".mpg", ".mpeg"),
}
IDENTITY = ("ses", "task", "acq", "run")  # entities that files of one run share
NAMELESS = "run"  # a run whose files have no name but the subject's
OTHER_FOLDERS = ("derivatives", "sourcedata")
MAX_DEPTH = 3  # folders within the folder of a subject: a session, a type of data, and one more
MAX_JSON_BYTES = 2**24


@dataclass
class Run:
    """What was recorded at one time: the files of one subject that share session, task, acquisition and run.

    Attributes:
        subject: As `participants.tsv` calls it, such as `sub-01`.
        name: Of its other entities, as file names have them: `ses-1_task-film_run-2`.
        files: By `eeg`, `audio` and `video`: all that there are.
        stimuli: Sound and films that were played to the subject.
        unknown: Files that are called EEG, and have no format of BIDS.
    """

    subject: str
    name: str
    session: str
    task: str
    files: dict[str, list[Path]] = field(default_factory=lambda: {"eeg": [], "audio": [], "video": []})
    stimuli: list[Path] = field(default_factory=list)
    unknown: list[Path] = field(default_factory=list)

    @property
    def source(self) -> Path | None:
        """The file that tables name it by; None where it has none that can be read."""
        return next((paths[0] for paths in self.files.values() if paths), None)


def find_runs(root: Path) -> tuple[list[Run], list[Path]]:
    """Find all runs of a data set that have EEG, sound or a film, by subject and name; numbers count as numbers.

    Returns:
        The runs, and files whose names say another subject than their folders.
    Raises:
        DataError: No folder of a subject, or nothing in them.
    """
    folders = [p for p in list_folder(root) if p.name.startswith("sub-") and is_folder(p)] if is_folder(root) else []
    if not folders:
        raise DataError(
            f"{root} is no BIDS data set: no folder sub-*/ inside; set data.root to the folder with participants.tsv"
        )
    runs: dict[tuple[str, str], Run] = {}
    misplaced: list[Path] = []
    for folder in folders:
        for path in _list_files(folder):
            suffix = _find_suffix(path)
            if not suffix:
                continue
            entities = mne_bids.get_entities_from_fname(path.name, on_error="ignore")
            if f"sub-{entities['subject']}" != folder.name:
                misplaced.append(path)
                continue
            name = "_".join(part for part in path.name.split("_")[1:-1] if part.split("-")[0] in IDENTITY)
            name = name or NAMELESS
            run = runs.setdefault(
                (folder.name, name), Run(folder.name, name, entities["session"] or "", entities["task"] or "")
            )
            _add_file(run, path, suffix)
    found = [run for run in runs.values() if run.source or run.unknown]
    if not found:
        raise DataError(f"{root} has no EEG, sound or film in its folders sub-*/; set data.root to a data set that has")
    return sorted(found, key=lambda run: (sort_naturally(run.subject), sort_naturally(run.name))), misplaced


def sort_naturally(name: str) -> list[Any]:
    """Make a key by which `run-2` comes before `run-10`."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def find_sidecar(root: Path, path: Path, suffix: str, extension: str = ".tsv") -> Path | None:
    """Find the sidecar of a file, which may lie above it and be of several files; None where there is none.

    Args:
        suffix: Such as `events` or `channels`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            bids_path = mne_bids.get_bids_path_from_fname(path, check=False, verbose="ERROR").update(root=root)
            found = bids_path.find_matching_sidecar(suffix=suffix, extension=extension, on_error="ignore")
    except (RuntimeError, ValueError, KeyError, OSError):  # a name that mne-bids does not take
        return None
    if found is None or not is_file(found):
        return None
    stated = _list_entities(Path(found).name)
    return Path(found) if stated <= _list_entities(path.name) else None


def find_electrodes(path: Path) -> Path | None:
    """Find the table of electrodes beside a file, of any system of coordinates; None where there is none."""
    stated = _list_entities(path.name)
    for other in list_folder(path.parent):
        entities = {part for part in _list_entities(other.name) if not part.startswith("space-")}
        if other.name.endswith("_electrodes.tsv") and entities <= stated:
            return other
    return None


def read_json(path: Path) -> dict[str, Any]:
    """Read a sidecar.

    Raises:
        DataError: It cannot be read, or is no object.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"more than {MAX_JSON_BYTES >> 20} MiB")
        facts = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON ({describe_error(error)}); correct it") from None
    if not isinstance(facts, dict):
        raise DataError(f"{path} cannot be read as JSON (no object with names); correct it")
    return facts


def _list_files(folder: Path, depth: int = 0) -> Iterator[Path]:
    """List the files of a subject, sorted; links to what is not here, as DataLad leaves them, too."""
    for path in list_folder(folder):
        if path.name.startswith(".") or path.name in OTHER_FOLDERS:
            continue
        if is_folder(path):
            if depth < MAX_DEPTH:  # a link may lead back
                yield from _list_files(path, depth + 1)
        elif path.name.startswith("sub-"):
            yield path


def _find_suffix(path: Path) -> str:
    """What a file is by its name: `eeg`, `audio`, `video`, `audiovideo` or `stim`; empty for all else."""
    last = path.name.split("_")[-1].split(".")[0]
    return last if last in ("eeg", "audio", "video", "audiovideo", "stim") else ""


def _add_file(run: Run, path: Path, suffix: str) -> None:
    extension = path.suffix.lower()
    if suffix == "eeg":
        if extension in EEG_SUFFIXES:
            run.files["eeg"].append(path)
        elif not path.name.lower().endswith(COMPANION_SUFFIXES):
            run.unknown.append(path)
        return
    kind = next((m for m, extensions in MEDIA_SUFFIXES.items() if extension in extensions), "")
    if suffix == "stim" and kind:
        run.stimuli.append(path)
    elif kind:
        run.files[kind].append(path)
        if suffix == "audiovideo" and kind == "video":
            run.files["audio"].append(path)


def _list_entities(name: str) -> set[str]:
    return {part for part in name.split(".")[0].split("_") if "-" in part}
