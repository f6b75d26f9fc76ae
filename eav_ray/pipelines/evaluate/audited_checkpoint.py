"""Open a tested checkpoint together with its leak audit."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import pandas as pd

from eav_ray.data.splits import Split
from eav_ray.errors import DataError
from eav_ray.evaluation.leak_audit import LeakAudit
from eav_ray.storage import COMMIT, Store, sha256, split_store_path
from eav_ray.training import checkpoint as ckpt
from eav_ray.training.checkpoint import Checkpoint

# What files that other commands left can raise that are damaged, half a file, or of another version. A sound checkpoint
# keeps its page: they are skipped, and named on it.
DAMAGED_FILE_ERRORS = (DataError, KeyError, TypeError, AttributeError, ValueError, IndexError)


@dataclass(frozen=True)
class EvaluatedCheckpoint:
    """One tested checkpoint."""

    fold: int
    path: str  # of the checkpoint
    test_ids: tuple[str, ...]  # recordings whose scores are reported
    predictions: pd.DataFrame  # predictions of them
    split: Split | None = None  # of the protocol that asks, where another may have trained the checkpoint


@dataclass(frozen=True)
class AuditedCheckpoint:
    """Of a checkpoint, all but its weights."""

    evaluated: EvaluatedCheckpoint
    checkpoint: Checkpoint
    n_parameters: int
    audit: LeakAudit
    run_key: str  # of its run
    commit_sha256: str  # sha256 of its COMMIT


def open_audited(
    evaluated: EvaluatedCheckpoint, run_audit: Callable[[ckpt.Checkpoint], LeakAudit]
) -> AuditedCheckpoint:
    store, name = split_store_path(evaluated.path)
    checkpoint = ckpt.read_checkpoint(store, name)
    audit_result = run_audit(checkpoint)
    if not audit_result.passed:
        raise DataError(
            f"{evaluated.path} fails the leak audit, so there is no page of it: {audit_result.first_failure}; train it "
            "again on a split that holds"
        )
    n_parameters = sum(t.numel() for t in checkpoint.weights.values())
    run_key, commit_sha256 = str(store.read_json(f"{name}/state.json")["key"]), sha256(store.read(f"{name}/{COMMIT}"))
    return AuditedCheckpoint(
        evaluated,
        replace(checkpoint, weights={}, optimizer_state={}),
        n_parameters,
        audit_result,
        run_key,
        commit_sha256,
    )


def read_encoder_train_ids(results: Store, checkpoint: ckpt.Checkpoint) -> dict[str, tuple[str, ...]]:
    """Of each encoder that a fusion was trained on, and whose own run is in the store: what that was trained on."""
    found = {}
    for m, key in checkpoint.encoder_keys.items():
        for _, _, prefix in ckpt.list_checkpoints(results, key)[:1]:
            with contextlib.suppress(*DAMAGED_FILE_ERRORS):
                found[m] = tuple(results.read_json(f"{prefix}/split.json")["train"])
    return found
