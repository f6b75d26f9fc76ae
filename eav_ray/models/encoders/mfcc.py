"""Statistics of mel-frequency cepstral coefficients and log-mel bands, by librosa, and a small network."""

from collections.abc import Iterable

import librosa
import numpy as np
import torch
from torch import Tensor

from eav_ray.config import Preprocessing
from eav_ray.config.encoders.mfcc import MFCCConfig
from eav_ray.errors import ConfigError
from eav_ray.models.encoders.base import (
    AudioEncoder,
    DataShapes,
    EncoderOutput,
    Features,
    SubjectStatistics,
    collect_module_arguments,
)
from eav_ray.models.encoders.silence import find_sound
from eav_ray.models.layers import FeatureStandardizer, build_feature_mlp, build_position_embedding

SAMPLE_RATE_HZ, N_FFT, HOP_SAMPLES, N_MELS, DELTA_WIDTH = 16000, 512, 160, 64, 9
QUANTILES = (0.1, 0.5, 0.9)  # of log-mel bands


class MFCC(AudioEncoder):
    """Audio windows to one token per time segment: what its spectra are, and how they vary.

    Of cepstral coefficients and of their first and second differences these are mean and SD, of log-mel bands mean, SD
    and quantiles, all of the frames that hold sound (`silence.find_sound`); differences are taken along these alone.
    Segments without sound are masked, and are in no statistic and no pooled feature. The features are computed on the
    CPU, wherever the network runs, and no gradient passes through them.

    Args:
        window_s: Length of a window, seconds.
        coefficients: Cepstral coefficients.
        log_mel: Whether statistics of log-mel bands stand beside those of coefficients.
        segments: Contiguous time segments.
        silence_db: How far below a window's loudest part silence begins; 0: only padding is silence.
        input_dropout: Chance that training hides a feature.
    Raises:
        ConfigError: A segment is shorter than a spectrum.
    """

    exports_windows = False  # librosa

    def __init__(
        self,
        *,
        window_s: float,
        coefficients: int,
        log_mel: bool,
        segments: int,
        width: int,
        dropout: float,
        input_dropout: float,
        silence_db: float,
    ) -> None:
        super().__init__()
        self.segment_samples = int(window_s * SAMPLE_RATE_HZ) // segments
        if self.segment_samples < N_FFT:
            raise ConfigError(
                f"an audio segment has {self.segment_samples} samples, but model.audio.kind=mfcc needs {N_FFT}; lower "
                "model.audio.segments or raise preprocessing.window_s"
            )
        self.width, self.segments, self.silence_db = width, segments, silence_db
        self.coefficients, self.log_mel = coefficients, log_mel
        self.n_features = 6 * coefficients + (2 + len(QUANTILES)) * N_MELS * log_mel
        self.register_buffer("times_s", (torch.arange(segments) + 0.5) * window_s / segments, persistent=False)
        self.standardise = FeatureStandardizer(self.n_features)
        self.network = build_feature_mlp(self.n_features, width, dropout, input_dropout)
        self.position = build_position_embedding(segments, width)

    def compute_features(self, x: Tensor) -> Features:
        """Compute statistics of the sounding frames of each segment, and which segments have any.

        Args:
            x: Waveform in [-1, 1], 16 kHz, (batch, samples).
        Returns:
            (batch, segments, features), zero where a segment has no sound, and (batch, segments), True where it has.
            Features are the means of coefficients, first and second differences, the SDs of these; with `log_mel` of 64
            bands, in decibel, the means, SDs, and 10, 50 and 90 % quantiles.
        """
        shape, device = (len(x), self.segments, self.n_features), x.device
        if x.is_meta:  # where only the arithmetic is counted
            return Features(x.new_empty(shape), torch.ones(shape[:2], dtype=torch.bool, device=device))
        x_BT = x.cpu()
        sound = find_sound(x_BT, self.silence_db)
        features_BNF, mask_BN = torch.zeros(shape), torch.zeros(shape[:2], dtype=torch.bool)
        mel_BFT, cepstra_BCT = self._compute_spectra(x_BT.numpy())
        centres_T = np.arange(cepstra_BCT.shape[-1]) * HOP_SAMPLES  # librosa centres its frames
        for row, (begin, end) in enumerate(zip(sound.begin_B.tolist(), sound.end_B.tolist(), strict=True)):
            kept = (centres_T > begin - HOP_SAMPLES) & (centres_T < end)  # at least one
            with_differences = _append_differences(cepstra_BCT[row][:, kept])
            segment_T = np.minimum(centres_T[kept] // self.segment_samples, self.segments - 1)
            for segment in np.unique(segment_T):
                part = with_differences[:, segment_T == segment]
                statistics = [part.mean(1), part.std(1)]
                if self.log_mel:
                    bands = mel_BFT[row][:, kept][:, segment_T == segment]
                    statistics += [bands.mean(1), bands.std(1), *np.quantile(bands, QUANTILES, axis=1)]
                features_BNF[row, segment] = torch.from_numpy(np.concatenate(statistics))
                mask_BN[row, segment] = True
        return Features(features_BNF.to(device), mask_BN.to(device))

    def _compute_spectra(self, x_BT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(batch, bands, frames) log-mel, decibel, and (batch, coefficients, frames)."""
        mel = librosa.feature.melspectrogram(
            y=x_BT, sr=SAMPLE_RATE_HZ, n_fft=N_FFT, hop_length=HOP_SAMPLES, n_mels=N_MELS
        )
        # Without `top_db`, which cuts at the loudest of the whole batch: windows would see each other.
        decibel = librosa.power_to_db(mel, top_db=None)
        return decibel, librosa.feature.mfcc(S=decibel, sr=SAMPLE_RATE_HZ, n_mfcc=self.coefficients)

    def fit_statistics(self, batches: Iterable[tuple[Tensor | Features, SubjectStatistics | None]]) -> None:
        self.fit_standardiser(self.standardise, batches)

    def encode_features(self, features: Tensor, mask: Tensor, present_B: Tensor) -> EncoderOutput:
        tokens = self.network(self.standardise(features)) + self.position
        pooled = (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        encoded = self.build_output(tokens, pooled, present_B)
        return encoded._replace(mask_BN=encoded.mask_BN & mask)


def _append_differences(cepstra_CT: np.ndarray) -> np.ndarray:
    """(coefficients, frames) to (3 * coefficients, frames): with their first and second differences."""
    differences = [librosa.feature.delta(cepstra_CT, width=DELTA_WIDTH, order=k, mode="nearest") for k in (1, 2)]
    return np.concatenate([cepstra_CT, *differences])


def build(section: MFCCConfig, preprocessing: Preprocessing, shapes: DataShapes) -> MFCC:
    """Build the encoder that a section of an experiment describes."""
    return MFCC(window_s=preprocessing.window_s, **collect_module_arguments(section))
