"""Differential entropy of the frequency bands of EEG (Duan et al. 2013, IEEE EMBS NER), and a small network."""

import math

import torch
from torch import Tensor, nn

from eav_ray.config import Preprocessing
from eav_ray.config.encoders.bandpower import BandPowerConfig
from eav_ray.models.encoders.band_spectra import VARIANCE_FLOOR, BandSpectra
from eav_ray.models.encoders.base import (
    DataShapes,
    Encoder,
    EncoderOutput,
    Features,
    SubjectStatistics,
    collect_module_arguments,
)
from eav_ray.models.layers import build_feature_mlp, build_position_embedding


class BandPower(Encoder):
    """EEG windows to one token per time segment: what a band's power is, says most of what EEG tells about emotion.

    Args:
        n_chans: Electrodes; any number.
        n_times: Samples of a window.
        hz: Their rate.
        window_s: Length of a window, seconds.
        segments: Contiguous time segments; samples that do not fill the last are left out.
    Raises:
        ConfigError: A segment is too short to tell the bands apart.
    """

    exports_windows = False  # spectra

    def __init__(
        self, n_chans: int, n_times: int, *, hz: float, window_s: float, segments: int, width: int, dropout: float
    ) -> None:
        super().__init__()
        self.width = width
        self.spectra = BandSpectra(n_times, hz=hz, segments=segments, kind="bandpower")
        self.register_buffer("times_s", (torch.arange(segments) + 0.5) * window_s / segments, persistent=False)
        n_features = n_chans * self.spectra.n_bands
        # Over all of a segment's features: what is left is how the power is spread, not how much there is.
        self.network = nn.Sequential(nn.LayerNorm(n_features), *build_feature_mlp(n_features, width, dropout))
        self.position = build_position_embedding(segments, width)

    def compute_differential_entropy(self, x_BST: Tensor) -> Tensor:
        """Differential entropy of a Gaussian signal of each band's power: (batch, segments, electrodes * bands), nats.

        Args:
            x_BST: (batch, electrodes, samples).
        """
        power_BSNK = self.spectra.compute_power(x_BST)
        entropy = 0.5 * torch.log(2 * math.pi * math.e * power_BSNK.clamp(min=VARIANCE_FLOOR))
        return entropy.transpose(1, 2).flatten(2)

    def compute_features(self, x: Tensor) -> Features:
        """Compute the entropy of each band, and which electrodes are not masked, that is zero throughout."""
        known_BS = x.ne(0).any(-1)
        return Features(
            self.compute_differential_entropy(x), known_BS.repeat_interleave(self.spectra.n_bands, 1)[:, None]
        )

    def forward(
        self, x_BST: Tensor | Features, present_B: Tensor, subject: SubjectStatistics | None = None
    ) -> EncoderOutput:
        """
        Args:
            x_BST: EEG, standardised or as `subject` is of, (batch, electrodes, samples).
            present_B: True where the window has EEG.
        """
        tokens = self.network(self.normalise_features(x_BST, subject).values) + self.position
        return self.build_output(tokens, tokens.mean(1), present_B)


def build(section: BandPowerConfig, preprocessing: Preprocessing, shapes: DataShapes) -> BandPower:
    """Build the encoder that a section of an experiment describes."""
    hz, window_s = preprocessing.eeg.hz, preprocessing.window_s
    return BandPower(shapes.eeg_channels, hz * window_s, hz=hz, window_s=window_s, **collect_module_arguments(section))
