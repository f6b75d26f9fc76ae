"""Hold two engines behind one interface: plain PyTorch, and DeepSpeed with ZeRO.

Optimizer state leaves and enters an engine by parameter name, so it has no world size. DeepSpeed's own
`load_checkpoint` unpickles what it reads and is tied to the world size; it is not used.
"""

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from eav_ray.config import EncoderOptimConfig, OptimConfig, Precision, RuntimeConfig
from eav_ray.models.classifier import Classifier, ClassifierOutput
from eav_ray.models.encoders.base import Encoder
from eav_ray.models.fusion.base import Fusion
from eav_ray.training.collectives import rank_and_world_size
from eav_ray.training.dataloader import Batch
from eav_ray.training.losses import (
    cast_output_to_float32,
    compute_loss_sum,
    compute_modality_weight_loss,
    mixup,
    restrict_to_modality,
)
from eav_ray.training.precision import LossScale, autocast

ADAM_MOMENTS = ("exp_avg", "exp_avg_sq")


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
    # `sync_buffers` makes what batch norms have counted equal.
    return DistributedDataParallel(module, find_unused_parameters=True, forward_sync_buffers=False)


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed what is drawn from on a device, as `torch.manual_seed` does.

    That one also notes the stack for each kind of accelerator that is not in use: a millisecond, in every step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


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
        seed_generators((micro_batch_index << 44) + batch.seed * 1024 + self.rank, self.device)
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


class Engine(Protocol):
    """A module and its optimizer on one rank of a group."""

    rank: int
    world_size: int
    device: torch.device

    def train_step(self, batch: Batch, lr: float) -> float:
        """One optimizer step on the mean loss over the global count; returns this rank's summed loss.

        In float16 a step whose gradients overflow changes nothing but the scale of the loss, on every rank.
        """
        ...

    def predict(self, batch: Batch) -> ClassifierOutput: ...

    def sync_buffers(self) -> None:
        """Make what ranks gathered on their own, as batch statistics, the same on all. Every rank must call it."""
        ...

    def gather_weights(self) -> dict[str, Tensor]:
        """All parameters and buffers by name, on the CPU, whole on every rank. Every rank must call it."""
        ...

    def optimizer_state(self) -> dict[str, Tensor]:
        """Optimizer state as `<parameter>.exp_avg`, `<parameter>.exp_avg_sq`, whole on every rank, and `step`.

        In float16 also `scale` of the loss and `scale_good_steps`, those without overflow since it last changed.
        """
        ...

    def close(self) -> None: ...


def build_parameter_groups(module: nn.Module, optim: OptimConfig) -> list[dict[str, Any]]:
    """Group parameters that are trained by what they share: matrices decay, biases, norms and single vectors do not.

    `scale` is the group's multiple of the learning rate: encoders may learn more slowly than what reads them.
    """
    decay = optim.layer_decay if isinstance(optim, EncoderOptimConfig) else 1.0
    scales: dict[str, float] = {}
    for place, part in module.named_modules():
        if isinstance(part, Encoder):
            for depth, names in enumerate(reversed(part.group_parameters())):
                scales |= {f"{place}.{name}": optim.encoder_lr_scale * decay**depth for name in names}
            scales |= {f"{place}.{name}": 1.0 for name in part.head_parameters}
    groups: dict[tuple[float, float], list[Any]] = {}
    for name, p in module.named_parameters():
        if p.requires_grad:
            scale = scales.get(name, optim.encoder_lr_scale if name.startswith("encoders.") else 1.0)
            groups.setdefault((scale, optim.weight_decay if p.ndim > 1 else 0.0), []).append(p)
    return [{"params": p, "scale": scale, "weight_decay": each} for (scale, each), p in groups.items()]


def limit_training(model: Classifier, optim: OptimConfig, *, encoders_frozen: bool = False) -> None:
    """Let that learn of a classifier which a part of its training trains.

    Raises:
        ConfigError: Encoders have fewer blocks than are to be trained.
    """
    model.freeze_encoders(encoders_frozen)
    if not encoders_frozen and isinstance(optim, EncoderOptimConfig) and optim.trained_blocks:
        model.freeze_lower_blocks(optim.trained_blocks)
