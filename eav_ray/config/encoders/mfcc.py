"""Configure statistics of cepstral coefficients and log-mel bands."""

from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass

from eav_ray.config.data_sections import STRICT, define
from eav_ray.config.encoders.base import INPUT_DROPOUT_HELP, AudioEncoderConfig


@dataclass(frozen=True, config=STRICT)
class MFCCConfig(AudioEncoderConfig):
    """Statistics of cepstral coefficients, their differences and log-mel bands, by librosa, and a small network."""

    revision: ClassVar[int] = 3
    is_handcrafted: ClassVar[bool] = True
    normalises_subjects: ClassVar[bool] = True
    kind: Literal["mfcc"] = "mfcc"
    coefficients: int = define(20, "cepstral coefficients", gt=1, le=128)
    log_mel: bool = define(True, "statistics of 64 log-mel bands beside those of the coefficients")
    width: int = define(64, "width of the hidden layer and of the tokens", gt=0)
    segments: int = define(10, "time segments, one token each", gt=0)
    dropout: float = define(0.3, ge=0, lt=1)
    input_dropout: float = define(0.0, INPUT_DROPOUT_HELP, ge=0, lt=1)
