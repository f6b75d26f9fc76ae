"""Configure EEGformer."""

import math
from typing import ClassVar, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from eav_ray.config.data_sections import STRICT
from eav_ray.config.encoders.base import EncoderConfig, check_heads, round_to_multiple
from eav_ray.config.modalities import ModalityName


@dataclass(frozen=True, config=STRICT)
class EEGformerConfig(EncoderConfig):
    """Wan et al. 2023 (Frontiers in Neuroscience 17:1148855)."""

    modality: ClassVar[ModalityName] = "eeg"
    kind: Literal["eegformer"] = "eegformer"
    filters: int = Field(default=32, gt=0, description="filters per electrode of the 1-D convolutions (C)")
    width: int = Field(default=128, gt=0, description="width of the regional and synchronous blocks (D)")
    temporal_width: int = Field(default=256, gt=0, description="width of the temporal blocks and of the tokens (Dt)")
    segments: int = Field(default=8, gt=0, description="contiguous time segments, one token each (M)")
    depth: int = Field(default=2, gt=0, description="blocks per stage")
    heads: int = Field(default=8, gt=0, description="attention heads; must divide both widths")
    dropout: float = Field(default=0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _check_sizes(self) -> "EEGformerConfig":
        check_heads(self.heads, self.width, self.temporal_width)
        if self.width % self.segments:
            raise ValueError(f"segments is {self.segments}, which does not divide width {self.width}")
        return self

    @property
    def token_width(self) -> int:
        return self.temporal_width

    def scale_sizes(self, factor: float) -> dict[str, int]:
        return super().scale_sizes(factor) | {
            "width": round_to_multiple(self.width * factor, math.lcm(self.heads, self.segments)),
            "temporal_width": round_to_multiple(self.temporal_width * factor, self.heads),
            "filters": max(1, round(self.filters * factor)),
        }
