"""Know files by what they hold: the SHA-256 of all that belong to a recording, wherever they lie and however they are
called.

A hash is taken once, and remembered under path, size, times of change and inode. On Linux nobody can put back when an
inode was last changed (ctime), so a file that is rewritten in place is not the old one, whatever its other times say.
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import Any

from eav_ray.config import DataConfig, digest
from eav_ray.data.io.recording_files import find_named_files, list_sibling_files
from eav_ray.data.recordings import DatasetReader, Recording
from eav_ray.errors import StorageError
from eav_ray.storage import Store

HASHES_FOLDER = "hashes"  # of a store of shards
HASHES_FORMAT = 1
MAX_THREADS = 8
MAX_FILES = 4096  # that belong to one file
# A file that is changed twice in one tick of the clock has one time of change: what changed just now is hashed anew.
SETTLED_S = 2.0

FileStat = tuple[int, ...]  # size, times of change of content and of inode in ns, inode; empty where there is no file


@dataclass(frozen=True)
class FileContent:
    """One file, as it was when it was hashed."""

    path: str
    stat: FileStat
    sha256: str  # empty where there is none, or it cannot be read
    named_files: tuple[str, ...] = ()  # what it names in its content

    @property
    def size(self) -> int:
        return self.stat[0] if self.stat else 0


RecordingContent = dict[str, tuple[FileContent, ...]]  # by modality: its file, and then all that belong to it


def stat_file(path: str) -> FileStat:
    """Look at a file, through links; empty where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def hash_file(path: str) -> str:
    """Hash a file; empty where it cannot be read, which whoever decodes it says. Pipes and devices may have no end."""
    if not os.path.isfile(path):
        return ""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def find_changed_file(files: Iterable[FileContent]) -> str:
    """Find a file that does not hold any more what it did when it was hashed; empty where there is none.

    Another machine may have files of its own at the same paths: what looks changed is hashed anew.
    """
    for file in files:
        stat = stat_file(file.path)
        if stat != file.stat and _hash_file_as_of(file.path, stat) != file.sha256:
            return file.path
    return ""


@lru_cache(maxsize=256)
def _hash_file_as_of(path: str, stat: FileStat) -> str:
    """Hash a file once for all recordings that lie in it."""
    return hash_file(path)


def list_sources(recording: Recording, modalities: Sequence[str]) -> dict[str, str]:
    """List the file of each modality; what is a row of a table is known by its values."""
    sources: dict[str, str] = {}
    for m in sorted(modalities):
        path = recording.get_source(m)
        if path is not None and not (m in recording.features and recording.features[m].values):
            sources[m] = path
    return sources


