"""A file is what it holds, whatever its name is; the film of several streams is the one that a player shows."""

import shutil
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from av.stream import Disposition

from eav_ray.data.io import audio, file_access, video
from eav_ray.errors import DataError
from tests.helpers.films import draw_click, find_click_s, make_frames, write_media

HZ = 48_000
SOUNDS = [
    ("a.m4a", "ipod", "aac"),
    ("a.aac", "adts", "aac"),
    ("a.weba", "webm", "libopus"),
    ("a.opus", "ogg", "libopus"),
    ("a.3gp", "3gp", "aac"),
    ("a.mpg", "mpeg", "mp2"),
    ("a.mp2", "mp2", "mp2"),
    ("a.mp3", "mp3", "libmp3lame"),
    ("a.mka", "matroska", "aac"),
    ("a.ts", "mpegts", "aac"),
    ("a.mts", "mpegts", "ac3"),
    ("a.ac3", "ac3", "ac3"),
    ("a.caf", "caf", "pcm_s16le"),
    ("a.aiff", "aiff", "pcm_s16be"),
    ("a.au", "au", "pcm_s16be"),
    ("a.w64", "w64", "pcm_s16le"),
    ("a.flac", "flac", "flac"),
    ("a.mov", "mov", "pcm_s16le"),
    ("a.avi", "avi", "libmp3lame"),
    ("a.wav", "wav", "libmp3lame"),
    ("a.wav", "wav", "adpcm_ms"),
    ("a.wma", "asf", "wmav2"),
    ("a.wma", "asf", "wmav1"),
    ("a.wv", "wv", "wavpack"),
    ("a.tta", "tta", "tta"),
]


def require_codec(codec: str) -> None:
    try:
        av.codec.Codec(codec, "w")
    except ValueError:
        pytest.skip(f"this build of FFmpeg has no encoder {codec}")


@pytest.mark.parametrize(("name", "form", "codec"), SOUNDS)
def test_sound_is_read_whatever_its_container_and_name(
    tmp_path: Path, name: str, form: str, codec: str, capfd: pytest.CaptureFixture[str]
) -> None:
    require_codec(codec)
    path = write_media(tmp_path / name, x_T=draw_click(3.0, 1.0), form=form, audio_codec=codec)
    stated = codec not in ("mp2", "ac3") and form not in (
        "adts",
        "mpegts",
        "avi",
        "wav",
        "asf",
    )  # what the encoder puts before
    for alias in (name, "b.wav", "b.mp3", "b.mp4", "b.opus", "b.flac", "B.M4A", "b.dat", "b"):
        if alias != name:
            shutil.copy(path, tmp_path / alias)
        found = audio.decode_audio(tmp_path / alias, HZ)
        assert find_click_s(found.samples_T, HZ) == pytest.approx(1.0, abs=0.002 if stated else 0.05), alias
        assert len(found.samples_T) / HZ == pytest.approx(3.0, abs=0.06 if form != "asf" else 0.1)
        assert np.abs(found.samples_T[HZ + 4800 : 2 * HZ]).max() == pytest.approx(0.5, abs=0.1)
        if form == "asf":  # the decoder of WMA makes nothing of the first packets
            assert found.missing_s == ((0.0, pytest.approx(0.09, abs=0.01)),) and found.remarks == ("it begins late",)
        else:
            assert found.missing_s == () and found.remarks == ()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["a.amr", "a.3gp", "a.wav"])
def test_speech_of_telephones_is_read(tmp_path: Path, name: str) -> None:
    """AMR at 8 kHz, alone and in the containers of phones; FFmpeg itself says what its samples are."""
    require_codec("libopencore_amrnb")
    form = {"a.amr": "amr", "a.wav": "amr"}.get(name)
    path = write_media(
        tmp_path / name, x_T=draw_click(3.0, 1.0, 8000), form=form, audio_codec="libopencore_amrnb", hz=8000
    )
    found = audio.decode_audio(path, 8000)
    with av.open(str(path)) as container:
        expected_T = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    assert abs(len(found.samples_T) - len(expected_T)) <= 320 and len(found.samples_T) / 8000 == pytest.approx(
        3, abs=0.06
    )
    assert find_click_s(found.samples_T, 8000) == pytest.approx(1.0, abs=0.02)
    n = min(len(found.samples_T), len(expected_T))
    np.testing.assert_allclose(found.samples_T[:n], expected_T[:n], atol=1e-3)
    assert found.missing_s == () and found.remarks == ()


