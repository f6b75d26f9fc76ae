"""Layers that encoders and fusions share."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class _Standardizer(nn.Module):
    """Holds the mean and SD of training rows, which travel with the weights."""

    mean: Tensor
    sd: Tensor

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("sd", torch.ones(n_features))


class ChannelStandardizer(_Standardizer):
    """Standardises each EEG channel."""

    def forward(self, x_BST: Tensor) -> Tensor:
        return (x_BST - self.mean[:, None]) / self.sd[:, None]


class TransformerBlock(nn.Module):
    """Pre-norm transformer block: softmax attention, GELU MLP, residuals (Dosovitskiy et al., arXiv 2010.11929)."""

    def __init__(self, width: int, heads: int, *, dropout: float, mlp_ratio: int = 4) -> None:
        super().__init__()
        self.heads, self.dropout, self.recompute = heads, dropout, False
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

    def forward(self, x_BND: Tensor, mask_BN: Tensor | None = None) -> Tensor:
        """
        Args:
            mask_BN: True where a token may be attended to; None for all. Every row must have one.
        """
        if self.recompute and self.training:
            return checkpoint(self._forward, x_BND, mask_BN, use_reentrant=False)
        return self._forward(x_BND, mask_BN)

    def _forward(self, x_BND: Tensor, mask_BN: Tensor | None) -> Tensor:
        b, n, d = x_BND.shape
        q, k, v = self.qkv(self.norm1(x_BND)).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        mask = None if mask_BN is None else mask_BN[:, None, None]
        dropout = self.dropout if self.training else 0.0
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        x_BND = x_BND + self.proj(mixed.transpose(1, 2).reshape(b, n, d))
        return x_BND + self.mlp(self.norm2(x_BND))


def upcast_half_precision(x: Tensor) -> Tensor:
    """Half precision as float32; anything else as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


MAX_ABS_Z_SCORE = 10


class FeatureStandardizer(_Standardizer):
    """Standardises computed features."""

    def fit(self, batches: Iterable[Tensor]) -> None:
        """
        Args:
            batches: (rows, features) each; nothing changes where there are no rows.
        """
        self.fit_features((batch, torch.ones_like(batch, dtype=torch.bool)) for batch in batches)

    def fit_features(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """
        Args:
            batches: Features (..., features), and which of them count, of the same shape. Nothing changes where none
                does.
        """
        n_features = len(self.mean)
        count, total, squares = (torch.zeros(n_features, dtype=torch.float64) for _ in range(3))
        for values, known in batches:
            counts = known.reshape(-1, n_features).cpu()
            x = torch.where(counts, values.double().cpu().reshape(-1, n_features), 0)
            count, total, squares = count + counts.sum(0), total + x.sum(0), squares + x.square().sum(0)
        if not count.any():
            return
        mean = total / count.clamp(min=1)
        sd = (squares / count.clamp(min=1) - mean.square()).clamp(min=0).sqrt()
        self.mean.copy_(mean)
        # What never changes has no spread; divided by 1 it stays 0.
        self.sd.copy_(torch.where(sd > 1e-6 * (1 + mean.abs()), sd, 1.0))

    def forward(self, x: Tensor) -> Tensor:
        # What training never saw, digital silence for one, can lie hundreds of SD away.
        return ((x - self.mean) / self.sd).clamp(-MAX_ABS_Z_SCORE, MAX_ABS_Z_SCORE)


def build_position_embedding(*shape: int) -> nn.Parameter:
    """A learned position table, initialised as in ViT."""
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(*shape), std=0.02))


def build_feature_mlp(n_features: int, width: int, dropout: float, input_dropout: float = 0.0) -> nn.Sequential:
    """Build the small network of the branches that start from computed features: (..., n_features) to (..., width)."""
    hidden = (nn.Linear(n_features, width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, width))
    return nn.Sequential(nn.Dropout(input_dropout), *hidden) if input_dropout else nn.Sequential(*hidden)
