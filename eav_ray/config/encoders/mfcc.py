"""Configure mel-frequency cepstral coefficients."""

from typing import ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from eav_ray.config.data_sections import STRICT
from eav_ray.config.encoders.base import EncoderConfig
from eav_ray.config.modalities import ModalityName


@dataclass(frozen=True, config=STRICT)
class MFCCConfig(EncoderConfig):
    """Mel-frequency cepstral coefficients with their first and second differences, by librosa, and a small network."""

    modality: ClassVar[ModalityName] = "audio"
    is_handcrafted: ClassVar[bool] = True
    kind: Literal["mfcc"] = "mfcc"
    coefficients: int = Field(default=20, gt=1, le=128, description="cepstral coefficients")
    width: int = Field(default=64, gt=0, description="width of the hidden layer and of the tokens")
    segments: int = Field(default=10, gt=0, description="time segments, one token each")
    dropout: float = Field(default=0.3, ge=0, lt=1)
