"""Damage costs what it touches; headers that are not finished are used, those that contradict themselves refused."""

import io
import struct
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from eav_ray.data.io import audio, video
from eav_ray.data.recordings import measure_overlap
from eav_ray.errors import DataError
from tests.helpers.films import draw_click, find_click_s, make_frames, write_media

HZ = 48_000
DAMAGED = "it has damaged or lost packets; what they touch is missing"


def brightening(seconds: float = 8.0) -> list[av.VideoFrame]:
    """Brightness is time, 20 a second, in a fine pattern that moves."""
    times_s, rng = np.arange(round(25 * seconds)) / 25, np.random.default_rng(0)
    pattern = rng.integers(0, 60, (96, 128, 1)).repeat(3, 2)
    pictures = [(20 + round(20 * t) + np.roll(pattern, k, 1)).astype(np.uint8) for k, t in enumerate(times_s)]
    return make_frames(pictures, times_s)


def damage_packets(path: Path, kind: str, first_s: float, last_s: float) -> None:
    """Overwrite the packets of a time, but for their first bytes."""
    whole = bytearray(path.read_bytes())
    rng, at = np.random.default_rng(0), 0
    with av.open(str(path)) as container:
        for packet in container.demux(next(s for s in container.streams if s.type == kind)):
            if packet.size and packet.pts is not None:
                at = whole.index(bytes(packet), at)
                if first_s <= float(packet.pts * packet.time_base) < last_s:
                    kept = packet.size // 8
                    whole[at + kept : at + packet.size] = rng.bytes(packet.size - kept)
                at += packet.size
    path.write_bytes(bytes(whole))


@pytest.mark.parametrize("codec", ["aac", "libopus"])
def test_damaged_sound_costs_its_packets(tmp_path: Path, codec: str) -> None:
    path = write_media(tmp_path / "a.mka", x_T=draw_click(8.0, 6.0), audio_codec=codec)
    damage_packets(path, "audio", 2.0, 3.0)
    sound = audio.decode_audio(path, HZ)
    assert find_click_s(sound.samples_T, HZ) == pytest.approx(6.0, abs=0.005)
    assert len(sound.samples_T) / HZ == pytest.approx(8.0, abs=0.05)
    if sound.missing_s:  # a decoder may make something of any bytes, and does not know
        assert DAMAGED in sound.remarks
        assert measure_overlap(sound.missing_s, 0, 1.9) == measure_overlap(sound.missing_s, 3.1, 8) == 0
        assert measure_overlap(sound.missing_s, 2, 3) > 0.5


@pytest.mark.parametrize(("suffix", "codec"), [("mp4", "libx264"), ("mkv", "libx264"), ("mp4", "mpeg4")])
def test_damaged_frames_cost_what_leans_on_them(tmp_path: Path, suffix: str, codec: str) -> None:
    path = write_media(
        tmp_path / f"a.{suffix}",
        brightening(),
        video_codec=codec,
        codec_options={"x265-params": "keyint=25:log-level=0"} if codec == "libx265" else {"g": "25"},
    )
    undamaged = video.read_video(path, 5, 16)
    damage_packets(path, "video", 3.2, 3.5)
    found = video.read_video(path, 5, 16)
    assert found.remarks == (DAMAGED,) and len(found.frames) == 40
    assert measure_overlap(found.missing_s, 3.2, 3.5) == pytest.approx(0.3, abs=0.05)
    assert measure_overlap(found.missing_s, 0, 3.1) == measure_overlap(found.missing_s, 4.1, 8) == 0
    kept = [k for k in range(40) if measure_overlap(found.missing_s, k / 5, k / 5 + 0.04) == 0]
    np.testing.assert_allclose(found.frames[kept].astype(int), undamaged.frames[kept].astype(int), atol=2)
    assert len(kept) >= 35


