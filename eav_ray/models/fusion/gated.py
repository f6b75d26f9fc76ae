"""Fuse by a softmax gate over pooled features."""

import torch
from torch import Tensor, nn

from eav_ray.config.fusion.gated import GatedConfig
from eav_ray.models.encoders.base import EncoderOutput
from eav_ray.models.fusion.base import Fusion, FusionOutput, masked_softmax


class GatedFusion(Fusion):
    """A softmax gate over the pooled features of the modalities present, computed from all of them."""

    def __init__(self, widths: dict[str, int], *, n_outputs: int, width: int, dropout: float) -> None:
        super().__init__()
        self.modalities = sorted(widths)
        self.inputs = nn.ModuleDict(
            {m: nn.Sequential(nn.Linear(widths[m], width), nn.LayerNorm(width), nn.GELU()) for m in self.modalities}
        )
        self.gate = nn.Linear(len(self.modalities) * width, len(self.modalities))
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(width, n_outputs))

    def forward(self, encoded: dict[str, EncoderOutput], logits: dict[str, Tensor], present_BM: Tensor) -> FusionOutput:
        present = present_BM[..., None]
        pooled = {m: torch.where(present[:, i], encoded[m].pooled_BD, 0) for i, m in enumerate(self.modalities)}
        x_BMD = torch.where(present, torch.stack([self.inputs[m](pooled[m]) for m in self.modalities], 1), 0)
        weights = masked_softmax(self.gate(x_BMD.flatten(1)), present_BM)
        return FusionOutput(self.head((weights[..., None] * x_BMD).sum(1)), weights, weights)


def build(
    section: GatedConfig, widths: dict[str, int], times_s: dict[str, Tensor], *, window_s: float, n_outputs: int
) -> GatedFusion:
    """Build the fusion that a section of an experiment describes."""
    return GatedFusion(widths, n_outputs=n_outputs, width=section.width, dropout=section.dropout)