def test_a_wav_under_another_name_is_read(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    x_T = draw_click(2.0, 1.0)
    for form in ("WAV", "RF64", "FLAC", "OGG", "AIFF", "W64", "WAVEX"):
        soundfile.write(tmp_path / "a", x_T, HZ, format=form)
        for alias in ("a.mp4", "a.mp3", "a.raw", "a.ogg"):
            shutil.copy(tmp_path / "a", tmp_path / alias)
            found = audio.decode_audio(tmp_path / alias, HZ)
            assert find_click_s(found.samples_T, HZ) == pytest.approx(1.0, abs=0.002) and len(found.samples_T) == 2 * HZ
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["a.raw", "a.pcm", "a.s16le"])
def test_samples_without_a_header_are_refused_with_the_way_out(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(np.random.default_rng(0).integers(-3000, 3000, 30_000).astype("<i2").tobytes())
    with pytest.raises(DataError, match=r"raw samples without a header.*ffmpeg -f s16le -ar 16000 -ac 1"):
        audio.decode_audio(tmp_path / name, HZ)


@pytest.mark.parametrize(
    ("form", "codec", "pix_fmt", "options"),
    [
        ("mjpeg", "mjpeg", "yuvj420p", {}),
        ("hevc", "libx265", "yuv420p", {"x265-params": "log-level=none:vui-timing-info=0"}),
    ],
)
def test_frames_without_times_and_a_rate_are_refused_with_the_way_out(
    tmp_path: Path, form: str, codec: str, pix_fmt: str, options: dict[str, str]
) -> None:
    """FFmpeg supposes 25 frames a second, whatever the camera had."""
    require_codec(codec)
    path = write_bare_film(tmp_path / f"a.{form}", form, codec, pix_fmt, options)
    with pytest.raises(DataError, match=r"neither their times nor their rate.*ffmpeg -framerate 30"):
        video.read_video(path, 10, 16)


@pytest.mark.parametrize(("form", "codec"), [("h264", "libx264"), ("mpeg2video", "mpeg2video"), ("m4v", "mpeg4")])
def test_frames_without_times_follow_the_rate_that_they_state(tmp_path: Path, form: str, codec: str) -> None:
    require_codec(codec)
    film = video.read_video(write_bare_film(tmp_path / f"a.{form}", form, codec), 10, 16)
    assert film.duration_s == pytest.approx(2.0, abs=0.02)
    np.testing.assert_allclose(film.frames.mean((1, 2, 3)), 20 + 9 * np.arange(20), atol=6)


def write_bare_film(
    path: Path, form: str, codec: str, pix_fmt: str = "yuv420p", options: dict[str, str] | None = None
) -> Path:
    """Two seconds of 30 frames each, brighter by 3 from frame to frame."""
    with av.open(str(path), "w", format=form) as container:
        stream = container.add_stream(codec, rate=30, options=options or {})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pix_fmt
        for k in range(60):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 + 3 * k, np.uint8), format="rgb24")
            frame.pts, frame.time_base = k, Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_an_avi_film_that_breaks_off_is_refused_and_one_that_its_recorder_left_is_used(tmp_path: Path) -> None:
    pictures = [np.full((48, 64, 3), 20 + 2 * k, np.uint8) for k in range(75)]
    path = write_media(tmp_path / "a.avi", make_frames(pictures, np.arange(75) / 25), draw_click(3.0, 1.0), form="avi")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    for read in (audio.decode_audio, video.read_video):
        with pytest.raises(DataError, match=r"a\.avi breaks off: \d+ of \d+ bytes are there"):
            read(path, 10, 16)
    path.write_bytes(whole[:4] + bytes(4) + whole[8 : len(whole) * 2 // 3])
    film = video.read_video(path, 10, 16)
    assert "its header states no length, as if its recorder was stopped; what is there is used" in film.remarks
    np.testing.assert_allclose(film.frames[:15].mean((1, 2, 3)), 20 + 5 * np.arange(15), atol=5)


def test_the_end_of_packed_sound_in_a_caf_file_is_nearly_there(tmp_path: Path) -> None:
    """FFmpeg cuts off the end of the last packet twice."""
    soundfile.write(tmp_path / "a.caf", draw_click(2.0, 1.0), HZ, subtype="ALAC_16")
    x_T = audio.read_audio(tmp_path / "a.caf", HZ)
    assert find_click_s(x_T, HZ) == pytest.approx(1.0, abs=1e-3) and len(x_T) / HZ == pytest.approx(2.0, abs=0.1)


def test_files_that_cannot_be_opened_are_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object, mode: str) -> None:
        raise PermissionError(13, "Permission denied")

    with pytest.raises(DataError, match="is missing; expected a video file"):
        video.read_video(tmp_path / ("n" * 300), 5, 16)
    (tmp_path / "a.wav").touch()
    monkeypatch.setattr(file_access, "open", refuse, raising=False)
    for read in (audio.decode_audio, video.read_video):
        with pytest.raises(DataError, match=r"a\.wav cannot be opened \(Permission denied\); correct its rights"):
            read(tmp_path / "a.wav", 5, 16)


def test_a_list_of_other_files_is_no_sound_and_no_film(tmp_path: Path) -> None:
    """A file opens no other: not of this machine, nor of the network."""
    write_media(
        tmp_path / "secret.ts",
        make_frames([np.zeros((48, 64, 3), np.uint8)] * 20, np.arange(20) / 10),
        draw_click(2.0, 1.0),
        video_codec="libx264",
    )
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nsecret.ts\n#EXT-X-ENDLIST\n"
    concat = "ffconcat version 1.0\nfile secret.ts\n"
    for text in (playlist, concat, "v=0\no=- 0 0 IN IP4 127.0.0.1\nm=audio 9 RTP/AVP 0\n"):
        for name in ("a.m3u8", "a.wav", "a.mp4", "a.txt"):
            (tmp_path / name).write_text(text)
            with pytest.raises(DataError, match=name):
                audio.decode_audio(tmp_path / name, HZ)
            with pytest.raises(DataError, match=name):
                video.read_video(tmp_path / name, 5, 16)


def test_a_name_that_looks_like_an_address_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_media(tmp_path / "b.mka", x_T=draw_click(2.0, 1.0))
    shutil.copy("b.mka", "concat:b%03d.mka")
    assert len(audio.decode_audio("concat:b%03d.mka", HZ).samples_T) / HZ == pytest.approx(2.0, abs=0.05)


# Streams

GREY, WHITE = 100, 250


def write_streams(
    path: Path, streams: Sequence[tuple[str, int, int, int, Disposition | None]], sound: bool = False
) -> Path:
    """Streams of grey pictures: codec, side, number of pictures (10 a second), brightness, disposition."""
    with av.open(str(path), "w", format="mp4" if path.suffix == ".m4a" else None) as container:
        packets: list[av.Packet] = []
        added: list[av.VideoStream] = []
        for codec, side, _, _, disposition in streams:
            stream = container.add_stream(codec, rate=10)
            assert isinstance(stream, av.VideoStream)
            stream.width = stream.height = side
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            if disposition is not None:
                stream.disposition = disposition
            added.append(stream)
        if sound:
            tone = container.add_stream("aac", rate=16_000, layout="mono")
            assert isinstance(tone, av.AudioStream)
        container.start_encoding()
        for stream, (_, side, count, grey, _) in zip(added, streams, strict=True):
            for k in range(count):
                picture = np.full((side, side, 3), grey, np.uint8)
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=stream.pix_fmt)
                frame.pts, frame.time_base = k, Fraction(1, 10)
                packets += stream.encode(frame)
            packets += stream.encode()
        if sound:
            for k in range(62):
                noise = np.random.default_rng(k).normal(0, 0.1, (1, 1024)).astype("f4")
                piece = av.AudioFrame.from_ndarray(noise, format="fltp", layout="mono")
                piece.sample_rate, piece.pts, piece.time_base = 16_000, 1024 * k, Fraction(1, 16_000)
                packets += tone.encode(piece)
            packets += tone.encode()
        for packet in sorted(packets, key=lambda p: float((p.dts or 0) * p.time_base)):
            container.mux(packet)
    return path


