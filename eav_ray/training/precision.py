"""Forward passes in half precision over weights and optimizer state in single precision (`runtime.precision`)."""

import torch
from torch import Tensor

from eav_ray.config import Precision
from eav_ray.errors import ConfigError
from eav_ray.training.torch_workarounds import get_good_steps, set_scale

AUTOCAST_DTYPES: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}
INITIAL_LOSS_SCALE = 2.0**16  # of the loss in float16, as PyTorch and DeepSpeed begin
GROWTH_INTERVAL = 2000  # steps without overflow in a row after which it doubles, as with both
MIN_LOSS_SCALE = 1.0  # gradients that overflow at this scale do so for another reason


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """In which matrix products, convolutions and attention are computed in half precision; in fp32 nothing changes."""
    return torch.autocast(device.type, AUTOCAST_DTYPES.get(precision), enabled=precision in AUTOCAST_DTYPES)


class LossScale:
    """What keeps the gradients of float16 between its smallest and its largest number; in other precisions nothing.

    The loss is multiplied by the scale and the gradients are divided by it. A step with gradients that are not finite
    is left out, on every rank, and halves the scale; `GROWTH_INTERVAL` good ones in a row double it.

    Attributes:
        scaler: Does all of it where gradients lie in the parameters; elsewhere `record_step` does its bookkeeping.
    """

    def __init__(self, device: torch.device, precision: Precision) -> None:
        self.scaler = torch.amp.GradScaler(
            device.type, init_scale=INITIAL_LOSS_SCALE, growth_interval=GROWTH_INTERVAL, enabled=precision == "fp16"
        )

    @property
    def value(self) -> float:
        return self.scaler.get_scale()

    def record_step(self, overflow: bool) -> None:
        """A step is over that the scaler did not see."""
        good_steps = 0 if overflow else get_good_steps(self.scaler) + 1
        grown = good_steps == self.scaler.get_growth_interval()
        factor = self.scaler.get_backoff_factor() if overflow else self.scaler.get_growth_factor() if grown else 1.0
        set_scale(self.scaler, factor * self.value, 0 if grown else good_steps)

    def check(self) -> None:
        """Raises ConfigError, on every rank, where no scale is small enough."""
        if self.value < MIN_LOSS_SCALE:
            raise ConfigError(
                "runtime.precision is fp16, in which this training overflows at any scale of the loss; use bf16 or fp32"
            )

    def state_dict(self) -> dict[str, Tensor]:
        """`scale`, and `scale_good_steps` since it last changed; nothing where there is no scale."""
        if not self.scaler.is_enabled():
            return {}
        return {"scale": torch.tensor(self.value), "scale_good_steps": torch.tensor(get_good_steps(self.scaler))}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """
        Args:
            state: What `state` returned, among others.
        """
        if self.scaler.is_enabled():
            set_scale(self.scaler, state["scale"].item(), int(state["scale_good_steps"]))
