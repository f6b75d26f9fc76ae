"""Configure the encoder of signals other than EEG."""

from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass

from eav_ray.config.data_sections import STRICT, define
from eav_ray.config.encoders.base import EncoderConfig


@dataclass(frozen=True, config=STRICT)
class SignalConfig(EncoderConfig):
    """Signals such as ECG, skin conductance, respiration or gaze: convolutions over time."""

    normalises_subjects: ClassVar[bool] = True
    kind: Literal["signal"] = "signal"
    width: int = define(32, "channels of the convolutions, and width of the tokens", gt=0)
    depth: int = define(3, "convolutions, each of which halves the rate", gt=0)
    kernel: int = define(9, "samples that a convolution sees", gt=0)
    segments: int = define(5, "tokens of a window", gt=0)
    dropout: float = define(0.2, ge=0, lt=1)
