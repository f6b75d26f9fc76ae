"""All checks of a checkpoint, in the order in which they are shown."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from eav_ray.config import Experiment
from eav_ray.data.shards.window_cache import WindowCache
from eav_ray.data.splits import Split, list_labeled_recordings
from eav_ray.evaluation.leak_audit.access import audit_access
from eav_ray.evaluation.leak_audit.checks import LeakAudit, LeakCheck, judge, leave_open
from eav_ray.evaluation.leak_audit.content import (
    EQUAL_WINDOWS,
    WindowContents,
    audit_equal_signals_of_datasets,
    audit_equal_windows,
    audit_near_duplicates,
)
from eav_ray.evaluation.leak_audit.origins import SearchRecord, audit_pretrained_weights, audit_searched_values
from eav_ray.evaluation.leak_audit.splits import (
    audit_encoders,
    audit_recordings,
    audit_selection,
    audit_split,
    audit_subjects,
    find_matching_split,
    make_outer_split,
)
from eav_ray.evaluation.leak_audit.statistics import STATISTICS, audit_statistics
from eav_ray.training.checkpoint_files import Checkpoint


def audit_checkpoint(
    checkpoint: Checkpoint,
    contents: WindowContents,
    scored_recordings: Sequence[str] = (),
    encoder_recordings: Mapping[str, tuple[str, ...]] | None = None,
    tested_experiment: Experiment | None = None,
    searches: Sequence[SearchRecord] | None = None,
) -> LeakAudit:
    """Every check of one checkpoint.

    Args:
        contents: What all stored windows hold of the data set that it was trained and tested on.
        scored_recordings: The recordings whose scores are reported; those of its own test side, if none are named.
        encoder_recordings: What the encoders that it was trained on were themselves trained on: modality -> recordings,
            of those whose own checkpoints are at hand.
        tested_experiment: Whose fold is tested, where that is not the checkpoint's own: equal training rows are trained
            once, for an inner fold or another protocol perhaps, whose other sides are not those of this one.
        searches: The finished searches of the results store; None where there is no store.
    """
    e, windows = tested_experiment or checkpoint.experiment, contents.windows
    if tested_experiment:
        items = list_labeled_recordings(windows.ids, e.data, e.seed)
        outer = make_outer_split(items, e)
        validation = outer.validation if outer else ()
        claimed_split = Split(e.split.protocol, checkpoint.split.train, validation, tuple(scored_recordings))
    else:
        claimed_split = checkpoint.split
        items, outer = find_matching_split(e, claimed_split, windows)
    split = replace(claimed_split, test=tuple(scored_recordings) or claimed_split.test)
    # An adapted model starts from one that was trained on the other side of its fold.
    pretrained_on = (*outer.train, *outer.validation) if outer and split.protocol == "adapted" else ()
    fitted_on = outer.train if outer and split.protocol == "adapted" else split.train
    checks = [
        audit_split(claimed_split, outer, items),
        audit_recordings(split),
        audit_subjects(split),
        audit_equal_windows(split, pretrained_on, contents, e.data.modalities),
        *audit_copies(split, pretrained_on, contents, e.data.modalities),
        audit_statistics(checkpoint, fitted_on, split.test, windows),
        audit_selection(e, split, items, checkpoint.state.position.epoch),
    ]
    checks.append(audit_access(checkpoint.experiment, split, split.test))
    checks.append(audit_pretrained_weights(checkpoint.experiment))
    checks.append(audit_searched_values(checkpoint.experiment, checkpoint.state.key, split, searches))
    if checkpoint.state.encoder_keys:
        checks.append(audit_encoders(checkpoint, split, encoder_recordings or {}))
    return LeakAudit(tuple(checks))


def audit_transfer(
    checkpoint: Checkpoint,
    training_contents: WindowContents | None,
    test_contents: WindowContents,
    scored_recordings: Sequence[str],
    tested_modalities: Sequence[str],
) -> LeakAudit:
    """Every check of a checkpoint that is tested on another data set.

    Args:
        training_contents: Of the windows that it was trained on; None where they are not at hand.
        test_contents: Of the other data set.
        scored_recordings: Recordings of the other data set.
        tested_modalities: The modalities that it is tested with.
    """
    shards_missing = (
        "its own shards are not at hand: give the store.shards, data.root and preprocessing that it was trained with"
    )
    content_check, statistics_check = (leave_open(name, shards_missing) for name in (EQUAL_WINDOWS, STATISTICS))
    copies: list[LeakCheck] = []
    if training_contents is not None:
        trained_on = (*checkpoint.split.train, *checkpoint.split.validation)
        content_check = audit_equal_signals_of_datasets(
            training_contents, trained_on, test_contents, tuple(scored_recordings), tested_modalities
        )
        copies = [
            audit_near_duplicates(
                m,
                test_contents.fingerprints.get(m, tuple(scored_recordings)),
                training_contents.fingerprints.get(m, trained_on),
                len(scored_recordings),
            )
            for m in sorted(tested_modalities)
        ]
        statistics_check = audit_transferred_statistics(checkpoint, training_contents.windows)
    names = "names of two data sets say nothing of each other; the content of the windows was compared instead"
    selection_check = judge("model selection", "", "nothing was chosen or fitted on the other data set")
    open_names = leave_open("subjects in two splits", names)
    weights_check = audit_pretrained_weights(checkpoint.experiment)
    access_check = audit_access(checkpoint.experiment, replace(checkpoint.split, train=(), validation=()), ())
    others = (statistics_check, selection_check, access_check, weights_check)
    return LeakAudit((open_names, content_check, *copies, *others))


def audit_copies(
    split: Split, pretrained_on: tuple[str, ...], contents: WindowContents, modalities: Sequence[str]
) -> list[LeakCheck]:
    """Look for near-duplicates between the test side and the others, a check a modality."""
    others, fingerprints = (*split.train, *split.validation, *pretrained_on), contents.fingerprints
    return [
        audit_near_duplicates(m, fingerprints.get(m, split.test), fingerprints.get(m, others), len(split.test))
        for m in sorted(modalities)
    ]


def audit_transferred_statistics(checkpoint: Checkpoint, windows: WindowCache) -> LeakCheck:
    """Compute the statistics again on the data set that it was trained on: of its own training side, as always."""
    _, outer = find_matching_split(checkpoint.experiment, checkpoint.split, windows)
    split = checkpoint.split
    fitted_on = outer.train if outer and split.protocol == "adapted" else split.train
    return audit_statistics(checkpoint, fitted_on, split.test, windows)
