"""Configure the Audio Spectrogram Transformer."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from eav_ray.config.data_sections import STRICT, Preprocessing
from eav_ray.config.encoders.base import WEIGHTS_HELP, EncoderConfig, check_heads
from eav_ray.config.modalities import ModalityName


@dataclass(frozen=True, config=STRICT)
class ASTConfig(EncoderConfig):
    """Gong et al. 2021, through `transformers.ASTModel`."""

    modality: ClassVar[ModalityName] = "audio"
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
        check_heads(self.heads, self.width)
        return self

    @property
    def augments(self) -> bool:
        return bool(self.mask_bands or self.mask_frames)

    def find_problems(self, preprocessing: Preprocessing) -> list[str]:
        frames = 100 * preprocessing.window_s - 2  # of 25 ms, every 10 ms
        if self.max_length >= frames:
            return []
        return [
            f"preprocessing.window_s is {preprocessing.window_s}, which makes {frames} spectrogram frames, but "
            f"model.audio.max_length is {self.max_length} and would cut the rest of the audio off; "
            f"set model.audio.max_length to at least {frames}"
        ]
