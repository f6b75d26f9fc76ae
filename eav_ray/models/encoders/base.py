"""The one interface of all encoders, and the transformer block that our own models share."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from eav_ray.config import EncoderConfig
from eav_ray.errors import ConfigError
from eav_ray.models.layers import FeatureStandardizer, TransformerBlock, build_position_embedding


class EncoderOutput(NamedTuple):
    """What an encoder makes of a batch of windows."""

    tokens_BND: Tensor
    mask_BN: Tensor  # True where a token is real
    pooled_BD: Tensor


# Of a model's inputs, after the name of a modality. Features that are at hand stand in place of windows.
MEAN_SUFFIX, SD_SUFFIX = ".subject_mean", ".subject_sd"
VALUES_SUFFIX, KNOWN_SUFFIX = ".features", ".known"


class SubjectStatistics(NamedTuple):
    """Mean and SD of features over recordings of the subject of each window, by which they are normalised."""

    mean_BF: Tensor
    sd_BF: Tensor

    def normalise(self, x: Tensor) -> Tensor:
        """Normalise (batch, ..., features)."""
        shape = (len(x), *[1] * (x.ndim - 2), x.shape[-1])
        return (x - self.mean_BF.view(shape)) / self.sd_BF.view(shape)


def pick_subject_statistics(inputs: Mapping[str, Tensor], modality: str) -> SubjectStatistics | None:
    """Pick what the inputs of a model say of the subjects of its windows; None where they say nothing."""
    mean = inputs.get(f"{modality}{MEAN_SUFFIX}")
    return None if mean is None else SubjectStatistics(mean, inputs[f"{modality}{SD_SUFFIX}"])


class Features(NamedTuple):
    """What an encoder computes of windows before anything that is learned."""

    values: Tensor  # (batch, ..., features)
    known: Tensor  # bool, of the same shape, or without the last axis: which of them count

    def expand_known(self) -> Tensor:
        """Expand what says which features count to the shape of the features."""
        known = self.known[..., None] if self.known.ndim < self.values.ndim else self.known
        return known.expand(self.values.shape)


def pick_features(inputs: Mapping[str, Tensor], modality: str) -> Features | None:
    """Pick features that were computed before from the inputs of a model; None where there are windows."""
    values = inputs.get(f"{modality}{VALUES_SUFFIX}")
    return None if values is None else Features(values, inputs[f"{modality}{KNOWN_SUFFIX}"])


def compute_signal_features(x_BST: Tensor) -> Features:
    """Take channels for features, sample by sample; one that is zero throughout a window is masked there.

    Args:
        x_BST: (batch, channels, samples).
    """
    return Features(x_BST.transpose(1, 2), x_BST.ne(0).any(-1)[:, None])


class TokenHead(nn.Module):
    """A head that reads an encoder's tokens, (batch, n, width) in order of time, instead of its pooled features."""


def compute_unimodal_logits(head: nn.Module, encoded: EncoderOutput, *, detach: bool = False) -> Tensor:
    """Compute (batch, outputs) logits by a head from what it reads of an encoder's output.

    Args:
        head: From `Encoder.build_head`.
        detach: Let no gradient reach the encoder.
    """
    features = encoded.tokens_BND if isinstance(head, TokenHead) else encoded.pooled_BD
    return head(features.detach() if detach else features)


