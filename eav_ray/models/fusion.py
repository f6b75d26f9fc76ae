"""Fusion: from what the encoders say of the modalities that are present to one set of logits.

Modalities are always taken in sorted order, so the order in which a caller names them changes nothing. What a missing
modality's row or a masked token holds, NaN included, is replaced before anything is computed with it.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from eav_ray.models.encoder import Block, Encoded, upcast_half_precision


class Fused(NamedTuple):
    logits_BK: Tensor
    weights_BM: Tensor  # weight per modality, sum 1; exactly 0 where a modality is missing
    corrected_BM: Tensor  # the same after division by each modality's token count


class Fusion(nn.Module):
    """`forward(encoded, logits, present_BM) -> Fused`, and what the collapse check asks of it."""

    n_keys: int | None = None  # over how many keys its attention goes when all is present; None without attention
    weight_loss: float = 0.0  # how much training draws its modality weights to the modalities that are right

    def query_key_gradients(self) -> list[Tensor]:
        """Gradients of the maps to queries and keys, after a backward pass."""
        return []


class LateMean(Fusion):
    """The mean of the unimodal logits of the modalities present. No parameters; hard to beat."""

    def forward(self, encoded: dict[str, Encoded], logits: dict[str, Tensor], present_BM: Tensor) -> Fused:
        names = sorted(encoded)
        weights = present_BM / present_BM.sum(1, keepdim=True)
        # `where`, not a product: what a missing modality's row holds, NaN included, must not reach the result.
        stacked = torch.stack([logits[m] for m in names], 1)
        mean = torch.where(present_BM[..., None], stacked * weights[..., None], 0).sum(1)
        return Fused(mean, weights, weights)


class Tokens(nn.Module):
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
        self.names, self.pooled = sorted(widths), pooled
        self.inputs = nn.ModuleDict(
            {m: nn.Sequential(nn.Linear(widths[m], width), nn.LayerNorm(width)) for m in self.names}
        )
        self.modality = nn.ParameterDict({m: nn.Parameter(torch.randn(width) * 0.02) for m in self.names})
        self.count = 0
        for m in self.names:
            times = torch.tensor([window_s / 2]) if pooled else times_s[m]
            self.count += len(times)
            self.register_buffer(f"clock_{m}", _clock(times, window_s), persistent=False)
        marks = nn.Linear(2 * CLOCK_WAVES, width, bias=False)  # drawn in any case: all else starts from equal weights
        self.time = marks if positions else None

    def forward(self, encoded: dict[str, Encoded], present_BM: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Of each modality in sorted order: tokens (batch, N_m, width), and a mask that is True where one is real."""
        tokens, masks = [], []
        for column, m in enumerate(self.names):
            e = encoded[m]
            if self.pooled:
                e = Encoded(e.pooled_BD[:, None], e.mask_BN.any(1, keepdim=True), e.pooled_BD)
            mask_BN = e.mask_BN & present_BM[:, column, None]
            # `where`, not a product: whatever padding holds, NaN included, must not change a bit.
            clean = torch.where(mask_BN[..., None], e.tokens_BND, 0)
            marked = self.inputs[m](clean) + self.modality[m]
            tokens.append(marked if self.time is None else marked + self.time(getattr(self, f"clock_{m}")))
            masks.append(mask_BN)
        return tokens, masks


