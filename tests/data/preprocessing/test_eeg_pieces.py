"""Pieces are filtered apart, lost samples cost the windows that they touch, and marks are taken; nothing moves."""

from typing import Any

import numpy as np
import pytest

from eav_ray.config import EEGPreprocessing
from eav_ray.data.corruptions.base import Corruption
from eav_ray.data.corruptions.eeg import corrupt_eeg
from eav_ray.data.preprocessing.eeg import match_raw_channels, prepare_eeg
from eav_ray.data.preprocessing.eeg_clean import PreparedEEG, clean_eeg
from eav_ray.data.preprocessing.eeg_official import filter_official
from eav_ray.data.preprocessing.eeg_pieces import find_pieces
from eav_ray.data.recordings import DatasetReader, RawEEG, Recording
from eav_ray.errors import DataError
from tests.helpers.eeg_files import NAMES, make_eeg

HZ = 250
EEG_CT = make_eeg(60, HZ)
OFFSET_C = 5000 * np.linspace(-1, 1, 8)[:, None]
CLEAN = EEGPreprocessing(notch_hz=50)
OFFICIAL = EEGPreprocessing(kind="official")
Keys = dict[str, Any]


def make_raw(values_CT: np.ndarray, **marks: Any) -> RawEEG:
    return RawEEG(values_CT, HZ, NAMES, "microvolt", **marks)


def prepare(raw: RawEEG, preprocessing: EEGPreprocessing) -> PreparedEEG:
    if preprocessing.kind == "clean":
        return clean_eeg(raw, preprocessing)
    (found,) = filter_official([raw], preprocessing)
    if isinstance(found, DataError):
        raise found
    return found


def spoil(first: int, last: int, channels: Any = slice(None), value: float = np.nan) -> np.ndarray:
    values_CT = EEG_CT.copy()
    values_CT[channels, first:last] = value
    return values_CT


def seconds(x_CT: np.ndarray, first_s: float, last_s: float) -> np.ndarray:
    return x_CT[:, round(first_s * 100) : round(last_s * 100)]


BOTH = pytest.mark.parametrize("preprocessing", [CLEAN, OFFICIAL], ids=["clean", "official"])


@BOTH
@pytest.mark.parametrize("second", [20.0, 20.5, 20.004, 33.336])
def test_a_jump_between_pieces_rings_into_neither(preprocessing: EEGPreprocessing, second: float) -> None:
    jump = round(second * HZ)
    joined_CT = EEG_CT.copy()
    joined_CT[:, jump:] += OFFSET_C
    joined = prepare(make_raw(joined_CT, joins_s=(jump / HZ,)), preprocessing)
    without = prepare(make_raw(EEG_CT, joins_s=(jump / HZ,)), preprocessing)
    np.testing.assert_allclose(joined.x_CT, without.x_CT, atol=0.01)  # 5000 uV in single precision
    whole = prepare(make_raw(EEG_CT), preprocessing)
    error = np.abs(joined.x_CT - whole.x_CT)
    assert seconds(error, 0, second - 3).max() < 1 and seconds(error, second + 8, 60).max() < 1
    assert joined.missing_s == () and joined.bad_channels == {} and joined.x_CT.shape == whole.x_CT.shape
    if preprocessing.kind == "clean":  # the edge itself is a filter's, and no step of 5000 uV
        assert error.max() < 6 * whole.x_CT.std()


@BOTH
def test_what_was_not_recorded_is_missing_and_the_rest_stays_in_its_place(preprocessing: EEGPreprocessing) -> None:
    raw = make_raw(spoil(2500, 5001), missing_s=((10.0, 20.004),))
    values_CT = raw.values_CT
    values_CT[:, 5001:] += OFFSET_C
    found, whole = prepare(raw, preprocessing), prepare(make_raw(EEG_CT), preprocessing)
    assert found.x_CT.shape == whole.x_CT.shape and found.missing_s == ((10.0, 20.004),)
    assert not seconds(found.x_CT, 10, 20).any()
    error = np.abs(found.x_CT - whole.x_CT)
    assert seconds(error, 0, 7).max() < 1 and seconds(error, 28, 60).max() < 1


@BOTH
@pytest.mark.parametrize("channels", [slice(None), [0, 3, 6], [2]], ids=["all", "three", "one"])
def test_a_few_lost_samples_are_bridged(preprocessing: EEGPreprocessing, channels: Any) -> None:
    """44 ms cost nothing beyond themselves."""
    found = prepare(make_raw(spoil(5000, 5011, channels)), preprocessing)
    whole = prepare(make_raw(EEG_CT), preprocessing)
    assert found.bad_channels == {} and found.missing_s == () and np.isfinite(found.x_CT).all()
    error = np.abs(found.x_CT - whole.x_CT)
    quiet_s = 22 if preprocessing.kind == "clean" else 26  # a causal filter of 0.5 Hz remembers for seconds
    assert (
        error.max() < 4 * EEG_CT.std() and seconds(error, 0, 19).max() < 0.5 and seconds(error, quiet_s, 60).max() < 0.5
    )
    assert found.remarks == ("single lost samples are bridged",)


