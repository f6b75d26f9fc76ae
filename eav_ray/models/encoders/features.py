"""Features that others have computed: standardised, projected, and a small network."""

from collections.abc import Iterable

import torch
from torch import Tensor

from eav_ray.config import Preprocessing
from eav_ray.config.encoders.features import FeaturesConfig
from eav_ray.models.encoders.base import (
    DataShapes,
    Encoder,
    EncoderOutput,
    Features,
    SubjectStatistics,
    collect_module_arguments,
)
from eav_ray.models.layers import FeatureStandardizer, build_feature_mlp, build_position_embedding


class GivenFeatures(Encoder):
    """Windows of features to one token per step.

    A feature that is not known (NaN) counts as the mean of the training rows; a step of which none is known is masked.

    Args:
        n_features: Width of what is given.
        steps: Parts of a window, each a row of features.
        window_s: Length of a window, seconds.
        input_dropout: Chance that training hides a feature.
    """

    def __init__(
        self, n_features: int, steps: int, *, window_s: float, width: int, dropout: float, input_dropout: float
    ) -> None:
        super().__init__()
        self.width, self.steps, self.n_features = width, steps, n_features
        self.register_buffer("times_s", (torch.arange(steps) + 0.5) * window_s / steps, persistent=False)
        self.standardise = FeatureStandardizer(n_features)
        self.network = build_feature_mlp(n_features, width, dropout, input_dropout)
        self.position = build_position_embedding(steps, width)

    def compute_features(self, x: Tensor) -> Features:
        known = torch.isfinite(x)
        return Features(torch.where(known, x, 0), known)

    def fit_statistics(self, batches: Iterable[tuple[Tensor | Features, SubjectStatistics | None]]) -> None:
        self.fit_standardiser(self.standardise, batches)

    def forward(
        self, x_BNF: Tensor | Features, present_B: Tensor, subject: SubjectStatistics | None = None
    ) -> EncoderOutput:
        """
        Args:
            x_BNF: Features, NaN where not known, (batch, steps, features).
            present_B: True where the window has them.
        """
        values, known = self.normalise_features(x_BNF, subject)
        standardised = torch.where(known, self.standardise(values), 0)
        tokens = self.network(standardised) + self.position
        known_BN = known.any(-1)
        # A window of which nothing is known is one of means; it is masked wherever it counts.
        weight_BN = (known_BN | ~known_BN.any(1, keepdim=True)).to(tokens.dtype)
        pooled = (tokens * weight_BN[..., None]).sum(1) / weight_BN.sum(1, keepdim=True)
        encoded = self.build_output(tokens, pooled, present_B)
        return encoded._replace(mask_BN=encoded.mask_BN & known_BN)


def build(section: FeaturesConfig, preprocessing: Preprocessing, shapes: DataShapes) -> GivenFeatures:
    """Build the encoder that a section of an experiment describes."""
    given = preprocessing.features[shapes.modality]
    return GivenFeatures(
        given.n_features, given.steps, window_s=preprocessing.window_s, **collect_module_arguments(section)
    )
