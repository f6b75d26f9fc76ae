"""Fusion: from what the encoders say of the modalities that are present to one set of logits.

Modalities are always taken in sorted order, so the order in which a caller names them changes nothing. What a missing
modality's row or a masked token holds, NaN included, is replaced before anything is computed with it.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from eav_ray.models.encoder import EncoderOutput, TransformerBlock, upcast_half_precision


class FusionOutput(NamedTuple):
    logits_BK: Tensor
    weights_BM: Tensor  # weight per modality, sum 1; exactly 0 where a modality is missing
    corrected_BM: Tensor  # the same after division by each modality's token count


class Fusion(nn.Module):
    """`forward(encoded, logits, present_BM) -> Fused`, and what the collapse check asks of it."""

    n_keys: int | None = None  # over how many keys its attention goes when all is present; None without attention
    weight_loss: float = 0.0  # how much training draws its modality weights to the modalities that are right

    def list_query_key_gradients(self) -> list[Tensor]:
        """Gradients of the maps to queries and keys, after a backward pass."""
        return []


class LateMeanFusion(Fusion):
    """The mean of the unimodal logits of the modalities present. No parameters; hard to beat."""

    def forward(self, encoded: dict[str, EncoderOutput], logits: dict[str, Tensor], present_BM: Tensor) -> FusionOutput:
        modalities = sorted(encoded)
        weights = present_BM / present_BM.sum(1, keepdim=True)
        # `where`, not a product: what a missing modality's row holds, NaN included, must not reach the result.
        stacked = torch.stack([logits[m] for m in modalities], 1)
        mean = torch.where(present_BM[..., None], stacked * weights[..., None], 0).sum(1)
        return FusionOutput(mean, weights, weights)


class TokenProjector(nn.Module):
    """What the modalities' encoders say, in one space: projected, normalised, marked with modality and time.

    A token's place in time is added from one clock in seconds, common to all modalities: equal times, equal marks.

    Args:
        widths: Token width of each modality.
        times_s: Token times of each modality, (N_m,) seconds.
        pooled: One token a modality, its pooled features, in the middle of the window, instead of its time tokens.
        positions: Whether tokens are marked with their time; without, their order changes nothing.
    """

    def __init__(
        self,
        widths: dict[str, int],
        times_s: dict[str, Tensor],
        *,
        window_s: float,
        width: int,
        pooled: bool,
        positions: bool = True,
    ) -> None:
        super().__init__()
        self.modalities, self.pooled = sorted(widths), pooled
        self.inputs = nn.ModuleDict(
            {m: nn.Sequential(nn.Linear(widths[m], width), nn.LayerNorm(width)) for m in self.modalities}
        )
        self.modality = nn.ParameterDict({m: nn.Parameter(torch.randn(width) * 0.02) for m in self.modalities})
        self.n_tokens = 0
        for m in self.modalities:
            times = torch.tensor([window_s / 2]) if pooled else times_s[m]
            self.n_tokens += len(times)
            self.register_buffer(f"clock_{m}", _encode_times(times, window_s), persistent=False)
        time_projection = nn.Linear(
            2 * N_TIME_FREQUENCIES, width, bias=False
        )  # drawn in any case: all else starts from equal weights
        self.time = time_projection if positions else None

    def forward(self, encoded: dict[str, EncoderOutput], present_BM: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Of each modality in sorted order: tokens (batch, N_m, width), and a mask that is True where one is real."""
        tokens, masks = [], []
        for column, m in enumerate(self.modalities):
            e = encoded[m]
            if self.pooled:
                e = EncoderOutput(e.pooled_BD[:, None], e.mask_BN.any(1, keepdim=True), e.pooled_BD)
            mask_BN = e.mask_BN & present_BM[:, column, None]
            # `where`, not a product: whatever padding holds, NaN included, must not change a bit.
            clean = torch.where(mask_BN[..., None], e.tokens_BND, 0)
            marked = self.inputs[m](clean) + self.modality[m]
            tokens.append(marked if self.time is None else marked + self.time(getattr(self, f"clock_{m}")))
            masks.append(mask_BN)
        return tokens, masks


