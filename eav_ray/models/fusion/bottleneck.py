"""Fuse by bottleneck tokens (Nagrani et al. 2021, arXiv 2107.00135)."""

import torch
from torch import Tensor, nn

from eav_ray.config.fusion.bottleneck import BottleneckConfig
from eav_ray.models.encoders.base import EncoderOutput
from eav_ray.models.fusion.base import Fusion, FusionOutput, masked_softmax
from eav_ray.models.fusion.tokens import TokenProjector
from eav_ray.models.layers import TransformerBlock


class BottleneckFusion(Fusion):
    """Modalities exchange through a few tokens only: MBT (Nagrani et al. 2021, arXiv 2107.00135).

    In each layer every modality's own block lets its tokens and the bottleneck tokens attend to each other; the
    bottlenecks go on as the mean over the modalities present. At the end a softmax over what each modality left in
    its copy of them gives the modality weights, and their weighted sum the logits. Arguments as for `TokenProjector`.
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
        depth: int,
        bottlenecks: int,
        dropout: float,
        pooled: bool = False,
        positions: bool = True,
    ) -> None:
        super().__init__()
        self.width = width
        self.token_projector = TokenProjector(
            widths, times_s, window_s=window_s, width=width, pooled=pooled, positions=positions
        )
        self.n_keys = self.token_projector.n_tokens + bottlenecks
        self.bottlenecks = nn.Parameter(torch.randn(bottlenecks, width) * 0.02)
        self.layers = nn.ModuleList(
            nn.ModuleDict({m: TransformerBlock(width, heads, dropout=dropout) for m in self.token_projector.modalities})
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.gate = nn.Linear(width, 1, bias=False)  # a constant would change no weight
        self.head = nn.Linear(width, n_outputs)

    def forward(self, encoded: dict[str, EncoderOutput], logits: dict[str, Tensor], present_BM: Tensor) -> FusionOutput:
        tokens, masks = self.token_projector(encoded, present_BM)
        b, count = len(present_BM), len(self.bottlenecks)
        shared = self.bottlenecks.expand(b, -1, -1)
        bottleneck_mask = present_BM.new_ones(b, count)
        bottlenecks_by_modality = [shared] * len(tokens)
        for layer in self.layers:
            assert isinstance(layer, nn.ModuleDict)
            for i, m in enumerate(self.token_projector.modalities):
                out = layer[m](torch.cat([shared, tokens[i]], 1), torch.cat([bottleneck_mask, masks[i]], 1))
                bottlenecks_by_modality[i], tokens[i] = out[:, :count], out[:, count:]
            stacked = torch.stack(bottlenecks_by_modality, 1)
            present = present_BM[:, :, None, None]
            shared = torch.where(present, stacked, 0).sum(1) / present.sum(1)
        x_BMD = self.norm(torch.stack(bottlenecks_by_modality, 1).mean(2))
        weights = masked_softmax(self.gate(x_BMD)[..., 0], present_BM)
        return FusionOutput(self.head((weights[..., None] * x_BMD).sum(1)), weights, weights)

    def list_query_key_gradients(self) -> list[Tensor]:
        blocks = [m for m in self.layers.modules() if isinstance(m, TransformerBlock)]
        grads = [block.qkv.weight.grad for block in blocks]
        return [g[: 2 * self.width] for g in grads if g is not None]


def build(
    section: BottleneckConfig, widths: dict[str, int], times_s: dict[str, Tensor], *, window_s: float, n_outputs: int
) -> BottleneckFusion:
    """Build the fusion that a section of an experiment describes."""
    return BottleneckFusion(
        widths,
        times_s,
        window_s=window_s,
        n_outputs=n_outputs,
        width=section.width,
        heads=section.heads,
        depth=section.depth,
        bottlenecks=section.bottlenecks,
        dropout=section.dropout,
        pooled=section.uses_pooled_features,
        positions=section.positions,
    )
