"""Configure the reference's EEG transformer."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from eav_ray.config.data_sections import STRICT
from eav_ray.config.encoders.base import EncoderConfig, check_heads
from eav_ray.config.modalities import ModalityName


@dataclass(frozen=True, config=STRICT)
class EAVTransformerConfig(EncoderConfig):
    """The EEG transformer that the reference's released code trains, with its sizes."""

    modality: ClassVar[ModalityName] = "eeg"
    kind: Literal["eav_transformer"] = "eav_transformer"
    width: int = Field(default=60, gt=0, description="filters of the second convolution, and width of the tokens")
    feed_forward: int = Field(default=3, gt=0, description="width of the feed-forward layers")
    depth: int = Field(default=6, gt=0, description="post-norm blocks")
    heads: int = Field(default=4, gt=0, description="attention heads; must divide the width")
    segments: int = Field(default=10, gt=0, description="time segments that fusion sees, one token each")
    dropout: float = Field(default=0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _check_sizes(self) -> "EAVTransformerConfig":
        check_heads(self.heads, self.width)
        return self
