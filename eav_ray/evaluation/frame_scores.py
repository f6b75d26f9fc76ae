"""Scores per frame, as the reference has them: each frame of a window alone, beside the window's audio and EEG.

A frame alone is a window that holds it throughout, so that video has as many tokens as ever; for the mean of the
frames, which the reference's fusion reads, that is the frame itself (Yin et al., arXiv 2411.00822, released code).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from eav_ray.models.classifier import Classifier, ClassifierOutput
from eav_ray.models.encoders.base import EncoderOutput, FrameEncoder, compute_unimodal_logits
from eav_ray.training.metrics import FRAMES_CORRECT_SUFFIX, RULE_SOURCES
from eav_ray.training.predictions import fetch_output
from eav_ray.training.window_predictions import split_unimodal_logits


@dataclass(frozen=True)
class FrameOutputs:
    """What a model says of windows that hold one of their frames throughout.

    Attributes:
        modality: Whose frames they are; empty where no encoder of the model looks at frames.
        outputs: Of each frame in turn.
    """

    modality: str
    outputs: list[ClassifierOutput]


@torch.no_grad()
def predict_with_frames(
    model: Classifier, inputs: dict[str, Tensor], present_BM: Tensor
) -> tuple[ClassifierOutput, FrameOutputs]:
    """Predict windows, and each of their frames; no frames where no encoder looks at them.

    Args:
        inputs, present_BM: As `Classifier.forward` takes them. The encoders run once.
    """
    encoded, logits = model.encode(inputs, present_BM)
    window_output = model.fuse(encoded, logits, present_BM)
    frame_encoders = {m: e for m, e in model.encoders.items() if isinstance(e, FrameEncoder)}
    if not frame_encoders:
        return window_output, FrameOutputs("", [])
    modality, encoder = next(iter(frame_encoders.items()))
    whole, outputs = encoded[modality], []
    for frame in range(whole.tokens_BND.shape[1]):
        tokens, pooled = encoder.hold_frame(whole.tokens_BND, frame)
        held = EncoderOutput(tokens, whole.mask_BN, pooled)
        frame_logits = logits | {modality: compute_unimodal_logits(model.heads[modality], held)}
        outputs.append(model.fuse(encoded | {modality: held}, frame_logits, present_BM))
    return window_output, FrameOutputs(modality, outputs)


def compute_frames_correct(
    frames: FrameOutputs, modalities: list[str], present_BM: np.ndarray, label_B: np.ndarray
) -> dict[str, np.ndarray]:
    """Compute the share of each window's frames that a source gets right, a column a source.

    NaN where the window has no frames.

    Args:
        frames: From `predict_with_frames`.
        modalities: The modalities of the model, in its order.
        label_B: True classes; nothing is right or wrong of numbers.
    """
    if not frames.outputs or label_B.ndim > 1:
        return {}
    column = modalities.index(frames.modality)
    logits_by_source: dict[str, Callable[[ClassifierOutput], np.ndarray]] = {
        frames.modality: lambda o: _to_numpy(o.unimodal_logits[frames.modality])
    }
    if len(modalities) > 1:
        logits_by_source |= {
            rule: lambda o, rule=rule: split_unimodal_logits(fetch_output(o), modalities, present_BM)[1][rule]
            for rule in RULE_SOURCES
        }
        logits_by_source["fusion"] = lambda o: _to_numpy(o.logits_BK)
    correct = {
        source + FRAMES_CORRECT_SUFFIX: np.mean([logits(o).argmax(1) == label_B for o in frames.outputs], 0)
        for source, logits in logits_by_source.items()
    }
    return {name: np.where(present_BM[:, column], share, np.nan) for name, share in correct.items()}


def _to_numpy(x: Tensor) -> np.ndarray:
    return x.float().cpu().numpy()
