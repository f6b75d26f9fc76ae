"""A model that names one class for nearly all windows is found, and its remedy named."""

import numpy as np
import pandas as pd
import pytest

from eav_ray.config import load_experiment
from eav_ray.evaluation.single_class import find_single_classes, list_single_class_lines

CLASSES = ("count", "rest")
SHARE = 575  # of 767 windows are of the first class


def make_windows(n_named: int = 760, n_first: int = SHARE, source: str = "eeg", fold: int = 0) -> pd.DataFrame:
    """767 windows, for the first `n_named` of which the first class is named; those of the class come first."""
    label = np.repeat([0, 1], [n_first, 767 - n_first])
    logit = np.where(np.arange(767) < n_named, 1.0, -1.0)
    ids = {"subject": "p", "recording": np.arange(767).astype(str), "window": 0, "label": label, "fold": fold}
    return pd.DataFrame(ids | {f"{source}.logit_0": logit, f"{source}.logit_1": 0.0})


@pytest.mark.parametrize(
    ("windows", "found"),
    [
        (make_windows(), [(760, 767)]),
        (make_windows(720), []),  # too few
        (make_windows(750, 740), []),  # nearly all are of the class, and it finds half of the others
        (make_windows(766, 740), [(766, 767)]),
        (make_windows(767, 767), []),  # there is no other class
        (make_windows().rename(columns={"eeg.logit_0": "eeg.value_0"}), []),
        (make_windows().assign(**{"eeg.logit_0": np.nan}), []),  # it has diverged, which others say
    ],
)
def test_naming_one_class_is_found_where_it_hides_the_others(
    windows: pd.DataFrame, found: list[tuple[int, int]]
) -> None:
    assert [(one.n_named, one.n_windows) for one in find_single_classes(windows, ["eeg", "fusion"])] == found


@pytest.mark.parametrize(
    ("changes", "n_first", "remedy"),
    [
        (
            {"train.encoders.eeg.class_weights": False},
            SHARE,
            "weigh the classes: train.encoders.eeg.class_weights=true",
        ),
        ({}, SHARE, "classes are weighed already, so try another train.encoders.eeg.lr, more"),
        ({}, 384, "try another train.encoders.eeg.lr, more train.encoders.eeg.epochs, or a search (`eav search`)"),
    ],
)
def test_the_line_names_the_remedy(changes: dict[str, bool], n_first: int, remedy: str) -> None:
    e = load_experiment("eegmat", {"data.modalities": ["eeg"]} | {"train.encoders.eeg.class_weights": "auto"} | changes)
    (line,) = list_single_class_lines(make_windows(n_first=n_first), ["eeg"], CLASSES, e)
    assert line.startswith("eeg names count for 760 of 767 windows, of which ")
    assert f"{100 * n_first / 767:.1f} % are: it does not tell classes apart; {remedy}" in line


def test_the_fold_is_named_where_there_are_several() -> None:
    two = pd.concat([make_windows(), make_windows(400, fold=1), make_windows(fold=2)])
    e = load_experiment("eegmat")
    lines = list_single_class_lines(two, ["eeg"], CLASSES, e)
    assert [line.split(" names")[0] for line in lines] == ["eeg, in fold 0,", "eeg, in fold 2,"]


def test_a_fusion_is_mended_by_its_own_keys() -> None:
    e = load_experiment("fusion", {"optim.class_weights": False})
    (line,) = list_single_class_lines(make_windows(source="fusion"), ["fusion"], CLASSES, e)
    assert line.endswith("weigh the classes: optim.class_weights=true")
