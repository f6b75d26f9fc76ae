"""Mel-frequency cepstral coefficients with their differences, by librosa, and a small network: a cheap audio branch."""

from collections.abc import Iterable

import librosa
import numpy as np
import torch
from torch import Tensor

from eav_ray.config import Preprocessing
from eav_ray.config.encoders.mfcc import MFCCConfig
from eav_ray.errors import ConfigError
from eav_ray.models.encoders.base import DataShapes, Encoder, EncoderOutput, collect_module_arguments
from eav_ray.models.layers import FeatureStandardizer, build_feature_mlp, build_position_embedding

SAMPLE_RATE_HZ, N_FFT, HOP_SAMPLES, N_MELS, DELTA_WIDTH = 16000, 512, 160, 64, 9


class MFCC(Encoder):
    """Audio windows to one token per time segment: mean and SD of coefficients, first and second differences.

    The features are computed on the CPU, wherever the network runs, and no gradient passes through them.

    Args:
        window_s: Length of a window, seconds.
        coefficients: Cepstral coefficients.
        segments: Contiguous time segments. Those that lie in the digital silence at a window's end, by which short
            recordings are filled up, are masked.
    Raises:
        ConfigError: A segment is shorter than a spectrum.
    """

    def __init__(self, *, window_s: float, coefficients: int, segments: int, width: int, dropout: float) -> None:
        super().__init__()
        self.segment_samples = int(window_s * SAMPLE_RATE_HZ) // segments
        if self.segment_samples < N_FFT:
            raise ConfigError(
                f"an audio segment has {self.segment_samples} samples, but model.audio.kind=mfcc needs {N_FFT}; lower "
                "model.audio.segments or raise preprocessing.window_s"
            )
        self.width, self.segments, self.coefficients = width, segments, coefficients
        self.register_buffer("times_s", (torch.arange(segments) + 0.5) * window_s / segments, persistent=False)
        self.standardise = FeatureStandardizer(6 * coefficients)
        self.network = build_feature_mlp(6 * coefficients, width, dropout)
        self.position = build_position_embedding(segments, width)

    def compute_features(self, x_BT: np.ndarray) -> np.ndarray:
        """(batch, samples) at 16 kHz to (batch, segments, 6 * coefficients): means and SDs over each segment."""
        mel = librosa.feature.melspectrogram(
            y=x_BT, sr=SAMPLE_RATE_HZ, n_fft=N_FFT, hop_length=HOP_SAMPLES, n_mels=N_MELS
        )
        # Without `top_db`, which cuts at the loudest of the whole batch: windows would see each other.
        mfcc = librosa.feature.mfcc(
            S=librosa.power_to_db(mel, top_db=None), sr=SAMPLE_RATE_HZ, n_mfcc=self.coefficients
        )
        deltas = [librosa.feature.delta(mfcc, width=DELTA_WIDTH, order=k, mode="nearest") for k in (1, 2)]
        whole = np.concatenate([mfcc, *deltas], 1)
        edges = np.linspace(0, whole.shape[-1], self.segments + 1).astype(int)
        parts = [whole[..., a:b] for a, b in zip(edges[:-1], edges[1:], strict=True)]
        return np.stack([np.concatenate([p.mean(-1), p.std(-1)], 1) for p in parts], 1).astype(np.float32)

    def compute_sound_mask(self, x_BT: Tensor) -> Tensor:
        """(batch, segments): False in the digital silence at a window's end; a window of nothing else is all True."""
        b = len(x_BT)
        has_sound_BN = (
            x_BT[:, : self.segments * self.segment_samples]
            .reshape(b, self.segments, self.segment_samples)
            .ne(0)
            .any(-1)
        )
        # From the end on, so that a pause inside a recording counts.
        has_sound_BN = has_sound_BN.flip(1).cummax(1).values.flip(1)
        return has_sound_BN | ~has_sound_BN.any(1, keepdim=True)

    def fit_statistics(self, batches: Iterable[Tensor]) -> None:
        self.standardise.fit(
            torch.from_numpy(self.compute_features(x.cpu().numpy()))[self.compute_sound_mask(x)] for x in batches
        )

    def forward(self, x_BT: Tensor, present_B: Tensor) -> EncoderOutput:
        """
        Args:
            x_BT: Waveform in [-1, 1], 16 kHz, (batch, samples).
            present_B: True where the window has audio.
        """
        if x_BT.is_meta:  # where only the arithmetic is counted
            features = x_BT.new_empty(len(x_BT), self.segments, 6 * self.coefficients)
        else:
            features = torch.from_numpy(self.compute_features(x_BT.cpu().numpy())).to(x_BT.device)
        tokens = self.network(self.standardise(features)) + self.position
        sound_mask_BN = self.compute_sound_mask(x_BT)
        pooled = (tokens * sound_mask_BN[..., None]).sum(1) / sound_mask_BN.sum(1, keepdim=True)
        encoded = self.build_output(tokens, pooled, present_B)
        return encoded._replace(mask_BN=encoded.mask_BN & sound_mask_BN)


def build(section: MFCCConfig, preprocessing: Preprocessing, shapes: DataShapes) -> MFCC:
    """Build the encoder that a section of an experiment describes."""
    return MFCC(window_s=preprocessing.window_s, **collect_module_arguments(section))
