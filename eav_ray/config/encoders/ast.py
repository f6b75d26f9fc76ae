"""Configure the Audio Spectrogram Transformer."""

from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass

from eav_ray.config.data_sections import STRICT, Preprocessing, define
from eav_ray.config.encoders.base import WEIGHTS_HELP, AudioEncoderConfig


@dataclass(frozen=True, config=STRICT)
class ASTConfig(AudioEncoderConfig):
    """Gong et al. 2021, through `transformers.ASTModel`."""

    revision: ClassVar[int] = 2
    normalises_subjects: ClassVar[bool] = True
    kind: Literal["ast"] = "ast"
    weights: str = define("", WEIGHTS_HELP)
    width: int = define(768, "hidden size", gt=0)
    depth: int = define(12, "layers", gt=0)
    heads: int = define(12, "attention heads; must divide the width", gt=0)
    max_length: int = define(512, "spectrogram frames the model sees (10 ms each); 1024 is parity", ge=16)
    stride: int = define(10, "stride of the 16 x 16 patches; published weights want 10", gt=0)
    mask_bands: int = define(0, "SpecAugment: at most so many mel bands are hidden", ge=0, le=128)
    mask_frames: int = define(0, "SpecAugment: at most so many frames of 10 ms are hidden", ge=0)
    dropout: float = define(0.0, ge=0, lt=1)

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
