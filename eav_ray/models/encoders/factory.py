"""Build the encoder that an experiment names."""

from eav_ray.config import Experiment
from eav_ray.models.encoders.base import DataShapes, Encoder
from eav_ray.models.kinds import import_implementation


def build_encoder(experiment: Experiment, modality: str, shapes: DataShapes) -> Encoder:
    """Build a fresh encoder of one modality.

    Raises:
        ConfigError: The section's sizes do not fit the stored windows, or its kind has no network.
    """
    section = experiment.model[modality]
    return import_implementation(section).build(section, experiment.preprocessing, shapes._replace(modality=modality))
