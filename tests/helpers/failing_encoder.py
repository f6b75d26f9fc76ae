"""An EEG encoder whose second rank raises an error in its first step, and never gets further."""

from typing import ClassVar, Literal

import torch.distributed as dist
from pydantic.dataclasses import dataclass
from torch import Tensor

from eav_ray.config import STRICT, EncoderConfig, ModalityName, Preprocessing
from eav_ray.models.encoders.base import DataShapes, EncoderOutput
from tests.helpers.toy_encoder import ToyEncoder


@dataclass(frozen=True, config=STRICT)
class FailingEncoderConfig(EncoderConfig):
    """The toy encoder, which fails."""

    modality: ClassVar[ModalityName] = "eeg"
    kind: Literal["failing_encoder"] = "failing_encoder"


class FailingEncoder(ToyEncoder):
    def forward(self, x_BST: Tensor, present_B: Tensor) -> EncoderOutput:
        if self.training and dist.is_initialized() and dist.get_rank() == 1:
            raise KeyError("an error of the second rank's own")
        return super().forward(x_BST, present_B)


def build(section: FailingEncoderConfig, preprocessing: Preprocessing, shapes: DataShapes) -> FailingEncoder:
    return FailingEncoder(shapes.eeg_channels, window_s=preprocessing.window_s, width=8)
