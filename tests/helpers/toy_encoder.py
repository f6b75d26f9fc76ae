"""An EEG encoder from outside the package: all that one takes."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from eav_ray.config import STRICT, EncoderConfig, ModalityName, Preprocessing
from eav_ray.models.encoders.base import DataShapes, Encoder, EncoderOutput


@dataclass(frozen=True, config=STRICT)
class ToyEncoderConfig(EncoderConfig):
    """The power of each electrode, and a linear map."""

    modality: ClassVar[ModalityName] = "eeg"
    kind: Literal["toy_encoder"] = "toy_encoder"
    width: int = Field(default=8, gt=0, description="width of its one token")


class ToyEncoder(Encoder):
    def __init__(self, n_chans: int, *, window_s: float, width: int) -> None:
        super().__init__()
        self.width = width
        self.register_buffer("times_s", torch.tensor([window_s / 2]), persistent=False)
        self.map = nn.Linear(n_chans, width)

    def forward(self, x_BST: Tensor, present_B: Tensor) -> EncoderOutput:
        pooled = self.map(x_BST.square().mean(-1).log1p())
        return self.build_output(pooled[:, None], pooled, present_B)


def build(section: ToyEncoderConfig, preprocessing: Preprocessing, shapes: DataShapes) -> ToyEncoder:
    return ToyEncoder(shapes.eeg_channels, window_s=preprocessing.window_s, width=section.width)
