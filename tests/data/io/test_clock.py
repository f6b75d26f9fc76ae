"""Sound and film of one file keep one clock: what happened at one time is stored at one time, and gaps stay gaps."""

import struct
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import pytest

from eav_ray.data.io import audio, video
from eav_ray.data.recordings import measure_overlap
from eav_ray.errors import DataError
from tests.helpers.films import draw_click, find_click_s, make_frames, write_media

HZ = 48_000
CONTAINERS = [
    ("mp4", "aac"),
    ("mov", "pcm_s16le"),
    ("mkv", "aac"),
    ("mkv", "libopus"),
    ("mkv", "flac"),
    ("ts", "aac"),
    ("avi", "pcm_s16le"),
]
FLASH_S = 2.0


def flash(seconds: float = 4.0, rate: int = 25, from_s: float = 0.0, at_s: float = FLASH_S) -> list[av.VideoFrame]:
    """Dark pictures, and bright ones from a time on."""
    times_s = np.arange(round(from_s * rate), round(seconds * rate)) / rate
    pictures = [np.full((48, 64, 3), 220 if t >= at_s - 1e-6 else 20, np.uint8) for t in times_s]
    return make_frames(pictures, times_s)


def find_flash_s(frames: np.ndarray, fps: int) -> float:
    return int(np.argmax(frames.mean((1, 2, 3)) > 120)) / fps


def codec_of(suffix: str) -> str:
    return "mpeg4" if suffix in ("avi", "mov") else "libx264"


@pytest.mark.parametrize(("suffix", "codec"), CONTAINERS)
@pytest.mark.parametrize(("film_from_s", "sound_from_s"), [(0.0, 0.0), (0.0, 0.6), (0.8, 0.0)])
def test_a_click_and_a_flash_of_one_moment_are_stored_at_one_moment(
    tmp_path: Path, suffix: str, codec: str, film_from_s: float, sound_from_s: float
) -> None:
    """Also with B-frames, the encoder's delay, and a stream that begins late; to within 5 ms and a frame of 40 ms."""
    if suffix == "avi" and (film_from_s or sound_from_s):
        pytest.skip("AVI has no time stamps")
    x_T = draw_click(4.0, FLASH_S)[round(sound_from_s * HZ) :]
    path = write_media(
        tmp_path / f"a.{suffix}",
        flash(from_s=film_from_s),
        x_T,
        video_codec=codec_of(suffix),
        audio_codec=codec,
        sound_at_s=sound_from_s,
    )
    sound, film = audio.decode_audio(path, HZ), video.read_video(path, 25, 16)
    assert find_flash_s(film.frames, 25) == pytest.approx(FLASH_S, abs=0.041)
    primed = 0.03 if (suffix, codec) == ("ts", "aac") else 0.0  # a transport stream does not say what AAC puts before
    assert find_click_s(sound.samples_T, HZ) == pytest.approx(FLASH_S + primed / 2, abs=0.005 + primed / 2)
    assert find_click_s(sound.samples_T, HZ) - find_flash_s(film.frames, 25) == pytest.approx(0, abs=0.045)
    for found, late_s in ((sound, sound_from_s), (film, film_from_s)):
        assert measure_overlap(found.missing_s, 0, 4) == pytest.approx(late_s, abs=0.045)
        assert ("it begins late" in found.remarks) == bool(late_s)


@pytest.mark.parametrize("rate", [30_000 / 1001, 14.985, 12.5, 1000 / 33])
def test_odd_rates_keep_the_clock(tmp_path: Path, rate: float) -> None:
    times_s = np.arange(round(5 * rate)) / rate
    pictures = [np.full((48, 64, 3), round(15 + 44 * t), np.uint8) for t in times_s]
    for suffix in ("mp4", "mkv"):
        path = write_media(tmp_path / f"a.{suffix}", make_frames(pictures, times_s), rate=round(rate))
        found = video.read_video(path, 5, 16)
        assert len(found.frames) == 25 and found.missing_s == () and found.remarks == ()
        shown_s = (found.frames.mean((1, 2, 3)) - 15) / 44
        np.testing.assert_allclose(shown_s, np.arange(25) / 5, atol=0.05 + 0.6 / rate)


