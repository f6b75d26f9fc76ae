"""Signals other than EEG: standardised, then convolutions over time."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from eav_ray.config import Preprocessing
from eav_ray.config.encoders.signal import SignalConfig
from eav_ray.errors import ConfigError
from eav_ray.models.encoders.base import (
    DataShapes,
    Encoder,
    EncoderOutput,
    Features,
    SubjectStatistics,
    collect_module_arguments,
)
from eav_ray.models.layers import FeatureStandardizer, build_position_embedding


class Signal(Encoder):
    """Windows of signals to one token per time segment.

    A sample that is not known (NaN) counts as the mean of the training rows; a segment of which none is known is
    masked.

    Args:
        n_signals: Channels.
        n_times: Samples of a window.
        window_s: Length of a window, seconds.
        depth: Convolutions, each of which halves the rate.
        kernel: Samples that a convolution sees.
    """

    def __init__(
        self,
        n_signals: int,
        n_times: int,
        *,
        window_s: float,
        width: int,
        depth: int,
        kernel: int,
        segments: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.width, self.segments = width, segments
        self.register_buffer("times_s", (torch.arange(segments) + 0.5) * window_s / segments, persistent=False)
        self.standardise = FeatureStandardizer(n_signals)
        layers: list[nn.Module] = []
        for k in range(depth):
            convolution = nn.Conv1d(width if k else n_signals, width, kernel, stride=2, padding=kernel // 2)
            layers += [convolution, nn.GroupNorm(1, width), nn.GELU(), nn.Dropout(dropout)]
        self.network = nn.Sequential(*layers)
        self.position = build_position_embedding(segments, width)

    def compute_features(self, x: Tensor) -> Features:
        known = torch.isfinite(x)
        return Features(torch.where(known, x, 0), known)

    def fit_statistics(self, batches: Iterable[tuple[Tensor | Features, SubjectStatistics | None]]) -> None:
        self.fit_standardiser(self.standardise, batches)

    def forward(
        self, x_BTC: Tensor | Features, present_B: Tensor, subject: SubjectStatistics | None = None
    ) -> EncoderOutput:
        """
        Args:
            x_BTC: Signals, NaN where not known, (batch, samples, channels).
            present_B: True where the window has them.
        """
        values, known = self.normalise_features(x_BTC, subject)
        standardised = torch.where(known, self.standardise(values), 0)
        convolved = self.network(standardised.transpose(1, 2))
        tokens = nn.functional.adaptive_avg_pool1d(convolved, self.segments).transpose(1, 2) + self.position
        is_known_B1T = known.any(-1)[:, None].float()
        known_BN = nn.functional.adaptive_max_pool1d(is_known_B1T, self.segments)[:, 0] > 0
        # A window of which nothing is known is one of means; it is masked wherever it counts.
        weight_BN = (known_BN | ~known_BN.any(1, keepdim=True)).to(tokens.dtype)
        pooled = (tokens * weight_BN[..., None]).sum(1) / weight_BN.sum(1, keepdim=True)
        encoded = self.build_output(tokens, pooled, present_B)
        return encoded._replace(mask_BN=encoded.mask_BN & known_BN)


def build(section: SignalConfig, preprocessing: Preprocessing, shapes: DataShapes) -> Signal:
    """Build the encoder that a section of an experiment describes."""
    given = preprocessing.features[shapes.modality]
    shortest = 2**section.depth * section.segments
    if given.steps < shortest:
        raise ConfigError(
            f"preprocessing.features.{shapes.modality}.steps is {given.steps}, but model.{shapes.modality}.kind=signal "
            f"with depth={section.depth} and segments={section.segments} needs at least {shortest}; raise steps, or "
            "lower depth or segments"
        )
    return Signal(given.n_features, given.steps, window_s=preprocessing.window_s, **collect_module_arguments(section))
