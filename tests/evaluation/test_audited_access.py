"""The audit finds a model that knows more of tested subjects than its access level declares."""

from dataclasses import replace
from typing import Any

import pytest

from eav_ray.config import Experiment, SplitConfig, override
from eav_ray.data.splits import Split
from eav_ray.evaluation.leak_audit.access import audit_access

CROSS = Split("subject_kfold", ("a/1", "a/2"), ("b/1",), ("c/1", "c/2"))
ADAPTED = Split("adapted", ("c/1",), (), ("c/2",))
BLOCK = {"split.access": "unlabelled_block"}


def declare(changes: dict[str, Any], level: str, recordings: int = 0) -> Experiment:
    """An experiment whose level was changed after it had been checked, as a fault of ours might."""
    e = override(Experiment(), changes | BLOCK)
    split: Any = SplitConfig(e.split.protocol, access="unlabelled_block")
    object.__setattr__(split, "access", level)
    object.__setattr__(split, "access_recordings", recordings)
    return replace_split(e, split)


def replace_split(e: Experiment, split: Any) -> Experiment:
    changed = override(e, {})
    object.__setattr__(changed, "split", split)
    return changed


@pytest.mark.parametrize(
    ("changes", "level", "split", "outcome"),
    [
        ({}, "source_only", CROSS, "passed"),
        ({"model.eeg.subject_normalisation": "standardise"}, "source_only", CROSS, "failed"),
        ({"model.eeg.subject_normalisation": "standardise"}, "unlabelled_first_n", CROSS, "passed"),
        ({"model.eeg.subject_normalisation": "standardise"}, "unlabelled_block", CROSS, "passed"),
        ({"preprocessing.eeg.align": "euclidean"}, "unlabelled_first_n", CROSS, "failed"),
        ({"preprocessing.eeg.align": "euclidean"}, "unlabelled_block", CROSS, "passed"),
        ({}, "source_only", replace(CROSS, train=("a/1", "c/3")), "failed"),
        ({}, "unlabelled_block", replace(CROSS, validation=("c/3",)), "failed"),
        ({}, "source_only", ADAPTED, "failed"),
        ({}, "labelled_k", ADAPTED, "passed"),
        ({}, "labelled_k", replace(ADAPTED, train=("c/1", "c/3")), "failed"),
        ({}, "source_only", Split("within", ("c/1",), (), ("c/2",)), "passed"),
    ],
)
def test_what_is_used_is_held_against_what_is_declared(
    changes: dict[str, Any], level: str, split: Split, outcome: str
) -> None:
    e = declare(changes, level, 1 if level in ("labelled_k", "unlabelled_first_n") else 0)
    found = audit_access(e, split, split.test)
    assert found.outcome == outcome, found.detail


def test_a_finding_names_the_setting_or_the_subject() -> None:
    e = declare({"preprocessing.eeg.align": "euclidean"}, "source_only")
    assert (
        "preprocessing.eeg.align=euclidean looks at more than split.access=source_only"
        in audit_access(e, CROSS, ()).detail
    )
    found = audit_access(declare({}, "source_only"), replace(CROSS, train=("c/3",)), CROSS.test)
    assert "labelled recordings of c were trained on" in found.detail
