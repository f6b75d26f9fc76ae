"""The network of the Audio Spectrogram Transformer, with the names and the arithmetic of `transformers.ASTModel`.

It is written here because to import that class takes two seconds and 145 MB in every process. Published weights fit it
as they are, and from one seed both begin with the same weights (tests/models/encoders/test_ast_network.py).
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

PATCH_SIZE, N_SPECIAL_TOKENS = 16, 2
LAYER_NORM_EPS, INITIAL_SD = 1e-12, 0.02


class ASTOutput(NamedTuple):
    tokens_BND: Tensor  # the two special tokens, then the patches, frequency-major
    pooled_BD: Tensor  # mean of the special tokens


class PatchEmbeddings(nn.Module):
    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(1, width, PATCH_SIZE, stride)

    def forward(self, spectrogram_BTF: Tensor) -> Tensor:
        return self.projection(spectrogram_BTF.transpose(1, 2)[:, None]).flatten(2).transpose(1, 2)


class Embeddings(nn.Module):
    def __init__(self, width: int, n_patches: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.distillation_token = nn.Parameter(torch.zeros(1, 1, width))
        self.patch_embeddings = PatchEmbeddings(width, stride)
        self.position_embeddings = nn.Parameter(torch.zeros(1, n_patches + N_SPECIAL_TOKENS, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, spectrogram_BTF: Tensor) -> Tensor:
        patches_BND = self.patch_embeddings(spectrogram_BTF)
        special = [token.expand(len(patches_BND), -1, -1) for token in (self.cls_token, self.distillation_token)]
        return self.dropout(torch.cat([*special, patches_BND], 1) + self.position_embeddings)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.o_proj = nn.Linear(width, width)

    def forward(self, x_BND: Tensor) -> Tensor:
        query, key, value = (
            projection(x_BND).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed_BHND = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.o_proj(mixed_BHND.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x_BND: Tensor) -> Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(x_BND)))


class Layer(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.layernorm_before = nn.LayerNorm(width, LAYER_NORM_EPS)
        self.layernorm_after = nn.LayerNorm(width, LAYER_NORM_EPS)
        self.mlp = MLP(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BND: Tensor) -> Tensor:
        x_BND = self.dropout(self.attention(self.layernorm_before(x_BND))) + x_BND
        return self.dropout(self.mlp(self.layernorm_after(x_BND))) + x_BND


class ASTNetwork(nn.Module):
    """Spectrograms (batch, frames, bands) to tokens.

    Args:
        n_patches: Of a spectrogram, 16 x 16 each.
        stride: Of the patches, in both directions.
    """

    def __init__(self, *, width: int, depth: int, heads: int, n_patches: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.stride, self.heads = stride, heads
        self.embeddings = Embeddings(width, n_patches, stride, dropout)
        self.layers = nn.ModuleList([Layer(width, heads, dropout) for _ in range(depth)])
        self.layernorm = nn.LayerNorm(width, LAYER_NORM_EPS)
        self.recomputes_activations = False
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.normal_(module.weight, std=INITIAL_SD)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, spectrogram_BTF: Tensor) -> ASTOutput:
        x_BND = self.embeddings(spectrogram_BTF)
        for layer in self.layers:
            is_recomputed = self.recomputes_activations and self.training
            x_BND = checkpoint(layer, x_BND, use_reentrant=False) if is_recomputed else layer(x_BND)
        x_BND = self.layernorm(x_BND)
        return ASTOutput(x_BND, (x_BND[:, 0] + x_BND[:, 1]) / 2)
