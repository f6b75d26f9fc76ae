"""No recording, and no person where people are held out, is on two sides of a split; nothing is chosen on test rows."""

import random
from collections import Counter
from dataclasses import replace
from typing import cast, get_args

import pandas as pd
import pytest

from eav_ray.config import DataConfig, Protocol, SplitConfig
from eav_ray.data.recordings import LISTENING
from eav_ray.data.splits import (
    LabeledRecording,
    Split,
    add_permutation_groups,
    check_split,
    check_subjects,
    count_folds,
    find_inner_fold,
    list_labeled_recordings,
    make_adaptation_split,
    make_inner_splits,
    make_split,
)
from eav_ray.errors import ConfigError

PROTOCOLS = cast(tuple[Protocol, ...], get_args(Protocol))
SEARCHED = ("within_validated", "subject_kfold", "loso")
N_PEOPLE, N_CLASSES, PER_CLASS = 8, 5, 20


def recordings(n_people: int = N_PEOPLE, *, listening: bool = True) -> list[LabeledRecording]:
    """People with 20 recordings of each class, speaking and listening in turn, classes mixed in time."""
    items = []
    for subject_number in range(1, n_people + 1):
        for order in range(N_CLASSES * PER_CLASS * (2 if listening else 1)):
            task = LISTENING if listening and order % 2 else "speaking"
            number = order // 2 if listening else order
            subject = f"subject{subject_number}"
            items.append(LabeledRecording(f"{subject}/{order:03d}", subject, number % N_CLASSES, task, order))
    random.Random(0).shuffle(items)
    return items


ITEMS = recordings()
BY_ID = {i.id: i for i in ITEMS}
FOLDS = [
    SplitConfig(protocol=p, index=i, n_folds=4, seed=seed)
    for p in PROTOCOLS
    for seed in ((0, 1) if p == "subject_kfold" else (0,))
    for i in range(count_folds(ITEMS, SplitConfig(protocol=p, n_folds=4)))
]


def named(fold: SplitConfig) -> str:
    return f"{fold.protocol}-{fold.index}-{fold.seed}"


def subjects(ids: tuple[str, ...]) -> set[str]:
    return {BY_ID[i].subject for i in ids}


@pytest.mark.parametrize("fold", FOLDS, ids=named)
def test_no_recording_is_on_two_sides(fold: SplitConfig) -> None:
    split = make_split(ITEMS, fold)
    combined = split.train + split.validation + split.test
    assert len(combined) == len(set(combined))
    assert split.train and split.test


@pytest.mark.parametrize("fold", [f for f in FOLDS if f.protocol in ("subject_kfold", "loso")], ids=named)
def test_no_person_is_both_trained_on_and_reported_on(fold: SplitConfig) -> None:
    split = make_split(ITEMS, fold)
    assert not subjects(split.train) & subjects(split.test)
    assert subjects(split.train) | subjects(split.test) == {i.subject for i in ITEMS}


@pytest.mark.parametrize("fold", FOLDS, ids=named)
def test_listening_is_trained_on_but_never_scored(fold: SplitConfig) -> None:
    split = make_split(ITEMS, fold)
    assert LISTENING in {BY_ID[i].task for i in split.train}
    assert {BY_ID[i].task for i in split.validation + split.test} == {"speaking"}


@pytest.mark.parametrize("protocol", ["within", "within_validated", "paper"])
def test_within_people_there_is_a_fold_for_each_and_no_recording_is_tested_twice(protocol: Protocol) -> None:
    assert count_folds(ITEMS, SplitConfig(protocol=protocol, n_folds=3)) == N_PEOPLE
    splits = [make_split(ITEMS, SplitConfig(protocol=protocol, index=i)) for i in range(N_PEOPLE)]
    assert [len(subjects(s.train + s.test)) for s in splits] == [1] * N_PEOPLE
    tested = [i for s in splits for i in s.test]
    assert len(tested) == len(set(tested)) and subjects(tuple(tested)) == {i.subject for i in ITEMS}


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    ("protocol", "of"), [("subject_kfold", 2), ("subject_kfold", 3), ("subject_kfold", 8), ("loso", 2)]
)
def test_every_person_is_tested_exactly_once(protocol: Protocol, of: int, seed: int) -> None:
    fold = SplitConfig(protocol=protocol, n_folds=of, seed=seed)
    count = count_folds(ITEMS, fold)
    assert count == (of if protocol == "subject_kfold" else N_PEOPLE)
    splits = [make_split(ITEMS, SplitConfig(protocol=protocol, n_folds=of, seed=seed, index=i)) for i in range(count)]
    tested = Counter(i for s in splits for i in s.test)
    assert tested == Counter(i.id for i in ITEMS if i.task != LISTENING)
    sizes = [len(subjects(s.test)) for s in splits]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("protocol", ["paper", "within", "within_validated"])
