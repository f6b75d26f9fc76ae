"""Who is trained on and who is tested: pure functions of (recordings, fold, seed).

A split names recordings, never windows, so the windows of one recording cannot part. A search is given the splits of
`make_inner_splits`, which hold no test rows at all.
"""

import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import pandas as pd

from eav_ray.config import DataConfig, SplitConfig
from eav_ray.data.recordings import LISTENING, list_target_columns
from eav_ray.errors import ConfigError
from eav_ray.words import format_count

IMBALANCE_RATIO = 1.05  # the largest class over the smallest, from which classes are called unequal
ALL_SUBJECTS = "all_subjects"  # of the split of a final model, in place of a protocol
CROSS_SUBJECT_PROTOCOLS = ("subject_kfold", "loso")  # protocols that hold whole people out


@dataclass(frozen=True)
class LabeledRecording:
    """What a split needs to know of a recording."""

    id: str  # "subject/recording"
    subject: str
    label: int
    task: str
    order: int
    targets: tuple[float, ...] = ()  # numbers that are predicted in place of the label

    @property
    def truth(self) -> int | tuple[float, ...]:
        """What is predicted of it: its targets, or else its label."""
        return self.targets or self.label


@dataclass(frozen=True)
class Split:
    """Recording ids on each side. `validation` serves choices, `test` is scored once, after all choices."""

    protocol: str
    train: tuple[str, ...]
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    unequal_classes: bool = False  # among the training recordings (`mark_unequal_classes`)

    @property
    def sides(self) -> dict[str, tuple[str, ...]]:
        return {"train": self.train, "validation": self.validation, "test": self.test}


def add_permutation_groups(ids: pd.DataFrame) -> pd.DataFrame:
    """Add to a table of windows what a permutation of labels needs: `permutation_labels`, the labels of all
    recordings of the same subject and task (where numbers are predicted, those of each), and `permutation_index`, which
    of them this one is.

    For all that is stored, before anything is left out: whoever sees fewer recordings must permute alike.
    """
    first = ids.drop_duplicates("id").sort_values("id")
    groups = first.groupby(["subject", "task"])
    index_in_group = dict(zip(first["id"], groups.cumcount(), strict=True))
    targets = list_target_columns(ids.columns)
    group_labels = {
        name: tuple(map(tuple, group[targets].to_numpy().tolist())) if targets else tuple(map(int, group["label"]))
        for name, group in groups
    }
    row_labels = [group_labels[key] for key in zip(ids["subject"], ids["task"], strict=True)]
    return ids.assign(
        permutation_index=ids["id"].map(index_in_group),
        permutation_labels=pd.Series(row_labels, index=ids.index, dtype=object),
    )


