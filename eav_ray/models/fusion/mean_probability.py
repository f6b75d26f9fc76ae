"""Fuse by the mean of the unimodal probabilities."""

from torch import Tensor

from eav_ray.config.fusion.mean_probability import MeanProbabilityConfig
from eav_ray.models.encoders.base import EncoderOutput
from eav_ray.models.fusion.base import Fusion, FusionOutput
from eav_ray.models.fusion.rules import share_equally, stack_log_probabilities


class MeanProbabilityFusion(Fusion):
    """The logarithm of the mean probability of the modalities present; its softmax is that mean. No parameters.

    One modality that is sure of a wrong class costs less than under the product, and one that is sure of the right
    class gains less.
    """

    def forward(self, encoded: dict[str, EncoderOutput], logits: dict[str, Tensor], present_BM: Tensor) -> FusionOutput:
        weights_BM = share_equally(present_BM)
        log_p_BMK = stack_log_probabilities(logits, present_BM).masked_fill(~present_BM[..., None], float("-inf"))
        logits_BK = log_p_BMK.logsumexp(1) - present_BM.sum(1, keepdim=True).log()
        return FusionOutput(logits_BK, weights_BM, weights_BM)


def build(
    section: MeanProbabilityConfig,
    widths: dict[str, int],
    times_s: dict[str, Tensor],
    *,
    window_s: float,
    n_outputs: int,
) -> MeanProbabilityFusion:
    """Build the fusion that a section of an experiment describes."""
    return MeanProbabilityFusion()
