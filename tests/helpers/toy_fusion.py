"""A fusion from outside the package: all that one takes."""

from typing import Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from eav_ray.config import STRICT, FusionConfig
from eav_ray.models.encoders.base import EncoderOutput
from eav_ray.models.fusion.base import Fusion, FusionOutput


@dataclass(frozen=True, config=STRICT)
class ToyFusionConfig(FusionConfig):
    """A linear map of the unimodal logits, side by side."""

    kind: Literal["toy_fusion"] = "toy_fusion"
    scale: float = Field(default=1.0, gt=0, description="by which they are multiplied before")


class ToyFusion(Fusion):
    def __init__(self, n_modalities: int, *, n_outputs: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.map = nn.Linear(n_modalities * n_outputs, n_outputs)

    def forward(self, encoded: dict[str, EncoderOutput], logits: dict[str, Tensor], present_BM: Tensor) -> FusionOutput:
        stacked = torch.stack([logits[m] for m in sorted(logits)], 1)
        known = torch.where(present_BM[..., None], self.scale * stacked, 0)
        weights = present_BM / present_BM.sum(1, keepdim=True)
        return FusionOutput(self.map(known.flatten(1)), weights, weights)


def build(
    section: ToyFusionConfig, widths: dict[str, int], times_s: dict[str, Tensor], *, window_s: float, n_outputs: int
) -> ToyFusion:
    return ToyFusion(len(widths), n_outputs=n_outputs, scale=section.scale)
