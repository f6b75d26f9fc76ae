"""Configure late fusion."""

from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass

from eav_ray.config.data_sections import STRICT
from eav_ray.config.fusion.base import FusionConfig


@dataclass(frozen=True, config=STRICT)
class LateMeanConfig(FusionConfig):
    """The mean of the unimodal logits; nothing is trained."""

    has_parameters: ClassVar[bool] = False
    kind: Literal["late_mean"] = "late_mean"