COVER, DEFAULT = Disposition.attached_pic, Disposition.default
SECOND = "of 2 films in one file, number 2 was taken, which a player shows first"
LEFT_OUT = "a cover picture beside the film was left out"


@pytest.mark.parametrize(
    ("suffix", "streams", "remark"),
    [
        ("mkv", [("mjpeg", 64, 1, WHITE, COVER), ("mpeg4", 64, 40, GREY, None)], LEFT_OUT),
        ("mkv", [("mjpeg", 640, 1, WHITE, DEFAULT), ("mpeg4", 64, 40, GREY, None)], LEFT_OUT),
        ("mp4", [("mpeg4", 64, 40, GREY, None), ("mjpeg", 640, 1, WHITE, COVER)], LEFT_OUT),
        ("mkv", [("mpeg4", 64, 40, WHITE, Disposition(0)), ("mpeg4", 48, 40, GREY, DEFAULT)], SECOND),
        ("mkv", [("mpeg4", 48, 40, WHITE, DEFAULT), ("mpeg4", 64, 40, GREY, DEFAULT)], SECOND),
        ("ts", [("libx264", 48, 40, WHITE, None), ("libx264", 64, 40, GREY, None)], SECOND),
    ],
)  # fmt: skip
def test_the_film_is_the_one_that_a_player_shows(
    tmp_path: Path, suffix: str, streams: list[tuple[str, int, int, int, Disposition | None]], remark: str
) -> None:
    found = video.read_video(write_streams(tmp_path / f"a.{suffix}", streams), 5, 16)
    assert len(found.frames) == 20 and found.frames.mean() == pytest.approx(GREY, abs=5)
    assert found.remarks == (remark,)


