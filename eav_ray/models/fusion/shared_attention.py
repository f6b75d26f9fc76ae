"""Fuse by one attention over the tokens of all modalities, read by a learned query."""

import torch
from torch import Tensor, nn

from eav_ray.config.fusion.shared_attention import SharedAttentionConfig
from eav_ray.models.encoders.base import EncoderOutput
from eav_ray.models.fusion.base import Fusion, FusionOutput
from eav_ray.models.fusion.rules import sum_weighted_outputs
from eav_ray.models.fusion.tokens import TokenProjector
from eav_ray.models.layers import upcast_half_precision


class SharedAttentionFusion(Fusion):
    """A learned query reads the tokens of all modalities through one multi-head attention that they share.

    What the query attends to depends on the sample: its attention mass per modality in the last read, averaged over
    heads, is the modality weight. Arguments as for `TokenProjector`.

    Args:
        late_fusion_residual: What was read is added to the unimodal log probabilities, or to the mean of the numbers
            that the modalities predict, weighed by the count-corrected modality weights, and starts next to nothing:
            training starts from late fusion, whatever the numbers of tokens.
        n_query_steps: How often it reads. What a token weighs in the first depends on that token alone; from the second
            on the query knows what all modalities said, so that one may tell that another is useless.

    Attributes:
        heads_HD: 1 where a channel is of a head. All that is done head by head is a product with it, so that fusions
            with other numbers of heads are the same computation (`tuning.batched_fusion`); rows of zeros are no heads.
    """

    heads_HD: Tensor

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
        pooled: bool = False,
        positions: bool = True,
        late_fusion_residual: bool = True,
        n_query_steps: int = 1,
    ) -> None:
        super().__init__()
        self.width, self.dropout, self.late_fusion_residual = width, dropout, late_fusion_residual
        self.register_buffer("heads_HD", build_head_mask(heads, width), persistent=False)
        self.token_projector = TokenProjector(
            widths, times_s, window_s=window_s, width=width, pooled=pooled, positions=positions
        )
        self.n_keys = self.token_projector.n_tokens
        self.query = nn.Parameter(torch.randn(width) * 0.02)
        self.norm = nn.LayerNorm(width)
        self.q = nn.Linear(width, width)
        self.next_queries = nn.ModuleList(_build_next_query(width) for _ in range(n_query_steps - 1))
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
        output_layer = nn.Linear(width, n_outputs)
        if late_fusion_residual:
            nn.init.trunc_normal_(output_layer.weight, std=1e-3)
            nn.init.zeros_(output_layer.bias)
        self.head = nn.Sequential(nn.LayerNorm(width), output_layer)

    def forward(self, encoded: dict[str, EncoderOutput], logits: dict[str, Tensor], present_BM: Tensor) -> FusionOutput:
        tokens, mask = self.token_projector(encoded, present_BM)
        x_BND, mask_BN = self.norm(torch.cat(tokens, 1)), torch.cat(mask, 1)
        k_BND, v_BND = self.kv(x_BND).chunk(2, -1)
        heads_HD = self.heads_HD.to(k_BND.dtype)
        is_head_H1 = heads_HD.amax(1, keepdim=True)
        scale = (is_head_H1.sum() / self.width) ** 0.5
        x_BD, attention_BHN = (
            self.query.expand(len(x_BND), -1),
            x_BND.new_zeros(len(x_BND), len(heads_HD), x_BND.shape[1]),
        )
        for to_query in (self.q, *self.next_queries):
            scores_BHN = ((to_query(x_BD)[:, None] * k_BND) @ heads_HD.T).transpose(1, 2) * scale
            attention_BHN = scores_BHN.masked_fill(~mask_BN[:, None], float("-inf")).softmax(-1)
            dropped = nn.functional.dropout(attention_BHN, self.dropout, self.training)
            attended_BD = ((dropped.transpose(1, 2) @ heads_HD) * v_BND).sum(1)
            x_BD = x_BD + self.proj(attended_BD)
            x_BD = x_BD + self.feed_forward(x_BD)
        weights_BM, corrected_BM = _compute_attention_mass((attention_BHN * is_head_H1).sum(1) / is_head_H1.sum(), mask)
        logits_BK = self.head(x_BD)
        if self.late_fusion_residual:
            combine = sum_weighted_outputs if self.predicts_numbers else sum_weighted_log_probabilities
            # No gradient goes into what the modalities alone say: it stays theirs.
            own = {m: x.detach() for m, x in logits.items()}
            logits_BK = upcast_half_precision(logits_BK) + combine(own, corrected_BM, present_BM)
        return FusionOutput(logits_BK, weights_BM, corrected_BM)

    def list_query_key_gradients(self) -> list[Tensor]:
        kv = self.kv.weight.grad
        queries = [
            module.weight.grad
            for to_query in (self.q, *self.next_queries)
            for module in to_query.modules()
            if isinstance(module, nn.Linear)
        ]
        return [g for g in (*queries, None if kv is None else kv[: self.width]) if g is not None]


def build(
    section: SharedAttentionConfig,
    widths: dict[str, int],
    times_s: dict[str, Tensor],
    *,
    window_s: float,
    n_outputs: int,
) -> SharedAttentionFusion:
    """Build the fusion that a section of an experiment describes."""
    return SharedAttentionFusion(
        widths,
        times_s,
        window_s=window_s,
        n_outputs=n_outputs,
        width=section.width,
        heads=section.heads,
        dropout=section.dropout,
        pooled=section.uses_pooled_features,
        positions=section.positions,
        late_fusion_residual=section.late_fusion_residual,
        n_query_steps=section.n_query_steps,
    )


def sum_weighted_log_probabilities(logits: dict[str, Tensor], weights_BM: Tensor, present_BM: Tensor) -> Tensor:
    """(batch, classes): the weighed unimodal log probabilities, with equal weights their sum over what is present."""
    stacked = torch.stack([upcast_half_precision(logits[m]).log_softmax(-1) for m in sorted(logits)], 1)
    known = torch.where(present_BM[..., None], stacked, 0)  # before the product, whose gradient would meet a NaN
    share_BM = weights_BM * present_BM.sum(1, keepdim=True)
    return (known * share_BM[..., None]).sum(1)


def _compute_attention_mass(attention_BN: Tensor, masks: list[Tensor]) -> tuple[Tensor, Tensor]:
    parts = attention_BN.split([m.shape[1] for m in masks], 1)
    raw = torch.stack([p.sum(1) for p in parts], 1)
    counts = torch.stack([m.sum(1) for m in masks], 1)
    corrected = torch.where(counts > 0, raw / counts.clamp(min=1), 0)
    # The sum of what softmax gives is 1 to the last bits only, on either side; a weight is never more than all of it.
    return raw.clamp(max=1), corrected / corrected.sum(1, keepdim=True)


def build_head_mask(heads: int, width: int) -> Tensor:
    """(heads, width): 1 where a channel belongs to a head, in equal and contiguous parts."""
    return torch.eye(heads).repeat_interleave(width // heads, 1)


def _build_next_query(width: int) -> nn.Sequential:
    """From what was read so far to the next query; small as the first, so that training starts from equal weights."""
    linear = nn.Linear(width, width)
    nn.init.trunc_normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.LayerNorm(width), linear)
