"""A stream's windows are those of the file that it could have been, and what did not come in time is masked."""

import json
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eav_ray.data.datasets.eav import EAV_CHANNELS
from eav_ray.data.preprocessing.windowing import WindowFormat
from eav_ray.data.streaming import messages
from eav_ray.data.streaming.buffers import FrameBuffer, SampleBuffer, select_frames
from eav_ray.data.streaming.stream import EEG_CONTEXT_S, GRACE_S, LiveStream, make_window
from eav_ray.data.streaming.upload import NOT_SENT, make_windows, parse_upload
from eav_ray.errors import DataError
from tests.helpers.serving import (
    EEG_HZ,
    Sent,
    draw_jpeg,
    encode_audio,
    encode_eeg,
    encode_message,
    encode_video,
    get_preprocessing,
)

ALL = ("audio", "eeg", "video")
MODEL = WindowFormat(get_preprocessing(), ALL, len(EAV_CHANNELS), EAV_CHANNELS)


def streamed(sent: Sent, end_s: float, *modalities: str, **words: Any) -> tuple[dict[str, Any], dict[str, str]]:
    live = LiveStream(MODEL)
    for _, data in sent.messages(*modalities, **words):
        live.push(data, 0.0)
    return make_window(live.take_snapshot(end_s), MODEL)


def of_file(sent: Sent, window: int) -> dict[str, Any]:
    made, not_used = make_windows(parse_upload(sent.tree()), MODEL)
    assert not not_used and not made.problems
    return made.windows[window]


