"""EEG of one person's recordings, by the profile that the experiment names."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from eav_ray.config import EEGPreprocessing
from eav_ray.data.align import alignment
from eav_ray.data.clean import clean
from eav_ray.data.manifest import DataSet, RawEEG, Recording
from eav_ray.data.official import official
from eav_ray.errors import DataError


@dataclass(frozen=True)
class Prepared:
    x_CT: np.ndarray  # float32, microvolts (without a unit where `profile.align` is set), at the profile's rate
    unit: str  # that the file had
    bad: dict[str, str]  # bad channel -> reason
    removed: tuple[str, ...] = ()  # labels of the components that were taken out


def prepare_eeg(
    dataset: DataSet, recordings: Sequence[Recording], preprocessing: EEGPreprocessing, whole: Sequence[Recording] = ()
) -> Iterator[tuple[Recording, Prepared | DataError]]:
    """EEG of recordings of one person, in the order given; where one cannot be used, why.

    `clean` sees one recording at a time; `official` filters all that the person recorded as one signal.

    Args:
        whole: All recordings of the person, to which `profile.align` brings each; without it, those given.
    """
    if preprocessing.align == "none":
        yield from _filtered(dataset, recordings, preprocessing)
        return
    everything = {r.id: r for r in (*whole, *recordings) if r.eeg is not None}
    found = {r.id: result for r, result in _filtered(dataset, list(everything.values()), preprocessing)}
    signals = [p.x_CT for p in found.values() if isinstance(p, Prepared)]
    counts = Counter(len(x_CT) for x_CT in signals)
    # A recording of another montage is left as it is: whoever cuts it says what is wrong with it.
    n_chans = counts.most_common(1)[0][0] if counts else 0
    matrix_CC = alignment([x_CT for x_CT in signals if len(x_CT) == n_chans], preprocessing.align) if counts else None
    for recording in recordings:
        result = found[recording.id]
        if matrix_CC is not None and isinstance(result, Prepared) and len(result.x_CT) == n_chans:
            result = replace(result, x_CT=(matrix_CC @ result.x_CT).astype(np.float32))
        yield recording, result


def _filtered(
    dataset: DataSet, recordings: Sequence[Recording], preprocessing: EEGPreprocessing
) -> Iterator[tuple[Recording, Prepared | DataError]]:
    if preprocessing.kind == "official":
        yield from _as_one(dataset, recordings, preprocessing)
        return
    for recording in recordings:
        try:
            found = clean(dataset.read_eeg(recording), preprocessing)
            yield recording, Prepared(found.x_CT, found.unit, found.bad, found.removed)
        except DataError as error:
            yield recording, naming(error, recording)


def _as_one(
    dataset: DataSet, recordings: Sequence[Recording], preprocessing: EEGPreprocessing
) -> Iterator[tuple[Recording, Prepared | DataError]]:
    found: dict[str, Prepared | DataError] = {}
    try:
        raws: dict[str, RawEEG] = {}
        for recording in dataset.sitting(recordings):
            try:
                raws[recording.id] = dataset.read_eeg(recording)
            except DataError as error:
                found[recording.id] = error
        if raws:
            signals, unit = official(list(raws.values()), preprocessing)
            for name, signal in zip(raws, signals, strict=True):
                found[name] = signal if isinstance(signal, DataError) else Prepared(signal, unit, {})
    except DataError as error:
        found = {r.id: error for r in recordings}
    for recording in recordings:
        result = found[recording.id]
        yield recording, naming(result, recording) if isinstance(result, DataError) else result


def naming(error: DataError, recording: Recording) -> DataError:
    """Signal processing sees numbers only: say whose they are."""
    file = recording.eeg or ""
    return error if file in str(error) else DataError(f"{file} ({recording.id}): {error}")
