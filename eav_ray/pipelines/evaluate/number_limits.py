"""Refuse, at the start, what cannot be done yet where numbers are predicted."""

from eav_ray.config import DataConfig
from eav_ray.errors import ConfigError


def require_classes(data: DataConfig, what: str, way_out: str, *, of: str = "this experiment") -> None:
    """Check that an experiment, or a checkpoint, predicts classes.

    Args:
        data: Of its experiment.
        what: The command or option that knows nothing else.
        way_out: What can be done instead.
        of: What predicts: the path of a checkpoint.
    Raises:
        ConfigError: It predicts numbers.
    """
    if data.predicts_numbers:
        raise ConfigError(
            f"{what} is for classes, and {of} predicts numbers (data.targets.columns is "
            f"{', '.join(data.targets.columns)}); {way_out}"
        )
