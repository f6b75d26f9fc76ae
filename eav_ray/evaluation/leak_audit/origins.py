"""Checks of where weights and values came from that a training did not make itself: what is not recorded stays open."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eav_ray.config import Experiment, to_dict
from eav_ray.config.digests import flatten_sections
from eav_ray.data.splits import Split
from eav_ray.evaluation.leak_audit.checks import LeakCheck, describe_names, judge, leave_open
from eav_ray.storage import hash_content
from eav_ray.words import format_count

PRETRAINED_WEIGHTS, SEARCHED_VALUES = "origin of pretrained weights", "origin of searched values"  # names of checks


@dataclass(frozen=True)
class SearchRecord:
    """What a results store says of one finished search.

    Attributes:
        checkpoints: Keys of the runs that its best candidates were trained by, and what each of them changes.
        seen: Recordings of its inner folds, by which candidates were trained and compared; None where that is not
            known.
    """

    study: str
    checkpoints: Mapping[str, Mapping[str, Any]]
    seen: frozenset[str] | None


def audit_pretrained_weights(experiment: Experiment) -> LeakCheck:
    """Name the weights that encoders start from; what those were trained on, a checkpoint does not record."""
    sources = {
        m: weights
        for m in sorted(experiment.data.modalities)
        if (weights := getattr(experiment.model[m], "weights", ""))
    }
    if not sources:
        return judge(PRETRAINED_WEIGHTS, "", "every encoder starts from fresh weights")
    named = "; ".join(f"{m} starts from {_describe_source(weights)}" for m, weights in sources.items())
    return leave_open(PRETRAINED_WEIGHTS, f"{named}. What they were trained on is not recorded: read who made them")


def _describe_source(weights: str) -> str:
    if Path(weights).expanduser().exists():
        return f"{weights} (now of content {hash_content(weights)[:16]})"
    return f"{weights} (of a revision that is not recorded)"


def audit_searched_values(
    experiment: Experiment, key: str, split: Split, searches: Sequence[SearchRecord] | None
) -> LeakCheck:
    """The search that chose the values of an experiment saw no recording that is tested.

    Args:
        key: Of the run that is tested.
        searches: The finished searches of the results store; None where no store is at hand.
    """
    if searches is None:
        return leave_open(SEARCHED_VALUES, "there is no results store whose searches could be looked at")
    own = [one for one in searches if key in one.checkpoints]
    for one in own:
        values = _describe_values(one.checkpoints[key])
        if one.seen is None:
            detail = f"search {one.study} chose {values}; which recordings it saw cannot be made out any more"
            return leave_open(SEARCHED_VALUES, detail)
        if leaked := one.seen & set(split.test):
            problem = f"search {one.study} chose {values} by test recordings among others: {describe_names(leaked)}"
            return judge(SEARCHED_VALUES, problem, "")
    if own:
        chosen = [f"search {one.study} chose {_describe_values(one.checkpoints[key])}" for one in own]
        counts = f"on inner folds of {format_count(len(own[0].seen or ()), 'recording')}, none of which is tested"
        return judge(SEARCHED_VALUES, "", f"{'; '.join(chosen)}, {counts}")
    flat = flatten_sections(to_dict(experiment))
    for one in searches:
        leaked = set(split.test) & (one.seen or set())
        for changes in one.checkpoints.values() if leaked else ():
            shared = {k: v for k, v in changes.items() if k in flat}
            if shared and all(flat[k] == v for k, v in shared.items()):
                return leave_open(
                    SEARCHED_VALUES,
                    f"its {_describe_values(shared)} is what search {one.study} chose, which saw {len(leaked)} of the "
                    f"tested recordings ({describe_names(leaked)}); whether it was taken from there is not recorded",
                )
    return leave_open(
        SEARCHED_VALUES,
        f"none of {format_count(len(searches), 'search')} in the results store ended in this run; who chose its "
        "values, and by which recordings, is not recorded",
    )


def _describe_values(changes: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(changes.items())) or "no value"
