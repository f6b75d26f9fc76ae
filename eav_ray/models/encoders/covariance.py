"""Logarithms of the covariance matrices of EEG in frequency bands, and a small network.

The logarithm of a matrix turns covariances into vectors between which differences mean something (Arsigny et al. 2007,
doi:10.1137/050637996); classifiers of band-wise covariances are among the strongest of brain-computer interfaces
(Barachant et al. 2012, doi:10.1109/TBME.2011.2172210).
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from eav_ray.config import Preprocessing
from eav_ray.config.encoders.covariance import CovarianceConfig
from eav_ray.models.encoders.band_spectra import VARIANCE_FLOOR, BandSpectra
from eav_ray.models.encoders.base import (
    DataShapes,
    Encoder,
    EncoderOutput,
    Features,
    SubjectStatistics,
    collect_module_arguments,
)
from eav_ray.models.layers import FeatureStandardizer, build_feature_mlp, build_position_embedding


class Covariance(Encoder):
    """EEG windows to one token per time segment: how strong each band is, and which electrodes share it.

    An electrode that is masked, zero throughout a window, changes nothing of the others.

    Args:
        n_chans: Electrodes; any number.
        n_times: Samples of a window.
        hz: Their rate.
        window_s: Length of a window, seconds.
        segments: Contiguous time segments; samples that do not fill the last are left out.
        shrinkage: Share of the mean variance of electrodes that is added to each variance, so that a matrix of few
            samples, or of electrodes that sum to zero, has a logarithm.
        input_dropout: Chance that training hides a feature.
    Raises:
        ConfigError: A segment is too short to tell the bands apart.
    """

    exports_windows = False  # spectra and eigenvalues

    pair_rows: Tensor
    pair_columns: Tensor

    def __init__(
        self,
        n_chans: int,
        n_times: int,
        *,
        hz: float,
        window_s: float,
        segments: int,
        width: int,
        dropout: float,
        input_dropout: float,
        shrinkage: float,
    ) -> None:
        super().__init__()
        self.width, self.segments, self.shrinkage = width, segments, shrinkage
        self.spectra = BandSpectra(n_times, hz=hz, segments=segments, kind="covariance")
        self.register_buffer("times_s", (torch.arange(segments) + 0.5) * window_s / segments, persistent=False)
        pairs = torch.triu_indices(n_chans, n_chans)
        self.register_buffer("pair_rows", pairs[0], persistent=False)
        self.register_buffer("pair_columns", pairs[1], persistent=False)
        n_features = self.spectra.n_bands * pairs.shape[1]
        self.standardise = FeatureStandardizer(n_features)
        self.network = build_feature_mlp(n_features, width, dropout, input_dropout)
        self.position = build_position_embedding(segments, width)

    def compute_features(self, x: Tensor) -> Features:
        """Compute the logarithm of the covariance of each band and segment, the upper triangle of it.

        Args:
            x: (batch, electrodes, samples).
        Returns:
            (batch, segments, bands * pairs of electrodes), and which pairs have no masked electrode.
        """
        shape = (len(x), self.spectra.segments, self.spectra.n_bands * len(self.pair_rows))
        if x.is_meta:  # where only the arithmetic is counted
            return Features(x.new_empty(shape), torch.ones(shape, dtype=torch.bool, device=x.device))
        known_BS = x.ne(0).any(-1)
        covariances = self.spectra.compute_covariances(x)
        mean_variance = covariances.diagonal(dim1=-2, dim2=-1).sum(-1) / known_BS.sum(1).clamp(min=1)[:, None, None]
        added = self.shrinkage * mean_variance + VARIANCE_FLOOR
        identity = torch.eye(x.shape[1], dtype=covariances.dtype, device=x.device)
        values, vectors = torch.linalg.eigh(covariances + added[..., None, None] * identity)
        # Rounding may leave an eigenvalue below what was added.
        logs = values.clamp(min=VARIANCE_FLOOR).log()
        logarithm = (vectors * logs[..., None, :]) @ vectors.transpose(-1, -2)
        triangle = logarithm[..., self.pair_rows, self.pair_columns]
        known_BP = known_BS[:, self.pair_rows] & known_BS[:, self.pair_columns]
        known = known_BP[:, None, None].expand(triangle.shape).flatten(2)
        return Features(torch.where(known, triangle.float().flatten(2), 0), known)

    def fit_statistics(self, batches: Iterable[tuple[Tensor | Features, SubjectStatistics | None]]) -> None:
        self.fit_standardiser(self.standardise, batches)

    def forward(
        self, x_BST: Tensor | Features, present_B: Tensor, subject: SubjectStatistics | None = None
    ) -> EncoderOutput:
        """
        Args:
            x_BST: EEG, standardised or as `subject` is of, (batch, electrodes, samples).
            present_B: True where the window has EEG.
        """
        values, known = self.normalise_features(x_BST, subject)
        standardised = torch.where(known, self.standardise(values), 0)  # what is masked counts as the mean
        tokens = self.network(standardised) + self.position
        return self.build_output(tokens, tokens.mean(1), present_B)


def build(section: CovarianceConfig, preprocessing: Preprocessing, shapes: DataShapes) -> Covariance:
    """Build the encoder that a section of an experiment describes."""
    hz, window_s = preprocessing.eeg.hz, preprocessing.window_s
    return Covariance(shapes.eeg_channels, hz * window_s, hz=hz, window_s=window_s, **collect_module_arguments(section))