class Encoder(nn.Module):
    """`forward(x, present_B, subject) -> EncoderOutput`, of windows or of what `compute_features` made of them.

    `times_s` places the N tokens on the window's clock, in seconds. `subject` is given where the section of the encoder
    asks for normalisation within subjects; what is normalised is what `compute_features` returns.

    Attributes:
        standardises_channels: Whether named channels are to be standardised by the training rows before they come here.
        statistics_windows: Of how many windows the features are in memory at once while statistics are taken.
        head_parameters: Names of parameters that learn as the head does, also where the encoder is frozen.
        exports_windows: Whether an exported graph starts at windows; else, where `compute_features` does what ONNX has
            no operators for, at features.
    """

    standardises_channels: bool = True
    statistics_windows: int = 64
    head_parameters: tuple[str, ...] = ()
    exports_windows: bool = True
    width: int
    times_s: Tensor  # (N,)

    def compute_features(self, x: Tensor) -> Features:
        """Compute what normalisation within subjects is of.

        Args:
            x: Windows as `forward` takes them.
        """
        raise NotImplementedError(f"{type(self).__name__} has no features that are normalised within subjects")

    def get_features(self, x: Tensor | Features) -> Features:
        """Return features that are at hand, or compute those of windows."""
        return x if isinstance(x, Features) else self.compute_features(x)

    def normalise_features(self, x: Tensor | Features, subject: SubjectStatistics | None) -> Features:
        """Compute features, where they are not at hand, and normalise them by the subject's where these are given."""
        features = self.get_features(x)
        if subject is None:
            return features
        # Where nothing is known, 0 stays the mean.
        values = torch.where(features.expand_known(), subject.normalise(features.values), 0)
        return features._replace(values=values)

    def fit_standardiser(
        self, standardise: FeatureStandardizer, batches: Iterable[tuple[Tensor | Features, SubjectStatistics | None]]
    ) -> None:
        """Fit the standardisation of features to training rows, as they are after normalisation within subjects."""
        features = (self.normalise_features(x, subject) for x, subject in batches)
        standardise.fit_features((each.values, each.expand_known()) for each in features)

    def fit_statistics(self, batches: Iterable[tuple[Tensor | Features, SubjectStatistics | None]]) -> None:
        """Take statistics of training rows, before training; most encoders need none.

        Args:
            batches: Windows that have this modality, as `forward` takes them, and the statistics of their subjects.
        """

    def build_head(self, n_outputs: int) -> nn.Module:
        """Build what turns the pooled features, or as a `TokenHead` the tokens, into logits of this encoder alone."""
        return nn.Linear(self.width, n_outputs)

    def load_pretrained(self, weights: str) -> None:
        """Put published weights into the encoder; most kinds have none.

        Args:
            weights: What the key `weights` of the encoder's section names.
        Raises:
            ConfigError: There are no such weights, or they are of another shape than the encoder.
        """
        raise ConfigError(f"{type(self).__name__} has no published weights to start from")

    def list_blocks(self) -> list[nn.Module]:
        """List the blocks of the network, from the one next to the input on; empty where it has none.

        They are the longest row of modules of one class.
        """
        rows = [list(m) for m in self.modules() if isinstance(m, nn.ModuleList | nn.Sequential)]
        alike = [row for row in rows if len(row) > 1 and len({type(m) for m in row}) == 1]
        return max(alike, key=len, default=[])

    def group_parameters(self) -> list[list[str]]:
        """Group the names of parameters by depth: what lies before the blocks, each block, with the last what follows.

        Parameters of the encoder itself, as positions in time, follow: no published weights have them.
        """
        blocks = self.list_blocks()
        places = {id(p): k + 1 for k, block in enumerate(blocks) for p in block.parameters()}
        groups: list[list[str]] = [[] for _ in range(len(blocks) + 1)]
        has_passed = False
        for name, parameter in self.named_parameters():
            place = places.get(id(parameter))
            has_passed |= place is not None
            groups[place if place is not None else -1 if has_passed or "." not in name else 0].append(name)
        return groups

    def enable_gradient_checkpointing(self) -> None:
        """Compute the activations of the transformer blocks again in the backward pass, instead of keeping them."""
        for module in self.modules():
            if isinstance(module, TransformerBlock):
                module.recompute = True

    def build_output(self, tokens_BND: Tensor, pooled_BD: Tensor, present_B: Tensor) -> EncoderOutput:
        """Rows without this modality are computed all the same, as every rank must run every encoder; then hidden."""
        mask_BN = present_B[:, None].expand(-1, tokens_BND.shape[1])
        return EncoderOutput(tokens_BND, mask_BN, pooled_BD)


class AudioEncoder(Encoder):
    """An encoder whose network reads what `compute_features` makes of a waveform, silence masked."""

    def encode_features(self, features: Tensor, mask: Tensor, present_B: Tensor) -> EncoderOutput:
        """Encode what `compute_features` made of windows.

        Args:
            present_B: True where the window has audio.
        """
        raise NotImplementedError

    def forward(
        self, x_BT: Tensor | Features, present_B: Tensor, subject: SubjectStatistics | None = None
    ) -> EncoderOutput:
        """
        Args:
            x_BT: Waveform in [-1, 1], 16 kHz, (batch, samples).
            present_B: True where the window has audio.
        """
        return self.encode_features(*self.normalise_features(x_BT, subject), present_B)


