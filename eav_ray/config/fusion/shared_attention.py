"""Configure the attention that all modalities share."""

from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass

from eav_ray.config.data_sections import STRICT, define
from eav_ray.config.fusion.base import TokenFusionConfig


@dataclass(frozen=True, config=STRICT)
class SharedAttentionConfig(TokenFusionConfig):
    """One multi-head attention over the tokens of all modalities, read by a learned query."""

    is_batchable: ClassVar[bool] = True
    kind: Literal["shared_attention"] = "shared_attention"
    n_query_steps: int = define(
        1,
        "how often the query reads all tokens; from the second on what it asks of one modality depends on the others",
        gt=0,
    )
    late_fusion_residual: bool = define(
        True, "what is read is added to the unimodal log probabilities, weighed by the modality weights"
    )