@pytest.mark.parametrize("index", range(N_PEOPLE))
def test_within_a_person_the_test_is_the_last_30_percent_in_time_of_each_class(protocol: Protocol, index: int) -> None:
    split = make_split(ITEMS, SplitConfig(protocol=protocol, index=index))
    (subject,) = subjects(split.train + split.test)
    assert subject == f"subject{index + 1}"
    left_out = 3 if protocol == "within_validated" else 0
    for label in range(N_CLASSES):
        sides = [
            [BY_ID[i].order for i in side if BY_ID[i].label == label and BY_ID[i].task == "speaking"]
            for side in (split.train, split.validation, split.test)
        ]
        assert [len(s) for s in sides] == [14 - left_out, left_out, 6]
        in_time = sides[0] + sides[1] + sides[2]
        assert max(sides[0]) < min(sides[1] + sides[2])
        assert max(sides[0] + sides[1]) < min(sides[2])
        assert len(in_time) == PER_CLASS


@pytest.mark.parametrize("fold", [f for f in FOLDS if f.protocol in SEARCHED], ids=named)
def test_choices_are_made_on_training_rows_alone(fold: SplitConfig) -> None:
    outer, inner = make_split(ITEMS, fold), make_inner_splits(ITEMS, fold)
    assert [find_inner_fold(split, fold) for split in inner] == list(range(len(inner)))
    assert find_inner_fold(outer, fold) is None
    for split in inner:
        assert split.test == ()
        assert split.validation
        assert not set(split.train + split.validation) & set(outer.test)
        assert not set(split.train) & set(split.validation)
    if fold.protocol == "within_validated":
        return
    assert len(inner) == fold.n_inner_folds
    for split in inner:
        assert not subjects(split.train) & subjects(split.validation)
        assert not subjects(split.train + split.validation) & subjects(outer.test)
    validated = Counter(i for s in inner for i in s.validation)
    assert validated == Counter(i for i in outer.train if BY_ID[i].task != LISTENING)


@pytest.mark.parametrize("protocol", ["paper", "within"])
def test_a_protocol_without_validation_rows_cannot_be_searched(protocol: Protocol) -> None:
    with pytest.raises(ConfigError, match="within_validated"):
        make_inner_splits(ITEMS, SplitConfig(protocol=protocol))


@pytest.mark.parametrize("fold", FOLDS, ids=named)
def test_a_split_is_a_function_of_recordings_fold_and_seed(fold: SplitConfig) -> None:
    shuffled = random.Random(1).sample(ITEMS, len(ITEMS))
    assert make_split(shuffled, fold) == make_split(ITEMS, fold)
    if fold.protocol in SEARCHED:
        assert make_inner_splits(shuffled, fold) == make_inner_splits(ITEMS, fold)


def test_the_seed_divides_people_anew() -> None:
    tests = {make_split(ITEMS, SplitConfig(n_folds=4, seed=seed)).test for seed in range(5)}
    assert len(tests) > 1


