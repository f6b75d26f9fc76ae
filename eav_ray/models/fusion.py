"""Fusion: from the tokens of the modalities that are present to one set of logits.

Modalities are always taken in sorted order, so the order in which a caller names them changes nothing.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from eav_ray.models.encoder import Encoded


class Fused(NamedTuple):
    logits_BK: Tensor
    weights_BM: Tensor  # attention mass per modality, sum 1; exactly 0 where a modality is missing
    corrected_BM: Tensor  # the same after division by each modality's token count


class LateMean(nn.Module):
    """The mean of the unimodal logits of the modalities present. No parameters; hard to beat."""

    def forward(self, encoded: dict[str, Encoded], logits: dict[str, Tensor], present_BM: Tensor) -> Fused:
        names = sorted(encoded)
        weights = present_BM / present_BM.sum(1, keepdim=True)
        # `where`, not a product: what a missing modality's row holds, NaN included, must not reach the result.
        stacked = torch.stack([logits[m] for m in names], 1)
        mean = torch.where(present_BM[..., None], stacked * weights[..., None], 0).sum(1)
        return Fused(mean, weights, weights)


class SharedAttention(nn.Module):
    """A learned query reads the tokens of all modalities through one multi-head attention that they share.

    Each modality is projected to one width and normalised, and gets an embedding of its own; a token's place in time
    is added from one clock in seconds, common to all modalities. What the query attends to depends on the sample: its
    attention mass per modality, averaged over heads, is the modality weight.

    Args:
        widths: Token width of each modality.
        times_s: Token times of each modality, (N_m,) seconds.
    """

    def __init__(
        self,
        widths: dict[str, int],
        times_s: dict[str, Tensor],
        *,
        window_s: float,
        n_outputs: int,
        width: int,
        heads: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.names, self.heads, self.dropout = sorted(widths), heads, dropout
        self.inputs = nn.ModuleDict(
            {m: nn.Sequential(nn.Linear(widths[m], width), nn.LayerNorm(width)) for m in self.names}
        )
        self.modality = nn.ParameterDict({m: nn.Parameter(torch.randn(width) * 0.02) for m in self.names})
        for m in self.names:
            self.register_buffer(f"clock_{m}", _clock(times_s[m], window_s), persistent=False)
        self.time = nn.Linear(2 * CLOCK_WAVES, width, bias=False)
        self.query = nn.Parameter(torch.randn(width) * 0.02)
        self.norm = nn.LayerNorm(width)
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(4 * width, width),
            nn.Dropout(dropout),
        )
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, n_outputs))

    def forward(self, encoded: dict[str, Encoded], logits: dict[str, Tensor], present_BM: Tensor) -> Fused:
        tokens, mask = [], []
        for column, m in enumerate(self.names):
            mask_BN = encoded[m].mask_BN & present_BM[:, column, None]
            # `where`, not a product: whatever padding holds, NaN included, must not change a bit.
            clean = torch.where(mask_BN[..., None], encoded[m].tokens_BND, 0)
            tokens.append(self.inputs[m](clean) + self.modality[m] + self.time(getattr(self, f"clock_{m}")))
            mask.append(mask_BN)
        x_BND, mask_BN = self.norm(torch.cat(tokens, 1)), torch.cat(mask, 1)
        b, n, d = x_BND.shape
        q = self.q(self.query).view(self.heads, 1, d // self.heads)
        k, v = self.kv(x_BND).view(b, n, 2, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        scores = (q * k).sum(-1) / (d // self.heads) ** 0.5  # (b, heads, n)
        attention = scores.masked_fill(~mask_BN[:, None], float("-inf")).softmax(-1)
        dropped = nn.functional.dropout(attention, self.dropout, self.training)
        mixed = (dropped[:, :, None] @ v).reshape(b, d)
        x_BD = self.query + self.proj(mixed)
        x_BD = x_BD + self.feed_forward(x_BD)
        return Fused(self.head(x_BD), *_mass(attention.mean(1), mask))


def _mass(attention_BN: Tensor, masks: list[Tensor]) -> tuple[Tensor, Tensor]:
    parts = attention_BN.split([m.shape[1] for m in masks], 1)
    raw = torch.stack([p.sum(1) for p in parts], 1)
    counts = torch.stack([m.sum(1) for m in masks], 1)
    corrected = torch.where(counts > 0, raw / counts.clamp(min=1), 0)
    return raw, corrected / corrected.sum(1, keepdim=True)


CLOCK_WAVES = 8


def _clock(times_s: Tensor, window_s: float) -> Tensor:
    """Sines and cosines of 1, 2, 4 ... 128 half periods a window: (N, 16). Equal times get equal rows."""
    waves = 2.0 ** torch.arange(CLOCK_WAVES)
    angle = torch.pi * waves * times_s[:, None].float() / window_s
    return torch.cat([angle.sin(), angle.cos()], -1)
