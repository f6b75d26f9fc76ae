"""Fuse as the reference's released code does: one token, so attention is a linear map."""

import torch
from torch import Tensor, nn

from eav_ray.config import order_modalities
from eav_ray.config.fusion.single_token import SingleTokenConfig
from eav_ray.models.encoders.base import EncoderOutput
from eav_ray.models.fusion.base import Fusion, FusionOutput


class SingleTokenFusion(Fusion):
    """What the reference's released code computes: attention over one token, the concatenated pooled features.

    A softmax over one key is 1 whatever the sample, so the attention is a linear map, its query and key maps get no
    gradient, and there are no modality weights: equal ones stand in their place. A missing modality's features are
    zeros, which the reference does not provide for. 11,145,525 parameters at 768 + 768 + 60 features.
    """

    HIDDEN_WIDTHS = (512, 256)

    def __init__(self, widths: dict[str, int], *, n_outputs: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.modalities = sorted(widths)
        self.width, self.n_keys = sum(widths.values()), 1
        self.attention = nn.MultiheadAttention(self.width, heads, batch_first=True)
        self.reduce = nn.Linear(self.width, self.HIDDEN_WIDTHS[0])
        self.head = nn.Sequential(
            nn.Linear(*self.HIDDEN_WIDTHS), nn.ReLU(), nn.Dropout(dropout), nn.Linear(self.HIDDEN_WIDTHS[1], n_outputs)
        )

    def concatenate_pooled(self, encoded: dict[str, EncoderOutput], present_BM: Tensor) -> Tensor:
        """(batch, 1, sum of widths)."""
        parts = [
            torch.where(present_BM[:, self.modalities.index(m), None], encoded[m].pooled_BD, 0)
            for m in order_modalities(self.modalities)
        ]
        return torch.cat(parts, 1)[:, None]

    def forward(self, encoded: dict[str, EncoderOutput], logits: dict[str, Tensor], present_BM: Tensor) -> FusionOutput:
        x_B1D = self.concatenate_pooled(encoded, present_BM)
        mixed, _ = self.attention(x_B1D, x_B1D, x_B1D, need_weights=False)
        uniform_weights = present_BM / present_BM.sum(1, keepdim=True)
        return FusionOutput(self.head(self.reduce(mixed[:, 0])), uniform_weights, uniform_weights)

    def list_query_key_gradients(self) -> list[Tensor]:
        gradient = self.attention.in_proj_weight.grad
        return [] if gradient is None else [gradient[: 2 * self.width]]


def build(
    section: SingleTokenConfig, widths: dict[str, int], times_s: dict[str, Tensor], *, window_s: float, n_outputs: int
) -> SingleTokenFusion:
    """Build the fusion that a section of an experiment describes."""
    return SingleTokenFusion(widths, n_outputs=n_outputs, heads=section.heads, dropout=section.dropout)
