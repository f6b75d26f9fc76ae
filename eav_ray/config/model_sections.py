"""Sections of an experiment on models: encoders and fusion."""

import dataclasses
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PlainValidator, TypeAdapter, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from eav_ray.config.data_sections import STRICT
from eav_ray.config.encoders.ast import ASTConfig
from eav_ray.config.encoders.base import EncoderConfig, check_heads
from eav_ray.config.encoders.eegformer import EEGformerConfig
from eav_ray.config.encoders.vit import ViTConfig
from eav_ray.config.kinds import import_installed_plugins, import_modules, index_kinds, list_subclasses


@dataclass(frozen=True, config=STRICT)
class FusionConfig:
    revision: ClassVar[int] = 2
    kind: Literal["shared_attention", "late_mean", "gated", "bottleneck", "single_token"] = Field(
        default="shared_attention",
        description="shared multi-head attention over all tokens; the mean of unimodal logits; a softmax gate over "
        "pooled features; bottleneck tokens (MBT); or attention over their concatenation, as the reference ran it",
    )
    input: Literal["tokens", "pooled"] = Field(
        default="tokens",
        description="what shared_attention and bottleneck read: all time tokens, or one pooled token a modality",
    )
    width: int = Field(default=256, gt=0, description="width of the shared tokens; single_token has that of its input")
    heads: int = Field(default=8, gt=0, description="attention heads; must divide the width")
    depth: int = Field(default=2, gt=0, description="bottleneck: layers")
    bottlenecks: int = Field(default=4, gt=0, description="bottleneck: tokens through which modalities exchange")
    dropout: float = Field(default=0.1, ge=0, lt=1)
    positions: bool = Field(
        default=True,
        description="shared_attention and bottleneck: time encodings of tokens; without them, when something was said "
        "is known only as far as the encoders tell",
    )
    modality_dropout: float = Field(
        default=0.2, ge=0, lt=1, description="chance that training hides a modality; never all"
    )
    n_query_steps: int = Field(
        default=1,
        gt=0,
        description="shared_attention: how often its query reads all tokens; from the second on what it asks of one "
        "modality depends on the others",
    )
    late_fusion_residual: bool = Field(
        default=True,
        description="shared_attention: what it reads is added to the unimodal log probabilities, weighed by the "
        "modality weights",
    )
    modality_weight_loss: float = Field(
        default=1.0,
        ge=0,
        description="how much training draws modality weights to the modalities that are right; 0 for not at all",
    )

    @model_validator(mode="after")
    def _check_sizes(self) -> "FusionConfig":
        if self.kind != "single_token":
            check_heads(self.heads, self.width)
        return self

    @property
    def uses_pooled_features(self) -> bool:
        """Whether it reads nothing of a modality but its pooled features."""
        return self.kind in ("gated", "single_token") or (self.kind != "late_mean" and self.input == "pooled")


@dataclasses.dataclass(frozen=True)
class KindPlace:
    """A key of an experiment whose section is one of several kinds, told apart by `kind`.

    Args:
        key: Where the section stands, as `model.eeg`.
        base: What the sections of all kinds are classes of.
        package: Where the package's own kinds are.
        default: The kind that stands there where none is named.
        modality: Of encoders, which modality they take.
    """

    key: str
    base: type[Any]
    package: str
    default: str
    modality: str = ""

    def list_kinds(self) -> dict[str, type[Any]]:
        """Map the name of each kind to its section, in alphabetical order."""
        import_installed_plugins()
        return self._list_imported_kinds()

    def _list_imported_kinds(self) -> dict[str, type[Any]]:
        import_modules(self.package)
        classes = list_subclasses(self.base)
        return index_kinds([c for c in classes if getattr(c, "modality", "") == self.modality], "kind")

    def find_kind(self, kind: Any) -> type[Any] | None:
        """Find the section of a kind; None where there is no such kind."""
        if not isinstance(kind, str):
            return None
        # Looking through the installed packages takes a tenth of a second, which most processes need not wait for.
        return self._list_imported_kinds().get(kind) or self.list_kinds().get(kind)

    def validate(self, value: Any) -> Any:
        """Turn a tree into the section of the kind that it names, the default one where it names none."""
        if isinstance(value, self.base) and getattr(value, "modality", "") == self.modality:
            return value
        if not isinstance(value, dict):
            raise PydanticCustomError("not_a_section", "give a section with a kind")
        kind = value.get("kind", self.default)
        section = self.find_kind(kind)
        if section is None:
            raise PydanticCustomError("unknown_kind", "no such kind", {"kind": kind})
        return TypeAdapter(section).validate_python(value)


KIND_PLACES = {
    place.key: place
    for place in (
        KindPlace("model.audio", EncoderConfig, "eav_ray.config.encoders", "ast", "audio"),
        KindPlace("model.eeg", EncoderConfig, "eav_ray.config.encoders", "eegformer", "eeg"),
        KindPlace("model.video", EncoderConfig, "eav_ray.config.encoders", "vit", "video"),
    )
}


@dataclass(frozen=True, config=STRICT)
class ModelConfig:
    eeg: Annotated[EncoderConfig, PlainValidator(KIND_PLACES["model.eeg"].validate)] = EEGformerConfig()
    audio: Annotated[EncoderConfig, PlainValidator(KIND_PLACES["model.audio"].validate)] = ASTConfig()
    video: Annotated[EncoderConfig, PlainValidator(KIND_PLACES["model.video"].validate)] = ViTConfig()
