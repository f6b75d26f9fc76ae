"""Configure late fusion by the mean of probabilities."""

from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass

from eav_ray.config.data_sections import STRICT
from eav_ray.config.fusion.base import FusionConfig


@dataclass(frozen=True, config=STRICT)
class MeanProbabilityConfig(FusionConfig):
    """The mean of the unimodal probabilities; nothing is trained."""

    has_parameters: ClassVar[bool] = False
    predicts_numbers: ClassVar[bool] = False
    kind: Literal["mean_probability"] = "mean_probability"
