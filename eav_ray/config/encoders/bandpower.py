"""Configure band power of EEG."""

from typing import ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from eav_ray.config.data_sections import STRICT
from eav_ray.config.encoders.base import EncoderConfig
from eav_ray.config.modalities import ModalityName


@dataclass(frozen=True, config=STRICT)
class BandPowerConfig(EncoderConfig):
    """Differential entropy of five frequency bands per electrode and segment of time, and a small network."""

    modality: ClassVar[ModalityName] = "eeg"
    is_handcrafted: ClassVar[bool] = True
    kind: Literal["bandpower"] = "bandpower"
    width: int = Field(default=64, gt=0, description="width of the hidden layer and of the tokens")
    segments: int = Field(default=5, gt=0, description="time segments, one token each")
    dropout: float = Field(default=0.3, ge=0, lt=1)
