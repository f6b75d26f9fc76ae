"""EEGformer: Wan et al. 2023, Frontiers in Neuroscience 17:1148855.

Three transformers look at one window in turn: along the filters of an electrode (regional), across the electrodes
(synchronous), and along time (temporal).
"""

from typing import Literal

import torch
from torch import Tensor, nn

from eav_ray.config import Preprocessing
from eav_ray.config.encoders.eegformer import EEGformerConfig
from eav_ray.errors import ConfigError
from eav_ray.models.encoders.base import (
    DataShapes,
    Encoder,
    EncoderOutput,
    Features,
    SubjectStatistics,
    TokenHead,
    collect_module_arguments,
    compute_signal_features,
)
from eav_ray.models.layers import TransformerBlock, build_position_embedding

KERNEL_SIZE, N_CONV_LAYERS = 10, 3


def _build_resampling_matrix(n_in: int, n_out: int) -> Tensor:
    """(n_out, n_in): row i averages the input around its share of the time, with unit gain for white noise."""
    centres = (torch.arange(n_out) + 0.5) * n_in / n_out
    spread = max(1.0, n_in / n_out)
    weights = torch.exp(-0.5 * ((torch.arange(n_in) - centres[:, None]) / spread) ** 2)
    return weights / weights.square().sum(1, keepdim=True).sqrt()


