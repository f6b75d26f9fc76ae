"""Build the fusion that an experiment names."""

from torch import Tensor

from eav_ray.config import Experiment
from eav_ray.models.fusion.base import Fusion
from eav_ray.models.kinds import import_implementation


def build_fusion(experiment: Experiment, widths: dict[str, int], times_s: dict[str, Tensor], n_outputs: int) -> Fusion:
    """Build a fresh fusion of tokens of these widths and times; it needs no encoder, so a search builds it alone.

    Args:
        widths: Token width of each modality.
        times_s: Token times of each modality, (N_m,) seconds.
        n_outputs: Number of classes, or of targets.
    Raises:
        ConfigError: The kind has no network.
    """
    section, window_s = experiment.fusion, experiment.preprocessing.window_s
    fusion = import_implementation(section).build(section, widths, times_s, window_s=window_s, n_outputs=n_outputs)
    fusion.weight_loss, fusion.predicts_numbers = section.modality_weight_loss, experiment.data.predicts_numbers
    return fusion