class ContentHashes:
    """Hashes of files, each taken once.

    Args:
        remembered: What is known already, by path.
    """

    def __init__(self, remembered: dict[str, FileContent] | None = None) -> None:
        self._known = remembered or {}
        self._fresh: dict[str, FileContent] = {}  # looked at by this object
        self._guard = Lock()
        self.settled: dict[str, FileContent] = {}  # of these, what may be remembered

    def needs_hash(self, path: str) -> bool:
        """Tell whether a file has to be read."""
        known = self._known.get(path)
        return known is None or known.stat != stat_file(path)

    def measure(self, path: str) -> int:
        """Measure a file, bytes; 0 where there is none."""
        return (*stat_file(path), 0)[0]

    def get(self, path: str) -> FileContent:
        """Look a file up; it is hashed where it is not known or has changed."""
        with self._guard:
            if path in self._fresh:
                return self._fresh[path]
        stat = stat_file(path)
        known = self._known.get(path)
        if known is None or known.stat != stat:
            asked_at_ns = time.time_ns()
            known = FileContent(path, stat, hash_file(path), find_named_files(path))
            is_settled = bool(known.sha256) and max(stat[1:3]) < asked_at_ns - SETTLED_S * 1e9
        else:
            is_settled = True
        with self._guard:
            self._fresh[path] = known
            if is_settled:
                self.settled[path] = known
        return known

    def get_with_companions(self, path: str) -> tuple[FileContent, ...]:
        """Look up a file and all that belong to it: those that it names, and those that are found by its name."""
        found: dict[str, FileContent] = {}
        pending = [path]
        while pending and len(found) < MAX_FILES:
            one = pending.pop(0)
            if one not in found:
                found[one] = self.get(one)
                pending += [*found[one].named_files, *list_sibling_files(one)]
        return tuple(found.values())

    def hash_recordings(
        self,
        recordings: Sequence[Recording],
        modalities: Sequence[str],
        reader: DatasetReader | None = None,
        on_done: Callable[[str], object] = lambda _: None,
    ) -> dict[str, RecordingContent]:
        """Hash all files of some recordings, several at a time.

        Args:
            modalities: Those whose files are wanted.
            reader: Names further files of a recording (`DatasetReader.list_companion_files`).
            on_done: Called with each file that was looked at.
        Returns:
            By the id of the recording.
        """
        sources = {r.id: list_sources(r, modalities) for r in recordings}
        further = {r.id: reader.list_companion_files(r) if reader else () for r in recordings}
        paths = list(dict.fromkeys(p for each in sources.values() for p in each.values()))
        paths += [p for p in dict.fromkeys(p for each in further.values() for p in each) if p not in paths]
        with ThreadPoolExecutor(MAX_THREADS) as pool:
            by_path: dict[str, tuple[FileContent, ...]] = {}
            for path, files in zip(paths, pool.map(self.get_with_companions, paths), strict=True):
                by_path[path] = files
                on_done(path)
        contents: dict[str, RecordingContent] = {}
        for r in recordings:
            contents[r.id] = {m: by_path[path] for m, path in sources[r.id].items()}
            if further[r.id]:
                contents[r.id][""] = tuple(file for path in further[r.id] for file in by_path[path])
        return contents


def name_hashes(data: DataConfig) -> str:
    """Name the file of the store in which the hashes of a data set are remembered."""
    return f"{HASHES_FOLDER}/{data.dataset}-{digest(data.root, length=10)}.json"


def read_hashes(store: Store, data: DataConfig) -> dict[str, FileContent]:
    """Read what is remembered of the files of a data set, by path; nothing where it cannot be read."""
    known: dict[str, FileContent] = {}
    for entries in _read_subjects(store, name_hashes(data)).values():
        with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError, OverflowError):
            for path, (stat, sha256, named) in entries.items():
                known[path] = FileContent(path, tuple(map(int, stat)), str(sha256), tuple(map(str, named)))
    return known


def write_hashes(store: Store, data: DataConfig, hashes: ContentHashes, contents: dict[str, RecordingContent]) -> None:
    """Remember the hashes of some recordings under their subjects, beside what is remembered of others.

    Where two jobs do so at once, one of them may take its hashes again.
    """
    name = name_hashes(data)
    subjects = _read_subjects(store, name)
    for recording_id, content in contents.items():
        entries = subjects.setdefault(recording_id.split("/")[0], {})
        for file in (file for files in content.values() for file in files):
            if file.path in hashes.settled:
                entries[file.path] = [list(file.stat), file.sha256, list(file.named_files)]
    if subjects != _read_subjects(store, name):
        store.write_json(name, {"format": HASHES_FORMAT, "root": data.root, "subjects": subjects})


def _read_subjects(store: Store, name: str) -> dict[str, Any]:
    """Read what is remembered, by subject: a cache, which is made anew where it was damaged."""
    if not store.exists(name):
        return {}
    try:
        tree = store.read_json(name)
        is_ours = tree.get("format") == HASHES_FORMAT and isinstance(tree["subjects"], dict)
    except StorageError:
        raise
    except (ValueError, KeyError, AttributeError, RecursionError):
        return {}
    return {s: dict(e) for s, e in tree["subjects"].items() if isinstance(e, dict)} if is_ours else {}
