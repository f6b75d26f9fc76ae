"""Prepare the EEG of one person's recordings, by `preprocessing.eeg.kind`."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from eav_ray.config import EEGPreprocessing
from eav_ray.data.preprocessing.alignment import compute_alignment
from eav_ray.data.preprocessing.eeg_clean import clean_eeg
from eav_ray.data.preprocessing.eeg_official import filter_official
from eav_ray.data.preprocessing.electrodes import match_channels
from eav_ray.data.recordings import DatasetReader, RawEEG, Recording
from eav_ray.errors import DataError


@dataclass(frozen=True)
class PreparedEEG:
    # float32, at the rate of `preprocessing.eeg.hz`; microvolts, or no unit where `preprocessing.eeg.align` is set.
    x_CT: np.ndarray
    unit: str  # that the file had
    bad_channels: dict[str, str]  # bad channel -> reason
    removed_components: tuple[str, ...] = ()  # labels of the components that were taken out


def prepare_eeg(
    reader: DatasetReader,
    recordings: Sequence[Recording],
    preprocessing: EEGPreprocessing,
    all_recordings: Sequence[Recording] = (),
    channels: Sequence[str] = (),
) -> Iterator[tuple[Recording, PreparedEEG | DataError]]:
    """EEG of recordings of one person, in the order given; where one cannot be used, why.

    `clean` sees one recording at a time; `official` filters all that the person recorded as one signal.

    Args:
        all_recordings: All recordings of the person, to which `preprocessing.eeg.align` brings each; without it, those
            given.
        channels: Names of the channels that are wanted, in order, found by position before anything is filtered, so
            that an extra electrode takes no part in the average reference; all as they stand, where none are named.
    """
    if channels:
        reader = ChannelMatcher(reader, channels)
    if preprocessing.align == "none":
        yield from _filter_recordings(reader, recordings, preprocessing)
        return
    recordings_by_id = {r.id: r for r in (*all_recordings, *recordings) if r.eeg is not None}
    results = {r.id: result for r, result in _filter_recordings(reader, list(recordings_by_id.values()), preprocessing)}
    signals = [p.x_CT for p in results.values() if isinstance(p, PreparedEEG)]
    counts = Counter(len(x_CT) for x_CT in signals)
    # A recording of another montage is left as it is: whoever cuts it says what is wrong with it.
    n_chans = counts.most_common(1)[0][0] if counts else 0
    matrix_CC = (
        compute_alignment([x_CT for x_CT in signals if len(x_CT) == n_chans], preprocessing.align) if counts else None
    )
    for recording in recordings:
        result = results[recording.id]
        if matrix_CC is not None and isinstance(result, PreparedEEG) and len(result.x_CT) == n_chans:
            result = replace(result, x_CT=(matrix_CC @ result.x_CT).astype(np.float32))
        yield recording, result


class ChannelMatcher(DatasetReader):
    """Read a data set with the channels that are wanted, in their order."""

    def __init__(self, reader: DatasetReader, channels: Sequence[str]) -> None:
        self._reader, self.channels = reader, tuple(channels)

    def session_recordings(self, recordings: Sequence[Recording]) -> list[Recording]:
        return self._reader.session_recordings(recordings)

    def read_eeg(self, recording: Recording) -> RawEEG:
        return match_raw_channels(self._reader.read_eeg(recording), self.channels, recording.eeg or recording.id)


def match_raw_channels(raw: RawEEG, channels: tuple[str, ...], where: str) -> RawEEG:
    """Reorder EEG to the channels that are wanted; extra ones are left out.

    Raises:
        DataError: A wanted channel is missing.
    """
    if raw.channels == channels:
        return raw
    return RawEEG(raw.values_CT[match_channels(raw.channels, channels, where)], raw.hz, channels, raw.unit)


def _filter_recordings(
    reader: DatasetReader, recordings: Sequence[Recording], preprocessing: EEGPreprocessing
) -> Iterator[tuple[Recording, PreparedEEG | DataError]]:
    if preprocessing.kind == "official":
        yield from _filter_session(reader, recordings, preprocessing)
        return
    for recording in recordings:
        try:
            cleaned = clean_eeg(reader.read_eeg(recording), preprocessing)
            yield recording, PreparedEEG(cleaned.x_CT, cleaned.unit, cleaned.bad_channels, cleaned.removed_components)
        except DataError as error:
            yield recording, add_recording_to_error(error, recording)


def _filter_session(
    reader: DatasetReader, recordings: Sequence[Recording], preprocessing: EEGPreprocessing
) -> Iterator[tuple[Recording, PreparedEEG | DataError]]:
    results: dict[str, PreparedEEG | DataError] = {}
    try:
        raws: dict[str, RawEEG] = {}
        for recording in reader.session_recordings(recordings):
            try:
                raws[recording.id] = reader.read_eeg(recording)
            except DataError as error:
                results[recording.id] = error
        if raws:
            signals, unit = filter_official(list(raws.values()), preprocessing)
            for name, signal in zip(raws, signals, strict=True):
                results[name] = signal if isinstance(signal, DataError) else PreparedEEG(signal, unit, {})
    except DataError as error:
        results = {r.id: error for r in recordings}
    for recording in recordings:
        result = results[recording.id]
        yield recording, add_recording_to_error(result, recording) if isinstance(result, DataError) else result


def add_recording_to_error(error: DataError, recording: Recording) -> DataError:
    """Signal processing sees numbers only: say whose they are."""
    file = recording.eeg or ""
    return error if file in str(error) else DataError(f"{file} ({recording.id}): {error}")
