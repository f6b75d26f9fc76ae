"""Attach features that others have computed to the recordings of a data set, whichever reader lists them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from eav_ray.config import DataConfig, FeatureFile, FeaturePreprocessing
from eav_ray.data.io.eeg import SIGNAL_SUFFIXES
from eav_ray.data.io.features import FILE_SUFFIXES, FeatureTable, read_feature_table
from eav_ray.data.io.file_access import is_file, is_folder
from eav_ray.data.io.tables import normalise_name
from eav_ray.data.recordings import GivenFeatures, Listing, Problem, Recording, SignalMarks
from eav_ray.errors import DataError


def attach_features(
    listing: Listing,
    data: DataConfig,
    formats: Mapping[str, FeaturePreprocessing],
    find_marks: Callable[[Recording], SignalMarks],
) -> Listing:
    """Attach what `data.features` names to the recordings that it belongs to; the others lack that modality.

    Args:
        formats: How the features of each name are stored (`preprocessing.features`).
        find_marks: Says of a recording what tables say of the signals in its EEG file.
    Raises:
        DataError: There is no such file, it cannot be read, or its rows do not name recordings of the data set.
    """
    found: dict[str, dict[str, GivenFeatures]] = {}
    problems, remarks = list(listing.problems), list(listing.remarks)
    for name in (m for m in data.modalities if m in formats):
        file = data.features.get(name, FeatureFile())
        path = Path(file.path).expanduser().absolute()
        if formats[name].signals and not file.path:
            found[name] = {
                r.id: GivenFeatures(r.eeg, marks=find_marks(r)) for r in listing.recordings if r.eeg is not None
            }
            continue
        if not file.path or not (is_file(path) or is_folder(path)):
            raise DataError(
                f"data.features.{name}.path is {file.path!r}, which does not exist; give a CSV or Parquet table, or a "
                "folder with a file a recording"
            )
        if is_folder(path):
            suffixes = SIGNAL_SUFFIXES if formats[name].signals else FILE_SUFFIXES
            found[name] = _find_files(path, listing.recordings, file, name, suffixes)
            continue
        if formats[name].signals:
            raise DataError(
                f"data.features.{name}.path is {str(path)!r}, a file; signals have one of each recording: give the "
                "folder"
            )
        table = read_feature_table(path, file.key, name, formats[name])
        found[name] = _find_rows(path, listing.recordings, file, name, table)
        problems += [Problem("", "", str(path), reason) for reason in table.problems]
        remarks += [*table.remarks, *_describe_strangers(path, listing.recordings, table)]
    recordings = [
        replace(r, features={name: given[r.id] for name, given in found.items() if r.id in given})
        for r in listing.recordings
    ]
    return Listing(tuple(recordings), tuple(problems), tuple(remarks))


def _find_files(
    folder: Path, recordings: Sequence[Recording], file: FeatureFile, name: str, suffixes: Sequence[str]
) -> dict[str, GivenFeatures]:
    """Find the file of each recording: `<subject>/<recording>.*`, or `<recording>.*` or `<name of a file>.*`."""
    by_name = _index_recordings(recordings)
    found: dict[str, GivenFeatures] = {}
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in suffixes and is_file(p)):
        below = path.relative_to(folder).with_suffix("").as_posix()
        ids = by_name.get(below) or by_name.get(path.stem, ())
        _add(found, ids, GivenFeatures(str(path), hz=file.hz), str(path), below)
    if not found:
        raise DataError(
            f"data.features.{name}: {folder} has no {', '.join(suffixes)} file that is named as a recording, such "
            f"as {_give_example(recordings)}"
        )
    return found


def _find_rows(
    path: Path, recordings: Sequence[Recording], file: FeatureFile, name: str, table: FeatureTable
) -> dict[str, GivenFeatures]:
    """Find the row of each recording in a table."""
    by_name = _index_recordings(recordings)
    found: dict[str, GivenFeatures] = {}
    for row, key in enumerate(table.keys):
        ids = next((by_name[n] for n in _list_names(table, row) if n in by_name), ())
        values = tuple(map(float, table.values[row]))
        _add(found, ids, GivenFeatures(str(path), values), f"{path}: row {table.numbers[row]}", key)
    if not found:
        first = table.keys[0] if table.keys else ""
        raise DataError(
            f"data.features.{name}: no row of {path} names a recording; {file.key} is {first!r} there, and recordings "
            f"are called {_give_example(recordings)}; set data.features.{name}.key"
        )
    return found


def _describe_strangers(path: Path, recordings: Sequence[Recording], table: FeatureTable) -> list[str]:
    """A line on rows that name no recording of the data set, where there are any."""
    by_name = _index_recordings(recordings)
    rows = [i for i in range(len(table.keys)) if not any(name in by_name for name in _list_names(table, i))]
    if not rows:
        return []
    first = f"row {table.numbers[rows[0]]}, {table.keys[rows[0]]!r}"
    return [f"{path}: {len(rows)} of {len(table.keys)} rows name no recording (the first: {first}), and are not used"]


def _list_names(table: FeatureTable, row: int) -> list[str]:
    """List what a row may call its recording, the fullest name first."""
    key = table.keys[row]
    return [*([f"{table.subjects[row]}/{key}"] if table.subjects else []), key]


def _add(found: dict[str, GivenFeatures], ids: Sequence[str], given: GivenFeatures, where: str, key: str) -> None:
    if len(ids) > 1:
        raise DataError(
            f"{where} names {key}, which are {len(ids)} recordings: {', '.join(ids[:3])}; name them as "
            "subject/recording"
        )
    for one in ids:
        if one in found:
            raise DataError(f"{where} names {key}, which another has named already; keep one")
        found[one] = given


def _index_recordings(recordings: Sequence[Recording]) -> dict[str, tuple[str, ...]]:
    """Map every name that a recording goes by to the ids of those that it may mean."""
    ids: dict[str, dict[str, None]] = {}
    for r in recordings:
        stems = [Path(path).stem for path in (r.audio, r.video) if path is not None]
        if r.eeg is not None and r.eeg_index == 0:
            stems.append(Path(r.eeg).stem)
        for name in (r.id, r.recording, *stems, *map(normalise_name, stems)):
            ids.setdefault(name, {})[r.id] = None
    return {name: tuple(each) for name, each in ids.items()}


def _give_example(recordings: Sequence[Recording]) -> str:
    first = recordings[0] if recordings else None
    return f"{first.id} or {first.recording}" if first else "none"