class SharedAttention(Fusion):
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
        skip: bool = True,
        reads: int = 1,
    ) -> None:
        super().__init__()
        self.width, self.dropout, self.skip = width, dropout, skip
        self.register_buffer("heads_HD", heads_of_channels(heads, width), persistent=False)
        self.read = Tokens(widths, times_s, window_s=window_s, width=width, pooled=pooled, positions=positions)
        self.n_keys = self.read.count
        self.query = nn.Parameter(torch.randn(width) * 0.02)
        self.norm = nn.LayerNorm(width)
        self.q = nn.Linear(width, width)
        self.again = nn.ModuleList(_next_query(width) for _ in range(reads - 1))
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
        last = nn.Linear(width, n_outputs)
        if skip:
            nn.init.trunc_normal_(last.weight, std=1e-3)
            nn.init.zeros_(last.bias)
        self.head = nn.Sequential(nn.LayerNorm(width), last)

    def forward(self, encoded: dict[str, Encoded], logits: dict[str, Tensor], present_BM: Tensor) -> Fused:
        tokens, mask = self.read(encoded, present_BM)
        x_BND, mask_BN = self.norm(torch.cat(tokens, 1)), torch.cat(mask, 1)
        k_BND, v_BND = self.kv(x_BND).chunk(2, -1)
        heads_HD = self.heads_HD.to(k_BND.dtype)
        real_H1 = heads_HD.amax(1, keepdim=True)
        scale = (real_H1.sum() / self.width) ** 0.5
        x_BD, attention_BHN = (
            self.query.expand(len(x_BND), -1),
            x_BND.new_zeros(len(x_BND), len(heads_HD), x_BND.shape[1]),
        )
        for to_query in (self.q, *self.again):
            scores_BHN = ((to_query(x_BD)[:, None] * k_BND) @ heads_HD.T).transpose(1, 2) * scale
            attention_BHN = scores_BHN.masked_fill(~mask_BN[:, None], float("-inf")).softmax(-1)
            dropped = nn.functional.dropout(attention_BHN, self.dropout, self.training)
            read_BD = ((dropped.transpose(1, 2) @ heads_HD) * v_BND).sum(1)
            x_BD = x_BD + self.proj(read_BD)
            x_BD = x_BD + self.feed_forward(x_BD)
        weights_BM, corrected_BM = _mass((attention_BHN * real_H1).sum(1) / real_H1.sum(), mask)
        found_BK = self.head(x_BD)
        if self.skip:
            found_BK = upcast_half_precision(found_BK) + evidence(logits, corrected_BM, present_BM)
        return Fused(found_BK, weights_BM, corrected_BM)

    def query_key_gradients(self) -> list[Tensor]:
        kv = self.kv.weight.grad
        queries = [
            module.weight.grad
            for to_query in (self.q, *self.again)
            for module in to_query.modules()
            if isinstance(module, nn.Linear)
        ]
        return [g for g in (*queries, None if kv is None else kv[: self.width]) if g is not None]


class Bottleneck(Fusion):
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
        self.read = Tokens(widths, times_s, window_s=window_s, width=width, pooled=pooled, positions=positions)
        self.n_keys = self.read.count + bottlenecks
        self.bottlenecks = nn.Parameter(torch.randn(bottlenecks, width) * 0.02)
        self.layers = nn.ModuleList(
            nn.ModuleDict({m: Block(width, heads, dropout=dropout) for m in self.read.names}) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.gate = nn.Linear(width, 1, bias=False)  # a constant would change no weight
        self.head = nn.Linear(width, n_outputs)

    def forward(self, encoded: dict[str, Encoded], logits: dict[str, Tensor], present_BM: Tensor) -> Fused:
        tokens, masks = self.read(encoded, present_BM)
        b, count = len(present_BM), len(self.bottlenecks)
        shared = self.bottlenecks.expand(b, -1, -1)
        always = present_BM.new_ones(b, count)
        own = [shared] * len(tokens)
        for layer in self.layers:
            assert isinstance(layer, nn.ModuleDict)
            for i, m in enumerate(self.read.names):
                out = layer[m](torch.cat([shared, tokens[i]], 1), torch.cat([always, masks[i]], 1))
                own[i], tokens[i] = out[:, :count], out[:, count:]
            stacked = torch.stack(own, 1)
            here = present_BM[:, :, None, None]
            shared = torch.where(here, stacked, 0).sum(1) / here.sum(1)
        x_BMD = self.norm(torch.stack(own, 1).mean(2))
        weights = _softmax(self.gate(x_BMD)[..., 0], present_BM)
        return Fused(self.head((weights[..., None] * x_BMD).sum(1)), weights, weights)

    def query_key_gradients(self) -> list[Tensor]:
        blocks = [m for m in self.layers.modules() if isinstance(m, Block)]
        grads = [block.qkv.weight.grad for block in blocks]
        return [g[: 2 * self.width] for g in grads if g is not None]


class Gated(Fusion):
    """A softmax gate over the pooled features of the modalities present, computed from all of them."""

    def __init__(self, widths: dict[str, int], *, n_outputs: int, width: int, dropout: float) -> None:
        super().__init__()
        self.names = sorted(widths)
        self.inputs = nn.ModuleDict(
            {m: nn.Sequential(nn.Linear(widths[m], width), nn.LayerNorm(width), nn.GELU()) for m in self.names}
        )
        self.gate = nn.Linear(len(self.names) * width, len(self.names))
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(width, n_outputs))

    def forward(self, encoded: dict[str, Encoded], logits: dict[str, Tensor], present_BM: Tensor) -> Fused:
        here = present_BM[..., None]
        pooled = {m: torch.where(here[:, i], encoded[m].pooled_BD, 0) for i, m in enumerate(self.names)}
        x_BMD = torch.where(here, torch.stack([self.inputs[m](pooled[m]) for m in self.names], 1), 0)
        weights = _softmax(self.gate(x_BMD.flatten(1)), present_BM)
        return Fused(self.head((weights[..., None] * x_BMD).sum(1)), weights, weights)