def list_labeled_recordings(ids: pd.DataFrame, data: DataConfig, seed: int) -> list[LabeledRecording]:
    """The recordings of a table of windows (`WindowCache.ids`) that an experiment uses, each with one row of facts.

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
    targets = map(tuple, first[list_target_columns(first.columns)].to_numpy(float).tolist())
    items = [
        LabeledRecording(i, s, int(label), t, int(o), numbers)
        for i, s, label, t, o, numbers in zip(*columns, targets, strict=True)
    ]
    if data.labels == "true":
        return items
    permutation_rows = zip(items, first["permutation_labels"], first["permutation_index"], strict=True)
    permuted = [(i, _permute_labels(i.subject, i.task, labels, seed)[at]) for i, labels, at in permutation_rows]
    return [replace(i, targets=own) if isinstance(own, tuple) else replace(i, label=own) for i, own in permuted]


def check_subjects(ids: pd.DataFrame, data: DataConfig) -> None:
    """Refuse people that the shards do not hold; for the whole table, since a worker sees its own people alone."""
    unknown = sorted(set(data.subjects) - set(ids["subject"]))
    if unknown:
        raise ConfigError(f"data.subjects names {unknown[0]}, which the shards do not hold; preprocess with it")


@lru_cache(maxsize=1024)
def _permute_labels(
    subject: str, task: str, labels: tuple[int | tuple[float, ...], ...], seed: int
) -> list[int | tuple[float, ...]]:
    # Of a person's own generator: who else is in the table must not matter.
    rng = np.random.default_rng([seed, zlib.crc32(f"{subject}/{task}".encode())])
    return [labels[position] for position in rng.permutation(len(labels))]


def count_folds(items: Iterable[LabeledRecording], config: SplitConfig) -> int:
    n_subjects = len({i.subject for i in items})
    return config.n_folds if config.protocol == "subject_kfold" else n_subjects


def make_split(items: list[LabeledRecording], config: SplitConfig) -> Split:
    """The outer split of one fold.

    Raises:
        ConfigError: The fold does not exist, or a side would be empty.
    """
    subjects = sorted({i.subject for i in items}, key=_make_natural_sort_key)
    if config.protocol == "subject_kfold" and config.n_folds > len(subjects):
        raise ConfigError(
            f"split.n_folds is {config.n_folds}, but the data set has only {format_count(len(subjects), 'subject')}; "
            f"set split.n_folds to at most {len(subjects)}"
        )
    n_folds = count_folds(items, config)
    if config.index >= n_folds:
        raise ConfigError(
            f"split.index is {config.index}, but the protocol has {format_count(n_folds, 'fold')}; use 0 to "
            f"{n_folds - 1}"
        )
    if config.protocol in CROSS_SUBJECT_PROTOCOLS:
        shuffled = list(subjects)
        if config.protocol == "subject_kfold":
            np.random.default_rng(config.seed).shuffle(shuffled)
        test_subjects = set(shuffled[config.index :: n_folds])
        train = [i for i in items if i.subject not in test_subjects]
        test = [i for i in items if i.subject in test_subjects]
    else:
        subject_items = [i for i in items if i.subject == subjects[config.index]]
        train, test = _split_in_time_order(subject_items, lambda n: n - round(0.7 * n))
    split = Split(config.protocol, _sort_ids(train), (), _sort_ids(_drop_listening(test)))
    if config.protocol == "within_validated":
        split = _hold_out_last(split, items)
    check_split(split, items)
    return mark_unequal_classes(split, items)


def mark_unequal_classes(split: Split, items: Iterable[LabeledRecording]) -> Split:
    """Say of a split whether the classes of its training recordings are unequal in number."""
    train = set(split.train)
    counts = Counter(i.label for i in items if i.id in train).values()
    return replace(split, unequal_classes=bool(counts) and max(counts) > IMBALANCE_RATIO * min(counts))


def make_final_split(items: list[LabeledRecording]) -> Split:
    """Make the split of a final model: it trains on all recordings, so that none is left to score it."""
    return mark_unequal_classes(Split(ALL_SUBJECTS, _sort_ids(items)), items)


def make_inner_splits(items: list[LabeledRecording], config: SplitConfig) -> list[Split]:
    """The splits on which every choice is made: training rows of the outer split only, and no test rows.

    Raises:
        ConfigError: The protocol has no rows to choose on, or there are fewer training people than inner folds.
    """
    outer = make_split(items, config)
    if config.protocol == "within_validated":
        return [replace(outer, test=())]
    if config.protocol not in CROSS_SUBJECT_PROTOCOLS:
        raise ConfigError(
            f"split.protocol={config.protocol} has no rows to choose on, so it cannot be searched; "
            "use split.protocol=within_validated, subject_kfold or loso"
        )
    train_ids = set(outer.train)
    train = [i for i in items if i.id in train_ids]
    subjects = sorted({i.subject for i in train}, key=_make_natural_sort_key)
    if len(subjects) < 2:
        raise ConfigError(
            f"split.protocol={config.protocol} leaves fold {config.index} one training subject, and to choose on "
            "others one is held out; choices across subjects need at least 3, "
            "those of split.protocol=within_validated 1"
        )
    if config.n_inner_folds > len(subjects):
        raise ConfigError(
            f"split.n_inner_folds is {config.n_inner_folds}, but fold {config.index} trains on only "
            f"{format_count(len(subjects), 'person')}; set split.n_inner_folds to at most {len(subjects)}"
        )
    splits = []
    for validation_subjects in _share_out_to_inner_folds(subjects, config):
        split = Split(
            config.protocol,
            _sort_ids(i for i in train if i.subject not in validation_subjects),
            _sort_ids(_drop_listening(i for i in train if i.subject in validation_subjects)),
        )
        check_split(split, items)
        splits.append(mark_unequal_classes(split, items))
    return splits


def _share_out_to_inner_folds(subjects: Iterable[str], config: SplitConfig) -> list[set[str]]:
    """Return the validation subjects of each inner fold of an outer one, whose training subjects are given."""
    shuffled = sorted(subjects, key=_make_natural_sort_key)
    # Another shuffle than the outer one: the inner folds of one outer fold should not repeat those of the next.
    np.random.default_rng([config.seed, 1 + config.index]).shuffle(shuffled)
    return [set(shuffled[number :: config.n_inner_folds]) for number in range(config.n_inner_folds)]


def find_inner_fold(split: Split, config: SplitConfig) -> int | None:
    """Find which inner fold a split of `make_inner_splits` is, by the subjects that it validates on.

    Args:
        config: By which it was made.

    Returns:
        Its number; None where the split is of no inner fold of that configuration.
    """
    if split.test or not split.validation:
        return None
    if split.protocol not in CROSS_SUBJECT_PROTOCOLS:
        return 0
    train, validation = ({i.split("/")[0] for i in side} for side in (split.train, split.validation))
    folds = _share_out_to_inner_folds(train | validation, config)
    return folds.index(validation) if validation in folds else None


def make_adaptation_split(split: Split, items: list[LabeledRecording], subject: str, n_recordings: int) -> Split:
    """Some labelled recordings of one person of a test side to train on, and the rest of theirs to score.

    The earliest of each class in turn, since an adaptation comes before what it is for.

    Raises:
        ConfigError: The person is not on the test side, or nothing would be left to score.
    """
    test_ids = set(split.test)
    subject_items = sorted((i for i in items if i.subject == subject and i.id in test_ids), key=lambda i: i.order)
    if not subject_items:
        test_subjects = sorted({i.split("/")[0] for i in split.test}, key=_make_natural_sort_key)
        raise ConfigError(
            f"{subject} is not among the people whom this checkpoint never saw: {', '.join(test_subjects)}"
        )
    if not 0 < n_recordings < len(subject_items):
        raise ConfigError(
            f"{format_count(n_recordings, 'recording')} cannot adapt a model to {subject}, who has "
            f"{len(subject_items)}: give 1 to {len(subject_items) - 1}, as those that adapt it are never scored"
        )
    class_counts: Counter[int] = Counter()
    ranked_items = []
    for item in subject_items:
        class_counts[item.label] += 1
        ranked_items.append((class_counts[item.label], item.order, item))
    ranked = [item for _, _, item in sorted(ranked_items, key=lambda turn: turn[:2])]
    split = Split("adapted", _sort_ids(ranked[:n_recordings]), (), _sort_ids(ranked[n_recordings:]))
    return mark_unequal_classes(split, items)


def check_split(split: Split, items: list[LabeledRecording]) -> None:
    """Refuse a split that leaks: a recording on two sides, or, across people, a person on two sides.

    Raises:
        ConfigError: Naming the recording or the person, and the sides.
    """
    known = {i.id for i in items}
    for name, ids in split.sides.items():
        for unknown in set(ids) - known:
            raise ConfigError(f"the split's {name} side names {unknown}, which is not in the data set")
    if not split.train:
        raise ConfigError("the split leaves nothing to train on; use fewer folds or more recordings")
    if not split.test and not split.validation:
        raise ConfigError("the split leaves nothing to score; use fewer folds or more recordings")
    check_disjoint(split)


def check_disjoint(split: Split) -> None:
    """The part of `check` that needs no listing, for whoever is about to train.

    Raises:
        ConfigError: A recording is on two sides, or, across people, a person is.
    """
    for one, other in (("train", "test"), ("train", "validation"), ("validation", "test")):
        pair = [set(split.sides[side]) for side in (one, other)]
        for shared in sorted(pair[0] & pair[1]):
            raise ConfigError(f"recording {shared} is both in {one} and in {other}; the run does not start")
        if split.protocol in CROSS_SUBJECT_PROTOCOLS:
            subjects = [{i.split("/")[0] for i in ids} for ids in pair]
            for shared in sorted(subjects[0] & subjects[1]):
                raise ConfigError(f"subject {shared} is both in {one} and in {other}; the run does not start")


def _hold_out_last(split: Split, items: list[LabeledRecording]) -> Split:
    train_ids = set(split.train)
    subject_items = [i for i in items if i.id in train_ids]
    train, late = _split_in_time_order(subject_items, lambda n: 3 if n >= 15 else max(1, round(0.2 * n)))
    return replace(split, train=_sort_ids(train), validation=_sort_ids(_drop_listening(late)))


def _split_in_time_order(
    subject_items: list[LabeledRecording], count_held_out: Callable[[int], int]
) -> tuple[list[LabeledRecording], list[LabeledRecording]]:
    """Per task and class, in time order: the last `held_out(n)` of n recordings go to the second side."""
    early: list[LabeledRecording] = []
    late: list[LabeledRecording] = []
    for task, label in sorted({(i.task, i.label) for i in subject_items}):
        group = sorted((i for i in subject_items if (i.task, i.label) == (task, label)), key=lambda i: i.order)
        cut = len(group) - count_held_out(len(group))
        early += group[:cut]
        late += group[cut:]
    return early, late


def _drop_listening(items: Iterable[LabeledRecording]) -> list[LabeledRecording]:
    return [i for i in items if i.task != LISTENING]


def _sort_ids(items: Iterable[LabeledRecording]) -> tuple[str, ...]:
    return tuple(sorted((i.id for i in items), key=_make_natural_sort_key))


def _make_natural_sort_key(text: str) -> list[tuple[int, int, str]]:
    """subject2 before subject10."""
    parts: list[tuple[int, int, str]] = []
    for word in text.replace("/", " ").split():
        digits = "".join(c for c in word if c.isdigit())
        parts.append((1, int(digits), word) if digits else (0, 0, word))
    return parts
