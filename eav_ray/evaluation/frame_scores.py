"""Scores per frame, as the reference has them: each frame of a window alone, beside the window's audio and EEG.

A frame alone is a window that holds it throughout, so that video has as many tokens as ever; for the mean of the
frames, which the reference's fusion reads, that is the frame itself (Yin et al., arXiv 2411.00822, released code).
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from eav_ray.models.classifier import Classifier, ClassifierOutput
from eav_ray.models.encoders.base import EncoderOutput
from eav_ray.models.encoders.vit import ViT
from eav_ray.training.metrics import FRAMES_CORRECT_SUFFIX


@torch.no_grad()
def predict_with_frames(
    model: Classifier, inputs: dict[str, Tensor], present_BM: Tensor
) -> tuple[ClassifierOutput, list[ClassifierOutput]]:
    """What a model says of windows, and of each of their frames; none where the model sees no video.

    Args:
        inputs, present_BM: As `Classifier.forward` takes them. The video encoder runs once.
    """
    encoded, logits = model.encode(inputs, present_BM)
    window_output = model.fuse(encoded, logits, present_BM)
    encoder = model.encoders["video"] if "video" in model.modalities else None
    if not isinstance(encoder, ViT):
        return window_output, []
    video, frame_outputs = encoded["video"], []
    for frame in range(video.tokens_BND.shape[1]):
        tokens, pooled = encoder.hold_frame(video.tokens_BND, frame)
        frame_encoded = encoded | {"video": EncoderOutput(tokens, video.mask_BN, pooled)}
        frame_outputs.append(model.fuse(frame_encoded, logits | {"video": model.heads["video"](pooled)}, present_BM))
    return window_output, frame_outputs


def compute_frames_correct(
    frame_outputs: list[ClassifierOutput], modalities: list[str], present_BM: np.ndarray, label_B: np.ndarray
) -> dict[str, np.ndarray]:
    """Share of each window's frames that a source gets right, a column a source; NaN where the window has no video.

    Args:
        frame_outputs: Of each frame, from `output_and_frames`.
        modalities: The modalities of the model, in its order.
        label_B: True classes.
    """
    if not frame_outputs:
        return {}
    video = modalities.index("video")
    logits_by_source: dict[str, Callable[[ClassifierOutput], np.ndarray]] = {
        "video": lambda o: _to_numpy(o.unimodal_logits["video"])
    }
    if len(modalities) > 1:
        logits_by_source |= {
            "late_mean": lambda o: average_unimodal_logits(o, modalities, present_BM),
            "fusion": lambda o: _to_numpy(o.logits_BK),
        }
    correct = {
        source + FRAMES_CORRECT_SUFFIX: np.mean([logits(o).argmax(1) == label_B for o in frame_outputs], 0)
        for source, logits in logits_by_source.items()
    }
    return {name: np.where(present_BM[:, video], share, np.nan) for name, share in correct.items()}


def average_unimodal_logits(output: ClassifierOutput, modalities: list[str], present_BM: np.ndarray) -> np.ndarray:
    """Mean of the logits of the modalities that a window has."""
    stacked = np.stack([_to_numpy(output.unimodal_logits[m]) for m in modalities], 1)
    return np.nanmean(np.where(present_BM[..., None], stacked, np.nan), 1)


def _to_numpy(x: Tensor) -> np.ndarray:
    return x.float().cpu().numpy()
