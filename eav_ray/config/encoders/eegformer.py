"""Configure EEGformer."""

import math
from typing import ClassVar, Literal

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from eav_ray.config.data_sections import STRICT, define
from eav_ray.config.encoders.base import EncoderConfig, round_to_multiple
from eav_ray.config.modalities import ModalityName


@dataclass(frozen=True, config=STRICT)
class EEGformerConfig(EncoderConfig):
    """Wan et al. 2023 (Frontiers in Neuroscience 17:1148855)."""

    modality: ClassVar[ModalityName] = "eeg"
    normalises_subjects: ClassVar[bool] = True
    kind: Literal["eegformer"] = "eegformer"
    filters: int = define(32, "filters per electrode of the 1-D convolutions (C)", gt=0)
    width: int = define(128, "width of the regional and synchronous blocks (D)", gt=0)
    temporal_width: int = define(256, "width of the temporal blocks and of the tokens (Dt)", gt=0)
    segments: int = define(8, "contiguous time segments, one token each (M)", gt=0)
    depth: int = define(2, "blocks per stage", gt=0)
    heads: int = define(8, "attention heads; must divide both widths", gt=0)
    dropout: float = define(0.1, ge=0, lt=1)
    decoder: Literal["pooled", "convolutional"] = define(
        "pooled",
        "what the encoder alone is read by: a linear layer on the mean over time; or, as in the paper, three "
        "convolutions and a linear layer on the tokens in order of time",
    )

    @model_validator(mode="after")
    def _check_segments(self) -> "EEGformerConfig":
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
