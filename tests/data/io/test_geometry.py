"""Stored pictures are what a player shows, by the definition of each statement of a file."""

import struct
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from eav_ray.data.io import face_crop, video
from eav_ray.data.io.container_crop import Crop
from eav_ray.data.io.geometry import FrameCorrector, deinterlace
from eav_ray.errors import DataError
from tests.helpers.films import draw_corners, make_frames, read_corners, set_display_matrix, write_media

SIZE = (128, 96)  # width, height
# a, b, c, d of a display matrix: (p, q) of a stored pixel is shown at (a p + c q, b p + d q).
TURNS = {
    "": (1, 0, 0, 1),
    "turned by 90 degrees": (0, 1, -1, 0),
    "turned by 180 degrees": (-1, 0, 0, -1),
    "turned by 270 degrees": (0, -1, 1, 0),
}
MIRRORED = {"across": (-1, 0, 0, 1), "down": (1, 0, 0, -1), "falling": (0, 1, 1, 0), "rising": (0, -1, -1, 0)}


def show(picture: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """Place each pixel by the definition of a display matrix."""
    a, b, c, d = matrix
    q, p = np.indices(picture.shape[:2])
    x, y = a * p + c * q, b * p + d * q
    shown = np.zeros((np.ptp(y) + 1, np.ptp(x) + 1, 3), np.uint8)
    shown[y - y.min(), x - x.min()] = picture
    return shown


@pytest.mark.parametrize("matrix", [*TURNS.values(), *MIRRORED.values()])
def test_a_display_matrix_turns_and_mirrors_as_it_is_defined(tmp_path: Path, matrix: tuple[int, int, int, int]) -> None:
    path = write_media(tmp_path / "a.mp4", make_frames([draw_corners()] * 10, np.arange(10) / 10), rate=10)
    set_display_matrix(path, (*matrix, 0, 0))
    found = video.read_video(path, 5, 64)
    np.testing.assert_allclose(read_corners(found.frames[2]), read_corners(show(draw_corners(), matrix)), atol=3)
    if matrix in TURNS.values():
        turn = next(words for words, m in TURNS.items() if m == matrix)
        assert found.remarks == ((f"{turn}, as its file says",) if turn else ())
    else:
        assert found.remarks[0].startswith("mirrored")


def test_a_face_is_looked_for_in_upright_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []

    def find_none(frames_BHWC: np.ndarray) -> list[np.ndarray]:
        seen.extend(frame.shape for frame in frames_BHWC)
        return [np.zeros((0, 5))] * len(frames_BHWC)

    monkeypatch.setattr(face_crop, "find_faces", find_none)
    path = write_media(tmp_path / "a.mp4", make_frames([draw_corners()] * 10, np.arange(10) / 10), rate=10)
    set_display_matrix(path, (0, 1, -1, 0, 96, 0))
    found = video.read_video(path, 5, 64, face_step=1)
    assert seen == [(320, 256, 3)] * 5  # high, in multiples of 32
    np.testing.assert_allclose(read_corners(found.frames[2]), read_corners(show(draw_corners(), (0, 1, -1, 0))), atol=3)


def test_a_film_that_is_turned_by_another_angle_is_turned_about_its_middle(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mp4", make_frames([draw_corners(128, 128)] * 10, np.arange(10) / 10), rate=10)
    half = np.sqrt(0.5)
    set_display_matrix(path, (half, half, -half, half, 0, 0))
    found = video.read_video(path, 5, 64)
    assert found.remarks == ("turned by 45 degrees, as its file says",)
    grey = found.frames[2].mean(-1)  # clockwise: what was above left is above
    np.testing.assert_allclose([grey[12, 32], grey[32, 52], grey[32, 12], grey[52, 32]], [20, 90, 160, 235], atol=4)


def test_a_matrix_that_means_nothing_is_refused(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mp4", make_frames([draw_corners()] * 10, np.arange(10) / 10), rate=10)
    set_display_matrix(path, (0, 0, 0, 1, 0, 0))
    with pytest.raises(DataError, match=r"a\.mp4 says that it is turned in a way that means nothing"):
        video.read_video(path, 5, 64)


@pytest.mark.parametrize("aspect", [Fraction(2), Fraction(1, 2), Fraction(16, 11)])
def test_pixels_that_are_not_square_count_for_the_crop_alone(tmp_path: Path, aspect: Fraction) -> None:
    """A whole frame is stored as a square, whatever the shape of its pixels; a square that is cut out is not."""
    path = write_media(
        tmp_path / "a.mp4", make_frames([draw_corners()] * 10, np.arange(10) / 10), rate=10, pixel_aspect=aspect
    )
    plain = write_media(tmp_path / "b.mp4", make_frames([draw_corners()] * 10, np.arange(10) / 10), rate=10)
    whole = video.read_video(path, 5, 64)
    np.testing.assert_array_equal(whole.frames, video.read_video(plain, 5, 64).frames)
    assert whole.remarks == ()
    corrector = FrameCorrector("a", aspect, Crop(), square_pixels=True)
    frame = corrector.correct(make_frames([draw_corners()], [0])[0])
    assert frame.width / frame.height == pytest.approx(128 / 96 * aspect, rel=0.01)
    assert min(frame.width, frame.height) >= 96
    assert corrector.remarks == {"its pixels, which are not square, were stretched, as its file says"}


def test_the_crop_of_a_film_with_wide_pixels_is_square_as_shown(tmp_path: Path) -> None:
    """Without a face the middle is cut: of 96 lines of 128 pixels of twice the width, the middle 48 pixels."""
    picture = draw_corners()
    picture[:, :38] = picture[:, -38:] = 0
    path = write_media(
        tmp_path / "a.mp4", make_frames([picture] * 10, np.arange(10) / 10), rate=10, pixel_aspect=Fraction(2)
    )
    found = video.read_video(path, 5, 64, face_step=1)
    edges = found.frames[2].mean((0, 2))[[2, -3]]
    assert edges.min() > 60  # nothing of the black sides, which a square of stored pixels would have


def test_edges_that_a_container_cuts_off_are_not_shown(tmp_path: Path) -> None:
    """The box `clap` of QuickTime and the elements PixelCrop of Matroska: 32 pixels at the left, 24 at the bottom."""
    picture = draw_corners()
    picture[:, :32] = picture[-24:] = 0
    frames = make_frames([picture] * 10, np.arange(10) / 10)
    mp4 = write_media(tmp_path / "a.mp4", frames, rate=10)
    whole = mp4.read_bytes()
    clap = struct.pack(">I4s8i", 40, b"clap", 96, 1, 72, 1, 16, 1, -12, 1)  # 96 x 72, its middle 16 right and 12 up
    at = whole.index(b"mp4v") - 4 + struct.unpack(">I", whole[whole.index(b"mp4v") - 4 :][:4])[0]
    moved = bytearray(whole[:at] + clap + whole[at:])
    for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"mp4v"):
        place = moved.rindex(name) - 4 if name == b"mp4v" else moved.index(name) - 4
        moved[place : place + 4] = struct.pack(">I", struct.unpack(">I", moved[place : place + 4])[0] + 40)
    mp4.write_bytes(bytes(moved))
    mkv = write_media(tmp_path / "a.mkv", frames, rate=10)
    whole = mkv.read_bytes()
    width = whole.index(b"\xb0\x81\x80\xba\x81\x60")  # PixelWidth 128, PixelHeight 96
    sides = b"\x54\xcc\x81" + bytes([32]) + b"\x54\xaa\x81" + bytes([24])
    moved = bytearray(whole[:width] + sides + whole[width:])
    for name, n_name in ((b"\x18\x53\x80\x67", 4), (b"\x16\x54\xae\x6b", 4), (b"\xae\x01\x00\x00", 1), (b"\xe0", 1)):
        place = moved.rindex(name, 0, width) + n_name
        n_bytes = 9 - moved[place].bit_length()
        size = int.from_bytes(moved[place : place + n_bytes], "big") + 8
        moved[place : place + n_bytes] = size.to_bytes(n_bytes, "big")
    tracks = moved.rindex(b"\x16\x54\xae\x6b", 0, width)
    crc = moved.index(b"\xbf\x84", tracks)
    n_bytes = int.from_bytes(moved[tracks + 4 : crc], "big") & ((1 << 7 * (crc - tracks - 4)) - 1)
    moved[crc + 2 : crc + 6] = zlib.crc32(bytes(moved[crc + 6 : crc + n_bytes])).to_bytes(4, "little")
    mkv.write_bytes(bytes(moved))
    for path in (mp4, mkv):
        found = video.read_video(path, 5, 64)
        assert found.remarks == ("its edges were cut off, as its file says",), path
        expected = [20, 90, 160, 235]  # of the 96 x 72 that are left, the dividing lines are at 32 and 48
        grey = found.frames[2].astype(float).mean(-1)
        np.testing.assert_allclose([grey[8, 8], grey[8, 56], grey[56, 8], grey[56, 56]], expected, atol=4)
        assert grey.min() > 10  # nothing of the black edges


# Colours


def plain_frame(y: int, u: int, v: int, *, matrix: int, colour_range: int, form: str = "yuv420p") -> av.VideoFrame:
    frame = av.VideoFrame(64, 64, form)
    for plane, value in zip(frame.planes, (y, u, v), strict=True):
        plane.update(bytes([value]) * plane.buffer_size)
    frame.colorspace, frame.color_range = matrix, colour_range
    return frame


@pytest.mark.parametrize(("matrix", "red", "blue"), [(1, 0.2126, 0.0722), (5, 0.299, 0.114), (9, 0.2627, 0.0593)])
@pytest.mark.parametrize("colour_range", [1, 2])
def test_colours_follow_the_matrix_and_range_of_the_file(
    matrix: int, red: float, blue: float, colour_range: int
) -> None:
    """BT.709, BT.601 and BT.2020, limited and full, by their definitions."""
    y, u, v = 120, 90, 170
    light, chroma = ((y - 16) / 219, 224) if colour_range == 1 else (y / 255, 255)
    pb, pr = (u - 128) / chroma, (v - 128) / chroma
    r, b = light + 2 * (1 - red) * pr, light + 2 * (1 - blue) * pb
    expected = 255 * np.array([r, (light - red * r - blue * b) / (1 - red - blue), b])
    resizer = video.FrameResizer(16)
    resizer.add(plain_frame(y, u, v, matrix=matrix, colour_range=colour_range), 1)
    np.testing.assert_allclose(resizer.pictures[0][8, 8], expected, atol=3)


def test_a_film_keeps_its_matrix_through_a_turn_and_a_file(tmp_path: Path) -> None:
    frames = [plain_frame(120, 90, 170, matrix=1, colour_range=1) for _ in range(10)]
    for k, frame in enumerate(frames):
        frame.pts, frame.time_base = 100 * k, Fraction(1, 1000)
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "1"})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = 1, 1
        for frame in frames:
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    as_it_is = video.read_video(path, 5, 16).frames[1]
    np.testing.assert_allclose(as_it_is[8, 8], [196, 104, 41], atol=3)  # BT.601 would give 189, 102, 44
    set_display_matrix(path, (-1, 0, 0, -1, 0, 0))
    np.testing.assert_allclose(video.read_video(path, 5, 16).frames[1], as_it_is, atol=2)


