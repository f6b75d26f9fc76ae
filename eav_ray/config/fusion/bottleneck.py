"""Configure fusion by bottleneck tokens."""

from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass

from eav_ray.config.data_sections import STRICT, define
from eav_ray.config.fusion.base import TokenFusionConfig


@dataclass(frozen=True, config=STRICT)
class BottleneckConfig(TokenFusionConfig):
    """Modalities exchange through a few bottleneck tokens (Nagrani et al. 2021, arXiv 2107.00135)."""

    is_batchable: ClassVar[bool] = True
    kind: Literal["bottleneck"] = "bottleneck"
    depth: int = define(2, "layers", gt=0)
    bottlenecks: int = define(4, "tokens through which modalities exchange", gt=0)
