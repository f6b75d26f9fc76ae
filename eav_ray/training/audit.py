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
from eav_ray.data.cache import WindowCache
from eav_ray.data.split import (
    CROSS_SUBJECT_PROTOCOLS,
    LabeledRecording,
    Split,
    list_labeled_recordings,
    make_inner_splits,
    make_split,
)
from eav_ray.errors import ConfigError
from eav_ray.models.build import Classifier
from eav_ray.storage import sha256
from eav_ray.training.checkpoint import Checkpoint
from eav_ray.training.run import fit_statistics

CLOSE = 1e-4  # of statistics that are computed again: relative, float32
SHOWN = 3  # names, at most, in a finding


@dataclass(frozen=True)
class Check:
    name: str
    passed: bool | None  # None where it could not be looked at
    detail: str  # what was compared, or what is wrong


@dataclass(frozen=True)
class Audit:
    checks: tuple[Check, ...]

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


class Contents:
    """Hashes of the content of all windows, computed once for any number of checkpoints."""

    def __init__(self, windows: WindowCache) -> None:
        self.windows = windows
        self._of: dict[str, np.ndarray] = {}

    def of(self, modality: str) -> np.ndarray:
        if modality not in self._of:
            self._of[modality] = self.windows.compute_digests(modality)
        return self._of[modality]


def audit(
    checkpoint: Checkpoint,
    contents: Contents,
    scored: Sequence[str] = (),
    encoders: Mapping[str, tuple[str, ...]] | None = None,
    asked: Experiment | None = None,
) -> Audit:
    """Every check of one checkpoint.

    Args:
        contents: Of all stored windows of the data set that it was trained and tested on.
        scored: The recordings whose scores are reported; those of its own test side, if none are named.
        encoders: What the encoders that it was trained on were themselves trained on: modality -> recordings, of those
            whose own checkpoints are at hand.
        asked: Whose fold is tested, where that is not the checkpoint's own: equal training rows are trained once, for
            an inner fold or another protocol perhaps, whose other sides are not those of this one.
    """
    e, windows = asked or checkpoint.experiment, contents.windows
    if asked:
        items = list_labeled_recordings(windows.ids, asked.data, asked.seed)
        outer = _outer(items, asked)
        validation = outer.validation if outer else ()
        own = Split(asked.split.protocol, checkpoint.split.train, validation, tuple(scored))
    else:
        own = checkpoint.split
        items, outer = _derive(e, own, windows)
    split = replace(own, test=tuple(scored) or own.test)
    # Whoever calibrates a model starts from one that was trained on the other side of its fold.
    before = (*outer.train, *outer.validation) if outer and split.protocol == "calibrated" else ()
    return Audit(
        (
            _derived(own, outer, items),
            _recordings(split),
            _audit_subjects(split),
            _content(split, before, contents, e.data.modalities),
            _statistics(checkpoint, outer or split, windows),
            _selection(e, split, items, checkpoint.position.epoch),
            *([_encoders(checkpoint, split, encoders or {})] if checkpoint.encoders else []),
        )
    )


def audit_elsewhere(
    checkpoint: Checkpoint, own: Contents | None, contents: Contents, scored: Sequence[str], shown: Sequence[str]
) -> Audit:
    """Every check of a checkpoint that is tested on another data set.

    Args:
        own: Of the windows that it was trained on; None where they are not at hand.
        contents: Of the other data set.
        scored: Recordings of the other data set.
        shown: The modalities that it is tested with.
    """
    away = "its own shards are not at hand: give the store.shards, data.root and profile that it was trained with"
    twins = "equal windows on two sides"
    if own is None:
        compared = Check(twins, None, away)
        statistics = Check("statistics of training rows alone", None, away)
    else:
        rows, test_windows = (
            own.windows.find_rows((*checkpoint.split.train, *checkpoint.split.validation)),
            contents.windows,
        )
        found: Check | None = None
        for m in shown:
            shared = ({*own.of(m)[rows]} & {*contents.of(m)[test_windows.find_rows(tuple(scored))]}) - {""}
            if shared:
                ids = test_windows.ids["id"][[digest in shared for digest in contents.of(m)]]
                found = found or Check(twins, False, f"{len(shared)} equal signals of {m}: {_some(set(ids))}")
        compared = found or Check(twins, True, f"no signal of {len(scored)} recordings is among those of the training")
        _, outer = _derive(checkpoint.experiment, checkpoint.split, own.windows)
        statistics = _statistics(checkpoint, outer or checkpoint.split, own.windows)
    names = "names of two data sets say nothing of each other; the content of the windows was compared instead"
    return Audit(
        (
            Check("people on two sides", None, names),
            compared,
            statistics,
            Check("choices", True, "nothing was chosen or fitted on the other data set"),
        )
    )


