"""Describe an experiment: frozen, typed sections, read from YAML and the command line."""

from eav_ray.config.data_sections import (
    STRICT,
    DataConfig,
    EEGPreprocessing,
    FeatureFile,
    FeaturePreprocessing,
    Preprocessing,
    Protocol,
    SplitConfig,
    VideoPreprocessing,
)
from eav_ray.config.digests import digest, to_dict
from eav_ray.config.encoders.base import EncoderConfig
from eav_ray.config.fusion.base import FusionConfig
from eav_ray.config.keys import list_feature_keys, list_keys, list_other_kinds
from eav_ray.config.loading import build_experiment, list_experiment_names, load_experiment, override, parse_changes
from eav_ray.config.modalities import (
    MODALITIES,
    ModalityName,
    get_modality_info,
    order_modalities,
    select_channel_modalities,
    select_worn_modalities,
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
