"""Configure the encoder of given features."""

from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass

from eav_ray.config.data_sections import STRICT, define
from eav_ray.config.encoders.base import INPUT_DROPOUT_HELP, EncoderConfig


@dataclass(frozen=True, config=STRICT)
class FeaturesConfig(EncoderConfig):
    """Features that others have computed: standardised, projected, and a small network."""

    is_handcrafted: ClassVar[bool] = True
    normalises_subjects: ClassVar[bool] = True
    kind: Literal["features"] = "features"
    width: int = define(64, "width of the hidden layer and of the tokens", gt=0)
    dropout: float = define(0.3, ge=0, lt=1)
    input_dropout: float = define(0.0, INPUT_DROPOUT_HELP, ge=0, lt=1)