def _outer(items: list[LabeledRecording], e: Experiment) -> Split | None:
    try:
        return make_split(items, e.split)
    except ConfigError:
        return None


def _derive(e: Experiment, split: Split, windows: WindowCache) -> tuple[list[LabeledRecording], Split | None]:
    """The recordings and the split that agree with the one that is given; where none do, those of the experiment."""
    first: tuple[list[LabeledRecording], Split | None] | None = None
    for items, outer in _derivations(windows, e):
        if outer and not _differs(split, outer):
            return items, outer
        first = first or (items, outer)
    assert first is not None
    return first


def _derivations(windows: WindowCache, e: Experiment) -> Iterator[tuple[list[LabeledRecording], Split | None]]:
    """The recordings that a split may have been made of, and the split; those of the experiment first.

    An encoder that a fusion follows, and a variant of an ablation with fewer modalities, are trained on the split of
    the whole experiment, which also has recordings without theirs.
    """
    own = e.data.modalities
    rest = [m for m in windows.index.modalities if m not in own]
    for n in range(len(rest) + 1):
        for more in combinations(rest, n):
            items = list_labeled_recordings(windows.ids, replace(e.data, modalities=(*own, *more)), e.seed)
            yield items, _outer(items, e)


def _differs(split: Split, outer: Split) -> str:
    """How a split is not the one that was derived; empty where it is."""
    if split.protocol == "calibrated":
        strangers = {*split.train, *split.test} - set(outer.test)
        return f"not of the fold's test side: {_some(strangers)}" if strangers else ""
    for side in ("train", "validation", "test"):
        mine, theirs = set(getattr(split, side)), set(getattr(outer, side))
        if mine != theirs:
            return f"its {side} side differs from what {split.protocol} gives: {_some(mine ^ theirs)}"
    return ""


def _derived(split: Split, outer: Split | None, items: Sequence[LabeledRecording]) -> Check:
    """The split is the one that the experiment's protocol gives on the recordings that are stored."""
    name = "split, derived again"
    if outer is None:
        return Check(name, False, "the experiment's fold cannot be made of the recordings that are stored")
    if difference := _differs(split, outer):
        return Check(name, False, difference)
    if split.protocol == "calibrated":
        return Check(name, True, "what calibrated and what is tested are of the fold's own test side")
    counts = f"{len(split.train)} train, {len(split.validation)} validation, {len(split.test)} test"
    return Check(name, True, f"{split.protocol} gives the same sides of {len(items)} recordings: {counts}")


def _recordings(split: Split) -> Check:
    shared = _shared(split, lambda i: i)
    return Check(
        "recordings on two sides", not shared, f"shared: {_some(shared)}" if shared else "no recording is on two sides"
    )


def _audit_subjects(split: Split) -> Check:
    name = "people on two sides"
    if split.protocol not in CROSS_SUBJECT_PROTOCOLS:
        return Check(name, True, f"{split.protocol} tests people of whom other recordings were trained on, and says so")
    shared = _shared(split, lambda i: i.split("/")[0])
    return Check(name, not shared, f"shared: {_some(shared)}" if shared else "no person is on two sides")


def _shared(split: Split, key: Callable[[str], str]) -> set[str]:
    train, validation, test = ({key(i) for i in side} for side in (split.train, split.validation, split.test))
    return (train & test) | (train & validation) | (validation & test)


