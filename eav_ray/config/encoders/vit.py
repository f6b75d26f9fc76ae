"""Configure the Vision Transformer."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from eav_ray.config.data_sections import STRICT, Preprocessing
from eav_ray.config.encoders.base import WEIGHTS_HELP, EncoderConfig, check_heads
from eav_ray.config.modalities import ModalityName


@dataclass(frozen=True, config=STRICT)
class ViTConfig(EncoderConfig):
    """A Vision Transformer of timm on single frames; its class tokens are the time tokens."""

    modality: ClassVar[ModalityName] = "video"
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
        check_heads(self.heads, self.width)
        return self

    def find_problems(self, preprocessing: Preprocessing) -> list[str]:
        problems: list[str] = []
        if self.image_size != preprocessing.video.size:
            problems.append(
                f"model.video.image_size is {self.image_size}, but preprocessing.video.size is "
                f"{preprocessing.video.size}; make them equal"
            )
        stored_frames = preprocessing.video.fps * preprocessing.window_s
        if self.frames > stored_frames:
            problems.append(
                f"model.video.frames is {self.frames}, but a stored window has {stored_frames}; "
                f"set model.video.frames to at most {stored_frames}"
            )
        return problems
