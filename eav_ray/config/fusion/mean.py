"""Configure late fusion by the mean of predicted numbers."""

from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass

from eav_ray.config.data_sections import STRICT
from eav_ray.config.fusion.base import FusionConfig


@dataclass(frozen=True, config=STRICT)
class MeanConfig(FusionConfig):
    """The mean of the numbers that the modalities predict; nothing is trained. Of `data.targets` alone."""

    has_parameters: ClassVar[bool] = False
    predicts_classes: ClassVar[bool] = False
    predicts_numbers: ClassVar[bool] = True
    kind: Literal["mean"] = "mean"