def test_a_file_with_a_cover_alone_has_no_film(tmp_path: Path) -> None:
    for suffix, disposition in (("m4a", COVER), ("mkv", None), ("mkv", COVER)):
        streams = [("mjpeg", 64, 1, WHITE, disposition)]
        path = write_streams(tmp_path / f"a.{suffix}", streams, sound=True)
        with pytest.raises(DataError, match="it has no film, only a cover picture"):
            video.read_video(path, 5, 16)
        sound = audio.decode_audio(path, 16_000)
        assert len(sound.samples_T) / 16_000 == pytest.approx(62 * 1024 / 16_000, abs=0.1) and sound.missing_s == ()


def test_of_several_sounds_the_default_one_is_taken(tmp_path: Path) -> None:
    for number, default in enumerate(((1, 0), (0, 1))):
        path = tmp_path / f"{number}.mka"
        with av.open(str(path), "w") as container:
            tracks: list[av.AudioStream] = []
            for is_default in default:
                stream = container.add_stream("flac", rate=16_000, layout="mono")
                assert isinstance(stream, av.AudioStream)
                stream.disposition = DEFAULT if is_default else Disposition(0)
                tracks.append(stream)
            container.start_encoding()
            for stream, level in zip(tracks, (0.25, 0.5), strict=True):
                tone = (level * 32767 * np.sin(np.arange(16_000) / 5)).astype("<i2")[None]
                frame = av.AudioFrame.from_ndarray(tone, format="s16", layout="mono")
                frame.sample_rate, frame.pts, frame.time_base = 16_000, 0, Fraction(1, 16_000)
                for piece in (*stream.encode(frame), *stream.encode()):
                    container.mux(piece)
        found = audio.decode_audio(path, 16_000)
        assert np.abs(found.samples_T).max() == pytest.approx((0.25, 0.5)[number], abs=0.01)
        assert found.remarks == (f"of 2 sounds in one file, number {number + 1} was taken, which a player plays first",)


