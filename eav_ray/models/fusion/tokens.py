"""Project the tokens of all modalities to one width, and mark modality and time."""

import torch
from torch import Tensor, nn

from eav_ray.models.encoders.base import EncoderOutput


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
            self.register_buffer(f"time_encoding_{m}", _encode_times(times, window_s), persistent=False)
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
            tokens.append(marked if self.time is None else marked + self.time(getattr(self, f"time_encoding_{m}")))
            masks.append(mask_BN)
        return tokens, masks


N_TIME_FREQUENCIES = 8


def _encode_times(times_s: Tensor, window_s: float) -> Tensor:
    """Sines and cosines of 1, 2, 4 ... 128 half periods a window: (N, 16). Equal times get equal rows."""
    frequencies = 2.0 ** torch.arange(N_TIME_FREQUENCIES)
    angle = torch.pi * frequencies * times_s[:, None].float() / window_s
    return torch.cat([angle.sin(), angle.cos()], -1)
