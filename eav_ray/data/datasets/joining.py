"""Join what stands beside a data set to its recordings: rows of a table, and files, by what they call a recording."""

from collections.abc import Container, Iterable, Sequence
from pathlib import Path

from eav_ray.data.io.row_keys import RowKeys
from eav_ray.data.io.tables import normalise_name
from eav_ray.data.recordings import Recording
from eav_ray.errors import DataError
from eav_ray.words import format_count


class RecordingNames:
    """All names that the recordings of a data set go by: as the reader calls them, and by their files."""

    def __init__(self, recordings: Sequence[Recording]) -> None:
        self._recordings = recordings
        ids: dict[str, dict[str, None]] = {}
        for r in recordings:
            stems = [Path(path).stem for path in (r.audio, r.video) if path is not None]
            if r.eeg is not None and r.eeg_index == 0:
                stems.append(Path(r.eeg).stem)
            for name in (r.id, r.recording, *stems, *map(normalise_name, stems)):
                ids.setdefault(name, {})[r.id] = None
        self._ids = {name: tuple(each) for name, each in ids.items()}

    def find(self, names: Iterable[str], subject: str = "") -> tuple[str, ...]:
        """Find the ids of the recordings that the first known of some names may mean; none where it is unknown.

        Args:
            subject: Only of this one, where it is said: a name that others have too is none of theirs.
        """
        ids = next((self._ids[name] for name in names if name in self._ids), ())
        return tuple(one for one in ids if one.startswith(f"{subject}/")) if subject else ids

    def find_one(
        self, names: Sequence[str], key: str, where: str, taken: Container[str], subject: str = ""
    ) -> str | None:
        """Find the id of the one recording that something is of; None where it is of no recording.

        Args:
            names: What it may call the recording, the fullest first.
            key: As it calls it.
            where: The file or row, for errors.
            taken: Ids that others have named already.
            subject: Whose recording it is, where that is said.
        Raises:
            DataError: It names several recordings, or one that is taken.
        """
        ids = self.find(names, subject)
        if len(ids) > 1:
            raise DataError(
                f"{where} names {key}, which are {format_count(len(ids), 'recording')}: {', '.join(ids[:3])}; name "
                "them as subject/recording"
            )
        if ids and ids[0] in taken:
            raise DataError(f"{where} names {key}, which another has named already; keep one")
        return ids[0] if ids else None

    def give_example(self) -> str:
        """Give an example of the names, for errors."""
        first = self._recordings[0] if self._recordings else None
        return f"{first.id} or {first.recording}" if first else "none"


def match_rows(rows: RowKeys, names: RecordingNames) -> dict[str, int]:
    """Find the row of each recording: id -> position in the table.

    Raises:
        DataError: No row names a recording, one names several, or two name one.
    """
    found: dict[str, int] = {}
    for row, number in enumerate(rows.numbers):
        where = f"{rows.path}: row {number}"
        one = names.find_one(rows.list_names(row), rows.keys[row], where, found, rows.get_subject(row))
        if one is not None:
            found[one] = row
    if not found:
        first = rows.describe(0) if rows.keys else "''"
        raise DataError(
            f"{rows.setting}: no row of {rows.path} names a recording; {rows.column} is {first} there, and "
            f"recordings are called {names.give_example()}; set {rows.setting}.key"
        )
    return found


def describe_unmatched_rows(rows: RowKeys, names: RecordingNames) -> list[str]:
    """Write a line on rows that name no recording of the data set, where there are any."""
    unmatched = [row for row in range(len(rows.keys)) if not names.find(rows.list_names(row), rows.get_subject(row))]
    if not unmatched:
        return []
    first = f"row {rows.numbers[unmatched[0]]}, {rows.describe(unmatched[0])}"
    return [
        f"{rows.path}: {len(unmatched)} of {len(rows.keys)} rows name no recording (the first: {first}), and are not "
        "used"
    ]