@pytest.mark.parametrize("kind", ["video", "audio"])
def test_lost_packets_of_a_transport_stream_cost_what_they_touch(tmp_path: Path, kind: str) -> None:
    path = write_media(
        tmp_path / "a.ts", brightening(), draw_click(8.0, 6.0), video_codec="libx264", codec_options={"g": "25"}
    )
    as_it_was = video.read_video(path, 5, 16)
    packets = [path.read_bytes()[k : k + 188] for k in range(0, path.stat().st_size, 188)]
    number = {"video": 0x100, "audio": 0x101}[kind]
    mine = [k for k, p in enumerate(packets) if (p[1] & 0x1F) << 8 | p[2] == number]
    lost = set(mine[len(mine) // 2 :][: 3 if kind == "video" else 20])
    path.write_bytes(b"".join(p for k, p in enumerate(packets) if k not in lost))
    sound, film = audio.decode_audio(path, HZ), video.read_video(path, 5, 16)
    assert find_click_s(sound.samples_T, HZ) == pytest.approx(6.0, abs=0.035)
    assert len(film.frames) == 40
    found = {"video": film, "audio": sound}[kind]
    assert found.remarks and 0 < measure_overlap(found.missing_s, 0, 8) < 1.3
    kept = [k for k in range(40) if measure_overlap(film.missing_s, k / 5, k / 5 + 0.04) == 0]
    np.testing.assert_allclose(film.frames[kept].astype(int), as_it_was.frames[kept].astype(int), atol=3)


# Silence


@pytest.mark.parametrize("level", [0.0, 1e-5])
@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT"])
def test_sound_that_is_silent_throughout_is_missing(tmp_path: Path, level: float, subtype: str) -> None:
    for offset in (0.0, 0.02):  # a muted input may have one
        x_T = offset + level * np.random.default_rng(0).standard_normal(2 * HZ)
        soundfile.write(tmp_path / "a.wav", x_T, HZ, subtype=subtype)
        found = audio.decode_audio(tmp_path / "a.wav", 16_000)
        assert found.missing_s == ((0.0, 2.0),) and len(found.samples_T) == 32_000
        assert found.remarks == ("it is silent from beginning to end, which no microphone is, and counts as missing",)


def test_sound_that_is_quiet_or_silent_in_part_is_there(tmp_path: Path) -> None:
    quiet_T = 3e-4 * np.random.default_rng(0).standard_normal(2 * HZ)
    half_T = np.concatenate([np.zeros(HZ), 0.1 * np.sin(np.arange(HZ) / 9)])
    for x_T in (quiet_T, half_T):
        soundfile.write(tmp_path / "a.wav", x_T, HZ)
        found = audio.decode_audio(tmp_path / "a.wav", 16_000)
        assert found.missing_s == () and found.remarks == ()


def test_one_silent_channel_halves_the_other(tmp_path: Path) -> None:
    x_T = 0.4 * np.sin(np.arange(HZ) / 9)
    soundfile.write(tmp_path / "a.wav", np.stack([x_T, np.zeros(HZ)], 1), HZ)
    assert np.abs(audio.read_audio(tmp_path / "a.wav", HZ)).max() == pytest.approx(0.2, abs=1e-3)


def test_samples_of_another_scale_are_refused(tmp_path: Path) -> None:
    x_T = 0.5 * np.sin(np.arange(HZ) / 9)
    soundfile.write(tmp_path / "a.wav", 32768 * x_T, HZ, subtype="FLOAT")
    with pytest.raises(DataError, match=r"a\.wav holds samples up to 16384, where full scale is 1; divide"):
        audio.read_audio(tmp_path / "a.wav", HZ)
    soundfile.write(tmp_path / "a.wav", 3 * x_T, HZ, subtype="FLOAT")
    assert audio.decode_audio(tmp_path / "a.wav", HZ).remarks == ("it goes beyond full scale, and was clipped there",)


# Headers of WAVE files

UNFINISHED = "its header states no length, as if its recorder was stopped; what is there is used"


def wav(subtype: str = "PCM_16", channels: int = 2, form: str = "WAV") -> tuple[bytes, int]:
    """A file of 1 s, and where its samples begin."""
    sink = io.BytesIO()
    x_T = 0.3 * np.sin(np.arange(16_000) / 9)
    soundfile.write(sink, np.tile(x_T[:, None], channels), 16_000, format=form, subtype=subtype)
    return sink.getvalue(), sink.getvalue().index(b"data") + 8


def put(whole: bytes, at: int, value: int, n_bytes: int = 4) -> bytes:
    return whole[:at] + value.to_bytes(n_bytes, "little") + whole[at + n_bytes :]


@pytest.mark.parametrize("length", [0, 0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000, 0xFFFFFFFE])
@pytest.mark.parametrize("lost_bytes", [0, 1, 3])
def test_a_length_that_was_never_written_is_that_of_the_file(tmp_path: Path, length: int, lost_bytes: int) -> None:
    whole, at = wav()
    for riff in (0, 0xFFFFFFFF, len(whole) - 8):
        unfinished = put(put(whole, at - 4, length), 4, riff)
        (tmp_path / "a.wav").write_bytes(unfinished[: len(unfinished) - lost_bytes])
        found = audio.decode_audio(tmp_path / "a.wav", 16_000)
        assert len(found.samples_T) == 16_000 - (lost_bytes > 0) and found.remarks == (UNFINISHED,)
        np.testing.assert_allclose(found.samples_T, 0.3 * np.sin(np.arange(len(found.samples_T)) / 9), atol=1e-4)


@pytest.mark.parametrize(
    ("place", "value", "n_bytes", "reason"),
    [
        (22, 1, 2, "1 channels of 16 bits are not 4 bytes a sample"),
        (24, 8_000, 4, "8000 samples a second of 4 bytes are not 64000 bytes a second"),
        (28, 32_000, 4, "16000 samples a second of 4 bytes are not 32000 bytes a second"),
        (32, 2, 2, "2 channels of 16 bits are not 2 bytes a sample"),
        (34, 8, 2, "2 channels of 8 bits are not 4 bytes a sample"),
        (20, 6, 2, "coding 6 has no samples of 16 bits"),
        (20, 0x200, 2, r"it states 1\.0 s of sound, and 4\.\d s decode"),
        (40, 30_000, 4, "its samples end at byte 30044, and no chunk follows"),
    ],
)
def test_a_header_that_contradicts_itself_is_refused(
    tmp_path: Path, place: int, value: int, n_bytes: int, reason: str
) -> None:
    (tmp_path / "a.wav").write_bytes(put(wav()[0], place, value, n_bytes))
    with pytest.raises(DataError, match=rf"a\.wav has a header that contradicts itself \({reason}\); save it anew"):
        audio.decode_audio(tmp_path / "a.wav", 16_000)


def test_more_samples_than_there_are_is_refused(tmp_path: Path) -> None:
    whole, at = wav()
    for length in (len(whole) - at + 2, 2 * len(whole)):
        (tmp_path / "a.wav").write_bytes(put(whole, at - 4, length))
        with pytest.raises(DataError, match=rf"a\.wav breaks off: 64000 of {length} bytes of samples are there"):
            audio.decode_audio(tmp_path / "a.wav", 16_000)


def test_other_chunks_and_a_rate_of_bytes_that_was_left_open_are_no_contradiction(tmp_path: Path) -> None:
    whole, at = wav()
    listed = struct.pack("<4sI4s", b"LIST", 4, b"INFO")
    bext = struct.pack("<4sI", b"bext", 602) + b"x" * 338 + struct.pack("<Q", 999_999) + b"\0" * 256  # a time reference
    (tmp_path / "a.wav").write_bytes(put(whole, 28, 0))
    assert audio.decode_audio(tmp_path / "a.wav", 16_000).remarks == (
        "its header states no bytes a second, which would confirm its sampling rate",
    )
    for changed in (whole + listed, whole[:12] + bext + whole[12:], whole[:12] + listed + whole[12:]):
        (tmp_path / "a.wav").write_bytes(changed)
        found = audio.decode_audio(tmp_path / "a.wav", 16_000)
        assert len(found.samples_T) == 16_000 and found.remarks == () and found.missing_s == ()
    mono, begin = wav("PCM_U8", 1)
    odd = put(put(mono, begin - 4, 15_999), 4, len(mono) - 1 + 12 - 8)[:-1]
    for padding in (b"", b"\0"):
        (tmp_path / "a.wav").write_bytes(odd + padding + listed)
        assert len(audio.read_audio(tmp_path / "a.wav", 16_000)) == 15_999
    (tmp_path / "a.wav").write_bytes(whole + whole[at - 8 :])
    with pytest.raises(DataError, match="its samples lie in two places"):
        audio.decode_audio(tmp_path / "a.wav", 16_000)
    (tmp_path / "a.wav").write_bytes(whole + b"\x01\x02\x03 notes of some editor")
    assert audio.decode_audio(tmp_path / "a.wav", 16_000).remarks == (
        "something that is no sound follows its end, and was left out",
    )
    assert at == 44


@pytest.mark.parametrize(
    ("form", "subtype"),
    [
        *(("WAV", kind) for kind in ("FLOAT", "PCM_24", "PCM_U8", "ALAW", "MS_ADPCM", "IMA_ADPCM", "GSM610")),
        ("RF64", "PCM_16"),
        ("WAVEX", "PCM_16"),
    ],
)
def test_headers_of_all_kinds_are_read(tmp_path: Path, form: str, subtype: str) -> None:
    (tmp_path / "a.wav").write_bytes(wav(subtype, 1, form)[0])
    found = audio.decode_audio(tmp_path / "a.wav", 16_000)
    assert len(found.samples_T) == pytest.approx(16_000, abs=1100) and found.remarks == ()
    expected = 0.3 * np.sin(np.arange(len(found.samples_T)) / 9)
    np.testing.assert_allclose(found.samples_T[1000:14_000], expected[1000:14_000], atol=0.1)


def test_lengths_of_other_headers_are_used_or_refused(tmp_path: Path) -> None:
    """FLAC and CAF that were never finished are read; AU, AIFF and Wave64 that break off are refused."""
    x_T = 0.3 * np.sin(np.arange(16_000) / 9)
    whole: dict[str, bytes] = {}
    for form in ("FLAC", "CAF", "AU", "AIFF", "W64"):
        sink = io.BytesIO()
        soundfile.write(sink, x_T, 16_000, format=form, subtype="PCM_16")
        whole[form] = sink.getvalue()
    flac, caf = whole["FLAC"], whole["CAF"]
    for count in (0, 8_000):  # 36 bits of the first block
        (tmp_path / "a").write_bytes(flac[:21] + bytes([flac[21] & 0xF0]) + count.to_bytes(4, "big") + flac[26:])
        np.testing.assert_allclose(audio.read_audio(tmp_path / "a", 16_000), x_T, atol=1e-4)
    at = caf.index(b"data") + 4
    (tmp_path / "a").write_bytes(caf[:at] + b"\xff" * 8 + caf[at + 8 :])
    found = audio.decode_audio(tmp_path / "a", 16_000)
    np.testing.assert_allclose(found.samples_T, x_T, atol=1e-4)
    assert found.remarks
    for file in whole.values():
        (tmp_path / "a").write_bytes(file[: int(0.6 * len(file))])
        with pytest.raises(DataError, match="a breaks off"):
            audio.read_audio(tmp_path / "a", 16_000)