class SingleToken(Fusion):
    """What the reference's released code computes: attention over one token, the concatenated pooled features.

    A softmax over one key is 1 whatever the sample, so the attention is a linear map, its query and key maps get no
    gradient, and there are no modality weights: equal ones stand in their place. A missing modality's features are
    zeros, which the reference does not provide for. 11,145,525 parameters at 768 + 768 + 60 features.
    """

    HIDDEN = (512, 256)
    ORDER = ("video", "audio", "eeg")  # of the concatenation

    def __init__(self, widths: dict[str, int], *, n_outputs: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.names = sorted(widths)
        self.width, self.n_keys = sum(widths.values()), 1
        self.attention = nn.MultiheadAttention(self.width, heads, batch_first=True)
        self.reduce = nn.Linear(self.width, self.HIDDEN[0])
        self.head = nn.Sequential(
            nn.Linear(*self.HIDDEN), nn.ReLU(), nn.Dropout(dropout), nn.Linear(self.HIDDEN[1], n_outputs)
        )

    def concatenated(self, encoded: dict[str, Encoded], present_BM: Tensor) -> Tensor:
        """(batch, 1, sum of widths)."""
        order = [m for m in self.ORDER if m in self.names]
        parts = [torch.where(present_BM[:, self.names.index(m), None], encoded[m].pooled_BD, 0) for m in order]
        return torch.cat(parts, 1)[:, None]

    def forward(self, encoded: dict[str, Encoded], logits: dict[str, Tensor], present_BM: Tensor) -> Fused:
        x_B1D = self.concatenated(encoded, present_BM)
        mixed, _ = self.attention(x_B1D, x_B1D, x_B1D, need_weights=False)
        equal = present_BM / present_BM.sum(1, keepdim=True)
        return Fused(self.head(self.reduce(mixed[:, 0])), equal, equal)

    def query_key_gradients(self) -> list[Tensor]:
        whole = self.attention.in_proj_weight.grad
        return [] if whole is None else [whole[: 2 * self.width]]


def evidence(logits: dict[str, Tensor], weights_BM: Tensor, present_BM: Tensor) -> Tensor:
    """(batch, classes): the weighed unimodal log probabilities, with equal weights their sum over what is present.

    No gradient goes into the logits: they stay what the modality alone says.
    """
    stacked = torch.stack([upcast_half_precision(logits[m].detach()).log_softmax(-1) for m in sorted(logits)], 1)
    known = torch.where(present_BM[..., None], stacked, 0)  # before the product, whose gradient would meet a NaN
    share_BM = weights_BM * present_BM.sum(1, keepdim=True)
    return (known * share_BM[..., None]).sum(1)


def _softmax(scores_BM: Tensor, present_BM: Tensor) -> Tensor:
    return scores_BM.masked_fill(~present_BM, float("-inf")).softmax(-1)


def _mass(attention_BN: Tensor, masks: list[Tensor]) -> tuple[Tensor, Tensor]:
    parts = attention_BN.split([m.shape[1] for m in masks], 1)
    raw = torch.stack([p.sum(1) for p in parts], 1)
    counts = torch.stack([m.sum(1) for m in masks], 1)
    corrected = torch.where(counts > 0, raw / counts.clamp(min=1), 0)
    return raw, corrected / corrected.sum(1, keepdim=True)


def heads_of_channels(heads: int, width: int) -> Tensor:
    """(heads, width): 1 where a channel belongs to a head, in equal and contiguous parts."""
    return torch.eye(heads).repeat_interleave(width // heads, 1)


def _next_query(width: int) -> nn.Sequential:
    """From what was read so far to the next query; small as the first, so that training starts from equal weights."""
    linear = nn.Linear(width, width)
    nn.init.trunc_normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.LayerNorm(width), linear)


CLOCK_WAVES = 8


def _clock(times_s: Tensor, window_s: float) -> Tensor:
    """Sines and cosines of 1, 2, 4 ... 128 half periods a window: (N, 16). Equal times get equal rows."""
    waves = 2.0 ** torch.arange(CLOCK_WAVES)
    angle = torch.pi * waves * times_s[:, None].float() / window_s
    return torch.cat([angle.sin(), angle.cos()], -1)