class GivenEncoder(Encoder):
    """An encoder of what is given as numbers over time, where what is not known is NaN and counts as the mean."""

    standardise: FeatureStandardizer

    def compute_features(self, x: Tensor) -> Features:
        known = torch.isfinite(x)
        return Features(torch.where(known, x, 0), known)

    def fit_statistics(self, batches: Iterable[tuple[Tensor | Features, SubjectStatistics | None]]) -> None:
        self.fit_standardiser(self.standardise, batches)

    def standardise_features(self, x: Tensor | Features, subject: SubjectStatistics | None) -> Features:
        """Normalise features, and standardise them by the training rows; what is not known is 0."""
        values, known = self.normalise_features(x, subject)
        return Features(torch.where(known, self.standardise(values), 0), known)

    def build_known_output(self, tokens_BND: Tensor, known_BN: Tensor, present_B: Tensor) -> EncoderOutput:
        """Pool the tokens of which anything is known, and mask the others."""
        # A window of which nothing is known is one of means; it is masked wherever it counts.
        weight_BN = (known_BN | ~known_BN.any(1, keepdim=True)).to(tokens_BND.dtype)
        pooled = (tokens_BND * weight_BN[..., None]).sum(1) / weight_BN.sum(1, keepdim=True)
        encoded = self.build_output(tokens_BND, pooled, present_B)
        return encoded._replace(mask_BN=encoded.mask_BN & known_BN)


class FrameEncoder(Encoder):
    """Video windows to one token a frame: what a network makes of the frame alone, plus a learned time position.

    Each frame of a window can so be scored alone.

    Attributes:
        mean, sd: (3, 1, 1) of the pixels that the network expects, in [0, 1].
        frame_indices: (frames,) which stored frames are used.
    """

    statistics_windows = 4  # of which 25 frames of 224 pixels are 60 MB
    frame_indices: Tensor
    mean: Tensor
    sd: Tensor
    position: nn.Parameter

    def register_frames(
        self,
        width: int,
        *,
        window_s: float,
        n_stored_frames: int,
        frames: int,
        mean: Sequence[float],
        sd: Sequence[float],
    ) -> None:
        """Choose evenly spaced frames of a window, and make their positions.

        Args:
            n_stored_frames: Frames of a stored window.
            frames: How many of them are used.
        """
        self.width = width
        for key, values in (("mean", mean), ("sd", sd)):
            self.register_buffer(key, torch.tensor(values)[:, None, None], persistent=False)
        frame_indices = ((torch.arange(frames) + 0.5) * n_stored_frames / frames).long()
        self.register_buffer("frame_indices", frame_indices, persistent=False)
        self.register_buffer("times_s", (frame_indices + 0.5) * window_s / n_stored_frames, persistent=False)
        self.position = build_position_embedding(frames, width)

    def embed_images(self, images_BCHW: Tensor) -> Tensor:
        """Compute what the network makes of images, (images, width)."""
        raise NotImplementedError

    def compute_features(self, x: Tensor) -> Features:
        """Scale the frames that are used: (batch, frames, height, width, 3), a colour a feature.

        Args:
            x: (batch, stored frames, height, width, 3), uint8 RGB.
        """
        frames = x[:, self.frame_indices]
        scaled = (frames.float() / 255 - self.mean.flatten()) / self.sd.flatten()
        return Features(scaled, torch.ones_like(scaled[..., 0], dtype=torch.bool))

    def forward(self, x_BFHWC: Tensor, present_B: Tensor, subject: SubjectStatistics | None = None) -> EncoderOutput:
        """
        Args:
            x_BFHWC: Stored frames, uint8 RGB, (batch, frames, height, width, 3).
            present_B: True where the window has video.
        """
        frames = self.normalise_features(x_BFHWC, subject).values
        images = frames.flatten(0, 1).permute(0, 3, 1, 2)
        tokens = self.embed_images(images).unflatten(0, frames.shape[:2]) + self.position
        return self.build_output(tokens, tokens.mean(1), present_B)

    def hold_frame(self, tokens_BND: Tensor, frame: int) -> tuple[Tensor, Tensor]:
        """Compute what `forward` makes of windows that hold one of their frames throughout: tokens, and their mean.

        Args:
            tokens_BND: What it made of the windows.
            frame: Which of the frames that are used.
        """
        tokens = (tokens_BND[:, frame] - self.position[frame])[:, None] + self.position
        return tokens, tokens.mean(1)


class DataShapes(NamedTuple):
    """What modules must know of the data."""

    eeg_channels: int
    n_outputs: int
    eeg_channel_names: tuple[str, ...] = ()  # in order, in canonical form; empty where nobody knows them
    modality: str = ""  # which an encoder is built for


def collect_module_arguments(section: EncoderConfig) -> dict[str, Any]:
    """Collect the keys of a section that its module takes, which has the same names for them."""
    return {k: v for k, v in vars(section).items() if k not in ("kind", "weights", "subject_normalisation")}
