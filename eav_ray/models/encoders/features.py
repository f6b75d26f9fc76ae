"""Features that others have computed: standardised, projected, and a small network."""

import torch
from torch import Tensor

from eav_ray.config import Preprocessing
from eav_ray.config.encoders.features import FeaturesConfig
from eav_ray.models.encoders.base import (
    DataShapes,
    EncoderOutput,
    Features,
    GivenEncoder,
    SubjectStatistics,
    collect_module_arguments,
)
from eav_ray.models.layers import FeatureStandardizer, build_feature_mlp, build_position_embedding


class GivenFeatures(GivenEncoder):
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

    def forward(
        self, x_BNF: Tensor | Features, present_B: Tensor, subject: SubjectStatistics | None = None
    ) -> EncoderOutput:
        """
        Args:
            x_BNF: Features, NaN where not known, (batch, steps, features).
            present_B: True where the window has them.
        """
        values, known = self.standardise_features(x_BNF, subject)
        tokens = self.network(values) + self.position
        return self.build_known_output(tokens, known.any(-1), present_B)


def build(section: FeaturesConfig, preprocessing: Preprocessing, shapes: DataShapes) -> GivenFeatures:
    """Build the encoder that a section of an experiment describes."""
    given = preprocessing.features[shapes.modality]
    return GivenFeatures(
        given.n_features, given.steps, window_s=preprocessing.window_s, **collect_module_arguments(section)
    )
