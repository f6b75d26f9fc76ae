"""Configure the reference's EEG transformer."""

from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass

from eav_ray.config.data_sections import STRICT, define
from eav_ray.config.encoders.base import EncoderConfig
from eav_ray.config.modalities import ModalityName


@dataclass(frozen=True, config=STRICT)
class EAVTransformerConfig(EncoderConfig):
    """The EEG transformer that the reference's released code trains, with its sizes."""

    modality: ClassVar[ModalityName] = "eeg"
    normalises_subjects: ClassVar[bool] = True
    kind: Literal["eav_transformer"] = "eav_transformer"
    width: int = define(60, "filters of the second convolution, and width of the tokens", gt=0)
    feed_forward: int = define(3, "width of the feed-forward layers", gt=0)
    depth: int = define(6, "post-norm blocks", gt=0)
    heads: int = define(4, "attention heads; must divide the width", gt=0)
    segments: int = define(10, "time segments that fusion sees, one token each", gt=0)
    dropout: float = define(0.1, ge=0, lt=1)
    standardise: bool = define(
        True, "standardise each channel by the training rows; false: microvolts as they are, as the released code does"
    )
