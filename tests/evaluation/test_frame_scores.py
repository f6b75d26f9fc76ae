"""A frame alone is scored as a window that holds it throughout, and as the reference's fusion reads it."""

import numpy as np
import pytest
import torch

from eav_ray.config import load_experiment
from eav_ray.evaluation.frame_scores import compute_frames_correct, predict_with_frames
from eav_ray.models.classifier import Classifier
from eav_ray.models.encoders.base import DataShapes
from eav_ray.training.metrics import RULE_SOURCES
from tests.helpers.paths import TINY

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def model(modalities: list[str], **changes: object) -> Classifier:
    torch.manual_seed(0)
    named = {"data.modalities": modalities, "model.eeg.kind": "bandpower", **changes}
    return Classifier(load_experiment(TINY, named), DataShapes(30, 5)).eval()


def batch(n: int = 6) -> tuple[dict[str, torch.Tensor], torch.Tensor, np.ndarray]:
    rng = torch.Generator().manual_seed(1)
    video = torch.randint(0, 255, (n, 5, 32, 32, 3), generator=rng, dtype=torch.uint8)
    present = torch.ones(n, 2, dtype=torch.bool)
    present[0, 1] = False  # no video
    return {"eeg": torch.randn(n, 30, 500, generator=rng), "video": video}, present, np.arange(n) % 5


@pytest.mark.parametrize("kind", ["shared_attention", "single_token", "product", "mean_probability"])
@torch.no_grad()
def test_each_frame_is_what_the_model_says_of_a_window_that_holds_it(kind: str) -> None:
    whole = model(["eeg", "video"], **{"fusion.kind": kind})
    inputs, present, label = batch()
    output, alone = predict_with_frames(whole, inputs, present)
    assert torch.equal(output.logits_BK, whole(inputs, present).logits_BK) and len(alone.outputs) == 5
    right = compute_frames_correct(alone, ["eeg", "video"], present.numpy(), label)
    expected = np.zeros(len(label))
    for frame, one in enumerate(alone.outputs):
        held = inputs["video"][:, frame : frame + 1].expand(-1, 5, -1, -1, -1)
        there = whole(inputs | {"video": held}, present)
        torch.testing.assert_close(one.logits_BK, there.logits_BK, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one.unimodal_logits["video"], there.unimodal_logits["video"], rtol=1e-4, atol=1e-5)
        expected += there.logits_BK.argmax(1).numpy() == label
    assert right["fusion.frames_correct"][1:].tolist() == pytest.approx((expected / 5)[1:].tolist())
    assert all(np.isnan(share[0]) for share in right.values())  # nothing is said of frames that are not there
    assert {f"{rule}.frames_correct" for rule in RULE_SOURCES} < set(right)
    if kind in RULE_SOURCES:
        assert np.allclose(right[f"{kind}.frames_correct"][1:], right["fusion.frames_correct"][1:])


@torch.no_grad()
def test_without_video_there_are_no_frames_and_alone_it_is_its_own_fusion() -> None:
    inputs, present, label = batch()
    only = model(["eeg"])
    _, alone = predict_with_frames(only, {"eeg": inputs["eeg"]}, present[:, :1])
    assert alone.outputs == [] and compute_frames_correct(alone, ["eeg"], present.numpy()[:, :1], label) == {}
    video = model(["video"])
    _, alone = predict_with_frames(video, {"video": inputs["video"]}, present[:, :1])
    right = compute_frames_correct(alone, ["video"], present.numpy()[:, :1], label)
    assert list(right) == ["video.frames_correct"] and not np.isnan(right["video.frames_correct"]).any()
    # A still window is one frame: all of its frames are as right as it is.
    still = inputs["video"][:, :1].expand(-1, 5, -1, -1, -1)
    output, alone = predict_with_frames(video, {"video": still}, present[:, :1])
    right = compute_frames_correct(alone, ["video"], present.numpy()[:, :1], label)
    assert right["video.frames_correct"].tolist() == (output.logits_BK.argmax(1).numpy() == label).tolist()
