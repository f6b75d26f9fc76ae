"""Configure mel-frequency cepstral coefficients."""

from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass

from eav_ray.config.data_sections import STRICT, define
from eav_ray.config.encoders.base import AudioEncoderConfig


@dataclass(frozen=True, config=STRICT)
class MFCCConfig(AudioEncoderConfig):
    """Mel-frequency cepstral coefficients with their first and second differences, by librosa, and a small network."""

    revision: ClassVar[int] = 2
    is_handcrafted: ClassVar[bool] = True
    normalises_subjects: ClassVar[bool] = True
    kind: Literal["mfcc"] = "mfcc"
    coefficients: int = define(20, "cepstral coefficients", gt=1, le=128)
    width: int = define(64, "width of the hidden layer and of the tokens", gt=0)
    segments: int = define(10, "time segments, one token each", gt=0)
    dropout: float = define(0.3, ge=0, lt=1)
