"""Configure band power of EEG."""

from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass

from eav_ray.config.data_sections import STRICT, define
from eav_ray.config.encoders.base import EncoderConfig
from eav_ray.config.modalities import ModalityName


@dataclass(frozen=True, config=STRICT)
class BandPowerConfig(EncoderConfig):
    """Differential entropy of five frequency bands per electrode and segment of time, and a small network."""

    modality: ClassVar[ModalityName] = "eeg"
    is_handcrafted: ClassVar[bool] = True
    normalises_subjects: ClassVar[bool] = True
    kind: Literal["bandpower"] = "bandpower"
    width: int = define(64, "width of the hidden layer and of the tokens", gt=0)
    segments: int = define(5, "time segments, one token each", gt=0)
    dropout: float = define(0.3, ge=0, lt=1)
