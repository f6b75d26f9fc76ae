"""The one interface of all encoders, and the transformer block that our own models share."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import Tensor, nn

from eav_ray.config import EncoderConfig
from eav_ray.errors import ConfigError
from eav_ray.models.layers import TransformerBlock


class EncoderOutput(NamedTuple):
    """What an encoder makes of a batch of windows."""

    tokens_BND: Tensor
    mask_BN: Tensor  # True where a token is real
    pooled_BD: Tensor


class Encoder(nn.Module):
    """`forward(x, present_B) -> EncoderOutput`; `times_s` places the N tokens on the window's clock, in seconds."""

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

    def load_pretrained(self, weights: str) -> None:
        """Put published weights into the encoder; most kinds have none.

        Args:
            weights: What the key `weights` of the encoder's section names.
        Raises:
            ConfigError: There are no such weights, or they are of another shape than the encoder.
        """
        raise ConfigError(f"{type(self).__name__} has no published weights to start from")

    def enable_gradient_checkpointing(self) -> None:
        """Compute the activations of the transformer blocks again in the backward pass, instead of keeping them."""
        for module in self.modules():
            if isinstance(module, TransformerBlock):
                module.recompute = True

    def build_output(self, tokens_BND: Tensor, pooled_BD: Tensor, present_B: Tensor) -> EncoderOutput:
        """Rows without this modality are computed all the same, as every rank must run every encoder; then hidden."""
        mask_BN = present_B[:, None].expand(-1, tokens_BND.shape[1])
        return EncoderOutput(tokens_BND, mask_BN, pooled_BD)


class FrameEncoder(Encoder):
    """An encoder that looks at single frames, so that each frame of a window can be scored alone."""

    def hold_frame(self, tokens_BND: Tensor, frame: int) -> tuple[Tensor, Tensor]:
        """Compute what `forward` makes of windows that hold one of their frames throughout: tokens, and their mean.

        Args:
            tokens_BND: What it made of the windows.
            frame: Which of the frames that are used.
        """
        raise NotImplementedError


class DataShapes(NamedTuple):
    """What modules must know of the data."""

    eeg_channels: int
    n_outputs: int
    eeg_channel_names: tuple[str, ...] = ()  # in order, in canonical form; empty where nobody knows them


def collect_module_arguments(section: EncoderConfig) -> dict[str, Any]:
    """Collect the keys of a section that its module takes, which has the same names for them."""
    return {k: v for k, v in vars(section).items() if k not in ("kind", "weights")}
