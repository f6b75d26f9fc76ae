"""What all sections of fusions share."""

from dataclasses import replace
from typing import ClassVar, Literal, Self

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from eav_ray.config.data_sections import STRICT, define
from eav_ray.config.encoders.base import check_heads, round_to_multiple

TRAINING_KEYS = (
    "dropout",
    "modality_dropout",
    "modality_weight_loss",
)  # change how a fusion is trained, not what it is


@dataclass(frozen=True, config=STRICT)
class FusionConfig:
    """Describe one kind of fusion: a frozen dataclass with `kind: Literal["..."]` and the keys of its network.

    The network is built by `build(section, widths, times_s, window_s=..., n_outputs=...)` of the module of the same
    name in `eav_ray.models.fusion`, or, for a kind from outside the package, of the section's own module.

    Attributes:
        revision: Raise it when what the fusion computes changes, so that what was trained before is not reused.
        has_parameters: Whether there is something to train.
        predicts_classes, predicts_numbers: Whether it can fuse what is said of classes, or numbers (`data.targets`).
        is_batchable: Whether several of one structure can be trained as one computation (`tuning/fusion_stack.py`):
            it holds no buffers that training changes, and `torch.vmap` takes all that it computes.
    """

    kind: str = ""
    modality_dropout: float = define(0.2, "chance that training hides a modality; never all", ge=0, lt=1)
    modality_weight_loss: float = define(
        1.0, "how much training draws modality weights to the modalities that are right; 0 for not at all", ge=0
    )
    revision: ClassVar[int] = 1
    has_parameters: ClassVar[bool] = True
    is_batchable: ClassVar[bool] = False
    predicts_classes: ClassVar[bool] = True
    predicts_numbers: ClassVar[bool] = True

    @classmethod
    def can_predict(cls, *, numbers: bool) -> bool:
        """Whether it fuses numbers, or classes."""
        return cls.predicts_numbers if numbers else cls.predicts_classes

    @property
    def uses_pooled_features(self) -> bool:
        """Whether the fusion reads nothing of a modality but its pooled features."""
        return False

    @property
    def reads_time(self) -> bool:
        """Whether the fusion reads tokens that can be marked with their time (`fusion.positions`)."""
        return False

    def find_problems(self, token_widths: list[int]) -> list[str]:
        """List what does not fit the tokens of several encoders, a line each."""
        return []

    def fit_to_widths(self, token_widths: list[int]) -> dict[str, int]:
        """Choose other values for keys that do not fit the tokens of several encoders, as near to their own as fits."""
        return {}

    def scale_sizes(self, factor: float) -> dict[str, int]:
        """Scale the keys that make the fusion wider, as near to a factor as what divides them allows."""
        width = getattr(self, "width", 0)
        return {"width": round_to_multiple(width * factor, getattr(self, "heads", 1))} if width else {}

    def drop_training_keys(self) -> Self:
        """Copy the section without what changes only how the fusion is trained."""
        return replace(self, **dict.fromkeys((k for k in TRAINING_KEYS if hasattr(self, k)), 0.0))


@dataclass(frozen=True, config=STRICT)
class TokenFusionConfig(FusionConfig):
    """What sections of fusions that read tokens share."""

    input: Literal["tokens", "pooled"] = define(
        "tokens", "what is read: all time tokens, or one pooled token a modality"
    )
    width: int = define(256, "width of the shared tokens", gt=0)
    heads: int = define(8, "attention heads; must divide the width", gt=0)
    dropout: float = define(0.1, ge=0, lt=1)
    positions: bool = define(
        True,
        "time encodings of tokens; without them, when something was said is known only as far as the encoders tell",
    )

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        check_heads(self.heads, self.width)
        return self

    @property
    def uses_pooled_features(self) -> bool:
        return self.input == "pooled"

    @property
    def reads_time(self) -> bool:
        return self.input == "tokens"
