"""Sections of an experiment on models: encoders and fusion."""

from typing import Annotated, Any, Literal

from pydantic import (
    Discriminator,
    Field,
    Tag,
    model_validator,
)
from pydantic.dataclasses import dataclass

from eav_ray.config.data_sections import STRICT


def _check_heads(heads: int, *widths: int) -> None:
    if any(width % heads for width in widths):
        allowed = [h for h in range(1, 65) if not any(width % h for width in widths)]
        shown = " and ".join(map(str, dict.fromkeys(widths)))
        raise ValueError(f"heads is {heads}, which does not divide width {shown}; use one of {allowed}")


@dataclass(frozen=True, config=STRICT)
class EEGformerConfig:
    """Wan et al. 2023 (Frontiers in Neuroscience 17:1148855)."""

    kind: Literal["eegformer"] = "eegformer"
    filters: int = Field(default=32, gt=0, description="filters per electrode of the 1-D convolutions (C)")
    width: int = Field(default=128, gt=0, description="width of the regional and synchronous blocks (D)")
    temporal_width: int = Field(default=256, gt=0, description="width of the temporal blocks and of the tokens (Dt)")
    segments: int = Field(default=8, gt=0, description="contiguous time segments, one token each (M)")
    depth: int = Field(default=2, gt=0, description="blocks per stage")
    heads: int = Field(default=8, gt=0, description="attention heads; must divide both widths")
    dropout: float = Field(default=0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _check_sizes(self) -> "EEGformerConfig":
        _check_heads(self.heads, self.width, self.temporal_width)
        if self.width % self.segments:
            raise ValueError(f"segments is {self.segments}, which does not divide width {self.width}")
        return self


@dataclass(frozen=True, config=STRICT)
class EAVTransformerConfig:
    """The EEG transformer that the reference's released code trains, with its sizes."""

    kind: Literal["eav_transformer"] = "eav_transformer"
    width: int = Field(default=60, gt=0, description="filters of the second convolution, and width of the tokens")
    feed_forward: int = Field(default=3, gt=0, description="width of the feed-forward layers")
    depth: int = Field(default=6, gt=0, description="post-norm blocks")
    heads: int = Field(default=4, gt=0, description="attention heads; must divide the width")
    segments: int = Field(default=10, gt=0, description="time segments that fusion sees, one token each")
    dropout: float = Field(default=0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _check_sizes(self) -> "EAVTransformerConfig":
        _check_heads(self.heads, self.width)
        return self


@dataclass(frozen=True, config=STRICT)
class BandPowerConfig:
    """Differential entropy of five frequency bands per electrode and segment of time, and a small network."""

    kind: Literal["bandpower"] = "bandpower"
    width: int = Field(default=64, gt=0, description="width of the hidden layer and of the tokens")
    segments: int = Field(default=5, gt=0, description="time segments, one token each")
    dropout: float = Field(default=0.3, ge=0, lt=1)


@dataclass(frozen=True, config=STRICT)
class MFCCConfig:
    """Mel-frequency cepstral coefficients with their first and second differences, by librosa, and a small network."""

    kind: Literal["mfcc"] = "mfcc"
    coefficients: int = Field(default=20, gt=1, le=128, description="cepstral coefficients")
    width: int = Field(default=64, gt=0, description="width of the hidden layer and of the tokens")
    segments: int = Field(default=10, gt=0, description="time segments, one token each")
    dropout: float = Field(default=0.3, ge=0, lt=1)


WEIGHTS_HELP = "published weights to start from: a folder as a hub has them (safetensors)"


@dataclass(frozen=True, config=STRICT)
class ASTConfig:
    """Gong et al. 2021, through `transformers.ASTModel`."""

    kind: Literal["ast"] = "ast"
    weights: str = Field(default="", description=f"{WEIGHTS_HELP}, or its name on the Hugging Face hub")
    width: int = Field(default=768, gt=0, description="hidden size")
    depth: int = Field(default=12, gt=0, description="layers")
    heads: int = Field(default=12, gt=0, description="attention heads; must divide the width")
    max_length: int = Field(
        default=512, ge=16, description="spectrogram frames the model sees (10 ms each); 1024 is parity"
    )
    stride: int = Field(default=10, gt=0, description="stride of the 16 x 16 patches; published weights want 10")
    mask_bands: int = Field(default=0, ge=0, le=128, description="SpecAugment: at most so many mel bands are hidden")
    mask_frames: int = Field(default=0, ge=0, description="SpecAugment: at most so many frames of 10 ms are hidden")
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _check_sizes(self) -> "ASTConfig":
        _check_heads(self.heads, self.width)
        return self


@dataclass(frozen=True, config=STRICT)
class ViTConfig:
    """A Vision Transformer of timm on single frames; its class tokens are the time tokens."""

    kind: Literal["vit"] = "vit"
    name: str = Field(
        default="vit_base_patch16_224",
        description="a plain `vit_*` of timm with a class token: no relpos, rope, dinov3, siglip, gap",
    )
    weights: str = Field(
        default="",
        description=f'{WEIGHTS_HELP}, of timm or of a transformers ViT, or one such file; "timm" fetches timm\'s',
    )
    norm_eps: float = Field(default=1e-6, gt=0, description="of the LayerNorms; 1e-12 for weights of transformers")
    image_size: int = Field(default=224, gt=0, description="must equal preprocessing.video.size")
    patch: int = Field(default=16, gt=0, description="patch size; must divide image_size")
    width: int = Field(default=768, gt=0, description="embedding width")
    depth: int = Field(default=12, gt=0, description="blocks")
    heads: int = Field(default=12, gt=0, description="attention heads; must divide the width")
    frames: int = Field(default=25, gt=0, description="frames per window that are used, evenly spaced")
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _check_sizes(self) -> "ViTConfig":
        if self.image_size % self.patch:
            raise ValueError(f"patch is {self.patch}, which does not divide image_size {self.image_size}")
        _check_heads(self.heads, self.width)
        return self


@dataclass(frozen=True, config=STRICT)
class FusionConfig:
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
        description="shared_attention and bottleneck: time marks of tokens; without them, when something was said is "
        "known only as far as the encoders tell",
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
            _check_heads(self.heads, self.width)
        return self

    @property
    def uses_pooled_features(self) -> bool:
        """Whether it reads nothing of a modality but its pooled features."""
        return self.kind in ("gated", "single_token") or (self.kind != "late_mean" and self.input == "pooled")


def _make_kind_discriminator(default: type) -> Discriminator:
    """Tells the members of a union by `kind`; without it, the first of them."""
    return Discriminator(lambda v: v.get("kind", default.kind) if isinstance(v, dict) else getattr(v, "kind", None))


EEGEncoderConfig = Annotated[
    Annotated[EEGformerConfig, Tag("eegformer")]
    | Annotated[EAVTransformerConfig, Tag("eav_transformer")]
    | Annotated[BandPowerConfig, Tag("bandpower")],
    _make_kind_discriminator(EEGformerConfig),
]


AudioEncoderConfig = Annotated[
    Annotated[ASTConfig, Tag("ast")] | Annotated[MFCCConfig, Tag("mfcc")], _make_kind_discriminator(ASTConfig)
]


ENCODER_KINDS: dict[str, dict[str, type]] = {  # the first is the default
    "model.eeg": {"eegformer": EEGformerConfig, "eav_transformer": EAVTransformerConfig, "bandpower": BandPowerConfig},
    "model.audio": {"ast": ASTConfig, "mfcc": MFCCConfig},
}


@dataclass(frozen=True, config=STRICT)
class ModelConfig:
    eeg: EEGEncoderConfig = EEGformerConfig()
    audio: AudioEncoderConfig = ASTConfig()
    video: ViTConfig = ViTConfig()


def get_token_width(section: Any) -> int:
    """Width of the tokens that an encoder of this section of `model` makes."""
    return section.temporal_width if isinstance(section, EEGformerConfig) else section.width