@BOTH
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("channels", [slice(None), [0, 3, 6]], ids=["all", "three"])
def test_longer_losses_are_missing_where_they_are(preprocessing: EEGPreprocessing, channels: Any, value: float) -> None:
    found = prepare(make_raw(spoil(5000, 5500, channels, value)), preprocessing)
    whole = prepare(make_raw(EEG_CT), preprocessing)
    assert found.bad_channels == {} and found.missing_s == ((20.0, 22.0),)
    assert not seconds(found.x_CT, 20, 22).any() and "spans of lost samples are missing" in found.remarks
    error = np.abs(found.x_CT - whole.x_CT)
    assert seconds(error, 0, 17).max() < 1 and seconds(error, 30, 60).max() < 1


def test_a_channel_that_lacks_much_is_bad_and_costs_no_other() -> None:
    found = clean_eeg(make_raw(spoil(5000, 7000, [2])), CLEAN)
    assert found.bad_channels == {"C3": "not finite"} and found.missing_s == ()
    single = spoil(0, 0)
    single[2, ::5] = np.nan  # every fifth sample: no gap is long, but nothing is left of the signal
    assert clean_eeg(make_raw(single), CLEAN).bad_channels == {"C3": "not finite"}
    with pytest.raises(DataError, match="not finite; leave this recording out, or use preprocessing.eeg.kind=clean"):
        prepare(make_raw(single), OFFICIAL)


@BOTH
def test_a_second_in_which_nothing_changes_is_missing(preprocessing: EEGPreprocessing) -> None:
    found = prepare(make_raw(spoil(5000, 5500, value=-3276.7)), preprocessing)
    assert found.missing_s == ((20.0, 22.0),) and found.bad_channels == {}
    assert found.remarks == ("spans in which no channel changes are missing",)
    assert not seconds(found.x_CT, 20, 22).any() and np.abs(found.x_CT).max() < 200
    short = prepare(make_raw(spoil(5000, 5200, value=0.0)), preprocessing)
    assert short.missing_s == () and short.remarks == ()


def test_flat_channels_are_bad_and_no_flat_span() -> None:
    values_CT = EEG_CT.copy()
    values_CT[[1, 5]] = 7.0
    found = clean_eeg(make_raw(values_CT), CLEAN)
    assert found.bad_channels == {"Fp2": "flat", "P4": "flat"} and found.missing_s == ()


@BOTH
def test_marked_spans_are_filtered_along_and_missing(preprocessing: EEGPreprocessing) -> None:
    found = prepare(make_raw(EEG_CT, missing_s=((20.0, 22.0), (21.0, 25.0))), preprocessing)
    whole = prepare(make_raw(EEG_CT), preprocessing)
    assert found.missing_s == ((20.0, 25.0),) and not seconds(found.x_CT, 20, 25).any()
    for first_s, last_s in ((0, 20), (25, 60)):
        np.testing.assert_array_equal(seconds(found.x_CT, first_s, last_s), seconds(whole.x_CT, first_s, last_s))


@BOTH
def test_an_artefact_in_a_marked_span_makes_no_channel_bad(preprocessing: EEGPreprocessing) -> None:
    values_CT = EEG_CT.copy()
    values_CT[4, 5000:6000] += 30_000 * np.sin(np.arange(1000))
    assert prepare(make_raw(values_CT, missing_s=((19.0, 25.0),)), preprocessing).bad_channels == {}


@BOTH
def test_marked_channels_are_bad_and_no_part_of_the_others(preprocessing: EEGPreprocessing) -> None:
    values_CT = EEG_CT.copy()
    values_CT[3] += 40 * np.sin(np.arange(15000) / HZ * 2 * np.pi * 10)  # good by amplitude and correlation
    marked = {"C4": "marked bad in the file"}
    found = prepare(make_raw(values_CT, bad_channels=marked), preprocessing)
    other_CT = values_CT.copy()
    other_CT[3] = EEG_CT[0]
    other = prepare(make_raw(other_CT, bad_channels=marked), preprocessing)
    assert found.bad_channels == other.bad_channels == marked
    np.testing.assert_allclose(found.x_CT, other.x_CT, atol=1e-4)
    with pytest.raises(DataError, match="5 of 8 EEG channels are"):
        prepare(make_raw(EEG_CT, bad_channels=dict.fromkeys(NAMES[:5], "marked bad in the file")), preprocessing)


