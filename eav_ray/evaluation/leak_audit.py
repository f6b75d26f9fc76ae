"""Leaks: everything that a test score must not have known, looked for anew in what a checkpoint itself says.

Nothing here trusts the code that trained: the split is taken from the checkpoint's own `split.json` and held against
the recordings, against the content of their windows, and against the statistics among its weights.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

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
from eav_ray.models.classifier import Classifier
from eav_ray.storage import sha256
from eav_ray.training.access import list_split_recordings
from eav_ray.training.checkpoint_files import Checkpoint
from eav_ray.training.dataloader import RawSource
from eav_ray.training.statistics import fit_model_statistics
from eav_ray.training.subject_statistics import normalise_source

RELATIVE_TOLERANCE = 1e-4  # of statistics that are computed again: relative, float32
CONTENT, STATISTICS = "equal windows in two splits", "statistics fitted on training rows only"  # names of checks
MAX_SHOWN_NAMES = 3  # names, at most, in a finding


@dataclass(frozen=True)
class LeakCheck:
    name: str
    passed: bool | None  # None where it could not be looked at
    detail: str  # what was compared, or what is wrong


@dataclass(frozen=True)
class LeakAudit:
    checks: tuple[LeakCheck, ...]

    @property
    def passed(self) -> bool:
        return all(check.passed is not False for check in self.checks)

    @property
    def summary(self) -> list[dict[str, object]]:
        return [asdict(check) for check in self.checks]

    @property
    def sha256(self) -> str:
        """Of the summary as JSON, sorted keys."""
        return sha256(json.dumps(self.summary, sort_keys=True).encode())

    @property
    def first_failure(self) -> str:
        return next((f"{check.name}: {check.detail}" for check in self.checks if check.passed is False), "")


class WindowDigests:
    """Hashes of the content of all windows, computed once for any number of checkpoints."""

    def __init__(self, windows: WindowCache) -> None:
        self.windows = windows
        self._by_modality: dict[str, np.ndarray] = {}

    def get_digests(self, modality: str) -> np.ndarray:
        if modality not in self._by_modality:
            self._by_modality[modality] = self.windows.compute_digests(modality)
        return self._by_modality[modality]


def audit_checkpoint(
    checkpoint: Checkpoint,
    window_digests: WindowDigests,
    scored_recordings: Sequence[str] = (),
    encoder_recordings: Mapping[str, tuple[str, ...]] | None = None,
    tested_experiment: Experiment | None = None,
) -> LeakAudit:
    """Every check of one checkpoint.

    Args:
        window_digests: Of all stored windows of the data set that it was trained and tested on.
        scored_recordings: The recordings whose scores are reported; those of its own test side, if none are named.
        encoder_recordings: What the encoders that it was trained on were themselves trained on: modality -> recordings,
            of those whose own checkpoints are at hand.
        tested_experiment: Whose fold is tested, where that is not the checkpoint's own: equal training rows are trained
            once, for an inner fold or another protocol perhaps, whose other sides are not those of this one.
    """
    e, windows = tested_experiment or checkpoint.experiment, window_digests.windows
    if tested_experiment:
        items = list_labeled_recordings(windows.ids, e.data, e.seed)
        outer = _make_outer_split(items, e)
        validation = outer.validation if outer else ()
        claimed_split = Split(e.split.protocol, checkpoint.split.train, validation, tuple(scored_recordings))
    else:
        claimed_split = checkpoint.split
        items, outer = _find_matching_split(e, claimed_split, windows)
    split = replace(claimed_split, test=tuple(scored_recordings) or claimed_split.test)
    # An adapted model starts from one that was trained on the other side of its fold.
    pretrained_on = (*outer.train, *outer.validation) if outer and split.protocol == "adapted" else ()
    checks = [
        _audit_split(claimed_split, outer, items),
        _judge("recordings in two splits", _describe_shared(split, str), "no recording is on two sides"),
        _audit_subjects(split),
        _audit_content(split, pretrained_on, window_digests, e.data.modalities),
        _audit_statistics(checkpoint, outer or split, windows),
        _audit_selection(e, split, items, checkpoint.state.position.epoch),
    ]
    if checkpoint.state.encoder_keys:
        checks.append(_audit_encoders(checkpoint, split, encoder_recordings or {}))
    return LeakAudit(tuple(checks))


def audit_transfer(
    checkpoint: Checkpoint,
    training_digests: WindowDigests | None,
    test_digests: WindowDigests,
    scored_recordings: Sequence[str],
    tested_modalities: Sequence[str],
) -> LeakAudit:
    """Every check of a checkpoint that is tested on another data set.

    Args:
        training_digests: Of the windows that it was trained on; None where they are not at hand.
        test_digests: Of the other data set.
        scored_recordings: Recordings of the other data set.
        tested_modalities: The modalities that it is tested with.
    """
    shards_missing = (
        "its own shards are not at hand: give the store.shards, data.root and preprocessing that it was trained with"
    )
    content_check, statistics_check = (LeakCheck(name, None, shards_missing) for name in (CONTENT, STATISTICS))
    if training_digests is not None:
        rows = training_digests.windows.find_rows((*checkpoint.split.train, *checkpoint.split.validation))
        test_rows = test_digests.windows.find_rows(tuple(scored_recordings))
        problem = ""
        for m in tested_modalities:
            digests = test_digests.get_digests(m)
            shared = ({*training_digests.get_digests(m)[rows]} & {*digests[test_rows]}) - {""}
            if shared and not problem:
                ids = test_digests.windows.ids["id"][[digest in shared for digest in digests]]
                problem = f"{len(shared)} equal signals of {m}: {_describe_names(set(ids))}"
        otherwise = f"no signal of {len(scored_recordings)} recordings is among those of the training"
        content_check = _judge(CONTENT, problem, otherwise)
        _, outer = _find_matching_split(checkpoint.experiment, checkpoint.split, training_digests.windows)
        statistics_check = _audit_statistics(checkpoint, outer or checkpoint.split, training_digests.windows)
    names = "names of two data sets say nothing of each other; the content of the windows was compared instead"
    selection_check = LeakCheck("model selection", True, "nothing was chosen or fitted on the other data set")
    return LeakAudit(
        (LeakCheck("subjects in two splits", None, names), content_check, statistics_check, selection_check)
    )


def _judge(name: str, problem: str, otherwise: str) -> LeakCheck:
    """Fail a check for a problem; without one it is passed, with another detail."""
    return LeakCheck(name, not problem, problem or otherwise)


def _make_outer_split(items: list[LabeledRecording], e: Experiment) -> Split | None:
    try:
        return make_split(items, e.split)
    except ConfigError:
        return None


def _find_matching_split(
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
            yield items, _make_outer_split(items, e)


def _describe_split_difference(split: Split, outer: Split) -> str:
    """How a split is not the one that was derived; empty where it is."""
    if split.protocol == "adapted":
        foreign = {*split.train, *split.test} - set(outer.test)
        return f"not of the fold's test side: {_describe_names(foreign)}" if foreign else ""
    for side, ids in split.sides.items():
        mine, theirs = set(ids), set(outer.sides[side])
        if mine != theirs:
            return f"its {side} side differs from what {split.protocol} gives: {_describe_names(mine ^ theirs)}"
    return ""


def _audit_split(split: Split, outer: Split | None, items: Sequence[LabeledRecording]) -> LeakCheck:
    """The split is the one that the experiment's protocol gives on the recordings that are stored."""
    name = "split, recomputed"
    if outer is None:
        return LeakCheck(name, False, "the experiment's fold cannot be made of the recordings that are stored")
    counts = f"{len(split.train)} train, {len(split.validation)} validation, {len(split.test)} test"
    detail = f"{split.protocol} gives the same sides of {len(items)} recordings: {counts}"
    if split.protocol == "adapted":
        detail = "what adapted it and what is tested are of the fold's own test side"
    return _judge(name, _describe_split_difference(split, outer), detail)


