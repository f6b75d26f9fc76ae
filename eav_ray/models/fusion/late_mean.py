"""Fuse by the mean of the unimodal logits."""

import torch
from torch import Tensor

from eav_ray.config.fusion.late_mean import LateMeanConfig
from eav_ray.models.encoders.base import EncoderOutput
from eav_ray.models.fusion.base import Fusion, FusionOutput


class LateMeanFusion(Fusion):
    """The mean of the unimodal logits of the modalities present. No parameters; hard to beat."""

    def forward(self, encoded: dict[str, EncoderOutput], logits: dict[str, Tensor], present_BM: Tensor) -> FusionOutput:
        modalities = sorted(encoded)
        weights = present_BM / present_BM.sum(1, keepdim=True)
        # `where`, not a product: what a missing modality's row holds, NaN included, must not reach the result.
        stacked = torch.stack([logits[m] for m in modalities], 1)
        mean = torch.where(present_BM[..., None], stacked * weights[..., None], 0).sum(1)
        return FusionOutput(mean, weights, weights)


def build(
    section: LateMeanConfig, widths: dict[str, int], times_s: dict[str, Tensor], *, window_s: float, n_outputs: int
) -> LateMeanFusion:
    """Build the fusion that a section of an experiment describes."""
    return LateMeanFusion()
