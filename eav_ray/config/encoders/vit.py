"""Configure the Vision Transformer."""

from typing import ClassVar, Literal

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from eav_ray.config.data_sections import STRICT, Preprocessing, define
from eav_ray.config.encoders.base import WEIGHTS_HELP, EncoderConfig, find_frame_problems
from eav_ray.config.modalities import ModalityName


@dataclass(frozen=True, config=STRICT)
class ViTConfig(EncoderConfig):
    """A Vision Transformer of timm on single frames; its class tokens are the time tokens.

    `subject_normalisation` is of red, green and blue: light and camera of a subject, not what the face does.
    """

    modality: ClassVar[ModalityName] = "video"
    normalises_subjects: ClassVar[bool] = True
    network_key: ClassVar[str] = "name"
    kind: Literal["vit"] = "vit"
    name: str = define(
        "vit_base_patch16_224", "a plain `vit_*` of timm with a class token: no relpos, rope, dinov3, siglip, gap"
    )
    weights: str = define("", f"{WEIGHTS_HELP}, of timm or of a transformers ViT, or one such file")
    norm_eps: float = define(1e-6, "of the LayerNorms; 1e-12 for weights of transformers", gt=0)
    image_size: int = define(224, "must equal preprocessing.video.size", gt=0)
    patch: int = define(16, "patch size; must divide image_size", gt=0)
    centre_patches: bool = define(
        False, "take its mean colour from each patch before it is embedded; published weights want patches as they are"
    )
    width: int = define(768, "embedding width", gt=0)
    depth: int = define(12, "blocks", gt=0)
    heads: int = define(12, "attention heads; must divide the width", gt=0)
    frames: int = define(25, "frames per window that are used, evenly spaced", gt=0)
    dropout: float = define(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _check_patch(self) -> "ViTConfig":
        if self.image_size % self.patch:
            raise ValueError(f"patch is {self.patch}, which does not divide image_size {self.image_size}")
        return self

    @model_validator(mode="after")
    def _check_centring(self) -> "ViTConfig":
        if self.centre_patches and self.weights:
            raise ValueError("centre_patches is true, which weights were not trained with; set centre_patches: false")
        return self

    def find_problems(self, preprocessing: Preprocessing) -> list[str]:
        problems: list[str] = []
        if self.image_size != preprocessing.video.size:
            problems.append(
                f"model.video.image_size is {self.image_size}, but preprocessing.video.size is "
                f"{preprocessing.video.size}; make them equal"
            )
        return problems + find_frame_problems(self.frames, preprocessing)
