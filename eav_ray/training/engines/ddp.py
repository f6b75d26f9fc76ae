"""Train with plain PyTorch, replicated over ranks (DistributedDataParallel)."""

import contextlib

import torch
from torch import Tensor, nn

from eav_ray.config import OptimConfig, RuntimeConfig
from eav_ray.models.classifier import ClassifierOutput
from eav_ray.training.dataloader import Batch
from eav_ray.training.engines.base import (
    ADAM_MOMENTS,
    BaseEngine,
    build_parameter_groups,
    wrap_in_ddp,
)
from eav_ray.training.precision import autocast
from eav_ray.training.torch_workarounds import release_ddp


class TorchEngine(BaseEngine):
    """AdamW and, on several ranks, DistributedDataParallel."""

    def __init__(
        self,
        module: nn.Module,
        optim: OptimConfig,
        runtime: RuntimeConfig,
        device: torch.device,
        resume: dict[str, Tensor] | None,
    ) -> None:
        super().__init__(module, optim, runtime, device)
        self.optimizer = torch.optim.AdamW(build_parameter_groups(module, optim), lr=optim.lr)
        if resume or self.precision == "fp16":
            self._restore(resume or self._make_initial_optimizer_state())
        self.replica = wrap_in_ddp(module) if self.world_size > 1 else None

    def _restore(self, optimizer_state: dict[str, Tensor]) -> None:
        for name, parameter in self.list_trained_parameters():
            self.optimizer.state[parameter] = {
                "step": optimizer_state["step"].clone(),
                **{m: optimizer_state[f"{name}.{m}"].to(self.device, parameter.dtype) for m in ADAM_MOMENTS},
            }
        self.loss_scale.load_state_dict(optimizer_state)

    def _forward(self, inputs: dict[str, Tensor], present_BM: Tensor) -> ClassifierOutput:
        with autocast(self.device, self.precision):
            return (self.replica or self.module)(inputs, present_BM)

    def _step(self, batch: Batch, lr: float) -> float:
        self.module.train()
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["scale"]
        self.optimizer.zero_grad(set_to_none=True)
        parts, summed, scaler = self._make_device_micro_batches(batch), 0.0, self.loss_scale.scaler
        for k, part in enumerate(parts):
            # Ranks exchange gradients once, when the last part has added its own.
            with self.replica.no_sync() if self.replica and k < len(parts) - 1 else contextlib.nullcontext():
                total, scaled = self._compute_loss(self._forward, part, k)
                scaler.scale(scaled).backward()
            summed += total.item()
        scaler.unscale_(self.optimizer)
        if self.optim.clip:
            nn.utils.clip_grad_norm_(self.module.parameters(), self.optim.clip)
        scaler.step(self.optimizer)
        scaler.update()
        return summed

    def optimizer_state(self) -> dict[str, Tensor]:
        collected: dict[str, Tensor] = {}
        for name, parameter in self.list_trained_parameters():
            state = self.optimizer.state[parameter]
            collected |= {f"{name}.{m}": state[m].float().cpu().clone() for m in ADAM_MOMENTS}
            collected["step"] = torch.as_tensor(state["step"]).float().cpu().clone()
        return collected | self.loss_scale.state_dict()

    def close(self) -> None:
        self.optimizer.state.clear()
        release_ddp(self.replica)
