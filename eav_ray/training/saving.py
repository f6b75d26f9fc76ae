"""When a training saves, and the writing of it beside the training."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from torch import Tensor

from eav_ray.data.shard import ShardIndex
from eav_ray.errors import DataError
from eav_ray.models.build import DataShapes
from eav_ray.storage import Store
from eav_ray.training import checkpoint as ckpt
from eav_ray.training.loop import Engine, Position
from eav_ray.training.plan import Run
from eav_ray.training.ranks import broadcast_int, broadcast_object, rank_and_world_size, run_on_all_ranks

WATCH_S = 2.0  # seconds between two questions whether to leave
# A remote store may be away for a while, which costs a training nothing but the next checkpoint.
TRIES, TRY_AGAIN_S = 20, 15.0


class CheckpointWriter:
    """A run's checkpoints of one attempt. Every rank must make the same calls; rank 0 writes.

    A checkpoint is written by a thread while the training goes on; what goes wrong there is told, on every rank, by
    the next call.
    """

    def __init__(
        self, run: Run, results: Store, index: ShardIndex, shapes: DataShapes, body: dict[str, Tensor] | None = None
    ) -> None:
        """
        Args:
            body: Tensors that the training does not hold, and every checkpoint does.
        """
        self._run, self._results, self._classes, self._shapes = run, results, index.classes, shapes
        self._body = body or {}
        self.attempt = broadcast_object(ckpt.new_attempt(results, run.key))
        self._pool = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None
        self.saved_at = time.monotonic()
        self.pause_s = 0.0  # that the training stood still for the last one

    def save(self, engine: Engine, position: Position, metrics: dict[str, Any]) -> None:
        """One to go on from. Returns when the tensors are copied and the writing has begun."""
        began = time.monotonic()
        self._begin(engine.weights(), engine.optimizer_state(), position, metrics)
        self.saved_at = time.monotonic()
        self.pause_s = self.saved_at - began

    def finish(self, weights: dict[str, Tensor], position: Position, metrics: dict[str, Any]) -> str:
        """The last one, of weights alone. Returns its prefix when it is committed."""
        self._begin(weights, {}, position, metrics)
        run_on_all_ranks(self._wait)
        return ckpt.prefix_of(self._run.key, self.attempt, position)

    def close(self) -> None:
        """Ends when all that was begun is written, whatever ended the training."""
        self._pool.shutdown(wait=True)

    def _begin(
        self,
        weights: dict[str, Tensor],
        optimizer_state: dict[str, Tensor],
        position: Position,
        metrics: dict[str, Any],
    ) -> None:
        run_on_all_ranks(self._wait)
        if rank_and_world_size()[0] == 0:
            self._writing = self._pool.submit(self._write, weights, optimizer_state, position, metrics)

    def _wait(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(
        self,
        weights: dict[str, Tensor],
        optimizer_state: dict[str, Tensor],
        position: Position,
        metrics: dict[str, Any],
    ) -> None:
        run, whole, histories = self._run, self._body | weights, {}
        for m, key in run.encoders.items():
            # A fusion checkpoint carries its encoders, so that one path is enough to predict.
            found, _ = ckpt.latest(self._results, key)
            if found is None:
                raise DataError(f"the encoder run {key} has no checkpoint; train it first")
            histories[m] = found[1].metrics.get("history", [])
            whole.update({n: t for n, t in found[1].weights.items() if n.startswith((f"encoders.{m}.", f"heads.{m}."))})
            if m == "eeg" or "normalise.mean" not in whole:
                whole.update({n: t for n, t in found[1].weights.items() if n.startswith("normalise.")})
        finished = position.epoch == run.epochs
        saved = ckpt.Checkpoint(
            run.experiment,
            run.split,
            self._classes,
            self._shapes,
            whole,
            optimizer_state,
            position,
            finished,
            metrics | ({"histories": histories} if histories else {}),
            run.encoders,
            run.data,
        )
        keep = 1 if finished else run.experiment.train.keep_checkpoints
        for left in range(0 if self._results.is_local else TRIES, -1, -1):
            try:
                ckpt.save(self._results, run.key, self.attempt, saved)
                return ckpt.prune(self._results, run.key, self.attempt, keep=keep)
            except DataError:
                if not left:
                    raise
                time.sleep(TRY_AGAIN_S)


class CheckpointPolicy:
    """Says after each step what is due; the same on every rank, by the clock of the first."""

    def __init__(self, run: Run, steps: int, writer: CheckpointWriter, interrupted: Callable[[], str]) -> None:
        """
        Args:
            steps: Of an epoch.
            interrupted: Why the training should leave; empty if it should not. Every rank calls it together.
        """
        self._train, self._steps = run.experiment.train, steps
        self._writer, self._interrupted = writer, interrupted
        self._asked = float("-inf")  # the first step is told at once

    def after(self, position: Position, engine: Engine) -> tuple[bool, bool, str]:
        """(whether to save, whether to tell how far it is, why to leave)."""
        now, minutes = time.monotonic(), self._train.checkpoint_minutes
        ask = 1 if now - self._asked >= WATCH_S else 0
        late = 2 if minutes and now - self._writer.saved_at >= 60 * minutes else 0
        due = broadcast_int(ask + late, engine.device)
        reason = ""
        if due & 1:
            self._asked = now
            reason = self._interrupted()
        every = self._train.checkpoint_steps
        counted = bool(every) and (position.epoch * self._steps + position.step) % every == 0
        return bool(due & 2) or counted or bool(reason), bool(due & 1), reason
