"""Signals other than EEG: standardised, then convolutions over time."""

import torch
from torch import Tensor, nn

from eav_ray.config import Preprocessing
from eav_ray.config.encoders.signal import SignalConfig
from eav_ray.errors import ConfigError
from eav_ray.models.encoders.base import (
    DataShapes,
    EncoderOutput,
    Features,
    GivenEncoder,
    SubjectStatistics,
    collect_module_arguments,
)
from eav_ray.models.layers import FeatureStandardizer, build_position_embedding


class Signal(GivenEncoder):
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

    def forward(
        self, x_BTC: Tensor | Features, present_B: Tensor, subject: SubjectStatistics | None = None
    ) -> EncoderOutput:
        """
        Args:
            x_BTC: Signals, NaN where not known, (batch, samples, channels).
            present_B: True where the window has them.
        """
        values, known = self.standardise_features(x_BTC, subject)
        convolved = self.network(values.transpose(1, 2))
        tokens = nn.functional.adaptive_avg_pool1d(convolved, self.segments).transpose(1, 2) + self.position
        is_known_B1T = known.any(-1)[:, None].float()
        known_BN = nn.functional.adaptive_avg_pool1d(is_known_B1T, self.segments)[:, 0] > 0  # of any sample
        return self.build_known_output(tokens, known_BN, present_B)


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
