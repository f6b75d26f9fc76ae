"""The EEG transformer of the reference's released code (arXiv 2411.00822), layer by layer."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from eav_ray.config import Preprocessing
from eav_ray.config.encoders.eav_transformer import EAVTransformerConfig
from eav_ray.errors import ConfigError
from eav_ray.models.encoders.base import (
    DataShapes,
    Encoder,
    EncoderOutput,
    Features,
    SubjectStatistics,
    collect_module_arguments,
    compute_signal_features,
)

KERNEL_SIZE = 11


class EAVTransformer(Encoder):
    """Two convolutions along time, post-norm transformer blocks on single samples, the mean over time.

    It has no position encoding: apart from what the convolutions see, the order of samples is lost. 122,693 parameters
    at 30 electrodes with its head, batch normalisation over whatever is in the batch.

    Args:
        n_chans: Electrodes; any number.
        n_times: Samples of a window.
        window_s: Its length, seconds; only to place the tokens in time.
        standardise: Whether each channel is standardised by the training rows before it comes here.
        segments: The samples' tokens are averaged over so many segments for a fusion that reads tokens.
    Raises:
        ConfigError: The window is shorter than a convolution or has fewer samples than segments.
    """

    def __init__(
        self,
        n_chans: int,
        n_times: int,
        *,
        window_s: float,
        width: int,
        feed_forward: int,
        depth: int,
        heads: int,
        segments: int,
        dropout: float,
        standardise: bool = True,
    ) -> None:
        super().__init__()
        if n_times < max(KERNEL_SIZE, segments):
            raise ConfigError(
                f"an EEG window has {n_times} samples, but eav_transformer needs at least "
                f"{max(KERNEL_SIZE, segments)}; raise preprocessing.window_s or preprocessing.eeg.hz"
            )
        self.width, self.segments, self.dropout, self.recompute = width, segments, dropout, False
        self.standardises_channels = standardise
        self.register_buffer("times_s", (torch.arange(segments) + 0.5) * window_s / segments, persistent=False)
        self.conv = nn.Sequential(
            nn.Conv1d(n_chans, n_chans, KERNEL_SIZE, padding=KERNEL_SIZE // 2, bias=False),
            nn.BatchNorm1d(n_chans),
            nn.ReLU(),
            nn.Dropout1d(dropout),
            nn.Conv1d(n_chans, width, KERNEL_SIZE, padding=KERNEL_SIZE // 2, bias=False),
            nn.BatchNorm1d(width),
            nn.Dropout(dropout),
        )
        self.blocks = nn.Sequential(
            *(nn.TransformerEncoderLayer(width, heads, feed_forward, dropout, batch_first=True) for _ in range(depth))
        )

    def enable_gradient_checkpointing(self) -> None:
        self.recompute = True

    def build_head(self, n_outputs: int) -> nn.Module:
        hidden = max(1, self.width // 4)
        return nn.Sequential(
            nn.Linear(self.width, hidden), nn.ReLU(), nn.Dropout(self.dropout), nn.Linear(hidden, n_outputs)
        )

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
        samples_BTD = self.conv(x_BST).transpose(1, 2)
        for block in self.blocks:
            recompute = self.recompute and self.training
            samples_BTD = checkpoint(block, samples_BTD, use_reentrant=False) if recompute else block(samples_BTD)
        tokens = nn.functional.adaptive_avg_pool1d(samples_BTD.transpose(1, 2), self.segments).transpose(1, 2)
        return self.build_output(tokens, samples_BTD.mean(1), present_B)


def build(section: EAVTransformerConfig, preprocessing: Preprocessing, shapes: DataShapes) -> EAVTransformer:
    """Build the encoder that a section of an experiment describes."""
    n_times = preprocessing.eeg.hz * preprocessing.window_s
    return EAVTransformer(
        shapes.eeg_channels, n_times, window_s=preprocessing.window_s, **collect_module_arguments(section)
    )
