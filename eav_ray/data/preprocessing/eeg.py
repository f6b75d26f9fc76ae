"""Prepare the EEG of one person's recordings, by `preprocessing.eeg.kind`."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from eav_ray.config import EEGPreprocessing
from eav_ray.data.preprocessing.alignment import compute_alignment
from eav_ray.data.preprocessing.eeg_clean import PreparedEEG, clean_eeg
from eav_ray.data.preprocessing.eeg_official import filter_official
from eav_ray.data.recordings import DatasetReader, RawEEG, Recording, TransformedReader
from eav_ray.electrodes import canonicalize_channel_name, match_channels
from eav_ray.errors import DataError


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
        all_recordings: All recordings of the person, to which `preprocessing.eeg.align` brings each, and which
            `official` filters; without it, those given.
        channels: Names of the channels that are wanted, in order, found by position before anything is filtered, so
            that an extra electrode takes no part in the average reference; all as they stand, where none are named.
    """
    reader.wanted_channels = preprocessing.channels
    if channels or preprocessing.channels:
        wanted = tuple(channels) or tuple(map(canonicalize_channel_name, preprocessing.channels))
        reader = TransformedReader(reader, lambda raw, r: match_raw_channels(raw, wanted, r.eeg or r.id))
    reader = TransformedReader(reader, lambda raw, _: compare_mains(raw, preprocessing))
    if preprocessing.align == "none":
        yield from _filter_recordings(reader, recordings, preprocessing, all_recordings)
        return
    recordings_by_id = {r.id: r for r in (*all_recordings, *recordings) if r.eeg is not None}
    results = {r.id: result for r, result in _filter_recordings(reader, list(recordings_by_id.values()), preprocessing)}
    signals = [_drop_missing(p, preprocessing.hz) for p in results.values() if isinstance(p, PreparedEEG)]
    counts = Counter(len(x_CT) for x_CT in signals)
    # A recording of another montage is left as it is: whoever cuts it says what is wrong with it.
    n_chans = counts.most_common(1)[0][0] if counts else 0
    session = [x_CT for x_CT in signals if len(x_CT) == n_chans]
    matrix_CC = compute_alignment(session, preprocessing.align) if session else None
    for recording in recordings:
        result = results[recording.id]
        if matrix_CC is not None and isinstance(result, PreparedEEG) and len(result.x_CT) == n_chans:
            result = result._replace(x_CT=(matrix_CC @ result.x_CT).astype(np.float32))
        yield recording, result


def _drop_missing(prepared: PreparedEEG, hz: int) -> np.ndarray:
    """What was recorded of a recording, so that what is missing does not count as silence."""
    kept_T = np.ones(prepared.x_CT.shape[1], dtype=bool)
    for first_s, last_s in prepared.missing_s:
        kept_T[round(first_s * hz) : round(last_s * hz)] = False
    return prepared.x_CT if kept_T.all() or not kept_T.any() else prepared.x_CT[:, kept_T]


def match_raw_channels(raw: RawEEG, channels: tuple[str, ...], where: str) -> RawEEG:
    """Reorder EEG to the channels that are wanted; extra ones are left out.

    Raises:
        DataError: A wanted channel is missing.
    """
    if raw.channels == channels:
        return raw
    order = match_channels(raw.channels, channels, where)
    bad = {
        wanted: raw.bad_channels[raw.channels[i]]
        for wanted, i in zip(channels, order, strict=True)
        if raw.channels[i] in raw.bad_channels
    }
    return replace(raw, values_CT=raw.values_CT[order], channels=channels, bad_channels=bad)


def compare_mains(raw: RawEEG, preprocessing: EEGPreprocessing) -> RawEEG:
    """Remark on mains that the recorder states and that are not filtered out."""
    if not raw.mains_hz or not preprocessing.notch_hz or abs(raw.mains_hz - preprocessing.notch_hz) < 1:
        return raw
    remark = f"mains of {raw.mains_hz:g} Hz, but preprocessing.eeg.notch_hz is {preprocessing.notch_hz:g}"
    return replace(raw, remarks=(*raw.remarks, remark))


def _filter_recordings(
    reader: DatasetReader,
    recordings: Sequence[Recording],
    preprocessing: EEGPreprocessing,
    all_recordings: Sequence[Recording] = (),
) -> Iterator[tuple[Recording, PreparedEEG | DataError]]:
    if preprocessing.kind == "official":
        session = {r.id: r for r in (*all_recordings, *recordings) if r.eeg is not None}
        yield from _filter_session(reader, recordings, preprocessing, list(session.values()))
        return
    for recording in recordings:
        try:
            yield recording, clean_eeg(reader.read_eeg(recording), preprocessing)
        except DataError as error:
            yield recording, add_recording_to_error(error, recording)


def _filter_session(
    reader: DatasetReader,
    recordings: Sequence[Recording],
    preprocessing: EEGPreprocessing,
    all_recordings: Sequence[Recording],
) -> Iterator[tuple[Recording, PreparedEEG | DataError]]:
    results: dict[str, PreparedEEG | DataError] = {}
    try:
        raws: dict[str, RawEEG] = {}
        for recording in reader.session_recordings(all_recordings):
            try:
                raws[recording.id] = reader.read_eeg(recording)
            except DataError as error:
                results[recording.id] = error
        if raws:
            results |= dict(zip(raws, filter_official(list(raws.values()), preprocessing), strict=True))
    except DataError as error:
        results = {r.id: error for r in recordings}
    for recording in recordings:
        result = results[recording.id]
        yield recording, add_recording_to_error(result, recording) if isinstance(result, DataError) else result


def add_recording_to_error(error: DataError, recording: Recording) -> DataError:
    """Signal processing sees numbers only: say whose they are."""
    file = recording.eeg or ""
    return error if file in str(error) else DataError(f"{file} ({recording.id}): {error}")
