"""Who is trained on and who is tested: pure functions of (recordings, fold, seed).

A split names recordings, never windows, so the windows of one recording cannot part. A search is given the splits of
`inner_splits`, which hold no test rows at all.
"""

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import pandas as pd

from eav_ray.config import DataConfig, SplitConfig
from eav_ray.data.manifest import LISTENING
from eav_ray.errors import ConfigError

ACROSS = ("subject_kfold", "loso")  # protocols that hold whole people out


@dataclass(frozen=True)
class Item:
    """What a split needs to know of a recording."""

    id: str  # "subject/recording"
    subject: str
    label: int
    task: str
    order: int


@dataclass(frozen=True)
class Split:
    """Recording ids on each side. `validation` serves choices, `test` is scored once, after all choices."""

    protocol: str
    train: tuple[str, ...]
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()


def with_peers(ids: pd.DataFrame) -> pd.DataFrame:
    """Add to a table of windows what a permutation of labels needs: `peers`, the labels of all recordings of the same
    person and task, and `place`, which of them this one is.

    For all that is stored, before anything is left out: whoever sees fewer recordings must permute alike.
    """
    first = ids.drop_duplicates("id").sort_values("id")
    groups = first.groupby(["subject", "task"])
    places = dict(zip(first["id"], groups.cumcount(), strict=True))
    peers = {name: tuple(map(int, group["label"])) for name, group in groups}
    mine = [peers[key] for key in zip(ids["subject"], ids["task"], strict=True)]
    return ids.assign(place=ids["id"].map(places), peers=pd.Series(mine, index=ids.index, dtype=object))


def items_of(ids: pd.DataFrame, data: DataConfig, seed: int) -> list[Item]:
    """The recordings of a table of windows (`Windows.ids`) that an experiment uses, each with one row of facts.

    A recording in which none of the experiment's modalities exists is left out. With `data.labels=permuted` the labels
    are shuffled among all stored recordings of each person and task, whichever of them are used or seen here: the
    driver, its workers, each encoder and the fusion have one permutation. It keeps each person's class counts, so
    splits are as large as with true labels; and it is a valid control, because given the person a label no longer says
    anything of the signals, while all else (who it is, when, how many of each class) stays as it was.

    Raises:
        ConfigError: A modality that the shards do not hold, or nothing is left.
    """
    for modality in data.modalities:
        if f"has_{modality}" not in ids.columns:
            raise ConfigError(f"data.modalities names {modality}, which the shards do not hold; preprocess with it")
    rows = ids[ids[[f"has_{m}" for m in data.modalities]].any(axis=1)]
    if data.subjects:
        rows = rows[rows["subject"].isin(data.subjects)]
    first = rows.drop_duplicates("id").sort_values("id")
    if first.empty:
        raise ConfigError("no recording has any of data.modalities; nothing can be trained or tested")
    columns = (first[c].tolist() for c in ("id", "subject", "label", "task", "order"))
    items = [Item(i, s, int(label), t, int(o)) for i, s, label, t, o in zip(*columns, strict=True)]
    if data.labels == "true":
        return items
    peers = zip(items, first["peers"], first["place"], strict=True)
    return [replace(i, label=_permuted(i.subject, i.task, labels, seed)[position]) for i, labels, position in peers]


def check_subjects(ids: pd.DataFrame, data: DataConfig) -> None:
    """Refuse people that the shards do not hold; for the whole table, since a worker sees its own people alone."""
    unknown = sorted(set(data.subjects) - set(ids["subject"]))
    if unknown:
        raise ConfigError(f"data.subjects names {unknown[0]}, which the shards do not hold; preprocess with it")


@lru_cache(maxsize=1024)
def _permuted(subject: str, task: str, labels: tuple[int, ...], seed: int) -> list[int]:
    # Of a person's own generator: who else is in the table must not matter.
    rng = np.random.default_rng([seed, zlib.crc32(f"{subject}/{task}".encode())])
    return rng.permutation(labels).tolist()


def fold_count(items: Iterable[Item], config: SplitConfig) -> int:
    n_subjects = len({i.subject for i in items})
    return config.n_folds if config.protocol == "subject_kfold" else n_subjects


def make_split(items: list[Item], config: SplitConfig) -> Split:
    """The outer split of one fold.

    Raises:
        ConfigError: The fold does not exist, or a side would be empty.
    """
    subjects = sorted({i.subject for i in items}, key=_natural)
    if config.protocol == "subject_kfold" and config.n_folds > len(subjects):
        raise ConfigError(
            f"fold.of is {config.n_folds}, but the manifest has only {len(subjects)} subjects; "
            f"set fold.of to at most {len(subjects)}"
        )
    count = fold_count(items, config)
    if config.index >= count:
        raise ConfigError(f"fold.index is {config.index}, but there are {count} folds; use 0 to {count - 1}")
    if config.protocol in ACROSS:
        shuffled = list(subjects)
        if config.protocol == "subject_kfold":
            np.random.default_rng(config.seed).shuffle(shuffled)
        held_out = set(shuffled[config.index :: count])
        train = [i for i in items if i.subject not in held_out]
        split = Split(config.protocol, _ids(train), (), _ids(_scored(i for i in items if i.subject in held_out)))
    else:
        subject_items = [i for i in items if i.subject == subjects[config.index]]
        train, test = _in_time(subject_items, lambda n: n - round(0.7 * n))
        split = Split(config.protocol, _ids(train), (), _ids(_scored(test)))
    if config.protocol == "within_validated":
        split = _hold_out_last(split, items)
    check(split, items)
    return split