@pytest.mark.parametrize("seconds", [5, 20])
@pytest.mark.parametrize("piece_s", [0.1, 1.0])
def test_the_last_window_of_a_stream_is_that_of_the_file(seconds: int, piece_s: float) -> None:
    """All that the filters of EEG see of the file, they have seen of the stream."""
    sent = Sent(seconds)
    row, reasons = streamed(sent, 100.0 + seconds, piece_s=piece_s)
    assert not reasons
    wanted = of_file(sent, seconds // 5 - 1)
    for m in ALL:
        assert row[f"has_{m}"] and np.array_equal(row[m], wanted[m]), m


def test_before_the_end_only_eeg_differs_and_most_at_its_end() -> None:
    """Its filters do not know yet what comes next."""
    sent, live = Sent(10), LiveStream(MODEL)
    for time_s, data in sent.messages():
        if time_s <= 105:
            live.push(data, 0.0)
    row, _ = make_window(live.take_snapshot(105.0), MODEL)
    wanted = of_file(sent, 0)
    assert np.array_equal(row["audio"], wanted["audio"]) and np.array_equal(row["video"], wanted["video"])
    error_T = np.abs(row["eeg"] - wanted["eeg"]).max(axis=0) / wanted["eeg"].std()
    assert error_T[:100].max() < 0.02 < error_T[-20:].max()


def test_a_stream_forgets_what_it_does_not_need() -> None:
    """After a minute it answers as if it had begun a while ago, and holds no more."""
    long, short = Sent(60), Sent(60)
    row, _ = streamed(long, 160.0)
    late = LiveStream(MODEL)
    for time_s, data in short.messages():
        if time_s > 160 - EEG_CONTEXT_S - 1.99:
            late.push(data, 0.0)
    shot = late.take_snapshot(160.0)
    again, _ = make_window(shot, MODEL)
    assert shot.eeg is not None and shot.eeg.values_CT.shape[1] == EEG_CONTEXT_S * EEG_HZ
    for m in ALL:
        assert np.array_equal(row[m], again[m]), m


@pytest.mark.parametrize("absent", ALL)
def test_a_modality_that_is_not_sent_is_masked(absent: str) -> None:
    row, reasons = streamed(Sent(5), 105.0, *(m for m in ALL if m != absent))
    assert reasons == {absent: NOT_SENT}
    assert not row[f"has_{absent}"] and not row[absent].any()


@pytest.mark.parametrize("m", ALL)
def test_a_modality_that_stops_is_masked_once_half_a_window_lacks_it(m: str) -> None:
    live = LiveStream(MODEL)
    for time_s, data in Sent(12).messages():
        if json.loads(data.split(b"\n")[0])["modality"] != m or time_s <= 105.001:
            live.push(data, 0.0)
    for end_s in (106.0, 107.0, 108.0, 109.0, 110.0):
        _, reasons = make_window(live.take_snapshot(end_s), MODEL)
        assert (m in reasons) == (end_s > 107), end_s
        assert end_s <= 107 or "of the last 5 s came" in reasons[m]


def test_a_gap_in_eeg_starts_its_filters_anew() -> None:
    """What lies before it does not ring into what comes after."""
    sent = Sent(12)
    with_gap, fresh = LiveStream(MODEL), LiveStream(MODEL)
    for time_s, data in sent.messages("eeg"):
        if not 105.1 < time_s < 107.1:
            with_gap.push(data, 0.0)
        if time_s > 107.1:
            fresh.push(data, 0.0)
    a, _ = make_window(with_gap.take_snapshot(112.0), MODEL)
    b, _ = make_window(fresh.take_snapshot(112.0), MODEL)
    assert a["has_eeg"] and np.array_equal(a["eeg"], b["eeg"])


def test_an_answer_is_due_every_second_and_waits_a_little_for_the_last_modality() -> None:
    live, due = LiveStream(MODEL), []
    assert live.find_due_window_end(0.0) is None
    for time_s, data in Sent(6).messages(piece_s=0.1):
        live.push(data, time_s)
        if (end_s := live.find_due_window_end(time_s)) is not None:
            due.append(end_s)
            live.take_snapshot(end_s)
    assert due == [101, 102, 103, 104, 105, 106]
    late = LiveStream(MODEL)
    late.push(encode_audio(100.0, np.zeros(16_000)), 0.0)
    late.push(encode_eeg(100.0, np.zeros((30, 400))), 0.0)  # 0.2 s short
    assert late.find_due_window_end(0.0) is None and late.find_due_window_end(GRACE_S * 0.9) is None
    assert late.find_due_window_end(GRACE_S) == 101.0
    late.push(encode_audio(101.0, np.zeros(8_000)), 0.0)  # so far ahead that nobody waits
    assert late.find_due_window_end(0.0) == 101.0


def test_seconds_that_nobody_could_answer_are_left_out() -> None:
    live = LiveStream(MODEL)
    for k in range(40):
        live.push(encode_audio(100.0 + k, np.zeros(16_000)), 0.0)
    assert live.find_due_window_end(9.0) == 140.0
    live.take_snapshot(140.0)
    assert live.find_due_window_end(9.0) is None


def test_a_damaged_frame_is_as_if_it_had_not_come() -> None:
    sent = Sent(5)
    good, _ = streamed(sent, 105.0, "video")
    middle = bytearray(sent.frames[0])
    start = middle.index(b"\xff\xc0")  # the header of the picture: its sizes
    middle[start + 5 : start + 9] = b"\x00\x00\x00\x00"
    with pytest.raises(DataError, match="no JPEG file|breaks off|cannot"):
        messages.require_jpeg(sent.frames[0][:200])
    live = LiveStream(MODEL)
    for k, frame in enumerate(sent.frames):
        live.push(encode_video(100 + k / 5, frame), 0.0)
    shot = live.take_snapshot(105.0)
    shot.frames[0].jpeg = bytes(middle)  # what the header's check let through
    row, reasons = make_window(shot, MODEL)
    assert "video" not in reasons
    assert np.array_equal(row["video"][1:], good["video"][1:]) and row["video"][0].any()


def test_of_large_frames_whose_faces_are_wanted_one_is_held_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A window of them would take gigabytes. And one that cannot be decoded is tried once."""
    decoded: list[bytes] = []
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    most = 0

    class Picture:
        """In place of a decoded frame, of which it has what the crop needs."""

    class Crops:
        def __init__(self, size: int, step: int) -> None:
            self.pictures: list[np.ndarray] = []
            self.size = size

        def add(self, frame: Any, times: int) -> None:
            nonlocal most
            most = max(most, len(alive))
            self.pictures += [np.zeros((self.size, self.size, 3), np.uint8)] * times

        def flush(self) -> None:
            pass

    def picture(frame: Any, _: Any) -> Any:
        decoded.append(frame.jpeg)
        if frame.jpeg == sent.frames[0]:
            return None
        made = Picture()
        alive.add(made)
        return made

    monkeypatch.setattr("eav_ray.data.streaming.stream.resize_frame", picture)
    monkeypatch.setattr("eav_ray.data.streaming.stream.FaceCropper", Crops)
    p, sent = get_preprocessing(), Sent(5)
    model = replace(MODEL, preprocessing=replace(p, video=replace(p.video, crop="face")))
    live = LiveStream(model)
    for _, data in sent.messages("video"):
        live.push(data, 0.0)
    for _ in range(2):
        row, reasons = make_window(live.take_snapshot(105.0), model)
        assert "video" not in reasons and row["has_video"]
    assert most <= 2 and decoded.count(sent.frames[0]) == 1


# Buffers


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_samples_lie_where_their_times_say_in_any_order(sizes: list[int], random: Any) -> None:
    x_CT = np.arange(2.0 * sum(sizes)).reshape(2, -1)
    starts = np.cumsum([0, *sizes[:-1]])
    order = list(range(len(sizes)))
    rest = order[1:]
    random.shuffle(rest)
    samples = SampleBuffer(2, 100.0, keep_s=10.0)
    kept = np.zeros(x_CT.shape[1], bool)
    for k in [0, *rest[: len(rest) // 2], 0]:
        place = slice(starts[k], starts[k] + sizes[k])
        # Pieces so near the end count as the next: only those that follow, or lie further off, are at their own place.
        if 0 < starts[k] - round(samples.end_s * 100) <= 2:
            continue
        samples.push(starts[k] / 100, x_CT[:, place])
        kept[place] = True
    found_CT, here_T = samples.read_span(0.0, x_CT.shape[1] / 100)
    assert np.array_equal(here_T, kept) and np.array_equal(found_CT, np.where(kept, x_CT, 0))


def test_times_that_tremble_do_not_tear_a_signal() -> None:
    rng = np.random.default_rng(0)
    samples, x_T = SampleBuffer(1, 1000.0, keep_s=10.0), np.arange(5000.0)[None]
    for k in range(50):
        samples.push(7 + k / 10 + rng.uniform(-0.009, 0.009) * (k > 0), x_T[:, 100 * k : 100 * k + 100])
    found, start_s = samples.read_last_contiguous(20.0)
    assert np.array_equal(found, x_T) and start_s == pytest.approx(7, abs=0.005)


@pytest.mark.parametrize("ppm", [-200, 200])
def test_a_clock_that_drifts_does_not_tear_a_signal(ppm: float) -> None:
    samples, count = SampleBuffer(1, 100.0, keep_s=10.0), 4000
    for k in range(count):  # 800 s
        samples.push(0.2 * k * (1 + ppm / 1e6), np.full((1, 20), k))
    found, start_s = samples.read_last_contiguous(1e6)
    assert found.shape[1] >= 1000 and found[0, -1] == count - 1
    assert start_s + found.shape[1] / 100 == pytest.approx(0.2 * count * (1 + ppm / 1e6), abs=0.002)


def test_frames_that_come_late_are_put_in_their_place() -> None:
    frames = FrameBuffer(keep_s=5.0, max_frames=100)
    for time_s in (1.0, 2.0, 1.5, 2.0, 9.0, 8.0, 3.0):
        frames.push(time_s, b"")
    assert [f.time_s for f in frames.list_frames_before(9.5)] == [8.0, 9.0] and frames.end_s == 9.0
    for k in range(200):
        frames.push(9.0 + k / 100, bytes(2**20))
    assert len(frames.list_frames_before(99.0)) == 64


def test_a_slow_camera_covers_its_seconds_and_a_frozen_one_does_not() -> None:
    _, covered = select_frames(np.arange(0, 5, 0.5), 0.0, 5.0, 5, 25)
    assert covered == pytest.approx(5.0)
    which, covered = select_frames(np.array([0.0, 0.2, 4.0]), 0.0, 5.0, 5, 25)
    assert covered == pytest.approx(0.2 + 1.0 + 1.0) and which.tolist() == [0] + [1] * 19 + [2] * 5


def test_a_slow_camera_shows_no_frame_before_its_time() -> None:
    """As in a file (`video.read_video`), the one that was on screen as the window began included."""
    times_s = np.arange(0, 9, 0.5)
    which, _ = select_frames(times_s, 3.2, 8.2, 5, 25)
    np.testing.assert_allclose(times_s[which], np.floor((3.2 + np.arange(25) / 5 + 0.002) * 2) / 2)
    which, _ = select_frames(np.arange(0, 9, 0.1), 3.2, 8.2, 5, 25)
    assert which.tolist() == list(range(32, 82, 2))


# What cannot be used is said in one line

ZEROS = np.zeros((30, 50))
WRONG = {
    "no line": b"\x00" * 100_000,
    "not JSON": b"nope\n",
    "not UTF-8": b"\xff\xfe\n",
    "a list": b"[]\n",
    "nested": b"[" * 20_000 + b"\n",
    "huge number": b'{"modality":"video","time":' + b"9" * 5000 + b"}\n",
    "too long": b'{"modality":"audio","time":0,"hz":16000}\n' + bytes(messages.MAX_MESSAGE_BYTES),
    "no modality": encode_message(b""),
    "other modality": encode_message(b"", modality="smell", time=0),
    "modality is a list": encode_message(b"", modality=["eeg"], time=0),
    "time is NaN": encode_audio(float("nan"), np.zeros(9)),
    "time is infinite": encode_audio(float("inf"), np.zeros(9)),
    "time is text": encode_audio(0, np.zeros(9), time="now"),
    "time is true": encode_audio(0, np.zeros(9), time=True),
    "an unknown key": encode_audio(0, np.zeros(9), rate=16000),
    "no rate": encode_message(bytes(8), modality="audio", time=0),
    "rate 0": encode_audio(0, np.zeros(9), hz=0),
    "rate 1e300": encode_audio(0, np.zeros(9), hz=1e300),
    "a rate between": encode_audio(0, np.zeros(9), hz=16000.5),
    "0 channels": encode_audio(0, np.zeros(9), channels=0),
    "a billion channels": encode_audio(0, np.zeros(9), channels=10**9),
    "half a sample": encode_message(b"123", modality="audio", time=0, hz=16000),
    "no sample": encode_message(b"", modality="audio", time=0, hz=16000),
    "another type": encode_audio(0, np.zeros(9), dtype="object"),
    "type is a list": encode_audio(0, np.zeros(9), dtype=["f4"]),
    "NaN in audio": encode_message(np.full(9, np.nan, "<f4").tobytes(), modality="audio", time=0, hz=16000),
    "a long piece": encode_audio(0, np.zeros(16_000 * 6)),
    "EEG without channels": encode_message(bytes(120), modality="eeg", time=0, hz=500),
    "29 channels": encode_eeg(0, ZEROS[:29], channels=29),
    "other channels": encode_eeg(0, ZEROS, channels=[f"x{i}" for i in range(30)]),
    "one channel twice": encode_eeg(0, ZEROS, channels=["Cz"] * 30),
    "a rate of odd thousandths": encode_eeg(0, ZEROS, hz=511.999),
    "another unit": encode_eeg(0, ZEROS, unit="parsec"),
    "no JPEG": encode_video(0, b"GIF89a"),
    "half a JPEG": encode_video(0, draw_jpeg(np.random.default_rng(0))[:-40]),
    "a huge JPEG": encode_video(0, draw_jpeg(np.random.default_rng(0), (8, 5000))),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_refused_in_one_line_and_the_stream_goes_on(what: str) -> None:
    live = LiveStream(MODEL)
    live.push(encode_audio(0.0, np.zeros(100)), 0.0)
    with pytest.raises(DataError) as reported:
        live.push(WRONG[what], 0.0)
    assert "\n" not in str(reported.value) and len(str(reported.value)) < 600
    live.push(encode_audio(100 / 16000, np.zeros(16_000)), 0.0)
    assert live.n_refused == 1 and live.find_due_window_end(1.0) == 1.0


def test_a_damaged_time_stamp_holds_up_no_answer() -> None:
    live = LiveStream(MODEL)
    live.push(encode_audio(5.0, np.zeros(1600)), 0.0)
    for time_s, reason in ((59.0, "taken if the next"), (1e9, "taken if the next"), (-3.0, "begin a new stream")):
        with pytest.raises(DataError, match=reason):
            live.push(encode_audio(time_s, np.zeros(1600)), 0.0)
    assert live.newest_s == pytest.approx(5.1)
    live.push(encode_audio(5.1, np.zeros(16_000)), 1.0)
    assert live.find_due_window_end(2.0) == 6.0


def test_after_an_outage_a_stream_goes_on_with_its_second_piece() -> None:
    live = LiveStream(MODEL)
    live.push(encode_audio(5.0, np.zeros(1600)), 0.0)
    with pytest.raises(DataError, match="taken if the next"):
        live.push(encode_video(700.0, draw_jpeg(np.random.default_rng(0))), 1.0)
    live.push(encode_audio(700.1, np.zeros(32_000)), 1.0)
    assert live.find_due_window_end(2.0) == 702.0 and live.n_refused == 1


@given(st.binary(max_size=300))
def test_no_bytes_do_more_than_be_refused(data: bytes) -> None:
    for message_ in (data, b'{"modality":"eeg","time":1,"hz":500,"channels":30}\n' + data):
        try:
            messages.parse_chunk(message_)
        except DataError as error:
            assert "\n" not in str(error)
        else:
            assert len(data) % 120 == 0


def test_channels_are_found_by_name_and_put_in_the_order_of_the_model() -> None:
    sent = Sent(5)
    order = np.random.default_rng(1).permutation(30)
    tree = sent.tree("eeg")
    wanted = make_windows(parse_upload(tree), MODEL)[0].windows[0]["eeg"]
    tree["eeg"] |= {"channels": ["EKG", *(EAV_CHANNELS[i].upper() for i in order)]}
    tree["eeg"]["values"] = np.vstack([np.zeros(2500), sent.eeg_CT[order]]).tolist()
    found, not_used = make_windows(parse_upload(tree), MODEL)
    assert "eeg" not in not_used and np.allclose(found.windows[0]["eeg"], wanted, atol=1e-4)
