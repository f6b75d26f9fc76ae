"""Work around DeepSpeed 0.19: every patch of it, and every private or unstable name of it that we use."""

import logging
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator, set_accelerator
from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator
from deepspeed.ops import __compatible_ops__
from deepspeed.runtime.zero import parameter_offload
from deepspeed.utils import logger, safe_get_local_optimizer_state, safe_set_local_optimizer_state
from torch import Tensor, nn

from eav_ray.config.environment import environment_variables
from eav_ray.errors import ConfigError

# `module:attribute` -> (DeepSpeed in which it was seen, when it may go). A name in quotes is a text that the module
# holds. tests/training/test_private_names.py resolves them all.
PRIVATE_NAMES = {
    "deepspeed.accelerator:set_accelerator": ("0.19.8", "when `initialize` takes the device"),
    "deepspeed.accelerator.cpu_accelerator:CPU_Accelerator": ("0.19.8", "with it"),
    "deepspeed.runtime.engine:DeepSpeedEngine.'self.device'": ("0.19.8", "with it"),
    "deepspeed.ops:__compatible_ops__": ("0.19.8", "when its CPU collectives need no compiler at first use"),
    "deepspeed.utils:logger": ("0.19.8", "when an engine logs no page"),
    "deepspeed.runtime.engine:DeepSpeedEngine.'enable_backward_allreduce'": (
        "0.19.8",
        "when stage 0 exchanges gradients within the backward pass (docs/results/train.md)",
    ),
    "deepspeed.runtime.engine:DeepSpeedEngine.'torch_autocast_z0_gradscaler'": (
        "0.19.8",
        "when `initialize` takes a scaler",
    ),
    "deepspeed.runtime.zero.stage_1_and_2:DeepSpeedZeroOptimizer.'torch_autocast_gradscaler'": (
        "0.19.8",
        "when the scaler of stages 1 to 3 halves, and divides gradients before it clips them",
    ),
    "deepspeed.runtime.zero.stage3:DeepSpeedZeroOptimizer_Stage3.'torch_autocast_gradscaler'": ("0.19.8", "with it"),
    "deepspeed.runtime.zero.stage_1_and_2:DeepSpeedZeroOptimizer.override_loss_scale": ("0.19.8", "with it"),
    "deepspeed.runtime.zero.stage3:DeepSpeedZeroOptimizer_Stage3.override_loss_scale": ("0.19.8", "with it"),
    "deepspeed.runtime.zero.stage_1_and_2:DeepSpeedZeroOptimizer.'self.overflow'": ("0.19.8", "with it"),
    "deepspeed.runtime.zero.stage3:DeepSpeedZeroOptimizer_Stage3.'self.overflow'": ("0.19.8", "with it"),
    "deepspeed.runtime.zero.stage_1_and_2:DeepSpeedZeroOptimizer._lazy_init_hp_params_optimizer_state": (
        "0.19.8",
        "when the state of all parameter groups is linked, not that of the first alone",
    ),
    "deepspeed.runtime.zero.stage_1_and_2:DeepSpeedZeroOptimizer.'_hp_optimizer_states_linked'": ("0.19.8", "with it"),
    "deepspeed.runtime.zero.parameter_offload:FWD_MODULE_STACK": (
        "0.19.8",
        "when an engine's module leaves this stack with the engine",
    ),
    "deepspeed.utils:safe_set_local_optimizer_state": (
        "0.19.8",
        "when safe_set_full_optimizer_state pads what the world size does not divide",
    ),
}


def local_rank_variable(device: torch.device) -> AbstractContextManager[None]:
    """Set what DeepSpeed takes for the number of its GPU, whoever started the process.

    Ray Train's is the worker's number on the node, and workers that share a GPU have another each.
    """
    return environment_variables({"LOCAL_RANK": str(device.index or 0)}, keep_existing=device.index is None)


def init_process_group(device: torch.device) -> None:
    """Make a process group even for one process; a store in memory needs no port and leaves no file."""
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # pyright: ignore[reportPrivateImportUsage]


def configure_deepspeed(device: torch.device) -> None:
    """Keep DeepSpeed quiet, and from compiling anything."""
    logger.setLevel(logging.ERROR)  # it logs a page for every engine, and a queue makes hundreds
    if device.type == "cpu":
        # Its CPU collectives are compiled at first use, and a machine without a compiler dies there. Gloo does it.
        __compatible_ops__["deepspeed_shm_comm"] = False


def choose_accelerator(device: torch.device) -> None:
    """Let DeepSpeed compute on the CPU where that is asked for: it takes a GPU wherever it sees one."""
    accelerator: Any = get_accelerator()
    if device.type == "cpu" and accelerator.device_name() != "cpu":
        set_accelerator(CPU_Accelerator())


def check_device(engine: Any, device: torch.device) -> None:
    """Refuse an engine of DeepSpeed that has moved the module to another device than batches come to.

    Raises:
        ConfigError: Naming both devices.
    """
    found = torch.device(engine.device)
    if found.type != device.type or (device.index is not None and found.index != device.index):
        raise ConfigError(
            f"DeepSpeed computes on {found}, but this worker on {device}; unset DS_ACCELERATOR, or set "
            "runtime.engine=torch"
        )


def replace_scalers(engine: Any, optimizer: Any, stage: int, scaler: torch.amp.GradScaler | None) -> None:
    """Take DeepSpeed's own scalers of float16 away, and its exchange of gradients in stage 0.

    In stages 1 to 3 one clips gradients before it divides them, changes between two parameter groups of a step, never
    halves, and comes along in each later engine of a process that once had one in float16. What does work there is
    `override_loss_scale`. Stage 0 exchanges gradients after the backward pass, and once more to clip them; torch does
    it within (docs/results/train.md).

    Args:
        scaler: What stage 0 scales by instead; None where the precision is another.
    """
    if stage:
        optimizer.torch_autocast_gradscaler = None
        return
    engine.enable_backward_allreduce = False
    if scaler is not None:
        engine.torch_autocast_z0_gradscaler = scaler


def link_optimizer_states(optimizer: Any) -> None:
    """Make the optimizer state of all parameter groups reachable by parameter.

    DeepSpeed 0.19 links it once, after the first group's first step, when the other groups have none yet.
    """
    if hasattr(optimizer, "_lazy_init_hp_params_optimizer_state"):
        optimizer._hp_optimizer_states_linked = False
        optimizer._lazy_init_hp_params_optimizer_state()


def restore_optimizer_state_shard(parameter: nn.Parameter, moment: str, value: Tensor, rank: int) -> None:
    """Set this rank's part of a parameter that ZeRO 3 has split; the last part is filled up with zeros.

    DeepSpeed 0.19's setter of whole values fails where the world size does not divide the parameter's size.
    """
    size = safe_get_local_optimizer_state(parameter, moment).numel()
    own_shard = torch.zeros(size, device=value.device)
    own_values = value.flatten()[rank * size : (rank + 1) * size]
    own_shard[: len(own_values)] = own_values
    safe_set_local_optimizer_state(parameter, own_shard, moment)


def release_module(module: nn.Module) -> None:
    """Take a module off the stack that DeepSpeed puts that of each engine on for good, with all that hangs on it."""
    stack = parameter_offload.FWD_MODULE_STACK
    stack[:] = [other for other in stack if other is not module]