def _audit_subjects(split: Split) -> LeakCheck:
    name = "subjects in two splits"
    if split.protocol not in CROSS_SUBJECT_PROTOCOLS:
        detail = f"{split.protocol} tests people of whom other recordings were trained on, and says so"
        return LeakCheck(name, True, detail)
    return _judge(name, _describe_shared(split, lambda i: i.split("/")[0]), "no person is on two sides")


def _describe_shared(split: Split, key: Callable[[str], str]) -> str:
    """Name what is on two sides of a split; empty where nothing is."""
    train, validation, test = ({key(i) for i in side} for side in split.sides.values())
    shared = (train & test) | (train & validation) | (validation & test)
    return f"shared: {_describe_names(shared)}" if shared else ""


def _audit_content(
    split: Split, pretrained_on: tuple[str, ...], window_digests: WindowDigests, modalities: Sequence[str]
) -> LeakCheck:
    """No signal of a test window is also among the windows of the other sides, under whatever name.

    Args:
        pretrained_on: Recordings that were trained on, too, before the split's own training side.
    """
    windows = window_digests.windows
    test_rows = windows.find_rows(split.test)
    other_rows = windows.find_rows((*split.train, *split.validation, *pretrained_on))
    compared = 0
    for m in modalities:
        digests = window_digests.get_digests(m)
        mine, theirs = set(digests[test_rows]) - {""}, set(digests[other_rows]) - {""}
        compared += len(mine)
        if shared := mine & theirs:
            rows = [r for r in (*test_rows, *other_rows) if digests[r] in shared]
            ids = windows.ids.iloc[rows]
            examples = _describe_names({f"{i} window {w}" for i, w in zip(ids["id"], ids["window"], strict=True)})
            return LeakCheck(CONTENT, False, f"{len(shared)} equal signals of {m}: {examples}")
    return LeakCheck(CONTENT, True, f"{compared} signals of test windows, by content: none is on another side")


