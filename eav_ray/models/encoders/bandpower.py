"""Differential entropy of the frequency bands of EEG (Duan et al. 2013, IEEE EMBS NER), and a small network."""

import math

import numpy as np
import torch
from torch import Tensor, nn

from eav_ray.config import Preprocessing
from eav_ray.config.encoders.bandpower import BandPowerConfig
from eav_ray.errors import ConfigError
from eav_ray.models.encoders.base import (
    DataShapes,
    Encoder,
    EncoderOutput,
    Features,
    SubjectStatistics,
    collect_module_arguments,
)
from eav_ray.models.layers import build_feature_mlp, build_position_embedding

BANDS_HZ = {"delta": (1, 4), "theta": (4, 8), "alpha": (8, 13), "beta": (13, 30), "gamma": (30, 45)}
VARIANCE_FLOOR = 1e-6  # of a standardised channel's variance: a flat channel has no logarithm


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

    window: Tensor
    bins: Tensor

    def __init__(
        self, n_chans: int, n_times: int, *, hz: float, window_s: float, segments: int, width: int, dropout: float
    ) -> None:
        super().__init__()
        import scipy.signal  # half a second, in every process that a search or a group starts

        self.width, self.segments, self.segment_samples = width, segments, n_times // segments
        # Above half the rate there is nothing.
        edges = [(low, high) for low, high in BANDS_HZ.values() if high <= hz / 2]
        frequency = np.fft.rfftfreq(max(1, self.segment_samples), 1 / hz)
        bins = [(frequency >= low) & (frequency < high) for low, high in edges]
        if not bins or not all(b.any() for b in bins):
            raise ConfigError(
                f"an EEG segment of {self.segment_samples} samples at {hz:g} Hz cannot tell the bands of "
                "model.eeg.kind=bandpower apart; lower model.eeg.segments, or raise preprocessing.window_s or "
                "preprocessing.eeg.hz"
            )
        window = scipy.signal.get_window("hann", self.segment_samples)
        # A sum of these weights times the squared spectrum is the variance that the band holds.
        weights = 2 * np.array(bins) / (self.segment_samples * np.square(window).sum())
        self.register_buffer("window", torch.tensor(window, dtype=torch.float32), persistent=False)
        self.register_buffer("bins", torch.tensor(weights, dtype=torch.float32), persistent=False)
        self.register_buffer("times_s", (torch.arange(segments) + 0.5) * window_s / segments, persistent=False)
        n_features = n_chans * len(edges)
        # Over all of a segment's features: what is left is how the power is spread, not how much there is.
        self.network = nn.Sequential(nn.LayerNorm(n_features), *build_feature_mlp(n_features, width, dropout))
        self.position = build_position_embedding(segments, width)

    def compute_differential_entropy(self, x_BST: Tensor) -> Tensor:
        """Differential entropy of a Gaussian signal of each band's power: (batch, segments, electrodes * bands), nats.

        Args:
            x_BST: (batch, electrodes, samples).
        """
        b, s, _ = x_BST.shape
        segmented = x_BST.float()[..., : self.segments * self.segment_samples].reshape(
            b, s, self.segments, self.segment_samples
        )
        spectrum = torch.fft.rfft((segmented - segmented.mean(-1, keepdim=True)) * self.window)
        # In double precision, which autocast leaves alone.
        power = ((spectrum.real.square() + spectrum.imag.square()).double() @ self.bins.double().T).float()
        entropy = 0.5 * torch.log(2 * math.pi * math.e * power.clamp(min=VARIANCE_FLOOR))
        return entropy.transpose(1, 2).reshape(b, self.segments, -1)

    def compute_features(self, x: Tensor) -> Features:
        """Compute the entropy of each band, and which electrodes are not masked, that is zero throughout."""
        known_BS = x.ne(0).any(-1)
        n_bands = len(self.bins)
        return Features(self.compute_differential_entropy(x), known_BS.repeat_interleave(n_bands, 1)[:, None])

    def forward(self, x_BST: Tensor, present_B: Tensor, subject: SubjectStatistics | None = None) -> EncoderOutput:
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