def edit(path: Path, kind: bytes, entries: Sequence[tuple[int, int]], movie_hz: int = 1000) -> None:
    """Give the first track with such media (`vide`, `soun`) an edit list: (duration, first of the media's time)."""
    whole = path.read_bytes()
    at = whole.index(b"moov") - 4
    moov = bytearray(whole[at : at + struct.unpack(">I", whole[at : at + 4])[0]])
    assert at + len(moov) == len(whole)  # it is the last, so that no place in it moves
    trak = next(t for t in (moov.find(b"trak", k) - 4 for k in range(len(moov))) if kind in moov[t : t + 700])
    old = moov.find(b"edts", trak) - 4
    old_bytes = struct.unpack(">I", moov[old : old + 4])[0] if 0 < old < trak + 300 else 0
    place = old if old_bytes else trak + 8 + struct.unpack(">I", moov[trak + 8 : trak + 12])[0]
    elst = struct.pack(">II", 0, len(entries)) + b"".join(struct.pack(">Iii", d, t, 1 << 16) for d, t in entries)
    elst = struct.pack(">I4s", 8 + len(elst), b"elst") + elst
    new = struct.pack(">I4s", 8 + len(elst), b"edts") + elst
    moov[place : place + old_bytes] = new
    for box in (0, trak):
        moov[box : box + 4] = struct.pack(">I", struct.unpack(">I", moov[box : box + 4])[0] + len(new) - old_bytes)
    path.write_bytes(whole[:at] + bytes(moov))


def test_an_empty_edit_delays_a_stream(tmp_path: Path) -> None:
    for kind in (b"vide", b"soun"):
        path = write_media(tmp_path / "a.mp4", flash(), draw_click(4.0, FLASH_S), audio_codec="aac")
        edit(path, kind, [(1500, -1), (4000, 0 if kind == b"vide" else 1024)])
        sound, film = audio.decode_audio(path, HZ), video.read_video(path, 25, 16)
        late_s = {b"vide": (0, 1.5), b"soun": (1.5, 0)}[kind]
        assert find_click_s(sound.samples_T, HZ) == pytest.approx(FLASH_S + late_s[0], abs=0.005)
        assert find_flash_s(film.frames, 25) == pytest.approx(FLASH_S + late_s[1], abs=0.041)
        assert measure_overlap(sound.missing_s, 0, 9) == pytest.approx(late_s[0], abs=0.01)
        assert measure_overlap(film.missing_s, 0, 9) == pytest.approx(late_s[1], abs=0.01)


