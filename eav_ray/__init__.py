"""Emotion recognition from EEG, audio and video, on Ray.

The names below are the public face. Each is imported when it is first used, so that `import eav_ray` takes no time, and
models and training are imported where Ray, MNE and PyAV are not installed.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eav_ray.api import (
        Experiment,
        Prediction,
        Predictor,
        cross_validate,
        evaluate,
        load_experiment,
        preprocess,
        read_epochs,
        read_predictions,
        read_results,
        read_windows,
        search,
        train,
    )
    from eav_ray.errors import ConfigError, DataError

__all__ = [
    "ConfigError",
    "DataError",
    "Experiment",
    "Prediction",
    "Predictor",
    "cross_validate",
    "evaluate",
    "load_experiment",
    "preprocess",
    "read_epochs",
    "read_predictions",
    "read_results",
    "read_windows",
    "search",
    "train",
]
MODULES = {
    "ConfigError": "eav_ray.errors",
    "DataError": "eav_ray.errors",
    "Experiment": "eav_ray.config",
    "load_experiment": "eav_ray.config",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(MODULES.get(name, "eav_ray.api")), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
