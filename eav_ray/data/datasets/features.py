"""Attach features that others have computed to the recordings of a data set, whichever reader lists them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from eav_ray.config import DataConfig, FeatureFile, FeaturePreprocessing
from eav_ray.data.datasets.joining import RecordingNames, describe_unmatched_rows, match_rows
from eav_ray.data.io.eeg import SIGNAL_SUFFIXES
from eav_ray.data.io.features import FILE_SUFFIXES, read_feature_table
from eav_ray.data.io.file_access import is_file, is_folder
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
    problems, remarks, names = list(listing.problems), list(listing.remarks), RecordingNames(listing.recordings)
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
            found[name] = _find_files(path, names, file, name, suffixes)
            continue
        if formats[name].signals:
            raise DataError(
                f"data.features.{name}.path is {str(path)!r}, a file; signals have one of each recording: give the "
                "folder"
            )
        table = read_feature_table(path, file.key, name, formats[name])
        found[name] = {
            one: GivenFeatures(str(path), tuple(map(float, table.values[row])))
            for one, row in match_rows(table.rows, names).items()
        }
        problems += [Problem("", "", str(path), reason) for reason in table.problems]
        remarks += [*table.remarks, *describe_unmatched_rows(table.rows, names)]
    recordings = [
        replace(r, features={name: given[r.id] for name, given in found.items() if r.id in given})
        for r in listing.recordings
    ]
    return Listing(tuple(recordings), tuple(problems), tuple(remarks))


def _find_files(
    folder: Path, names: RecordingNames, file: FeatureFile, name: str, suffixes: Sequence[str]
) -> dict[str, GivenFeatures]:
    """Find the file of each recording: `<subject>/<recording>.*`, or `<recording>.*` or `<name of a file>.*`."""
    found: dict[str, GivenFeatures] = {}
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in suffixes and is_file(p)):
        below = path.relative_to(folder).with_suffix("").as_posix()
        one = names.find_one((below, path.stem), below, str(path), found)
        if one is not None:
            found[one] = GivenFeatures(str(path), hz=file.hz)
    if not found:
        raise DataError(
            f"data.features.{name}: {folder} has no {', '.join(suffixes)} file that is named as a recording, such "
            f"as {names.give_example()}"
        )
    return found
