"""Find a modality by its name."""

from functools import cache
from typing import Any

import numpy as np

from eav_ray.config import Preprocessing
from eav_ray.config.kinds import import_modules, index_kinds, list_subclasses
from eav_ray.data.modalities.base import Modality
from eav_ray.data.modalities.features import Features


@cache
def get_modality(name: str) -> Modality:
    """Return the modality of this name; each that is recorded is defined by a module of this package."""
    import_modules("eav_ray.data.modalities")
    found: dict[str, type[Any]] = index_kinds(list_subclasses(Modality), "name")
    return found[name]() if name in found else Features(name)


def make_empty_window(name: str, preprocessing: Preprocessing, n_channels: int) -> np.ndarray:
    """Make a window of a modality that is missing: zeros of its shape and dtype."""
    modality = get_modality(name)
    return np.zeros(modality.compute_shape(preprocessing, n_channels), modality.dtype)
