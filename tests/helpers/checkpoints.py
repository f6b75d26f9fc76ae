"""Finished checkpoints of next to nothing, and a search that found one."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from eav_ray.config import Experiment
from eav_ray.data.splits import Split
from eav_ray.models.encoders.base import DataShapes
from eav_ray.storage import Store
from eav_ray.training.checkpoint import OpenedCheckpoint, write_checkpoint
from eav_ray.training.checkpoint_files import Checkpoint, CheckpointState
from eav_ray.training.run_spec import Position
from eav_ray.tuning.best import write_best_record

FIRST = "a0000-aaaaaaaa"  # attempt
SPLIT = Split("loso", ("a/1",), (), ("b/1",))


def make_checkpoint(
    experiment: Experiment,
    classes: tuple[str, ...] = ("a", "b"),
    split: Split = SPLIT,
    *,
    key: str = "run",
    shapes: DataShapes | None = None,
    weights: dict[str, Tensor] | None = None,
    data_digest: str = "shards",
    position: Position | None = None,
) -> Checkpoint:
    shapes = shapes or DataShapes(30, len(classes))
    state = CheckpointState(
        key, position or Position(1, 0), finished=True, classes=classes, shapes=shapes, data_digest=data_digest
    )
    return Checkpoint(state, experiment, split, metrics={}, weights=weights or {}, optimizer_state={})


def change_state(checkpoint: Checkpoint, **changes: Any) -> Checkpoint:
    return replace(checkpoint, state=replace(checkpoint.state, **changes))


def save_checkpoint(store: Store, checkpoint: Checkpoint) -> OpenedCheckpoint:
    return write_checkpoint(store, FIRST, checkpoint)


def write_finished(store: Store, key: str) -> OpenedCheckpoint:
    weights = {"w": torch.randn(2, 3)}
    made = make_checkpoint(
        Experiment(), ("calm", "sad"), key=key, shapes=DataShapes(3, 2), weights=weights, position=Position(3, 0)
    )
    return save_checkpoint(store, made)


def write_best(store: Store, study: str, **changes: Any) -> None:
    checkpoint = write_finished(store, f"run-{study}")
    recorded = {"checkpoint": checkpoint.prefix, "commit_sha256": checkpoint.commit_sha256}
    write_best_record(
        store, study, [recorded | {"value": 0.75, "candidate": 3, "changes": {"optim.lr": 0.1}} | changes]
    )
