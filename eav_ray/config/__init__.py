"""Describe an experiment: frozen, typed sections, read from YAML and the command line."""

from eav_ray.config.data_sections import (
    MODALITIES,
    STRICT,
    DataConfig,
    EEGPreprocessing,
    Modality,
    Preprocessing,
    Protocol,
    SplitConfig,
    VideoPreprocessing,
)
from eav_ray.config.digests import digest, to_dict
from eav_ray.config.encoders.base import EncoderConfig
from eav_ray.config.fusion.base import FusionConfig
from eav_ray.config.keys import list_keys, list_other_kinds
from eav_ray.config.loading import (
    build_experiment,
    list_experiment_names,
    load_experiment,
    override,
    parse_changes,
)
from eav_ray.config.model_sections import ModelConfig
from eav_ray.config.sections import Experiment
from eav_ray.config.training_sections import (
    EncoderOptimConfig,
    OptimConfig,
    Precision,
    RuntimeConfig,
    SearchConfig,
    SearchDimension,
)

__all__ = [
    "STRICT",
    "DataConfig",
    "EEGPreprocessing",
    "EncoderConfig",
    "EncoderOptimConfig",
    "Experiment",
    "FusionConfig",
    "MODALITIES",
    "Modality",
    "ModelConfig",
    "OptimConfig",
    "Precision",
    "Preprocessing",
    "Protocol",
    "RuntimeConfig",
    "SearchConfig",
    "SearchDimension",
    "SplitConfig",
    "VideoPreprocessing",
    "build_experiment",
    "digest",
    "list_experiment_names",
    "list_keys",
    "list_other_kinds",
    "load_experiment",
    "override",
    "parse_changes",
    "to_dict",
]
