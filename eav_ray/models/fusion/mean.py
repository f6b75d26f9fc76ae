"""Fuse by the mean of the numbers that the modalities predict."""

from torch import Tensor

from eav_ray.config.fusion.mean import MeanConfig
from eav_ray.models.encoders.base import EncoderOutput
from eav_ray.models.fusion.base import Fusion, FusionOutput
from eav_ray.models.fusion.rules import share_equally, sum_weighted_outputs


class MeanFusion(Fusion):
    """The mean of what the modalities present predict. No parameters."""

    def forward(self, encoded: dict[str, EncoderOutput], logits: dict[str, Tensor], present_BM: Tensor) -> FusionOutput:
        weights_BM = share_equally(present_BM)
        return FusionOutput(sum_weighted_outputs(logits, weights_BM, present_BM), weights_BM, weights_BM)


def build(
    section: MeanConfig, widths: dict[str, int], times_s: dict[str, Tensor], *, window_s: float, n_outputs: int
) -> MeanFusion:
    """Build the fusion that a section of an experiment describes."""
    return MeanFusion()
