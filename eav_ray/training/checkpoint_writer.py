"""When a training saves, and the writing of it beside the training."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import Any

from torch import Tensor

from eav_ray.config import get_modality_info
from eav_ray.models.encoders.base import DataShapes
from eav_ray.storage import Store
from eav_ray.storage.published_weights import describe_starting_weights
from eav_ray.training.checkpoint import (
    load_trained,
    make_attempt_name,
    prune_checkpoints,
    write_checkpoint,
)
from eav_ray.training.checkpoint_files import STARTING_WEIGHTS, Checkpoint, CheckpointState
from eav_ray.training.collectives import broadcast_int, rank_and_world_size, run_on_all_ranks, run_on_first_rank
from eav_ray.training.engines.base import Engine
from eav_ray.training.positions import make_checkpoint_prefix
from eav_ray.training.run_spec import Position, Run
from eav_ray.training.target_scale import TargetScale

STOP_POLL_S = 2.0  # seconds between two questions whether to leave


class CheckpointWriter:
    """A run's checkpoints of one attempt. Every rank must make the same calls; rank 0 writes.

    A checkpoint is written by a thread while the training goes on; what goes wrong there is raised, on every rank, by
    the next call.
    """

    def __init__(
        self,
        run: Run,
        results: Store,
        classes: tuple[str, ...],
        shapes: DataShapes,
        frozen_tensors: dict[str, Tensor] | None = None,
        *,
        scale: TargetScale | None = None,
    ) -> None:
        """
        Args:
            frozen_tensors: Tensors that the training does not hold, and every checkpoint does.
            scale: Of the numbers that are predicted in place of classes.
        """
        self._run, self._results, self._classes, self._shapes = run, results, classes, shapes
        self._scale = scale
        self._frozen_tensors = frozen_tensors or {}
        self.attempt = run_on_first_rank(lambda: make_attempt_name(results, run.key))
        self._pool = ThreadPoolExecutor(1)
        self._pending_write: Future[None] | None = None
        self.saved_at = time.monotonic()
        self.pause_s = 0.0  # that the training stood still for the last one

    def save(self, engine: Engine, position: Position, metrics: dict[str, Any]) -> None:
        """One to go on from. Returns when the tensors are copied and the writing has begun."""
        began = time.monotonic()
        self._begin_write(engine.gather_weights(), engine.optimizer_state(), position, metrics)
        self.saved_at = time.monotonic()
        self.pause_s = self.saved_at - began

    def finish(self, weights: dict[str, Tensor], position: Position, metrics: dict[str, Any]) -> str:
        """The last one, of weights alone. Returns its prefix when it is committed."""
        self._begin_write(weights, {}, position, metrics)
        self.flush()
        return make_checkpoint_prefix(self._run.key, self.attempt, position)

    @property
    def is_writing(self) -> bool:
        """Whether this rank is in the middle of writing one."""
        return self._pending_write is not None and not self._pending_write.done()

    def flush(self) -> None:
        """Return when all that was begun is written: a rank that left sooner would take the group along."""
        run_on_all_ranks(self._wait_for_write)

    def close(self) -> None:
        """Ends when all that was begun is written, whatever ended the training."""
        self._pool.shutdown(wait=True)

    def _begin_write(
        self,
        weights: dict[str, Tensor],
        optimizer_state: dict[str, Tensor],
        position: Position,
        metrics: dict[str, Any],
    ) -> None:
        self.flush()
        if rank_and_world_size()[0] == 0:
            self._pending_write = self._pool.submit(self._write, weights, optimizer_state, position, metrics)

    @cached_property  # read once a run: they are most of what a store is asked for
    def _encoders(self) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
        """The encoders that a fusion's checkpoint carries, so that one path is enough to predict; their histories.

        And the published weights that they started from, as they were described when they were trained.
        """
        weights, histories = dict[str, Tensor](), dict[str, Any]()
        starting_weights = describe_starting_weights(self._run.experiment)
        for m, key in self._run.encoder_keys.items():
            encoder = load_trained(self._results, key)
            histories[m] = encoder.metrics.get("history", [])
            starting_weights |= encoder.metrics.get(STARTING_WEIGHTS, {})
            own_prefixes = (f"encoders.{m}.", f"heads.{m}.")
            weights.update({n: t for n, t in encoder.weights.items() if n.startswith(own_prefixes)})
            if get_modality_info(m).has_named_channels or "normalise.mean" not in weights:
                weights.update({n: t for n, t in encoder.weights.items() if n.startswith("normalise.")})
        return weights, histories, starting_weights

    def _wait_for_write(self) -> None:
        pending_write, self._pending_write = self._pending_write, None
        if pending_write is not None:
            pending_write.result()

    def _write(
        self,
        weights: dict[str, Tensor],
        optimizer_state: dict[str, Tensor],
        position: Position,
        metrics: dict[str, Any],
    ) -> None:
        run, (encoder_weights, histories, starting_weights) = self._run, self._encoders
        all_weights = self._frozen_tensors | weights | encoder_weights
        finished = position.epoch == run.epochs
        state = CheckpointState(
            run.key, position, finished, self._classes, self._shapes, run.data_digest, run.encoder_keys, self._scale
        )
        all_metrics = metrics | ({"histories": histories} if histories else {})
        all_metrics |= {STARTING_WEIGHTS: starting_weights} if starting_weights else {}
        checkpoint = Checkpoint(state, run.experiment, run.split, all_metrics, all_weights, optimizer_state)
        keep = 1 if finished else run.experiment.train.keep_checkpoints
        write_checkpoint(self._results, self.attempt, checkpoint)
        prune_checkpoints(self._results, run.key, self.attempt, keep=keep)


class CheckpointPolicy:
    """Says after each step what is due; the same on every rank, by the clock of the first."""

    def __init__(
        self, run: Run, steps_per_epoch: int, writer: CheckpointWriter, get_stop_reason: Callable[[], str]
    ) -> None:
        """
        Args:
            steps_per_epoch: Of an epoch.
            get_stop_reason: Why the training should leave; empty if it should not. Every rank calls it together.
        """
        self._train_config, self._steps_per_epoch = run.experiment.train, steps_per_epoch
        self._writer, self._get_stop_reason = writer, get_stop_reason
        self._polled_at = float("-inf")  # the first step is reported at once

    def decide_after_step(self, position: Position, engine: Engine) -> tuple[bool, bool, str]:
        """(whether to save, whether to tell how far it is, why to leave).

        Who leaves saves, unless a save is being written: that one is waited for, and a further one would take too long.
        """
        now, minutes = time.monotonic(), self._train_config.checkpoint_minutes
        poll_flag = 1 if now - self._polled_at >= STOP_POLL_S else 0
        save_flag = 2 if minutes and now - self._writer.saved_at >= 60 * minutes else 0
        flags = broadcast_int(poll_flag + save_flag + 4 * self._writer.is_writing, engine.device)
        reason = ""
        if flags & 1:
            self._polled_at = now
            reason = self._get_stop_reason()
        every = self._train_config.checkpoint_steps
        step_due = bool(every) and (position.epoch * self._steps_per_epoch + position.step) % every == 0
        should_save = not flags & 4 if reason else bool(flags & 2) or step_due
        return should_save, bool(flags & 1), reason
