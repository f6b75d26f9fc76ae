"""Configure fusion by a gate."""

from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass

from eav_ray.config.data_sections import STRICT, define
from eav_ray.config.fusion.base import FusionConfig


@dataclass(frozen=True, config=STRICT)
class GatedConfig(FusionConfig):
    """A softmax gate over the pooled features of all modalities."""

    is_batchable: ClassVar[bool] = True
    kind: Literal["gated"] = "gated"
    width: int = define(256, "width to which the pooled features are projected", gt=0)
    dropout: float = define(0.1, ge=0, lt=1)

    @property
    def uses_pooled_features(self) -> bool:
        return True
