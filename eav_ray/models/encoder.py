"""The one interface of all encoders, and the transformer block that our own models share."""

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Encoded(NamedTuple):
    """What an encoder makes of a batch of windows."""

    tokens_BND: Tensor
    mask_BN: Tensor  # True where a token is real
    pooled_BD: Tensor


class Encoder(nn.Module):
    """`forward(x, present_B) -> Encoded`; `times_s` places the N tokens on the window's clock, in seconds."""

    width: int
    times_s: Tensor  # (N,)

    def masked(self, tokens_BND: Tensor, pooled_BD: Tensor, present_B: Tensor) -> Encoded:
        """Rows without this modality are computed all the same, as every rank must run every encoder; then hidden."""
        mask_BN = present_B[:, None].expand(-1, tokens_BND.shape[1])
        return Encoded(tokens_BND, mask_BN, pooled_BD)


class Block(nn.Module):
    """Pre-norm transformer block: softmax attention, GELU MLP, residuals (Dosovitskiy et al., arXiv 2010.11929)."""

    def __init__(self, width: int, heads: int, *, dropout: float, mlp_ratio: int = 4) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, mlp_ratio * width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(mlp_ratio * width, width),
            nn.Dropout(dropout),
        )

    def forward(self, x_BND: Tensor) -> Tensor:
        b, n, d = x_BND.shape
        q, k, v = self.qkv(self.norm1(x_BND)).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        x_BND = x_BND + self.proj(mixed.transpose(1, 2).reshape(b, n, d))
        return x_BND + self.mlp(self.norm2(x_BND))


def positions(*shape: int) -> nn.Parameter:
    """A learned position table, initialised as in ViT."""
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(*shape), std=0.02))
