"""Fuse by the product of the unimodal probabilities."""

from torch import Tensor

from eav_ray.config.fusion.product import ProductConfig
from eav_ray.models.encoders.base import EncoderOutput
from eav_ray.models.fusion.base import Fusion, FusionOutput
from eav_ray.models.fusion.rules import share_equally, stack_log_probabilities


class ProductFusion(Fusion):
    """The mean of the log probabilities of the modalities present. No parameters; hard to beat.

    Its softmax is the normalised geometric mean. The sum in place of the mean names the same class, but is as many
    times surer as there are modalities, as if they erred independently (`training.metrics.combine_by_rules`).
    """

    def forward(self, encoded: dict[str, EncoderOutput], logits: dict[str, Tensor], present_BM: Tensor) -> FusionOutput:
        weights_BM = share_equally(present_BM)
        logits_BK = (stack_log_probabilities(logits, present_BM) * weights_BM[..., None]).sum(1)
        return FusionOutput(logits_BK, weights_BM, weights_BM)


def build(
    section: ProductConfig, widths: dict[str, int], times_s: dict[str, Tensor], *, window_s: float, n_outputs: int
) -> ProductFusion:
    """Build the fusion that a section of an experiment describes."""
    return ProductFusion()
