"""The loop: a pure function of steps. It runs in milliseconds in a test and unchanged inside a Ray Train worker."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from eav_ray.config import OptimConfig
from eav_ray.models.build import ClassifierOutput

Metrics = dict[str, float]


@dataclass(frozen=True, order=True)
class Position:
    """The next step to take: `step` counts from 0 inside `epoch`."""

    epoch: int
    step: int


@dataclass(frozen=True)
class Batch:
    """One rank's part of a step. Rows of weight 0 only fill the batch up; they are computed but do not count.

    Other weights than 1 are those of classes; they are 1 in the mean over the training windows.
    """

    inputs: dict[str, Tensor]
    present_BM: Tensor  # bool; modalities in sorted order
    label_B: Tensor
    weight_B: Tensor
    global_count: int  # windows of this step over all ranks
    seed: int  # of this step's dropout
    # By mixup, (B,) each: labels of the windows that were mixed in, their weights, and the share of the own window.
    mixup_targets: tuple[Tensor, Tensor, Tensor] | None = None


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


def fit(
    engine: Engine,
    *,
    start: Position,
    stop: Position,
    lr: Callable[[Position], float],
    batches: Callable[[Position], Iterable[Batch]],
    on_epoch_end: Callable[[Position, Metrics], None],
    on_step_end: Callable[[Position, Metrics], None] = lambda position, sums: None,
    partial_sums: Metrics | None = None,
) -> None:
    """Train from one position to another.

    Args:
        batches: This rank's batches from a position to the end of its epoch; a function of the position alone.
        report: Called at the end of every epoch with the next position and this rank's sums over the epoch: `loss_sum`,
            `count` of windows, `seconds`, all that `after_step` took among them, and `wait_s`, those in which it waited
            for data. It may validate and save; it is called on every rank.
        after_step: Called on every rank after each step with the next position and the sums so far. It may save, and
            leave by an exception.
        so_far: Sums of the part of the first epoch that lies before `start`.
    """
    position = start
    while position < stop:
        sums: Metrics = {"loss_sum": 0.0, "count": 0, "seconds": 0.0, "wait_s": 0.0} | (partial_sums or {})
        partial_sums, batch_iterator, step_began = None, iter(batches(position)), time.perf_counter()
        while True:
            wait_began = time.perf_counter()
            batch = next(batch_iterator, None)
            wait_ended = time.perf_counter()
            sums["wait_s"] += wait_ended - wait_began
            if batch is None:
                break
            sums["loss_sum"] += engine.train_step(batch, lr(position))
            sums["count"] += int((batch.weight_B > 0).sum())
            position = Position(position.epoch, position.step + 1)
            sums["seconds"] += time.perf_counter() - step_began
            step_began = time.perf_counter()
            on_step_end(position, sums)
        position = Position(position.epoch + 1, 0)
        on_epoch_end(position, sums)


def make_lr_schedule(optim: OptimConfig, steps_per_epoch: int, *, first_epoch: int = 0) -> Callable[[Position], float]:
    """Linear warm-up, then a cosine to zero; a function of the position, so that there is no state to save.

    Args:
        first: Epoch at which it begins.
    """
    total = optim.epochs * steps_per_epoch
    warmup = max(1, round(optim.warmup * total))

    def lr(position: Position) -> float:
        steps_done = (position.epoch - first_epoch) * steps_per_epoch + position.step
        if steps_done < warmup:
            return optim.lr * (steps_done + 1) / warmup
        return optim.lr * 0.5 * (1 + math.cos(math.pi * (steps_done - warmup) / max(1, total - warmup)))

    return lr


def count_steps_per_epoch(n_windows: int, batch_size: int) -> int:
    return math.ceil(n_windows / batch_size)


def build_parameter_groups(named_parameters: Iterable[tuple[str, Any]], optim: OptimConfig) -> list[dict[str, Any]]:
    """Parameters that are trained, by what they share: matrices decay, biases, norms and single vectors do not.

    `scale` is the group's multiple of the learning rate: encoders may learn more slowly than what reads them.
    """
    groups: dict[tuple[float, float], list[Any]] = {}
    for name, p in named_parameters:
        if p.requires_grad:
            scale = optim.encoder_lr_scale if name.startswith("encoders.") else 1.0
            groups.setdefault((scale, optim.weight_decay if p.ndim > 1 else 0.0), []).append(p)
    return [{"params": p, "scale": scale, "weight_decay": decay} for (scale, decay), p in groups.items()]
