"""The scale of the numbers that are predicted: models see and give them standardised, people in their own units."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eav_ray.errors import DataError


@dataclass(frozen=True)
class TargetScale:
    """Names of the targets, and their mean and SD over the training recordings."""

    names: tuple[str, ...]
    mean: tuple[float, ...]
    sd: tuple[float, ...]

    def standardise(self, values_VK: np.ndarray) -> np.ndarray:
        """Turn numbers into what models are trained on: (windows, targets) float32."""
        return ((values_VK - np.array(self.mean)) / np.array(self.sd)).astype(np.float32)

    def restore(self, outputs_VK: np.ndarray) -> np.ndarray:
        """Turn what models give out into numbers in the units of the targets: (windows, targets) float64."""
        return outputs_VK.astype(np.float64) * np.array(self.sd) + np.array(self.mean)


def fit_target_scale(names: Sequence[str], values_RK: np.ndarray) -> TargetScale:
    """Measure the scale of targets over training recordings, each counted once.

    Args:
        values_RK: (recordings, targets).
    Raises:
        DataError: One has the same value in all of them.
    """
    mean, sd = values_RK.mean(0), values_RK.std(0)
    for k, name in enumerate(names):
        if not np.ptp(values_RK[:, k]) > 0:
            raise DataError(
                f"all training recordings have the same {name}, {values_RK[0, k]:g}, so nothing can be learned of it; "
                "take it out of data.targets.columns, or train on more subjects"
            )
    return TargetScale(tuple(names), tuple(map(float, mean)), tuple(map(float, sd)))