def _content(split: Split, before: tuple[str, ...], contents: Contents, modalities: Sequence[str]) -> Check:
    """No signal of a test window is also among the windows of the other sides, under whatever name.

    Args:
        before: Recordings that were trained on, too, before the split's own training side.
    """
    name, windows = "equal windows on two sides", contents.windows
    test_rows = windows.find_rows(split.test)
    known = windows.find_rows((*split.train, *split.validation, *before))
    compared = 0
    for m in modalities:
        digests = contents.of(m)
        mine, theirs = set(digests[test_rows]) - {""}, set(digests[known]) - {""}
        compared += len(mine)
        if shared := mine & theirs:
            rows = [r for r in (*test_rows, *known) if digests[r] in shared]
            ids = windows.ids.iloc[rows]
            examples = _some({f"{i} window {w}" for i, w in zip(ids["id"], ids["window"], strict=True)})
            return Check(name, False, f"{len(shared)} equal signals of {m}: {examples}")
    return Check(name, True, f"{compared} signals of test windows, by content: none is on another side")


def _statistics(checkpoint: Checkpoint, fitted_on: Split, windows: WindowCache) -> Check:
    """What was fitted to data before training is what the training rows alone give."""
    name = "statistics of training rows alone"
    sides = fitted_on.train, (*fitted_on.train, *fitted_on.validation, *fitted_on.test)
    own, everyone = _fitted(checkpoint, windows, sides)
    if not own:
        return Check(name, True, "its encoders have no statistics of data")
    off = sorted(n for n, value in own.items() if not _close(checkpoint.weights[n], value))
    if off:
        return Check(name, False, f"{', '.join(off)} differ from what the training rows give")
    telling = sum(not _close(own[n], everyone[n]) for n in own)
    return Check(
        name,
        True,
        f"{', '.join(sorted(own))} are those of the training rows; {telling} of {len(own)} would be others with test "
        "rows among them",
    )


def _fitted(checkpoint: Checkpoint, windows: WindowCache, sides: Sequence[tuple[str, ...]]) -> list[dict[str, Tensor]]:
    """The tensors that are fitted before training, of each of some sets of recordings, the names of the first alone."""
    torch.manual_seed(0)
    model = Classifier(checkpoint.experiment, checkpoint.shapes)
    saved_names = model.state_dict().keys()
    buffers = {n: t for n, t in model.named_buffers() if n in saved_names}  # parameters are trained, not fitted
    before, found = {n: t.clone() for n, t in buffers.items()}, []
    for recordings in sides:
        fit_statistics(model, windows, recordings)
        found.append({n: t.clone() for n, t in buffers.items()})
    names = [n for n in buffers if not torch.equal(found[0][n], before[n])]
    return [{n: one[n] for n in names} for one in found]


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a.float(), b.float(), rtol=CLOSE, atol=CLOSE * float(b.abs().max()))


def _selection(e: Experiment, split: Split, items: list[LabeledRecording], epoch: int) -> Check:
    """Nothing was chosen by a test recording: neither an epoch, nor, on the inner folds of a search, a candidate."""
    name = "choices"
    if leaked_validation := set(split.validation) & set(split.test):
        return Check(name, False, f"test recordings among those that choices are made by: {_some(leaked_validation)}")
    detail = "no recording of the test side validates"
    if split.protocol in CROSS_SUBJECT_PROTOCOLS:
        try:
            inner = make_inner_splits(items, e.split)
        except ConfigError:
            inner = []
        seen = {i for one in inner for i in (*one.train, *one.validation)}
        if leaked := seen & set(split.test):
            return Check(name, False, f"inner folds hold test recordings: {_some(leaked)}")
        detail += f"; {len(inner)} inner folds hold none of its {len(split.test)} test recordings"
    return Check(name, True, f"{detail}; the weights are those of the last epoch, {epoch}")


def _encoders(checkpoint: Checkpoint, split: Split, encoders: Mapping[str, tuple[str, ...]]) -> Check:
    """Frozen encoders, which were trained before, knew no more than the fusion that stands on them."""
    name = "encoders of training rows alone"
    for m, trained in sorted(encoders.items()):
        if strangers := set(trained) - set(split.train):
            return Check(
                name, False, f"the encoder of {m} was trained on what is not of the training side: {_some(strangers)}"
            )
    away = sorted(set(checkpoint.encoders) - set(encoders))
    if away:
        return Check(name, None, f"the results store has not the encoder runs of {', '.join(away)}")
    return Check(name, True, f"{', '.join(sorted(encoders))}: trained on recordings of the training side alone")


def _some(names: set[str]) -> str:
    shown = ", ".join(sorted(names)[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"