# Files that were never finished


def fragments(path: Path) -> Path:
    return write_media(
        path,
        make_frames([np.full((48, 64, 3), 20 + 40 * k // 25, np.uint8) for k in range(100)], np.arange(100) / 25),
        draw_click(4.0, 2.0),
        video_codec="libx264",
        codec_options={"g": "10"},
        options={"movflags": "frag_keyframe+empty_moov+default_base_moof"}
        if path.suffix == ".mp4"
        else {"live": "1"}
        if path.suffix in (".webm", ".mkv")
        else {},
    )


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_what_a_recorder_wrote_before_it_was_stopped_is_used(tmp_path: Path, suffix: str) -> None:
    path, late_s = fragments(tmp_path / f"a{suffix}"), 0.08 if suffix == ".mp4" else 0.0  # the writer's own delay
    sound, film = audio.decode_audio(path, HZ), video.read_video(path, 5, 16)
    assert find_click_s(sound.samples_T, HZ) == pytest.approx(2 + late_s, abs=0.03) and len(film.frames) in (20, 21)
    whole = path.read_bytes()
    for share in (0.9, 0.83, 0.75):
        path.write_bytes(whole[: int(share * len(whole))])
        sound, film = audio.decode_audio(path, HZ), video.read_video(path, 5, 16)
        assert find_click_s(sound.samples_T, HZ) == pytest.approx(2 + late_s, abs=0.03)
        assert 2.2 < len(sound.samples_T) / HZ < 4 and 2 < film.duration_s <= 4
        shown_s = (film.frames.mean((1, 2, 3)) - 20) / 40
        np.testing.assert_allclose(shown_s, np.maximum(0, np.arange(len(shown_s)) / 5 - late_s), atol=0.1)


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "flv"])
def test_a_file_that_states_more_than_it_has_is_refused(tmp_path: Path, suffix: str) -> None:
    frames = make_frames([np.full((48, 64, 3), 20 + 40 * k // 25, np.uint8) for k in range(100)], np.arange(100) / 25)
    path = write_media(
        tmp_path / f"a.{suffix}",
        frames,
        draw_click(4.0, 2.0),
        video_codec="flv1" if suffix == "flv" else "mpeg4",
        audio_codec="libmp3lame" if suffix == "flv" else "aac",
        hz=HZ if suffix != "flv" else 44_100,
        options={"movflags": "faststart"} if suffix == "mp4" else {},
    )
    whole = path.read_bytes()
    video.read_video(path, 5, 16)
    audio.decode_audio(path, HZ)
    for share in (0.8, 0.5):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(DataError, match=rf"a\.{suffix} breaks off"):
            video.read_video(path, 5, 16)
        with pytest.raises(DataError, match=rf"a\.{suffix} breaks off"):
            audio.decode_audio(path, HZ)


def test_a_film_without_its_index_is_one_clear_line(tmp_path: Path) -> None:
    frames = make_frames([np.full((48, 64, 3), 20, np.uint8)] * 50, np.arange(50) / 25)
    path = write_media(tmp_path / "a.mp4", frames, draw_click(2.0, 1.0))
    path.write_bytes(path.read_bytes()[: path.read_bytes().index(b"moov") - 4])
    with pytest.raises(DataError, match=r"a\.mp4 has no index \(moov\).*its recorder was stopped"):
        video.read_video(path, 5, 16)
    with pytest.raises(DataError, match=r"a\.mp4 has no index \(moov\).*its recorder was stopped"):
        audio.decode_audio(path, HZ)