@pytest.mark.parametrize(
    ("fold", "message"),
    [
        (
            SplitConfig(n_folds=9),
            "split.n_folds is 9, but the data set has only 8 subjects; set split.n_folds to at most 8",
        ),
        (SplitConfig(n_folds=4, index=4), "split.index is 4, but the protocol has 4 folds; use 0 to 3"),
        (SplitConfig(protocol="loso", index=8), "use 0 to 7"),
        (SplitConfig(protocol="within", index=8), "use 0 to 7"),
    ],
)
def test_a_fold_that_does_not_exist_is_refused_with_those_that_do(fold: SplitConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_split(ITEMS, fold)


def test_more_inner_folds_than_training_people_are_refused() -> None:
    with pytest.raises(ConfigError, match="set split.n_inner_folds to at most 4"):
        make_inner_splits(ITEMS, SplitConfig(n_folds=2, n_inner_folds=5))


def test_one_training_subject_is_said_to_be_too_few_to_choose_on() -> None:
    two = [item for item in ITEMS if item.subject in sorted({i.subject for i in ITEMS})[:2]]
    with pytest.raises(ConfigError, match="one training subject, and to choose .* at least 3"):
        make_inner_splits(two, SplitConfig(protocol="loso", n_inner_folds=2))


A, B, C = "subject1/000", "subject1/002", "subject2/000"


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (Split("within", (A, B), (), (A,)), f"recording {A} is both in train and in test"),
        (Split("within", (A,), (A,), (B,)), f"recording {A} is both in train and in validation"),
        (Split("within", (C,), (A,), (A,)), f"recording {A} is both in validation and in test"),
        (Split("subject_kfold", (A, C), (), (B,)), "subject subject1 is both in train and in test"),
        (Split("loso", (A,), (B,), (C,)), "subject subject1 is both in train and in validation"),
        (Split("loso", (C,), (A,), (B,)), "subject subject1 is both in validation and in test"),
        (Split("within", (A, "nobody/1"), (), (B,)), "nobody/1, which is not in the data set"),
        (Split("within", (), (), (B,)), "nothing to train on"),
        (Split("within", (A,)), "nothing to score"),
    ],
)
def test_a_forced_leak_is_refused(split: Split, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_split(split, ITEMS)


def table(items: list[LabeledRecording]) -> pd.DataFrame:
    """As `WindowCache.ids`: four windows a recording."""
    rows = [
        {"id": i.id, "subject": i.subject, "label": i.label, "task": i.task, "order": i.order, "window": w}
        | {"has_eeg": i.order != 0, "has_audio": True}
        for i in items
        for w in range(4)
    ]
    return add_permutation_groups(pd.DataFrame(rows))


@pytest.mark.parametrize("count", [1, 5, 7, 99])
def test_what_adapts_to_a_subject_comes_first_is_balanced_and_is_never_scored(count: int) -> None:
    outer = make_split(ITEMS, SplitConfig(protocol="subject_kfold", n_folds=4, index=1))
    subject = sorted(subjects(outer.test))[0]
    split = make_adaptation_split(outer, ITEMS, subject, count)
    check_split(split, ITEMS)
    assert len(split.train) == count and not set(split.train) & set(split.test)
    assert subjects(split.train) == subjects(split.test) == {subject}
    assert set(split.train) | set(split.test) == {i for i in outer.test if BY_ID[i].subject == subject}
    classes = Counter(BY_ID[i].label for i in split.train)
    assert max(classes.values()) - min(classes.get(c, 0) for c in range(N_CLASSES)) <= 1
    for label in classes:
        used, left = ([BY_ID[i].order for i in side if BY_ID[i].label == label] for side in (split.train, split.test))
        assert not left or max(used) < min(left)


@pytest.mark.parametrize("count", [0, 100, 101])
def test_an_adaptation_that_leaves_nothing_to_score_is_refused(count: int) -> None:
    outer = make_split(ITEMS, SplitConfig(protocol="subject_kfold", n_folds=4, index=1))
    subject = sorted(subjects(outer.test))[0]
    with pytest.raises(ConfigError, match=f"{count} recordings cannot adapt a model to {subject}, who has 100"):
        make_adaptation_split(outer, ITEMS, subject, count)
    trained = sorted(subjects(outer.train))[0]
    with pytest.raises(ConfigError, match=f"{trained} is not among the people whom this checkpoint never saw"):
        make_adaptation_split(outer, ITEMS, trained, 5)


def test_permuted_labels_keep_each_persons_class_counts() -> None:
    ids = table(ITEMS)
    true = list_labeled_recordings(ids, DataConfig(modalities=("audio",)), 0)
    assert sorted(true, key=lambda i: i.id) == sorted(ITEMS, key=lambda i: i.id)
    permuted = list_labeled_recordings(ids, DataConfig(modalities=("audio",), labels="permuted"), 0)
    counts = [Counter((i.subject, i.task, i.label) for i in items) for items in (true, permuted)]
    assert counts[0] == counts[1]
    changed = sum(BY_ID[i.id].label != i.label for i in permuted) / len(permuted)
    assert 0.7 < changed < 0.9  # 4 of 5 by chance
    assert permuted == list_labeled_recordings(
        ids.sample(frac=1, random_state=0), DataConfig(modalities=("audio",), labels="permuted"), 0
    )
    assert permuted != list_labeled_recordings(ids, DataConfig(modalities=("audio",), labels="permuted"), 1)


@pytest.mark.parametrize("protocol", ["within_validated", "subject_kfold"])
def test_permuted_labels_are_those_of_all_recordings_however_few_are_seen(protocol: Protocol) -> None:
    ids = table(ITEMS)
    permuted = DataConfig(modalities=("audio", "eeg"), labels="permuted")
    labels = {i.id: i.label for i in list_labeled_recordings(ids, permuted, 0)}
    train = make_split(list_labeled_recordings(ids, permuted, 0), SplitConfig(protocol=protocol)).train
    views = [
        list_labeled_recordings(ids[ids["id"].isin(train)], permuted, 0),  # a worker
        list_labeled_recordings(
            ids, DataConfig(modalities=("eeg",), labels="permuted"), 0
        ),  # an encoder whose file is missing once
        list_labeled_recordings(ids, DataConfig(modalities=("eeg",), labels="permuted", subjects=("subject3",)), 0),
    ]
    for seen in views:
        assert {i.id: i.label for i in seen} == {i.id: labels[i.id] for i in seen}


def test_a_recording_without_any_wanted_modality_is_left_out() -> None:
    ids = table(ITEMS)
    left = {i.id for i in list_labeled_recordings(ids, DataConfig(modalities=("eeg",)), 0)}
    assert left == {i.id for i in ITEMS if i.order != 0}
    assert len(list_labeled_recordings(ids, DataConfig(modalities=("audio", "eeg")), 0)) == len(ITEMS)
    assert {
        i.subject for i in list_labeled_recordings(ids, DataConfig(modalities=("eeg",), subjects=("subject3",)), 0)
    } == {"subject3"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (DataConfig(modalities=("video",)), "data.modalities names video"),
        (DataConfig(modalities=("eeg",), subjects=("subject9",)), "data.subjects names subject9"),
    ],
)
def test_what_the_shards_do_not_hold_is_refused(data: DataConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_subjects(table(ITEMS), data)
        list_labeled_recordings(table(ITEMS), data, 0)


@pytest.mark.parametrize("fold", FOLDS[:3], ids=named)
def test_a_split_says_whether_the_classes_that_it_trains_on_are_unequal(fold: SplitConfig) -> None:
    assert not make_split(ITEMS, fold).unequal_classes
    fewer = [i for i in ITEMS if i.label or i.order % 4]  # a quarter of one class is gone
    assert make_split(fewer, fold).unequal_classes
    alike = [replace(i, label=0) for i in fewer]
    assert not make_split(alike, fold).unequal_classes  # of one class alone nothing is to be weighed


def test_inner_folds_and_adaptations_say_it_of_their_own_rows() -> None:
    config = SplitConfig(protocol="subject_kfold", n_folds=4)
    fewer = [i for i in ITEMS if i.label or i.order % 4]
    assert all(s.unequal_classes for s in make_inner_splits(fewer, config))
    assert not any(s.unequal_classes for s in make_inner_splits(ITEMS, config))
    split = make_split(ITEMS, config)
    subject = split.test[0].split("/")[0]
    assert not make_adaptation_split(split, ITEMS, subject, N_CLASSES).unequal_classes
    assert make_adaptation_split(split, ITEMS, subject, N_CLASSES + 1).unequal_classes
