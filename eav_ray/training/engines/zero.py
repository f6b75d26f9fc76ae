"""Train with DeepSpeed and ZeRO. It and its workarounds alone import deepspeed, which takes seconds."""

import contextlib
import copy
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_optimizer_state, safe_set_full_optimizer_state
from torch import Tensor, nn

from eav_ray.config import OptimConfig, RuntimeConfig
from eav_ray.training.dataloader import Batch
from eav_ray.training.engines import deepspeed_workarounds as workarounds
from eav_ray.training.engines.base import (
    ADAM_MOMENTS,
    BaseEngine,
    build_parameter_groups,
    wrap_in_ddp,
)
from eav_ray.training.precision import AUTOCAST_DTYPES
from eav_ray.training.torch_workarounds import release_ddp

PERSISTENCE_THRESHOLD = 100_000  # elements; ZeRO 3 leaves smaller parameters whole on every rank (DeepSpeed's default)


class DeepSpeedEngine(BaseEngine):
    """DeepSpeed, ZeRO stages 0 to 3. At the sizes of these encoders ZeRO saves memory and costs time."""

    def __init__(
        self,
        module: nn.Module,
        optim: OptimConfig,
        runtime: RuntimeConfig,
        device: torch.device,
        resume: dict[str, Tensor] | None,
    ) -> None:
        self._cleanup = contextlib.ExitStack()
        self._cleanup.enter_context(workarounds.local_rank_variable(device))
        workarounds.configure_deepspeed(device)
        workarounds.choose_accelerator(device)
        workarounds.init_process_group(device)
        deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False, verbose=False)
        # Stage 3 takes a module's parameters apart for good.
        self._original_module, self._stage = module, runtime.zero_stage
        module = copy.deepcopy(module) if self._stage == 3 else module
        super().__init__(module, optim, runtime, device)
        # A client optimizer: DeepSpeed's own Adam is compiled on first use too.
        client = torch.optim.AdamW(build_parameter_groups(module, optim), lr=optim.lr)
        initial_state = self._make_initial_optimizer_state() if self.precision == "fp16" else None
        zero: dict[str, Any] = {"stage": self._stage, "stage3_param_persistence_threshold": PERSISTENCE_THRESHOLD}
        if runtime.offload:
            zero["offload_optimizer"] = {"device": "cpu", "pin_memory": device.type == "cuda"}
        config = {
            "train_micro_batch_size_per_gpu": max(1, optim.batch // self.world_size),
            "gradient_accumulation_steps": 1,
            "gradient_clipping": optim.clip if self._stage else 0.0,
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            # No module's gradients travel in half precision.
            "torch_autocast": {
                "enabled": self.precision in AUTOCAST_DTYPES,
                "dtype": str(AUTOCAST_DTYPES.get(self.precision, torch.bfloat16)).removeprefix("torch."),
                "lower_precision_safe_modules": [],
            },
            "steps_per_print": 10**9,
        }
        self.replica = wrap_in_ddp(module) if self.world_size > 1 and not self._stage else None
        self.engine, optimizer, *_ = deepspeed.initialize(
            model=self.replica or module, optimizer=client, config=config, dist_init_required=False
        )
        workarounds.check_device(self.engine, device)
        self._optimizer: Any = optimizer  # the stage's wrapper around the client optimizer
        scaler = self.loss_scale.scaler if self.precision == "fp16" else None
        workarounds.replace_scalers(self.engine, optimizer, self._stage, scaler)
        if restored_state := resume or initial_state:
            self._restore(restored_state)

    @property
    def _client_optimizer(self) -> Any:
        """The client optimizer below whatever wrapper the stage put around it."""
        return getattr(self._optimizer, "optimizer", self._optimizer)

    def _step(self, batch: Batch, lr: float) -> float:
        self.engine.train()
        scale_by_hand = self.precision == "fp16" and self._stage > 0
        if scale_by_hand:
            self._optimizer.override_loss_scale(self.loss_scale.value)
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group["scale"]
        parts, summed = self._make_device_micro_batches(batch), 0.0
        for k, part in enumerate(parts):
            last = k == len(parts) - 1
            self.engine.set_gradient_accumulation_boundary(last)
            with self.replica.no_sync() if self.replica and not last else contextlib.nullcontext():
                total, scaled = self._compute_loss(self.engine, part, k)
                self.engine.backward(scaled)
            if last and not self._stage:
                self.loss_scale.scaler.unscale_(self._client_optimizer)
                if self.optim.clip:
                    nn.utils.clip_grad_norm_(self.module.parameters(), self.optim.clip)
            self.engine.step()
            summed += total.item()
        if scale_by_hand:
            self.loss_scale.record_step(self._optimizer.overflow)
        return summed

    def gather_weights(self) -> dict[str, Tensor]:
        with self._gather_parameters():
            return super().gather_weights()

    def _gather_parameters(self) -> contextlib.AbstractContextManager[Any]:
        """In which the module's parameters have their values on every rank, for reading."""
        if self._stage < 3:
            return contextlib.nullcontext()
        return deepspeed.zero.GatheredParameters(list(self.module.parameters()))

    def optimizer_state(self) -> dict[str, Tensor]:
        workarounds.link_optimizer_states(self._optimizer)
        collected: dict[str, Tensor] = {}
        for name, parameter in self.list_trained_parameters():
            for m in ADAM_MOMENTS:
                whole = safe_get_full_optimizer_state(parameter, m)
                if whole is None:  # stage 0 keeps the client optimizer's own state
                    whole = self._client_optimizer.state[parameter][m]
                collected[f"{name}.{m}"] = whole.detach().float().cpu().clone()
        steps = [s["step"] for s in self._client_optimizer.state.values() if "step" in s]
        collected["step"] = torch.as_tensor(steps[0]).float().cpu().clone()
        return collected | self.loss_scale.state_dict()

    def _restore(self, resume: dict[str, Tensor]) -> None:
        # The state exists only after a step: take one at learning rate 0, which changes no weight, then replace it.
        for group in self._optimizer.param_groups:
            group["lr"] = 0.0
        with self._gather_parameters():
            zero = sum((p.sum() * 0 for _, p in self.list_trained_parameters()), torch.zeros((), device=self.device))
            self.engine.backward(zero)
        self.engine.step()
        # Leaving this, ZeRO 3 splits what the step left whole. Which modules read another's parameters it learns where
        # it meets these split; first after a checkpoint, when the order of reading stands, it would end with an error.
        with self._gather_parameters():
            pass
        workarounds.link_optimizer_states(self._optimizer)
        for name, parameter in self.list_trained_parameters():
            for m in ADAM_MOMENTS:
                value = resume[f"{name}.{m}"].to(self.device)
                if parameter in self._client_optimizer.state:
                    self._client_optimizer.state[parameter][m].copy_(value)
                elif self._stage == 3:
                    workarounds.restore_optimizer_state_shard(parameter, m, value, self.rank)
                else:
                    safe_set_full_optimizer_state(parameter, value, m)
        for state in self._client_optimizer.state.values():
            if "step" in state:
                state["step"] = torch.as_tensor(resume["step"]).clone()
        self.loss_scale.load_state_dict(resume)

    def close(self) -> None:
        if self._stage == 3:
            self._original_module.load_state_dict(self.gather_weights())
        self.engine.destroy()
        release_ddp(self.replica)
        if self._stage == 3:
            workarounds.release_module(self.module)
        self._cleanup.close()