def _audit_statistics(checkpoint: Checkpoint, fitted_on: Split, windows: WindowCache) -> LeakCheck:
    """What was fitted to data before training is what the training rows alone give."""
    recording_sets = fitted_on.train, (*fitted_on.train, *fitted_on.validation, *fitted_on.test)
    own, on_all_rows = _refit_statistics(checkpoint, windows, recording_sets)
    if not own:
        return LeakCheck(STATISTICS, True, "its encoders have no statistics of data")
    differing = sorted(n for n, value in own.items() if not _is_close(checkpoint.weights[n], value))
    problem = f"{', '.join(differing)} differ from what the training rows give" if differing else ""
    n_distinguishing = sum(not _is_close(own[n], on_all_rows[n]) for n in own)
    others = f"{n_distinguishing} of {len(own)} would be others with test rows among them"
    return _judge(STATISTICS, problem, f"{', '.join(sorted(own))} are those of the training rows; {others}")


def _refit_statistics(
    checkpoint: Checkpoint, windows: WindowCache, recording_sets: Sequence[tuple[str, ...]]
) -> list[dict[str, Tensor]]:
    """The tensors that are fitted before training, of each of some sets of recordings, the names of the first alone."""
    torch.manual_seed(0)
    model = Classifier(checkpoint.experiment, checkpoint.state.shapes)
    saved_names = model.state_dict().keys()
    buffers = {n: t for n, t in model.named_buffers() if n in saved_names}  # parameters are trained, not fitted
    before, fitted = {n: t.clone() for n, t in buffers.items()}, []
    stored = RawSource(windows, model.modalities)
    everything = list_split_recordings(checkpoint.split)
    source = normalise_source(
        stored, checkpoint.experiment, checkpoint.state.shapes, windows, lambda: (windows, everything)
    )
    for recordings in recording_sets:
        fit_model_statistics(model, windows, recordings, source)
        fitted.append({n: t.clone() for n, t in buffers.items()})
    names = [n for n in buffers if not torch.equal(fitted[0][n], before[n])]
    return [{n: one[n] for n in names} for one in fitted]


def _is_close(a: Tensor, b: Tensor) -> bool:
    tolerance = RELATIVE_TOLERANCE * float(b.abs().max())
    return a.shape == b.shape and torch.allclose(a.float(), b.float(), rtol=RELATIVE_TOLERANCE, atol=tolerance)


def _audit_selection(e: Experiment, split: Split, items: list[LabeledRecording], epoch: int) -> LeakCheck:
    """Nothing was chosen by a test recording: neither an epoch, nor, on the inner folds of a search, a candidate."""
    name = "model selection"
    if leaked := set(split.validation) & set(split.test):
        problem = f"test recordings among those that choices are made by: {_describe_names(leaked)}"
        return LeakCheck(name, False, problem)
    detail = "no recording of the test side validates"
    if split.protocol in CROSS_SUBJECT_PROTOCOLS:
        try:
            inner = make_inner_splits(items, e.split)
        except ConfigError:
            inner = []
        searched = {i for one in inner for i in (*one.train, *one.validation)}
        if leaked := searched & set(split.test):
            return LeakCheck(name, False, f"inner folds hold test recordings: {_describe_names(leaked)}")
        detail += f"; {len(inner)} inner folds hold none of its {len(split.test)} test recordings"
    return LeakCheck(name, True, f"{detail}; the weights are those of the last epoch, {epoch}")


def _audit_encoders(
    checkpoint: Checkpoint, split: Split, encoder_recordings: Mapping[str, tuple[str, ...]]
) -> LeakCheck:
    """Frozen encoders, which were trained before, knew no more than the fusion that stands on them."""
    name = "encoders trained on training rows only"
    for m, trained in sorted(encoder_recordings.items()):
        if foreign := set(trained) - set(split.train):
            problem = f"the encoder of {m} was trained on what is not of the training side: {_describe_names(foreign)}"
            return LeakCheck(name, False, problem)
    missing = sorted(set(checkpoint.state.encoder_keys) - set(encoder_recordings))
    if missing:
        return LeakCheck(name, None, f"the results store has not the encoder runs of {', '.join(missing)}")
    modalities = ", ".join(sorted(encoder_recordings))
    return LeakCheck(name, True, f"{modalities}: trained on recordings of the training side alone")


def _describe_names(names: set[str]) -> str:
    shown = ", ".join(sorted(names)[:MAX_SHOWN_NAMES])
    return shown if len(names) <= MAX_SHOWN_NAMES else f"{shown} and {len(names) - MAX_SHOWN_NAMES} more"
