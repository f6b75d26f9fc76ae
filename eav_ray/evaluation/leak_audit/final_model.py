"""Checks of a final model, which all subjects trained: its own rows, and where its expected result is from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eav_ray.data.shards.window_cache import WindowCache
from eav_ray.data.splits import ALL_SUBJECTS, Split, list_labeled_recordings
from eav_ray.evaluation.leak_audit.access import audit_access
from eav_ray.evaluation.leak_audit.checks import LeakAudit, LeakCheck, describe_names, judge
from eav_ray.evaluation.leak_audit.origins import audit_pretrained_weights
from eav_ray.evaluation.leak_audit.splits import audit_encoders
from eav_ray.evaluation.leak_audit.statistics import audit_statistics
from eav_ray.training.checkpoint_files import Checkpoint
from eav_ray.words import format_count


@dataclass(frozen=True)
class ScoredModel:
    """A model whose tested recordings are part of an expected result.

    Attributes:
        key: Of its run.
        split: What it was trained on and chosen by.
        scored: Recordings whose predictions count.
    """

    key: str
    split: Split
    scored: tuple[str, ...]


def audit_final_model(
    checkpoint: Checkpoint,
    windows: WindowCache,
    tested: Sequence[ScoredModel],
    encoder_recordings: Mapping[str, tuple[str, ...]],
) -> LeakAudit:
    """Check a final model.

    Args:
        windows: Of the data set that it was trained on.
        tested: The models that its expected result is of.
        encoder_recordings: What the encoders under a fusion were trained on, of those whose checkpoints are at hand.
    """
    split = checkpoint.split
    checks = [
        audit_training_side(checkpoint, windows),
        audit_expected_result(checkpoint, tested),
        audit_statistics(checkpoint, split.train, (), windows),
        audit_access(checkpoint.experiment, split, ()),
        audit_pretrained_weights(checkpoint.experiment),
    ]
    if checkpoint.state.encoder_keys:
        checks.append(audit_encoders(checkpoint, split, encoder_recordings))
    return LeakAudit(tuple(checks))


def audit_training_side(checkpoint: Checkpoint, windows: WindowCache) -> LeakCheck:
    """It was trained on all recordings of its experiment, and none is said to test it."""
    name, split, e = "all recordings trained on, none scored", checkpoint.split, checkpoint.experiment
    every = {item.id for item in list_labeled_recordings(windows.ids, e.data, e.seed)}
    problem = ""
    if split.protocol != ALL_SUBJECTS:
        problem = f"its split is of {split.protocol}, and not of all subjects"
    elif scored := {*split.validation, *split.test}:
        problem = f"recordings that are said to test it: {describe_names(scored)}"
    elif other := every ^ set(split.train):
        problem = f"its training side is not all that is stored: {describe_names(other)}"
    subjects = {recording.split("/")[0] for recording in split.train}
    return judge(
        name,
        problem,
        f"{format_count(len(split.train), 'recording')} of {format_count(len(subjects), 'subject')}, which are all "
        "that there are",
    )


def audit_expected_result(checkpoint: Checkpoint, tested: Sequence[ScoredModel]) -> LeakCheck:
    """Its expected result is of subjects whom the models that predicted them never saw, and not of its own."""
    name = "origin of the expected result"
    if not checkpoint.metrics.get("expected_result"):
        return judge(name, "it has no expected result", "")
    for one in tested:
        if one.key == checkpoint.state.key:
            return judge(name, "the expected result is of its own predictions", "")
        known = {recording.split("/")[0] for recording in (*one.split.train, *one.split.validation)}
        if shared := known & {recording.split("/")[0] for recording in one.scored}:
            return judge(name, f"{one.key} was trained on subjects that it is scored on: {describe_names(shared)}", "")
    scored = [recording for one in tested for recording in one.scored]
    if foreign := set(scored) - set(checkpoint.split.train):
        return judge(name, f"recordings that are not of this data set: {describe_names(foreign)}", "")
    if len(scored) > len(set(scored)) or not scored:
        return judge(name, "recordings are scored more than once, or none is", "")
    models = format_count(len(tested), "model")
    detail = f"{format_count(len(scored), 'recording')}, each scored once by one of {models} that never saw its subject"
    return judge(name, "", detail)
