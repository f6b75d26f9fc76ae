"""Configure covariances of EEG."""

from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass

from eav_ray.config.data_sections import STRICT, define
from eav_ray.config.encoders.base import INPUT_DROPOUT_HELP, EncoderConfig
from eav_ray.config.modalities import ModalityName


@dataclass(frozen=True, config=STRICT)
class CovarianceConfig(EncoderConfig):
    """Logarithms of the covariance matrices of five frequency bands per segment of time, and a small network."""

    modality: ClassVar[ModalityName] = "eeg"
    is_handcrafted: ClassVar[bool] = True
    normalises_subjects: ClassVar[bool] = True
    kind: Literal["covariance"] = "covariance"
    width: int = define(64, "width of the hidden layer and of the tokens", gt=0)
    segments: int = define(1, "time segments, one token each", gt=0)
    dropout: float = define(0.3, ge=0, lt=1)
    input_dropout: float = define(0.0, INPUT_DROPOUT_HELP, ge=0, lt=1)
    shrinkage: float = define(
        0.05, "share of the mean variance of electrodes that is added to the variance of each", gt=0, le=1
    )
