"""The one interface of all encoders, and the transformer block that our own models share."""

from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor, nn

from eav_ray.models.layers import TransformerBlock


class EncoderOutput(NamedTuple):
    """What an encoder makes of a batch of windows."""

    tokens_BND: Tensor
    mask_BN: Tensor  # True where a token is real
    pooled_BD: Tensor


class Encoder(nn.Module):
    """`forward(x, present_B) -> Encoded`; `times_s` places the N tokens on the window's clock, in seconds."""

    width: int
    times_s: Tensor  # (N,)

    def fit_statistics(self, batches: Iterable[Tensor]) -> None:
        """Take statistics of training rows, before training; most encoders need none.

        Args:
            batches: Windows that have this modality, as `forward` takes them.
        """

    def build_head(self, n_outputs: int) -> nn.Module:
        """What turns the pooled features into logits when this encoder works alone."""
        return nn.Linear(self.width, n_outputs)

    def enable_gradient_checkpointing(self) -> None:
        """Compute the activations of the transformer blocks again in the backward pass, instead of keeping them."""
        for module in self.modules():
            if isinstance(module, TransformerBlock):
                module.recompute = True

    def build_output(self, tokens_BND: Tensor, pooled_BD: Tensor, present_B: Tensor) -> EncoderOutput:
        """Rows without this modality are computed all the same, as every rank must run every encoder; then hidden."""
        mask_BN = present_B[:, None].expand(-1, tokens_BND.shape[1])
        return EncoderOutput(tokens_BND, mask_BN, pooled_BD)


class DataShapes(NamedTuple):
    """What modules must know of the data."""

    eeg_channels: int
    n_outputs: int