@pytest.mark.parametrize(("transfer", "name"), [(16, "PQ"), (18, "HLG")])
def test_high_dynamic_range_is_mapped_to_the_standard_one(transfer: int, name: str) -> None:
    corrector = FrameCorrector("a", None, Crop(), square_pixels=False)
    # Codes of limited range that stand for black, 10, 100, 203 and 1000 cd/m2, by BT.2100.
    codes = {16: (64, 329, 509, 573, 723), 18: (64, 287, 616, 721, 940)}[transfer]
    greys: list[float] = []
    for code in codes:
        frame = av.VideoFrame(64, 64, "yuv420p10le")
        for plane, value in zip(frame.planes, (code, 512, 512), strict=True):
            plane.update(np.full(plane.buffer_size // 2, value, "<u2").tobytes())
        frame.colorspace, frame.color_range, frame.color_trc, frame.color_primaries = 9, 1, transfer, 9
        rgb = corrector.correct(frame).to_ndarray(format="rgb24")[32, 32].astype(float)
        assert np.ptp(rgb) <= 3  # grey stays grey
        greys.append(rgb.mean())
    assert corrector.remarks == {f"its high dynamic range ({name}) was mapped to the standard one"}
    light = np.array([0, 10, 100, 203, 1000]) / 203
    expected = 255 * (light * (1 + light / (1000 / 203) ** 2) / (1 + light)) ** (1 / 2.4)
    np.testing.assert_allclose(greys, expected, atol=4)


def test_transparency_is_left_out_and_grey_is_read(tmp_path: Path) -> None:
    frames = make_frames([draw_corners()] * 10, np.arange(10) / 10)
    path = write_media(tmp_path / "a.mov", frames, video_codec="png", pix_fmt="rgba", rate=10)
    found = video.read_video(path, 5, 64)
    assert found.remarks == ("its transparency was left out",)
    np.testing.assert_allclose(read_corners(found.frames[2]), [20, 90, 160, 235], atol=2)
    grey = write_media(tmp_path / "b.mkv", frames, video_codec="ffv1", pix_fmt="gray", rate=10)
    np.testing.assert_allclose(read_corners(video.read_video(grey, 5, 64).frames[2]), [20, 90, 160, 235], atol=2)


# Half frames


def test_interlaced_frames_become_whole_and_keep_their_times(tmp_path: Path) -> None:
    """A bar moves by 8 pixels a half frame: combed as stored, one bar a line as shown."""
    pictures = []
    for k in range(25):
        picture = np.full((96, 128, 3), 30, np.uint8)
        for parity in (0, 1):
            left = (4 * (2 * k + parity)) % 96
            picture[parity::2, left : left + 16] = 220
        pictures.append(picture)
    path = write_media(
        tmp_path / "a.mpg",
        make_frames(pictures, np.arange(25) / 25),
        form="mpeg",
        video_codec="mpeg2video",
        codec_options={"flags": "+ildct+ilme", "b": "8000000"},
    )
    with av.open(str(path)) as container:
        if not next(container.decode(video=0)).interlaced_frame:
            pytest.skip("this build of FFmpeg encodes no interlaced film")
    found = video.read_video(path, 5, 96)
    assert found.remarks == ("interlaced; whole frames were made of its half frames",)
    assert found.frames.shape[0] == 5 and found.missing_s == ()
    for k, frame in enumerate(found.frames):
        grey = frame.mean(-1)
        combed = np.abs(grey[1:-1] - (grey[:-2] + grey[2:]) / 2)[20:-20].mean()
        assert combed < 8, combed
        lit = np.flatnonzero(grey[40:56].mean(0) > 120) * 128 / 96
        assert lit.min() == pytest.approx((8 * 5 * k) % 96, abs=7)  # of its own time


def test_as_many_frames_leave_the_filter_as_enter_it() -> None:
    frames = make_frames([draw_corners()] * 7, np.arange(7) / 10)
    remarks: set[str] = set()
    assert [k for _, k in deinterlace(zip(frames, range(7), strict=True), remarks)] == list(range(7))
    assert not remarks


def test_frames_of_another_size_are_resized_and_said(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuvj420p"
        for k, (height, width) in enumerate([(80, 112), *[(96, 128)] * 9]):
            encoder = av.CodecContext.create("mjpeg", "w")
            assert isinstance(encoder, av.VideoCodecContext)
            encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = (
                width,
                height,
                "yuvj420p",
                Fraction(1, 10),
            )
            frame = av.VideoFrame.from_ndarray(draw_corners(height, width), format="rgb24").reformat(format="yuvj420p")
            frame.pts, frame.time_base = 0, Fraction(1, 10)
            for packet in (*encoder.encode(frame), *encoder.encode()):
                packet.stream, packet.pts, packet.dts, packet.time_base = stream, k, k, Fraction(1, 10)
                container.mux(packet)
    found = video.read_video(path, 5, 64)
    assert found.remarks == ("its frames change their size",) and len(found.frames) == 5
    for frame in found.frames:
        np.testing.assert_allclose(read_corners(frame), [20, 90, 160, 235], atol=6)
