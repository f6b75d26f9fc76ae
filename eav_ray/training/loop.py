"""The loop: a pure function of steps. It runs in milliseconds in a test and unchanged inside a Ray Train worker."""

import math
import time
from collections.abc import Callable, Iterable

from eav_ray.config import OptimConfig
from eav_ray.training.dataloader import Batch
from eav_ray.training.engines.base import Engine
from eav_ray.training.run_spec import Position

Metrics = dict[str, float]


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
        on_epoch_end: Called at the end of every epoch with the next position and this rank's sums over the epoch:
            `loss_sum`, `count` of windows, `seconds`, all that `on_step_end` took among them, and `wait_s`, those in
            which it waited for data. It may validate and save; it is called on every rank.
        on_step_end: Called on every rank after each step with the next position and the sums so far. It may save, and
            leave by an exception.
        partial_sums: Sums of the part of the first epoch that lies before `start`.
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
    """Linear warm-up, then `optim.schedule`; a function of the position, so that there is no state to save.

    Args:
        first_epoch: Epoch at which it begins.
    """
    total = optim.epochs * steps_per_epoch
    warmup = max(1, round(optim.warmup * total))

    def lr(position: Position) -> float:
        steps_done = (position.epoch - first_epoch) * steps_per_epoch + position.step
        if steps_done < warmup:
            return optim.lr * (steps_done + 1) / warmup
        if optim.schedule == "constant":
            return optim.lr
        return optim.lr * 0.5 * (1 + math.cos(math.pi * (steps_done - warmup) / max(1, total - warmup)))

    return lr