class SharedAttentionFusion(Fusion):
    """A learned query reads the tokens of all modalities through one multi-head attention that they share.

    What the query attends to depends on the sample: its attention mass per modality in the last read, averaged over
    heads, is the modality weight. Arguments as for `Tokens`.

    Args:
        reads: How often it reads. What a token weighs in the first depends on that token alone; from the second on
            the query knows what all modalities said, so that one may tell that another is useless.
        skip: What was read is added to the unimodal log probabilities, weighed by the count-corrected modality
            weights, and starts next to nothing: training starts from late fusion, whatever the numbers of tokens.

    Attributes:
        heads_HD: 1 where a channel is of a head. All that is done head by head is a product with it, so that fusions
            with other numbers of heads are the same computation (`search.heads`); rows of zeros are no heads.
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
            logits_BK = upcast_half_precision(logits_BK) + sum_weighted_log_probabilities(
                logits, corrected_BM, present_BM
            )
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


class BottleneckFusion(Fusion):
    """Modalities exchange through a few tokens only: MBT (Nagrani et al. 2021, arXiv 2107.00135).

    In each layer every modality's own block lets its tokens and the bottleneck tokens attend to each other; the
    bottlenecks go on as the mean over the modalities present. At the end a softmax over what each modality left in
    its copy of them gives the modality weights, and their weighted sum the logits. Arguments as for `Tokens`.
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


class SingleTokenFusion(Fusion):
    """What the reference's released code computes: attention over one token, the concatenated pooled features.

    A softmax over one key is 1 whatever the sample, so the attention is a linear map, its query and key maps get no
    gradient, and there are no modality weights: equal ones stand in their place. A missing modality's features are
    zeros, which the reference does not provide for. 11,145,525 parameters at 768 + 768 + 60 features.
    """

    HIDDEN_WIDTHS = (512, 256)
    MODALITY_ORDER = ("video", "audio", "eeg")  # of the concatenation

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
        order = [m for m in self.MODALITY_ORDER if m in self.modalities]
        parts = [torch.where(present_BM[:, self.modalities.index(m), None], encoded[m].pooled_BD, 0) for m in order]
        return torch.cat(parts, 1)[:, None]

    def forward(self, encoded: dict[str, EncoderOutput], logits: dict[str, Tensor], present_BM: Tensor) -> FusionOutput:
        x_B1D = self.concatenate_pooled(encoded, present_BM)
        mixed, _ = self.attention(x_B1D, x_B1D, x_B1D, need_weights=False)
        uniform_weights = present_BM / present_BM.sum(1, keepdim=True)
        return FusionOutput(self.head(self.reduce(mixed[:, 0])), uniform_weights, uniform_weights)

    def list_query_key_gradients(self) -> list[Tensor]:
        gradient = self.attention.in_proj_weight.grad
        return [] if gradient is None else [gradient[: 2 * self.width]]


def sum_weighted_log_probabilities(logits: dict[str, Tensor], weights_BM: Tensor, present_BM: Tensor) -> Tensor:
    """(batch, classes): the weighed unimodal log probabilities, with equal weights their sum over what is present.

    No gradient goes into the logits: they stay what the modality alone says.
    """
    stacked = torch.stack([upcast_half_precision(logits[m].detach()).log_softmax(-1) for m in sorted(logits)], 1)
    known = torch.where(present_BM[..., None], stacked, 0)  # before the product, whose gradient would meet a NaN
    share_BM = weights_BM * present_BM.sum(1, keepdim=True)
    return (known * share_BM[..., None]).sum(1)


def masked_softmax(scores_BM: Tensor, present_BM: Tensor) -> Tensor:
    return scores_BM.masked_fill(~present_BM, float("-inf")).softmax(-1)


def _compute_attention_mass(attention_BN: Tensor, masks: list[Tensor]) -> tuple[Tensor, Tensor]:
    parts = attention_BN.split([m.shape[1] for m in masks], 1)
    raw = torch.stack([p.sum(1) for p in parts], 1)
    counts = torch.stack([m.sum(1) for m in masks], 1)
    corrected = torch.where(counts > 0, raw / counts.clamp(min=1), 0)
    return raw, corrected / corrected.sum(1, keepdim=True)


def build_head_mask(heads: int, width: int) -> Tensor:
    """(heads, width): 1 where a channel belongs to a head, in equal and contiguous parts."""
    return torch.eye(heads).repeat_interleave(width // heads, 1)


def _build_next_query(width: int) -> nn.Sequential:
    """From what was read so far to the next query; small as the first, so that training starts from equal weights."""
    linear = nn.Linear(width, width)
    nn.init.trunc_normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.LayerNorm(width), linear)


N_TIME_FREQUENCIES = 8


def _encode_times(times_s: Tensor, window_s: float) -> Tensor:
    """Sines and cosines of 1, 2, 4 ... 128 half periods a window: (N, 16). Equal times get equal rows."""
    frequencies = 2.0 ** torch.arange(N_TIME_FREQUENCIES)
    angle = torch.pi * frequencies * times_s[:, None].float() / window_s
    return torch.cat([angle.sin(), angle.cos()], -1)
