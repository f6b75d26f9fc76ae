"""Checks of the names on the sides of a split: recordings, people, and what choices were made by."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

from eav_ray.config import Experiment
from eav_ray.data.shards.window_cache import WindowCache
from eav_ray.data.splits import (
    CROSS_SUBJECT_PROTOCOLS,
    LabeledRecording,
    Split,
    list_labeled_recordings,
    make_inner_splits,
    make_split,
)
from eav_ray.errors import ConfigError
from eav_ray.evaluation.leak_audit.checks import LeakCheck, describe_names, judge, leave_open
from eav_ray.training.checkpoint_files import Checkpoint
from eav_ray.words import format_count


def make_outer_split(items: list[LabeledRecording], e: Experiment) -> Split | None:
    try:
        return make_split(items, e.split)
    except ConfigError:
        return None


def find_matching_split(
    e: Experiment, split: Split, windows: WindowCache
) -> tuple[list[LabeledRecording], Split | None]:
    """The recordings and the split that agree with the one that is given; where none do, those of the experiment."""
    first: tuple[list[LabeledRecording], Split | None] | None = None
    for items, outer in _iterate_possible_splits(windows, e):
        if outer and not _describe_split_difference(split, outer):
            return items, outer
        first = first or (items, outer)
    assert first is not None
    return first


def _iterate_possible_splits(
    windows: WindowCache, e: Experiment
) -> Iterator[tuple[list[LabeledRecording], Split | None]]:
    """The recordings that a split may have been made of, and the split; those of the experiment first.

    An encoder that a fusion follows, and a variant of an ablation with fewer modalities, are trained on the split of
    the whole experiment, which also has recordings without theirs.
    """
    own = e.data.modalities
    other_modalities = [m for m in windows.index.modalities if m not in own]
    for n in range(len(other_modalities) + 1):
        for more in combinations(other_modalities, n):
            items = list_labeled_recordings(windows.ids, replace(e.data, modalities=(*own, *more)), e.seed)
            yield items, make_outer_split(items, e)


def _describe_split_difference(split: Split, outer: Split) -> str:
    """How a split is not the one that was derived; empty where it is."""
    if split.protocol == "adapted":
        foreign = {*split.train, *split.test} - set(outer.test)
        return f"not of the fold's test side: {describe_names(foreign)}" if foreign else ""
    for side, ids in split.sides.items():
        mine, theirs = set(ids), set(outer.sides[side])
        if mine != theirs:
            return f"its {side} side differs from what {split.protocol} gives: {describe_names(mine ^ theirs)}"
    return ""


def audit_split(split: Split, outer: Split | None, items: Sequence[LabeledRecording]) -> LeakCheck:
    """The split is the one that the experiment's protocol gives on the recordings that are stored."""
    name = "split, recomputed"
    if outer is None:
        return judge(name, "the experiment's fold cannot be made of the recordings that are stored", "")
    counts = f"{len(split.train)} train, {len(split.validation)} validation, {len(split.test)} test"
    detail = f"{split.protocol} gives the same sides of {format_count(len(items), 'recording')}: {counts}"
    if split.protocol == "adapted":
        detail = "what adapted it and what is tested are of the fold's own test side"
    return judge(name, _describe_split_difference(split, outer), detail)


def audit_recordings(split: Split) -> LeakCheck:
    """No recording is on two sides, by its name."""
    return judge("recordings in two splits", _describe_shared(split, str), "no recording is on two sides")


def audit_subjects(split: Split) -> LeakCheck:
    """No person is on two sides, under a protocol that says so."""
    name = "subjects in two splits"
    if split.protocol not in CROSS_SUBJECT_PROTOCOLS:
        return judge(name, "", f"{split.protocol} tests people of whom other recordings were trained on, and says so")
    return judge(name, _describe_shared(split, lambda i: i.split("/")[0]), "no person is on two sides")


def _describe_shared(split: Split, key: Callable[[str], str]) -> str:
    """Name what is on two sides of a split; empty where nothing is."""
    train, validation, test = ({key(i) for i in side} for side in split.sides.values())
    shared = (train & test) | (train & validation) | (validation & test)
    return f"shared: {describe_names(shared)}" if shared else ""


def audit_selection(e: Experiment, split: Split, items: list[LabeledRecording], epoch: int) -> LeakCheck:
    """Nothing was chosen by a test recording: neither an epoch, nor, on the inner folds of a search, a candidate."""
    name = "model selection"
    if leaked := set(split.validation) & set(split.test):
        return judge(name, f"test recordings among those that choices are made by: {describe_names(leaked)}", "")
    detail = "no recording of the test side validates"
    if split.protocol in CROSS_SUBJECT_PROTOCOLS:
        try:
            inner = make_inner_splits(items, e.split)
        except ConfigError:
            inner = []
        searched = {i for one in inner for i in (*one.train, *one.validation)}
        if leaked := searched & set(split.test):
            return judge(name, f"inner folds hold test recordings: {describe_names(leaked)}", "")
        tested = format_count(len(split.test), "test recording")
        detail += f"; its inner folds ({len(inner)}) hold none of its {tested}"
    return judge(name, "", f"{detail}; the weights are those of the last epoch, {epoch}")


def audit_encoders(
    checkpoint: Checkpoint, split: Split, encoder_recordings: Mapping[str, tuple[str, ...]]
) -> LeakCheck:
    """Frozen encoders, which were trained before, knew no more than the fusion that stands on them."""
    name = "encoders trained on training rows only"
    for m, trained in sorted(encoder_recordings.items()):
        if foreign := set(trained) - set(split.train):
            problem = f"the encoder of {m} was trained on what is not of the training side: {describe_names(foreign)}"
            return judge(name, problem, "")
    missing = sorted(set(checkpoint.state.encoder_keys) - set(encoder_recordings))
    if missing:
        return leave_open(name, f"the results store has not the encoder runs of {', '.join(missing)}")
    modalities = ", ".join(sorted(encoder_recordings))
    return judge(name, "", f"{modalities}: trained on recordings of the training side alone")
