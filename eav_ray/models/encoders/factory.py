"""Build the encoder that an experiment names."""

from typing import Any, assert_never

from eav_ray import config
from eav_ray.config import Experiment
from eav_ray.models.encoders.ast import AST
from eav_ray.models.encoders.band_power import BandPower
from eav_ray.models.encoders.base import DataShapes, Encoder
from eav_ray.models.encoders.eav_transformer import EAVTransformer
from eav_ray.models.encoders.eegformer import EEGformer
from eav_ray.models.encoders.mfcc import MFCC
from eav_ray.models.encoders.vit import ViT


def build_encoder(experiment: Experiment, modality: str, shapes: DataShapes) -> Encoder:
    preprocessing = experiment.preprocessing
    window_s, n_times = preprocessing.window_s, preprocessing.eeg.hz * preprocessing.window_s
    section = getattr(experiment.model, modality)
    match section:
        case config.EEGformerConfig():
            return EEGformer(shapes.eeg_channels, n_times, window_s=window_s, **_collect_module_arguments(section))
        case config.EAVTransformerConfig():
            return EAVTransformer(shapes.eeg_channels, n_times, window_s=window_s, **_collect_module_arguments(section))
        case config.BandPowerConfig():
            return BandPower(
                shapes.eeg_channels,
                n_times,
                hz=preprocessing.eeg.hz,
                window_s=window_s,
                **_collect_module_arguments(section),
            )
        case config.ASTConfig():
            return AST(window_s=window_s, **_collect_module_arguments(section))
        case config.MFCCConfig():
            return MFCC(window_s=window_s, **_collect_module_arguments(section))
        case config.ViTConfig():
            return ViT(
                window_s=window_s,
                n_stored_frames=preprocessing.video.fps * window_s,
                **_collect_module_arguments(section),
            )
        case _:
            assert_never(section)


def _collect_module_arguments(section: Any) -> dict[str, Any]:
    """The keys of a section that its module takes, which has the same names for them."""
    return {k: v for k, v in vars(section).items() if k not in ("kind", "weights")}
