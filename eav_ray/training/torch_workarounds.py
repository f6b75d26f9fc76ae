"""Reach into PyTorch 2.15: every private or unstable name of it that we use."""

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.optim.adamw import adamw

# `module:attribute` -> (PyTorch in which it was seen, when it may go). A name in quotes is a text that the module
# holds. tests/training/test_private_names.py resolves them all.
PRIVATE_NAMES = {
    "torch.nn.parallel:DistributedDataParallel.'self.reducer'": (
        "2.15.0",
        "when DistributedDataParallel can be told to let go of its process group and gradients",
    ),
    "torch.nn.parallel:DistributedDataParallel.'self.logger'": ("2.15.0", "with it"),
    "torch.amp.grad_scaler:GradScaler.'_growth_tracker'": (
        "2.15.0",
        "when GradScaler says, and takes, how many steps went well in a row",
    ),
    "torch.optim.adamw:adamw": ("2.15.0", "when PyTorch steps a stack of optimizers at once"),
}

__all__ = ["PRIVATE_NAMES", "adamw", "get_good_steps", "release_ddp", "set_scale"]


def release_ddp(replica: DistributedDataParallel | None) -> None:
    """Release the process group, and the module's gradients: what is left of it may live until the process ends."""
    if replica is not None:
        replica.reducer = replica.logger = None  # pyright: ignore[reportAttributeAccessIssue]


def get_good_steps(scaler: torch.amp.GradScaler) -> int:
    """Return how many steps without overflow there were since the scale last changed."""
    return scaler.state_dict()["_growth_tracker"]


def set_scale(scaler: torch.amp.GradScaler, scale: float, good_steps: int) -> None:
    """Give a scaler a scale, and the number of steps without overflow since it changed."""
    scaler.load_state_dict(scaler.state_dict() | {"scale": scale, "_growth_tracker": good_steps})
