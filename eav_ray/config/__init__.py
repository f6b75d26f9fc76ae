"""Describe an experiment: frozen, typed sections, read from YAML and the command line."""

from eav_ray.config.data_sections import (
    MODALITIES,
    DataConfig,
    EEGPreprocessing,
    Modality,
    Preprocessing,
    Protocol,
    SplitConfig,
    VideoPreprocessing,
)
from eav_ray.config.digests import digest, to_dict
from eav_ray.config.keys import list_keys, list_other_kinds
from eav_ray.config.loading import build_experiment, load_experiment, override, parse_changes
from eav_ray.config.model_sections import (
    ASTConfig,
    BandPowerConfig,
    EAVTransformerConfig,
    EEGformerConfig,
    FusionConfig,
    MFCCConfig,
    ViTConfig,
    get_token_width,
)
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
    "ASTConfig",
    "BandPowerConfig",
    "DataConfig",
    "EAVTransformerConfig",
    "EEGPreprocessing",
    "EEGformerConfig",
    "EncoderOptimConfig",
    "Experiment",
    "FusionConfig",
    "MFCCConfig",
    "MODALITIES",
    "Modality",
    "OptimConfig",
    "Precision",
    "Preprocessing",
    "Protocol",
    "RuntimeConfig",
    "SearchConfig",
    "SearchDimension",
    "SplitConfig",
    "ViTConfig",
    "VideoPreprocessing",
    "build_experiment",
    "digest",
    "get_token_width",
    "list_keys",
    "list_other_kinds",
    "load_experiment",
    "override",
    "parse_changes",
    "to_dict",
]
