"""Two engines behind one interface: plain PyTorch, and DeepSpeed with ZeRO. The only file that imports deepspeed.

Optimizer state leaves and enters an engine by parameter name, so it has no world size. DeepSpeed's own
`load_checkpoint` unpickles what it reads and is tied to the world size; it is not used.
"""

import contextlib
import copy
import logging
import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from eav_ray.config import OptimConfig, Precision, RuntimeConfig
from eav_ray.models.build import ClassifierOutput
from eav_ray.models.encoder import upcast_half_precision
from eav_ray.models.fusion import Fusion
from eav_ray.training.loop import Batch, Engine, build_parameter_groups
from eav_ray.training.precision import AUTOCAST_DTYPES, LossScale, autocast
from eav_ray.training.ranks import rank_and_world_size

ADAM_MOMENTS = ("exp_avg", "exp_avg_sq")
PERSISTENCE_THRESHOLD = 100_000  # elements; ZeRO 3 leaves smaller parameters whole on every rank (DeepSpeed's default)


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
        resume: Moments of a checkpoint, as `Engine.moments` returned them.
    """
    module.to(device)
    make = DeepSpeedEngine if runtime.engine == "deepspeed" else TorchEngine
    return make(module, optim, runtime, device, resume)


def compute_window_losses(logits_BK: Tensor, batch: Batch, label_smoothing: float) -> Tensor:
    """(batch,) cross-entropy of this rank's windows; rows of weight 0 are 0, whatever their logits are."""

    def compute_cross_entropy(label_B: Tensor, weight_B: Tensor) -> Tensor:
        loss_B = nn.functional.cross_entropy(
            upcast_half_precision(logits_BK), label_B, reduction="none", label_smoothing=label_smoothing
        )
        return torch.where(weight_B > 0, loss_B * weight_B, 0)

    each_B = compute_cross_entropy(batch.label_B, batch.weight_B)
    if batch.mixup_targets is not None:
        other_B, weight_B, share_B = batch.mixup_targets
        each_B = share_B * each_B + (1 - share_B) * compute_cross_entropy(other_B, weight_B)
    return each_B


def restrict_to_modality(batch: Batch, column: int) -> Batch:
    """The batch as one modality sees it: windows that lack it weigh nothing."""
    present_B = batch.present_BM[:, column]
    mixed = batch.mixup_targets
    if mixed is not None:  # only windows with the same modalities are mixed
        mixed = (mixed[0], mixed[1] * present_B, mixed[2])
    return replace(batch, weight_B=batch.weight_B * present_B, mixup_targets=mixed)


def cast_output_to_float32(output: ClassifierOutput) -> ClassifierOutput:
    """What was computed in half precision as float32: losses and tables are made of it."""
    logits = {m: upcast_half_precision(x) for m, x in output.unimodal_logits.items()}
    rest = (upcast_half_precision(x) for x in (output.weights_BM, output.corrected_BM))
    return ClassifierOutput(upcast_half_precision(output.logits_BK), logits, *rest)


def compute_loss_sum(logits_BK: Tensor, batch: Batch, label_smoothing: float) -> Tensor:
    return compute_window_losses(logits_BK, batch, label_smoothing).sum()


def compute_modality_weight_loss(output: ClassifierOutput, batch: Batch) -> Tensor:
    """Cross-entropy of the modality weights against who of the modalities is right, summed over this rank's windows.

    The target is the softmax of the negative losses of the modalities alone, which get no gradient from it; the weights
    are the count-corrected ones. That weights should fall with a modality's own loss is from Zhang et al. 2023 (ICML,
    arXiv 2306.02050).
    """
    names = sorted(output.unimodal_logits)
    # What a window's class weighs says how much the window counts, not how wrong a modality is.
    ones = torch.ones_like(batch.weight_B)
    mixed = None if batch.mixup_targets is None else (batch.mixup_targets[0], ones, batch.mixup_targets[2])
    unweighted = replace(batch, weight_B=ones, mixup_targets=mixed)
    each_BM = [
        compute_window_losses(output.unimodal_logits[m].detach(), restrict_to_modality(unweighted, i), 0.0)
        for i, m in enumerate(names)
    ]
    target_BM = (-torch.stack(each_BM, 1)).masked_fill(~batch.present_BM, float("-inf")).softmax(1)
    log_BM = upcast_half_precision(output.corrected_BM).clamp(min=1e-8).log()
    each_B = -torch.where(batch.present_BM, target_BM * log_BM, 0).sum(1)
    counts_B = batch.weight_B
    if batch.mixup_targets is not None:
        _, weight_B, share_B = batch.mixup_targets
        counts_B = share_B * counts_B + (1 - share_B) * weight_B
    return (each_B * counts_B).sum()