class ConvolutionalDecoder(TokenHead):
    """EEGformer's decoder: three small convolutions and a linear layer on the temporal transformer's output.

    In the paper (as public re-implementations read it) the output is M x S x C, and the convolutions, of kernel 1,
    combine in turn its C filters to one, its S electrodes to N, and its M segments to M / 2. Here filters and
    electrodes were projected to one axis Dt before the temporal transformer, so the first two both combine features:
    Dt to Dt / 4, and that to Dt / 16. N is not given with the sizes that this project has of the paper, nor is what
    stands between the layers: GELU is our choice, without which all four would be one linear map.

    Args:
        width: Of the tokens (Dt).
        segments: Tokens of a window (M).
    """

    def __init__(self, width: int, segments: int, n_outputs: int) -> None:
        super().__init__()
        hidden, combined, kept_segments = (max(1, n) for n in (width // 4, width // 16, segments // 2))
        self.combine_features = nn.Sequential(
            nn.Conv1d(width, hidden, 1), nn.GELU(), nn.Conv1d(hidden, combined, 1), nn.GELU()
        )
        self.combine_segments = nn.Sequential(nn.Conv1d(segments, kept_segments, 1), nn.GELU())
        self.output = nn.Linear(kept_segments * combined, n_outputs)

    def forward(self, tokens_BMD: Tensor) -> Tensor:
        """(batch, segments, width) to (batch, outputs) logits."""
        combined_BMN = self.combine_features(tokens_BMD.transpose(1, 2)).transpose(1, 2)
        return self.output(self.combine_segments(combined_BMN).flatten(1))


class EEGformer(Encoder):
    """EEG windows to one token per time segment.

    Args:
        n_chans: Electrodes (S); any number.
        n_times: Samples of a window (L).
        window_s: Its length, seconds; only to place the tokens in time.
        filters, width, temporal_width, segments: C, D, Dt and M of the paper.
        depth: Blocks in each of the three stages.
        decoder: What `build_head` makes: "pooled", a linear layer on the mean of the tokens, or "convolutional", the
            paper's. Fusion reads the tokens either way.
    Raises:
        ConfigError: The window is shorter than the convolutions need.

    The paper's temporal width is S * C, 155.6 million parameters a block at its sizes; here it is projected to Dt. The
    convolutions are shared by all electrodes, so a montage of another size needs no other filters.
    """

    def __init__(
        self,
        n_chans: int,
        n_times: int,
        *,
        window_s: float,
        filters: int,
        width: int,
        temporal_width: int,
        segments: int,
        depth: int,
        heads: int,
        dropout: float,
        decoder: Literal["pooled", "convolutional"] = "pooled",
    ) -> None:
        super().__init__()
        n_conv_samples = n_times - N_CONV_LAYERS * (KERNEL_SIZE - 1)
        if n_conv_samples < 1:
            raise ConfigError(
                f"an EEG window has {n_times} samples, but EEGformer's convolutions need at least "
                f"{N_CONV_LAYERS * (KERNEL_SIZE - 1) + 1}; raise preprocessing.window_s or preprocessing.eeg.hz"
            )
        self.width, self.segments, self.decoder = temporal_width, segments, decoder
        self.register_buffer("times_s", (torch.arange(segments) + 0.5) * window_s / segments, persistent=False)
        # Without a nonlinearity the three layers would be one filter, and a band's power, which carries most of what
        # EEG tells, is no linear function of the signal.
        self.filters = nn.Sequential(
            nn.Conv1d(1, filters, KERNEL_SIZE),
            nn.GELU(),
            nn.Conv1d(filters, filters, KERNEL_SIZE, groups=filters),
            nn.GELU(),
            nn.Conv1d(filters, filters, KERNEL_SIZE, groups=filters),
            nn.GELU(),
        )
        for layer in self.filters:
            if isinstance(layer, nn.Conv1d):  # PyTorch's default shrinks the signal to nothing over three layers
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias) if layer.bias is not None else None
        self.regional_in = nn.Linear(n_conv_samples, width)
        # D begins as the window's course in D steps, so that its M contiguous segments are segments of time.
        self.regional_in.weight.data.copy_(_build_resampling_matrix(n_conv_samples, width))
        self.regional_position = build_position_embedding(filters, width)
        self.regional = nn.Sequential(*(TransformerBlock(width, heads, dropout=dropout) for _ in range(depth)))
        self.synchronous_position = build_position_embedding(n_chans, width)
        self.synchronous = nn.Sequential(*(TransformerBlock(width, heads, dropout=dropout) for _ in range(depth)))
        self.temporal_in = nn.Linear(n_chans * filters, temporal_width)
        self.temporal_position = build_position_embedding(segments, temporal_width)
        self.temporal = nn.Sequential(*(TransformerBlock(temporal_width, heads, dropout=dropout) for _ in range(depth)))
        self.norm = nn.LayerNorm(temporal_width)

    def build_head(self, n_outputs: int) -> nn.Module:
        if self.decoder == "convolutional":
            return ConvolutionalDecoder(self.width, self.segments, n_outputs)
        return super().build_head(n_outputs)

    def compute_features(self, x: Tensor) -> Features:
        return compute_signal_features(x)

    def forward(self, x_BST: Tensor, present_B: Tensor, subject: SubjectStatistics | None = None) -> EncoderOutput:
        """
        Args:
            x_BST: EEG, standardised or as `subject` is of, (batch, electrodes, samples).
            present_B: True where the window has EEG.
        """
        if subject is not None:
            x_BST = self.normalise_features(x_BST, subject).values.transpose(1, 2)
        b, s, t = x_BST.shape
        filtered = self.filters(x_BST.reshape(b * s, 1, t))  # (b*s, C, Le)
        c = filtered.shape[1]
        regional = self.regional(self.regional_in(filtered) + self.regional_position)  # sequence: filters
        d = regional.shape[-1]
        per_filter = regional.view(b, s, c, d).transpose(1, 2).reshape(b * c, s, d)
        synchronous = self.synchronous(per_filter + self.synchronous_position)  # sequence: electrodes
        # Contiguous segments: D splits into M runs of D / M neighbours, each averaged.
        segments = synchronous.view(b, c, s, self.segments, d // self.segments).mean(-1)
        flat_BMF = segments.permute(0, 3, 2, 1).reshape(b, self.segments, s * c)
        tokens = self.norm(self.temporal(self.temporal_in(flat_BMF) + self.temporal_position))
        return self.build_output(tokens, tokens.mean(1), present_B)


def build(section: EEGformerConfig, preprocessing: Preprocessing, shapes: DataShapes) -> EEGformer:
    """Build the encoder that a section of an experiment describes."""
    n_times = preprocessing.eeg.hz * preprocessing.window_s
    return EEGformer(shapes.eeg_channels, n_times, window_s=preprocessing.window_s, **collect_module_arguments(section))
