"""Open a tested checkpoint together with its leak audit."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import pandas as pd

from eav_ray.data.splits import Split
from eav_ray.errors import DataError
from eav_ray.evaluation.leak_audit.checks import LeakAudit
from eav_ray.storage import Store
from eav_ray.training.checkpoint import OpenedCheckpoint, list_checkpoints
from eav_ray.training.checkpoint_files import Checkpoint

# What files that other commands left can raise that are damaged, half a file, or of another version. A sound checkpoint
# keeps its page: they are skipped, and named on it.
DAMAGED_FILE_ERRORS = (DataError, KeyError, TypeError, AttributeError, ValueError, IndexError)


def describe_damage(results: Store, path: str, error: Exception) -> str:
    """Describe why something in a results store was left out."""
    return str(error) if isinstance(error, DataError) else f"{results.format_path(path)} cannot be read: {error!r}"


@dataclass(frozen=True)
class EvaluatedCheckpoint:
    """One tested checkpoint."""

    fold: int
    checkpoint: OpenedCheckpoint
    test_ids: tuple[str, ...]  # recordings whose scores are reported
    predictions: pd.DataFrame  # predictions of them
    split: Split | None = None  # of the protocol that asks, where another may have trained the checkpoint


@dataclass(frozen=True)
class AuditedCheckpoint:
    """A tested checkpoint in which the audit found no leak."""

    evaluated: EvaluatedCheckpoint
    n_parameters: int
    audit: LeakAudit

    @property
    def checkpoint(self) -> OpenedCheckpoint:
        return self.evaluated.checkpoint


def open_audited(evaluated: EvaluatedCheckpoint, run_audit: Callable[[Checkpoint], LeakAudit]) -> AuditedCheckpoint:
    """Load a tested checkpoint once, and audit it.

    Raises:
        DataError: It fails the audit, or is damaged.
    """
    loaded = evaluated.checkpoint.load()
    audit_result = replace(run_audit(loaded), commit_sha256=evaluated.checkpoint.commit_sha256)
    if audit_result.failed:
        raise DataError(
            f"{evaluated.checkpoint.path} fails the leak audit, so there is no page of it: "
            f"{audit_result.first_failure}; "
            "train it again on a split that holds"
        )
    return AuditedCheckpoint(evaluated, sum(t.numel() for t in loaded.weights.values()), audit_result)


def read_encoder_train_ids(results: Store, checkpoint: Checkpoint) -> dict[str, tuple[str, ...]]:
    """Of each encoder that a fusion was trained on, and whose own run is in the store: what that was trained on."""
    found = {}
    for m, key in checkpoint.state.encoder_keys.items():
        for _, _, encoder in list_checkpoints(results, key)[:1]:
            with contextlib.suppress(*DAMAGED_FILE_ERRORS):
                found[m] = encoder.split.train
    return found