def test_an_edit_list_cuts_the_beginning_off(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mp4", flash(), draw_click(4.0, FLASH_S))
    edit(path, b"vide", [(3000, media_time(path, 1.0))])
    edit(path, b"soun", [(3000, HZ + 1024)])
    sound, film = audio.decode_audio(path, HZ), video.read_video(path, 25, 16)
    assert find_click_s(sound.samples_T, HZ) == pytest.approx(FLASH_S - 1, abs=0.005)
    assert find_flash_s(film.frames, 25) == pytest.approx(FLASH_S - 1, abs=0.041)
    assert len(film.frames) == pytest.approx(75, abs=1)


def media_time(path: Path, seconds: float) -> int:
    with av.open(str(path)) as container:
        return round(seconds / container.streams.video[0].time_base)


# Gaps


@pytest.mark.parametrize(
    ("suffix", "codec"), [("mp4", "aac"), ("mkv", "libopus"), ("mkv", "aac"), ("ts", "aac"), ("mkv", "pcm_s16le")]
)
@pytest.mark.parametrize("lasts_s", [0.045, 1.0, 5.0])
def test_what_follows_a_gap_of_the_sound_stays_in_its_place(
    tmp_path: Path, suffix: str, codec: str, lasts_s: float
) -> None:
    path = write_media(
        tmp_path / f"a.{suffix}",
        flash(10, at_s=8.0),
        draw_click(10.0, 8.0),
        audio_codec=codec,
        video_codec=codec_of(suffix),
        lost=[("audio", 2.0, 2.0 + lasts_s)],
    )
    sound = audio.decode_audio(path, HZ)
    assert find_click_s(sound.samples_T, HZ) == pytest.approx(8.0, abs=0.035 if suffix == "ts" else 0.005)
    assert measure_overlap(sound.missing_s, 0, 10) == pytest.approx(lasts_s, abs=0.05)
    assert measure_overlap(sound.missing_s, 2.04, 2.04 + lasts_s) == pytest.approx(lasts_s, abs=0.09)
    (first_s, last_s), *_ = sound.missing_s
    lost_T = sound.samples_T[round((first_s + 0.001) * HZ) : round((last_s - 0.001) * HZ)]
    assert not lost_T.any()
    assert "its time stamps leave gaps, where nothing was recorded" in sound.remarks


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_what_follows_a_gap_of_the_film_stays_in_its_place(tmp_path: Path, suffix: str) -> None:
    frames = [f for f in flash(10, at_s=8.0) if not 2.99 < f.pts / 1000 < 5.99]
    path = write_media(tmp_path / f"a.{suffix}", frames, video_codec=codec_of(suffix))
    found = video.read_video(path, 5, 16)
    assert find_flash_s(found.frames, 5) == pytest.approx(8.0, abs=0.01)
    np.testing.assert_allclose(found.missing_s, [(3.0, 6.0)], atol=0.05)
    assert found.remarks == ("its time stamps leave gaps, where nothing was recorded",)
    assert len(found.frames) == 50


def test_a_gap_that_no_recorder_makes_is_refused(tmp_path: Path) -> None:
    frames = [*flash(2), *make_frames([np.zeros((48, 64, 3), np.uint8)] * 10, 70 + np.arange(10) / 25)]
    path = write_media(tmp_path / "a.mkv", frames)
    with pytest.raises(DataError, match=r"a\.mkv has a gap of 68 s in the time stamps of its film; at most 60 s"):
        video.read_video(path, 5, 16)
    path = write_media(tmp_path / "b.mkv", x_T=draw_click(80, 1.0), audio_codec="libopus", lost=[("audio", 5, 75)])
    with pytest.raises(DataError, match=r"b\.mkv has a gap of 70 s in the time stamps of its sound"):
        audio.decode_audio(path, HZ)


def test_time_stamps_that_start_again_are_refused(tmp_path: Path) -> None:
    """Two transport streams, one behind the other."""
    path = write_media(tmp_path / "a.ts", flash(), draw_click(4.0, 2.0), video_codec="libx264")
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(DataError, match=r"a\.ts has time stamps that start again at 4\.\d s"):
        video.read_video(path, 5, 16)
    with pytest.raises(DataError, match=r"a\.ts has sound whose time stamps start again at 4\.\d s"):
        audio.decode_audio(path, HZ)


def test_a_clock_of_33_bits_wraps_around(tmp_path: Path) -> None:
    """A transport stream whose stamps pass 2**33 / 90 kHz after two seconds."""
    wrap_s = 2**33 / 90_000
    path = tmp_path / "a.ts"
    write_media(
        path,
        flash(),
        draw_click(4.0, FLASH_S),
        video_codec="libx264",
        options={"output_ts_offset": str(wrap_s - 2.2), "muxdelay": "0", "mpegts_copyts": "1"},
    )
    sound, film = audio.decode_audio(path, HZ), video.read_video(path, 25, 16)
    assert find_flash_s(film.frames, 25) == pytest.approx(FLASH_S, abs=0.041)
    assert find_click_s(sound.samples_T, HZ) == pytest.approx(FLASH_S, abs=0.035)
    assert film.missing_s == sound.missing_s == ()


def test_sound_whose_stamps_contradict_its_rate_is_refused(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mp4", x_T=draw_click(4.0, 2.0))
    whole = path.read_bytes()
    at = whole.index(b"mdhd") + 16
    assert struct.unpack(">I", whole[at : at + 4])[0] == HZ
    path.write_bytes(whole[:at] + struct.pack(">I", HZ // 2) + whole[at + 4 :])
    with pytest.raises(DataError, match=r"a\.mp4 has sound whose time stamps contradict its sampling rate of 48000 Hz"):
        audio.decode_audio(path, HZ)