def mixup(batch: Batch, alpha: float, rank: int) -> Batch:
    """Zhang et al. 2018 (arXiv 1710.09412): each window becomes a mean of itself and of another of this rank's batch.

    Windows that lack different modalities, or whose tokens are masked differently, are not mixed with each other.
    """
    rng = np.random.default_rng([batch.seed, rank])
    n, device = len(batch.label_B), batch.label_B.device
    share = float(rng.beta(alpha, alpha))
    other = torch.from_numpy(rng.permutation(n)).to(device)
    mixable = (batch.present_BM == batch.present_BM[other]).all(1) & (batch.weight_B > 0) & (batch.weight_B[other] > 0)
    for x in batch.inputs.values():
        if x.dtype == torch.bool:
            mixable = mixable & (x == x[other]).flatten(1).all(1)
    share_B = torch.where(mixable, share, 1.0)
    inputs = {}
    for name, x in batch.inputs.items():
        if x.dtype != torch.bool:
            own = share_B.view(-1, *[1] * (x.ndim - 1))
            mean = own * x + (1 - own) * x[other]
            x = mean.round().to(x.dtype) if x.dtype == torch.uint8 else mean.to(x.dtype)
        inputs[name] = x
    return replace(batch, inputs=inputs, mixup_targets=(batch.label_B[other], batch.weight_B[other], share_B))


def move_batch_to_device(batch: Batch, device: torch.device) -> Batch:
    """Inputs keep their precision: the modules cast after the filter bank and the normalisation, not before."""
    return Batch(
        {m: x.to(device, non_blocking=True) for m, x in batch.inputs.items()},
        batch.present_BM.to(device),
        batch.label_B.to(device),
        batch.weight_B.to(device),
        batch.global_count,
        batch.seed,
    )


def make_micro_batches(batch: Batch, size: int) -> list[Batch]:
    """The batch in parts of at most `size` windows; 0 for one part. Their losses add up to the batch's."""
    n = len(batch.label_B)
    if not size or size >= n:
        return [batch]

    def cut(start: int) -> Batch:
        rows = slice(start, start + size)
        return replace(
            batch,
            inputs={m: x[rows] for m, x in batch.inputs.items()},
            present_BM=batch.present_BM[rows],
            label_B=batch.label_B[rows],
            weight_B=batch.weight_B[rows],
            mixup_targets=batch.mixup_targets
            and (batch.mixup_targets[0][rows], batch.mixup_targets[1][rows], batch.mixup_targets[2][rows]),
        )

    return [cut(start) for start in range(0, n, size)]


def wrap_in_ddp(module: nn.Module) -> DistributedDataParallel:
    """The module with gradients that are averaged over ranks while the rest is computed, the same way each time.

    By default it sorts its buckets anew after the first step, by when gradients came. From three ranks on the place in
    a bucket decides the order in which ranks are added up, and a resumed training would differ in the last bits. It
    never sorts where it looks for parameters without a gradient. There are none here: modality dropout and missing
    modalities leave gradients at zero, since every encoder runs in every step.
    """
    warnings.filterwarnings("ignore", message="find_unused_parameters=True was specified")
    # `settle` makes what batch norms have counted equal.
    return DistributedDataParallel(module, find_unused_parameters=True, forward_sync_buffers=False)


def release_ddp(replica: DistributedDataParallel | None) -> None:
    """Of the process group, and of the module's gradients: what is left of it may live until the process ends."""
    if replica is not None:
        replica.reducer = replica.logger = None  # pyright: ignore[reportAttributeAccessIssue]