def test_pieces_that_are_too_short_are_missing() -> None:
    found = clean_eeg(make_raw(EEG_CT, joins_s=(20.0, 20.9, 40.0)), CLEAN)
    assert found.missing_s == ((20.0, 20.9),) and not seconds(found.x_CT, 20, 20.9).any()
    with pytest.raises(DataError, match="no piece of 1 s"):
        clean_eeg(RawEEG(EEG_CT[:, :1000], HZ, NAMES, "microvolt", joins_s=tuple(np.arange(0.5, 4, 0.5))), CLEAN)


def test_nothing_said_changes_nothing() -> None:
    found = find_pieces(make_raw(EEG_CT), 1.0)
    assert found.is_whole and found.values_CT is not None and found.remarks == ()
    assert np.shares_memory(found.values_CT, EEG_CT)


def test_marks_follow_channels_that_are_put_in_another_order() -> None:
    raw = make_raw(EEG_CT, bad_channels={"C4": "marked"}, missing_s=((1.0, 2.0),), joins_s=(5.0,), remarks=("a",))
    found = match_raw_channels(raw, ("O1", "C4", "Fp1"), "a.edf")
    np.testing.assert_array_equal(found.values_CT, EEG_CT[[6, 3, 0]])
    assert found.bad_channels == {"C4": "marked"}
    assert (found.missing_s, found.joins_s, found.remarks) == (raw.missing_s, raw.joins_s, raw.remarks)
    assert match_raw_channels(raw, ("O1", "Fp1"), "a.edf").bad_channels == {}


class Recorded(DatasetReader):
    def __init__(self, raws: list[RawEEG]) -> None:
        self.raws = raws

    def read_eeg(self, recording: Recording) -> RawEEG:
        return self.raws[recording.order]


def test_pauses_inside_a_session_begin_the_official_filter_anew() -> None:
    """The recording after a pause hears what came after the pause, and nothing of what came before it."""
    recordings = [Recording("p1", str(i), 0, "speaking", i, eeg="p1") for i in range(3)]
    paused = make_raw(spoil(2500, 5000), missing_s=((10.0, 20.0),))
    other = make_raw(np.concatenate([-EEG_CT[:, :2500], paused.values_CT[:, 2500:]], axis=1), missing_s=((10.0, 20.0),))
    first, second, last = make_raw(EEG_CT + OFFSET_C), paused, make_raw(EEG_CT[:, :5000] + OFFSET_C)
    found = [p for _, p in prepare_eeg(Recorded([first, second, last]), recordings, OFFICIAL)]
    changed = [p for _, p in prepare_eeg(Recorded([first, other, last]), recordings, OFFICIAL)]
    assert all(isinstance(p, PreparedEEG) for p in (*found, *changed))
    alone = [p for _, p in prepare_eeg(Recorded([first]), recordings[:1], OFFICIAL)]
    # Decimation sees a few samples of the next recording.
    np.testing.assert_allclose(found[0].x_CT[:, :-20], alone[0].x_CT[:, :-20], atol=1e-3)
    np.testing.assert_array_equal(found[2].x_CT, changed[2].x_CT)
    np.testing.assert_array_equal(found[1].x_CT[:, 2000:], changed[1].x_CT[:, 2000:])
    assert not np.allclose(found[1].x_CT[:, :1000], changed[1].x_CT[:, :1000], atol=1)


def test_what_is_missing_does_not_count_as_silence_in_alignment() -> None:
    recordings = [Recording("p1", str(i), 0, "speaking", i, eeg="p1") for i in range(2)]
    preprocessing = EEGPreprocessing(align="standardise")
    paused = make_raw(spoil(2500, 10_000), missing_s=((10.0, 40.0),))
    found = dict(prepare_eeg(Recorded([paused, make_raw(EEG_CT)]), recordings, preprocessing))
    whole = found[recordings[1]]
    assert isinstance(whole, PreparedEEG)
    np.testing.assert_allclose(whole.x_CT.std(axis=1), 1, atol=0.03)


@pytest.mark.parametrize("name", ["gaussian", "dropout"])
def test_a_corruption_reaches_what_was_recorded_and_fills_no_pause(name: str) -> None:
    paused = make_raw(spoil(2500, 7500), missing_s=((10.0, 30.0),))
    level = 0.0 if name == "gaussian" else 0.5  # decibel; share of the channels
    found = corrupt_eeg(paused, Corruption(f"eeg.{name}", level, 0), "r")
    assert (np.isnan(found.values_CT) == np.isnan(paused.values_CT)).all() and found.missing_s == paused.missing_s
    there_T = np.isfinite(found.values_CT[0])
    added_CT = (found.values_CT - paused.values_CT)[:, there_T]
    if name == "gaussian":
        np.testing.assert_allclose(added_CT.std(axis=1), EEG_CT.std(axis=1), rtol=0.1)
    else:
        assert (found.values_CT[:, there_T].std(axis=1) < 1e-9).sum() == 4
