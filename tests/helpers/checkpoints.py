"""Finished checkpoints of next to nothing, and a search that found one."""

from typing import Any

import torch

from eav_ray.config import Experiment
from eav_ray.data.splits import Split
from eav_ray.models.encoders.base import DataShapes
from eav_ray.storage import COMMIT, Store, sha256
from eav_ray.training import checkpoint as ckpt
from eav_ray.training.run_spec import Position

FIRST = "a0000-aaaaaaaa"  # attempt


def write_finished(store: Store, key: str) -> str:
    made = ckpt.Checkpoint(
        experiment=Experiment(),
        split=Split("loso", ("a/1",), (), ("b/1",)),
        classes=("calm", "sad"),
        shapes=DataShapes(3, 2),
        weights={"w": torch.randn(2, 3)},
        optimizer_state={},
        position=Position(3, 0),
        finished=True,
        metrics={},
        encoder_keys={},
    )
    return ckpt.write_checkpoint(store, key, FIRST, made)


def write_best(store: Store, study: str, **changes: Any) -> None:
    prefix = write_finished(store, f"run-{study}")
    recorded = {"checkpoint": prefix, "commit_sha256": sha256(store.read(f"{prefix}/{COMMIT}"))}
    recorded |= {"value": 0.75, "candidate": 3, "changes": {"optim.lr": 0.1}}
    store.write_json(f"searches/{study}/best.json", recorded | changes)