class BaseEngine:
    """What both engines share: the loss, dropout from counters, prediction in eval mode.

    Weights and moments are in single precision. The forward pass computes in `runtime.precision` by autocast, and
    nothing that a checkpoint holds is rounded.
    """

    def __init__(self, module: nn.Module, optim: OptimConfig, runtime: RuntimeConfig, device: torch.device) -> None:
        self.rank, self.world_size = rank_and_world_size()
        self.module, self.optim, self.device = module, optim, device
        self.precision: Precision = runtime.precision
        self.micro_batch = runtime.micro_batch
        self.loss_scale = LossScale(device, runtime.precision)
        fusion = getattr(module, "fusion", None)
        self.modality_weight_loss_factor = fusion.weight_loss if isinstance(fusion, Fusion) else 0.0

    def _make_device_micro_batches(self, batch: Batch) -> list[Batch]:
        """What is computed at once, on the device. As many on every rank, which have equally many rows."""
        batch = move_batch_to_device(batch, self.device)
        if self.optim.mixup:
            batch = mixup(batch, self.optim.mixup, self.rank)
        return make_micro_batches(batch, self.micro_batch)

    def train_step(self, batch: Batch, lr: float) -> float:
        if self.precision != "fp16":
            return self._step(batch, lr)
        # A forward pass that overflows would leave no batch statistics behind.
        before, scale = [b.clone() for b in self.module.buffers()], self.loss_scale.value
        summed = self._step(batch, lr)
        if self.loss_scale.value < scale:
            for buffer, value in zip(self.module.buffers(), before, strict=True):
                buffer.copy_(value)
            self.loss_scale.check()
        return summed

    def _step(self, batch: Batch, lr: float) -> float:
        raise NotImplementedError

    def _make_initial_optimizer_state(self) -> dict[str, Tensor]:
        """Those before any step. Optimizers make them in their first, but in float16 there may be none for a while."""
        zeros = {f"{name}.{m}": torch.zeros_like(p) for name, p in self.list_trained_parameters() for m in ADAM_MOMENTS}
        return zeros | {"step": torch.tensor(0.0)} | self.loss_scale.state_dict()

    def _compute_loss(
        self, forward: Callable[..., ClassifierOutput], batch: Batch, micro_batch_index: int
    ) -> tuple[Tensor, Tensor]:
        """(summed loss of these windows, what is differentiated)."""
        # Dropout is a function of (seed, step, rank, part), never of what this process drew before.
        torch.manual_seed((micro_batch_index << 44) + batch.seed * 1024 + self.rank)
        output = cast_output_to_float32(forward(batch.inputs, batch.present_BM))
        total = compute_loss_sum(output.logits_BK, batch, self.optim.label_smoothing)
        differentiated = total
        if len(output.unimodal_logits) > 1:
            for column, m in enumerate(sorted(output.unimodal_logits)):
                # Their own loss trains the heads of encoders that are trained here; cached logits need none.
                if output.unimodal_logits[m].requires_grad:
                    differentiated = differentiated + compute_loss_sum(
                        output.unimodal_logits[m], restrict_to_modality(batch, column), self.optim.label_smoothing
                    )
        if self.modality_weight_loss_factor and output.corrected_BM.requires_grad:
            differentiated = differentiated + self.modality_weight_loss_factor * compute_modality_weight_loss(
                output, batch
            )
        # Both engines average gradients over ranks, so each rank's share of the global mean is scaled by the world.
        return total, differentiated * (self.world_size / batch.global_count)

    @torch.no_grad()
    def predict(self, batch: Batch) -> ClassifierOutput:
        self.module.eval()
        batch = move_batch_to_device(batch, self.device)
        with autocast(self.device, self.precision):
            return cast_output_to_float32(self.module(batch.inputs, batch.present_BM))

    def list_trained_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The parameters that this engine moves, by name."""
        return [(name, p) for name, p in self.module.named_parameters() if p.requires_grad]

    def sync_buffers(self) -> None:
        # Neither DeepSpeed nor DistributedDataParallel leaves them equal after a step. Other buffers are constants.
        if self.world_size > 1:
            for norm in (m for m in self.module.modules() if isinstance(m, nn.BatchNorm1d)):
                for buffer in (norm.running_mean, norm.running_var):
                    if buffer is not None:
                        dist.all_reduce(buffer)
                        buffer /= self.world_size

    def gather_weights(self) -> dict[str, Tensor]:
        state = self.module.state_dict()
        return {name: value.detach().float().cpu().clone() for name, value in state.items()}


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
        self.optimizer = torch.optim.AdamW(build_parameter_groups(module.named_parameters(), optim), lr=optim.lr)
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
        import deepspeed
        from deepspeed.ops import __compatible_ops__
        from deepspeed.utils import logger

        logger.setLevel(logging.ERROR)  # it logs a page for every engine, and a queue makes hundreds

        if device.type == "cpu":
            # Its CPU collectives are compiled at first use, and a machine without a compiler dies there. Gloo does it.
            __compatible_ops__["deepspeed_shm_comm"] = False
        _init_single_process_group(device)
        deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False, verbose=False)
        # Stage 3 takes a module's parameters apart for good.
        self._original_module, self._stage = module, runtime.zero_stage
        module = copy.deepcopy(module) if self._stage == 3 else module
        super().__init__(module, optim, runtime, device)
        # A client optimizer: DeepSpeed's own Adam is compiled on first use too.
        client = torch.optim.AdamW(build_parameter_groups(module.named_parameters(), optim), lr=optim.lr)
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
        # DeepSpeed exchanges the gradients of stage 0 after the backward pass, and once more to clip them; torch does
        # it within (docs/results/train.md).
        self.replica = wrap_in_ddp(module) if self.world_size > 1 and not self._stage else None
        self.engine, optimizer, *_ = deepspeed.initialize(
            model=self.replica or module, optimizer=client, config=config, dist_init_required=False
        )
        self._optimizer: Any = optimizer  # the stage's wrapper around the client optimizer
        if not self._stage:
            self.engine.enable_backward_allreduce = False
        # DeepSpeed 0.19 has scalers of its own. In stages 1 to 3 one clips gradients before it divides them, changes
        # between two parameter groups of a step, never halves, and comes along in each later engine of a process that
        # once had one in float16. What does work there is `override_loss_scale`.
        if self._stage:
            self._optimizer.torch_autocast_gradscaler = None
        elif self.precision == "fp16":
            self.engine.torch_autocast_z0_gradscaler = self.loss_scale.scaler
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
        import deepspeed

        return deepspeed.zero.GatheredParameters(list(self.module.parameters()))

    def optimizer_state(self) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_optimizer_state

        self._link_optimizer_states()
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

    def _link_optimizer_states(self) -> None:
        """Make the optimizer state of all parameter groups reachable by parameter.

        DeepSpeed 0.19 links it once, after the first group's first step, when the other groups have none yet.
        """
        if hasattr(self._optimizer, "_lazy_init_hp_params_optimizer_state"):
            self._optimizer._hp_optimizer_states_linked = False
            self._optimizer._lazy_init_hp_params_optimizer_state()

    def _restore(self, resume: dict[str, Tensor]) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state

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
        self._link_optimizer_states()
        for name, parameter in self.list_trained_parameters():
            for m in ADAM_MOMENTS:
                value = resume[f"{name}.{m}"].to(self.device)
                if parameter in self._client_optimizer.state:
                    self._client_optimizer.state[parameter][m].copy_(value)
                elif self._stage == 3:
                    self._restore_optimizer_state_shard(parameter, m, value)
                else:
                    safe_set_full_optimizer_state(parameter, value, m)
        for state in self._client_optimizer.state.values():
            if "step" in state:
                state["step"] = torch.as_tensor(resume["step"]).clone()
        self.loss_scale.load_state_dict(resume)

    def _restore_optimizer_state_shard(self, parameter: nn.Parameter, moment: str, value: Tensor) -> None:
        """This rank's part of a parameter that ZeRO 3 has split; the last part is filled up with zeros.

        DeepSpeed 0.19's setter of whole values fails where the world size does not divide the parameter's size.
        """
        from deepspeed.utils import safe_get_local_optimizer_state, safe_set_local_optimizer_state

        size = safe_get_local_optimizer_state(parameter, moment).numel()
        own_shard = torch.zeros(size, device=value.device)
        own_values = value.flatten()[self.rank * size : (self.rank + 1) * size]
        own_shard[: len(own_values)] = own_values
        safe_set_local_optimizer_state(parameter, own_shard, moment)

    def close(self) -> None:
        if self._stage == 3:
            self._original_module.load_state_dict(self.gather_weights())
        self.engine.destroy()
        release_ddp(self.replica)
        if self._stage == 3:
            from deepspeed.runtime.zero import parameter_offload

            # DeepSpeed 0.19 puts the module of each engine on this stack for good, and with it all that hangs on it.
            stack = parameter_offload.FWD_MODULE_STACK
            stack[:] = [module for module in stack if module is not self.module]


def _init_single_process_group(device: torch.device) -> None:
    """DeepSpeed needs a process group even for one process; a store in memory needs no port and leaves no file."""
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it, whoever started the process
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # pyright: ignore[reportPrivateImportUsage]