def inner_splits(items: list[Item], config: SplitConfig) -> list[Split]:
    """The splits on which every choice is made: training rows of the outer split only, and no test rows.

    Raises:
        ConfigError: The protocol has no rows to choose on, or there are fewer training people than inner folds.
    """
    outer = make_split(items, config)
    if config.protocol == "within_validated":
        return [replace(outer, test=())]
    if config.protocol not in ACROSS:
        raise ConfigError(
            f"fold.protocol={config.protocol} has no rows to choose on, so it cannot be searched; "
            "use fold.protocol=within_validated, subject_kfold or loso"
        )
    known = set(outer.train)
    train = [i for i in items if i.id in known]
    subjects = sorted({i.subject for i in train}, key=_natural)
    if config.n_inner_folds > len(subjects):
        raise ConfigError(
            f"fold.inner is {config.n_inner_folds}, but fold {config.index} trains on only {len(subjects)} people; "
            f"set fold.inner to at most {len(subjects)}"
        )
    # Another shuffle than the outer one: the inner folds of one outer fold should not repeat those of the next.
    np.random.default_rng([config.seed, 1 + config.index]).shuffle(subjects)
    splits = []
    for number in range(config.n_inner_folds):
        held_out = set(subjects[number :: config.n_inner_folds])
        split = Split(
            config.protocol,
            _ids(i for i in train if i.subject not in held_out),
            _ids(_scored(i for i in train if i.subject in held_out)),
        )
        check(split, items)
        splits.append(split)
    return splits


def calibration_split(split: Split, items: list[Item], subject: str, recordings: int) -> Split:
    """Some labelled recordings of one person of a test side to train on, and the rest of theirs to score.

    The earliest of each class in turn, since a calibration comes before what it is for.

    Raises:
        ConfigError: The person is not on the test side, or nothing would be left to score.
    """
    mine = sorted((i for i in items if i.subject == subject and i.id in set(split.test)), key=lambda i: i.order)
    if not mine:
        test_subjects = sorted({i.split("/")[0] for i in split.test}, key=_natural)
        raise ConfigError(
            f"{subject} is not among the people whom this checkpoint never saw: {', '.join(test_subjects)}"
        )
    if not 0 < recordings < len(mine):
        raise ConfigError(
            f"{recordings} recordings cannot calibrate {subject}, who has {len(mine)}: give 1 to {len(mine) - 1}, "
            "as those that calibrate are never scored"
        )
    seen: dict[int, int] = {}
    turns = []
    for item in mine:
        seen[item.label] = seen.get(item.label, 0) + 1
        turns.append((seen[item.label], item.order, item))
    train_ids = {item.id for _, _, item in sorted(turns, key=lambda turn: turn[:2])[:recordings]}
    return Split(
        "calibrated", _ids(i for i in mine if i.id in train_ids), (), _ids(i for i in mine if i.id not in train_ids)
    )


def check(split: Split, items: list[Item]) -> None:
    """Refuse a split that leaks: a recording on two sides, or, across people, a person on two sides.

    Raises:
        ConfigError: Naming the recording or the person, and the sides.
    """
    sides = {"train": split.train, "validation": split.validation, "test": split.test}
    by_id = {i.id: i for i in items}
    for name, ids in sides.items():
        for unknown in set(ids) - set(by_id):
            raise ConfigError(f"the split's {name} side names {unknown}, which is not in the manifest")
    if not split.train:
        raise ConfigError("the split leaves nothing to train on; use fewer folds or more recordings")
    if not split.test and not split.validation:
        raise ConfigError("the split leaves nothing to score; use fewer folds or more recordings")
    refuse_overlap(split)


def refuse_overlap(split: Split) -> None:
    """The part of `check` that needs no listing, for whoever is about to train.

    Raises:
        ConfigError: A recording is on two sides, or, across people, a person is.
    """
    sides = {"train": split.train, "validation": split.validation, "test": split.test}
    for one, other in (("train", "test"), ("train", "validation"), ("validation", "test")):
        for shared in sorted(set(sides[one]) & set(sides[other])):
            raise ConfigError(f"recording {shared} is both in {one} and in {other}; the run does not start")
        if split.protocol in ACROSS:
            side_subjects = [{i.split("/")[0] for i in sides[side]} for side in (one, other)]
            for shared in sorted(side_subjects[0] & side_subjects[1]):
                raise ConfigError(f"subject {shared} is both in {one} and in {other}; the run does not start")


def _hold_out_last(split: Split, items: list[Item]) -> Split:
    known = set(split.train)
    subject_items = [i for i in items if i.id in known]
    train, late = _in_time(subject_items, lambda n: 3 if n >= 15 else max(1, round(0.2 * n)))
    return replace(split, train=_ids(train), validation=_ids(_scored(late)))


def _in_time(subject_items: list[Item], held_out: Callable[[int], int]) -> tuple[list[Item], list[Item]]:
    """Per task and class, in time order: the last `held_out(n)` of n recordings go to the second side."""
    early: list[Item] = []
    late: list[Item] = []
    for task, label in sorted({(i.task, i.label) for i in subject_items}):
        group = sorted((i for i in subject_items if (i.task, i.label) == (task, label)), key=lambda i: i.order)
        cut = len(group) - held_out(len(group))
        early += group[:cut]
        late += group[cut:]
    return early, late


def _scored(items: Iterable[Item]) -> list[Item]:
    return [i for i in items if i.task != LISTENING]


def _ids(items: Iterable[Item]) -> tuple[str, ...]:
    return tuple(sorted((i.id for i in items), key=_natural))


def _natural(text: str) -> list[tuple[int, int, str]]:
    """subject2 before subject10."""
    parts: list[tuple[int, int, str]] = []
    for word in text.replace("/", " ").split():
        digits = "".join(c for c in word if c.isdigit())
        parts.append((1, int(digits), word) if digits else (0, 0, word))
    return parts
