"""Find recordings of one data set that are one signal: one file under two names, or files of equal content.

Such pairs are errors of a table more often than not, and on two sides of a split they are a leak. What only decoding
shows (another encoding, another gain) is found by `near_duplicates.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from eav_ray.config import MODALITIES
from eav_ray.data.io.recording_files import find_named_files, list_sibling_files
from eav_ray.data.recordings import Recording
from eav_ray.data.shards.content import (
    ContentHashes,
    FileContent,
    RecordingContent,
    list_sources,
    stat_file,
)
from eav_ray.words import format_count

HEAD_BYTES = 2**16  # by which files of equal size are told apart before they are read as a whole
MAX_SHOWN = 8  # recordings in a line
# What a row says beside its signal. Any other fact of a recording, such as its place in a file, makes another signal.
ROW_FIELDS = {"subject", "recording", "label", "targets", "task", "order", "features", "spans_s", *MODALITIES}


@dataclass(frozen=True)
class Duplicate:
    """Recordings that have one signal.

    Attributes:
        files: The files that it lies in: one, or several of equal bytes.
    """

    modality: str
    recordings: tuple[Recording, ...]
    files: tuple[str, ...]


def find_duplicates(recordings: Sequence[Recording], contents: Mapping[str, RecordingContent]) -> tuple[Duplicate, ...]:
    """Find recordings whose signals lie in one file, or in files of equal bytes.

    Of several files, the largest is the signal: headers may well be equal.

    Args:
        contents: What their files hold, by recording.
    """
    groups: dict[tuple[Any, ...], list[tuple[Recording, str]]] = {}
    for r in recordings:
        for m, files in contents[r.id].items():
            place = _list_place(r, m)
            largest = max(files, key=lambda file: file.size) if m and files else None
            if largest and largest.size and largest.sha256:
                groups.setdefault((m, largest.sha256, repr(place)), []).append((r, largest.path))
    return tuple(
        Duplicate(key[0], tuple(r for r, _ in group), tuple(dict.fromkeys(path for _, path in group)))
        for key, group in groups.items()
        if len(group) > 1
    )


def _list_place(recording: Recording, modality: str) -> list[Any]:
    """List what says where in its file the signal of a modality lies; that of EEG says nothing of sound and film."""
    others = [f.name for f in fields(recording) if f.name not in ROW_FIELDS]
    facts = [getattr(recording, name) for name in others if modality == "eeg" or not name.startswith("eeg_")]
    return [*facts, recording.spans_s.get(modality)]


def find_duplicate_files(recordings: Sequence[Recording], modalities: Sequence[str]) -> tuple[Duplicate, ...]:
    """Find such recordings, reading only files that have the size and the first bytes of another."""
    files: dict[str, tuple[str, ...]] = {}
    for path in (p for r in recordings for p in list_sources(r, modalities).values()):
        if path not in files:
            files[path] = (path, *find_named_files(path), *list_sibling_files(path))
    stats = {path: stat_file(path) for each in files.values() for path in each}
    by_size: dict[int, list[str]] = {}
    for path, stat in stats.items():
        by_size.setdefault((*stat, 0)[0], []).append(path)
    by_head: dict[tuple[int, bytes], list[str]] = {}
    for size, paths in by_size.items():
        for path in paths if size and len(paths) > 1 else ():
            by_head.setdefault((size, _read_head(path)), []).append(path)
    alike = {path for paths in by_head.values() if len(paths) > 1 for path in paths}
    hashes = ContentHashes()
    # What is alone of its kind is known by its path: it can only be equal to itself.
    known = {p: hashes.get(p) if p in alike else FileContent(p, s, p if s else "") for p, s in stats.items()}
    contents = {
        r.id: {m: tuple(known[p] for p in files[path]) for m, path in list_sources(r, modalities).items()}
        for r in recordings
    }
    return find_duplicates(recordings, contents)


def format_duplicates(
    duplicates: Sequence[Duplicate], classes: Sequence[str], targets: Sequence[str] = ()
) -> list[str]:
    """Write a line for each: which rows, what they share, in what they differ, and the way out.

    Args:
        targets: Names of the numbers that are predicted in place of classes.
    """
    return [_format_duplicate(one, classes, targets) for one in duplicates]


def describe_recording(recording: Recording, classes: Sequence[str], targets: Sequence[str] = ()) -> str:
    """Name a recording, with its class or its numbers."""
    numbers = (f"{name} {value:g}" for name, value in zip(targets, recording.targets, strict=False))
    return f"{recording.id} ({', '.join(numbers) if targets else classes[recording.label]})"


def _format_duplicate(found: Duplicate, classes: Sequence[str], targets: Sequence[str]) -> str:
    rows = found.recordings
    names = ", ".join(describe_recording(r, classes, targets) for r in rows[:MAX_SHOWN])
    more = f" and {len(rows) - MAX_SHOWN} more" if len(rows) > MAX_SHOWN else ""
    files = ", ".join(Path(path).name for path in found.files[:MAX_SHOWN])
    shared = f"one file, {files}" if len(found.files) == 1 else f"files of equal bytes, {files}"
    return f"duplicates: {names}{more} have one signal of {found.modality} ({shared}){describe_rows(rows)}"


def describe_rows(rows: Sequence[Recording]) -> str:
    """Say in what the rows of one signal differ, and the way out."""
    facts = {
        "labels": {r.label for r in rows},
        "targets": {r.targets for r in rows},
        "subjects": {r.subject for r in rows},
    }
    differing = [name for name, values in facts.items() if len(values) > 1]
    said = f"; their {' and '.join(differing)} differ" if differing else ""
    return f"{said}; keep one of these rows and drop the others, or correct which file each names"


def summarize_duplicates(duplicates: Sequence[Duplicate]) -> str:
    """Write one line on all of them; empty where there are none."""
    if not duplicates:
        return ""
    rows = len({r.id for one in duplicates for r in one.recordings})
    example = " and ".join(r.id for r in duplicates[0].recordings[:2])
    return (
        f"{format_count(rows, 'recording')} share a file or its bytes with another (such as {example}): on two sides "
        "of a split they are a leak; `eav check` lists them"
    )


def _read_head(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(HEAD_BYTES)
    except OSError:
        return path.encode()
