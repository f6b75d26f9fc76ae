"""Build the engine that an experiment names."""

import torch
from torch import Tensor, nn

from eav_ray.config import OptimConfig, RuntimeConfig
from eav_ray.training.engines.base import Engine
from eav_ray.training.engines.ddp import TorchEngine


def make_engine(
    module: nn.Module,
    optim: OptimConfig,
    runtime: RuntimeConfig,
    *,
    device: torch.device,
    resume: dict[str, Tensor] | None = None,
) -> Engine:
    """An engine on this process' rank of the default process group, or alone where there is none.

    Args:
        module: Already holds the weights to start from. It has those of the engine once that is closed.
        resume: Optimizer state of a checkpoint, as `Engine.optimizer_state` returned it.
    """
    module.to(device)
    if runtime.engine == "deepspeed":
        from eav_ray.training.engines.zero import DeepSpeedEngine

        return DeepSpeedEngine(module, optim, runtime, device, resume)
    return TorchEngine(module, optim, runtime, device, resume)
