"""Reach into PyTorch 2.15: every private or unstable name of it that we use."""

import importlib
import socket
from typing import Any

import torch
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]
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
    "torch.distributed.rendezvous:TCPStore": ("2.15.0", "when the store of a rendezvous listens at MASTER_ADDR alone"),
    "torch.optim.adamw:adamw": ("2.15.0", "when PyTorch steps a stack of optimizers at once"),
}

__all__ = ["PRIVATE_NAMES", "adamw", "bind_rendezvous", "get_good_steps", "release_ddp", "set_scale"]


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


def bind_rendezvous() -> None:
    """Let the store by which ranks find each other listen at the address where they look for it.

    PyTorch listens at all addresses of the machine. The store wants no token, and who writes to it could name a rank
    other neighbours.
    """
    importlib.import_module("torch.distributed.rendezvous").__dict__["TCPStore"] = _make_store  # a function hides it


def _make_store(host_name: str, port: int, *, is_master: bool, **options: Any) -> TCPStore:
    if not is_master:
        return TCPStore(host_name, port, is_master=False, **options)
    family = socket.AF_INET6 if ":" in host_name else socket.AF_INET
    with socket.create_server((host_name, port), family=family) as listener:
        return TCPStore(host_name, port, is_master=True, master_listen_fd=listener.detach(), **options)
