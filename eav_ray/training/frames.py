"""Scores per frame, as the reference has them: each frame of a window alone, beside the window's audio and EEG.

A frame alone is a window that holds it throughout, so that video has as many tokens as ever; for the mean of the
frames, which the reference's fusion reads, that is the frame itself (Yin et al., arXiv 2411.00822, released code).
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from eav_ray.models.build import Classifier, Output
from eav_ray.models.encoder import Encoded
from eav_ray.models.video import ViT
from eav_ray.training.metrics import FRAMES


@torch.no_grad()
def output_and_frames(model: Classifier, inputs: dict[str, Tensor], present_BM: Tensor) -> tuple[Output, list[Output]]:
    """What a model says of windows, and of each of their frames; none where the model sees no video.

    Args:
        inputs, present_BM: As `Classifier.forward` takes them. The video encoder runs once.
    """
    encoded, logits = model.encode(inputs, present_BM)
    whole = model.fuse(encoded, logits, present_BM)
    encoder = model.encoders["video"] if "video" in model.names else None
    if not isinstance(encoder, ViT):
        return whole, []
    video, alone = encoded["video"], []
    for frame in range(video.tokens_BND.shape[1]):
        tokens, pooled = encoder.held(video.tokens_BND, frame)
        of_frame = encoded | {"video": Encoded(tokens, video.mask_BN, pooled)}
        alone.append(model.fuse(of_frame, logits | {"video": model.heads["video"](pooled)}, present_BM))
    return whole, alone


def frames_right(
    alone: list[Output], names: list[str], present_BM: np.ndarray, label_B: np.ndarray
) -> dict[str, np.ndarray]:
    """Share of each window's frames that a source gets right, a column a source; NaN where the window has no video.

    Args:
        alone: Of each frame, from `output_and_frames`.
        names: The modalities of the model, in its order.
        label_B: True classes.
    """
    if not alone:
        return {}
    video = names.index("video")
    read: dict[str, Callable[[Output], np.ndarray]] = {"video": lambda o: _numpy(o.unimodal["video"])}
    if len(names) > 1:
        read |= {"late_mean": lambda o: late_mean(o, names, present_BM), "fusion": lambda o: _numpy(o.logits_BK)}
    right = {
        source + FRAMES: np.mean([logits(o).argmax(1) == label_B for o in alone], 0) for source, logits in read.items()
    }
    return {name: np.where(present_BM[:, video], share, np.nan) for name, share in right.items()}


def late_mean(output: Output, names: list[str], present_BM: np.ndarray) -> np.ndarray:
    """Mean of the logits of the modalities that a window has."""
    stacked = np.stack([_numpy(output.unimodal[m]) for m in names], 1)
    return np.nanmean(np.where(present_BM[..., None], stacked, np.nan), 1)


def _numpy(x: Tensor) -> np.ndarray:
    return x.float().cpu().numpy()
