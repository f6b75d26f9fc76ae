"""Configure the fusion of the reference's released code."""

from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass

from eav_ray.config.data_sections import STRICT, define
from eav_ray.config.fusion.base import FusionConfig


@dataclass(frozen=True, config=STRICT)
class SingleTokenConfig(FusionConfig):
    """Attention over one token, the concatenated pooled features, as the reference's released code runs it."""

    is_batchable: ClassVar[bool] = True
    kind: Literal["single_token"] = "single_token"
    heads: int = define(8, "attention heads; must divide the widths of all encoders together", gt=0)
    dropout: float = define(0.1, ge=0, lt=1)

    @property
    def uses_pooled_features(self) -> bool:
        return True

    def find_problems(self, token_widths: list[int]) -> list[str]:
        problems: list[str] = []
        total_width = sum(token_widths)
        if total_width % self.heads:
            allowed = [h for h in range(1, 65) if total_width % h == 0]
            problems.append(
                f"fusion.heads is {self.heads}, which does not divide {total_width}, the widths of all encoders "
                f"together, over which fusion.kind=single_token attends; use one of {allowed}"
            )
        return problems

    def fit_to_widths(self, token_widths: list[int]) -> dict[str, int]:
        # Over its one token the number of heads changes nothing.
        heads = next(h for h in range(self.heads, 0, -1) if sum(token_widths) % h == 0)
        return {} if heads == self.heads else {"heads": heads}
