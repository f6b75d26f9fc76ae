"""Scores over windows and recordings; what a diverged model says has none."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import softmax

from eav_ray.models.classifier import ClassifierOutput
from eav_ray.training.metrics import (
    RULE_SOURCES,
    average_per_recording,
    combine_by_rules,
    compute_scores,
    predict_classes,
    select_logits,
)
from eav_ray.training.predictions import build_predictions


def table() -> pd.DataFrame:
    """Two recordings of three windows each; audio is missing in one window, and one window's fusion is wrong."""
    label = np.repeat([0, 1], 3)
    right = np.eye(2)[label]
    fusion, audio = right.copy(), right.copy()
    fusion[0], audio[5] = [0.4, 0.6], np.nan
    columns = {"subject": "p", "recording": label.astype(str), "window": [0, 1, 2] * 2, "label": label}
    for source, logits in (("fusion", fusion), ("product", right), ("mean_probability", right), ("audio", audio)):
        columns |= {f"{source}.logit_{k}": logits[:, k] for k in range(2)}
    return pd.DataFrame(columns)


def test_windows_and_recordings_are_scored_apart() -> None:
    expected = {"window_accuracy": 5 / 6, "window_balanced_accuracy": 5 / 6}
    assert compute_scores(table()) == pytest.approx(
        expected | {"recording_accuracy": 1, "recording_balanced_accuracy": 1, "score": 1}
    )


def test_a_modality_that_a_window_lacks_is_no_divergence() -> None:
    assert compute_scores(table(), "audio")["recording_accuracy"] == 1
    assert compute_scores(table(), "audio")["window_accuracy"] == 5 / 6


@pytest.mark.parametrize("source", ["fusion", "product", "mean_probability"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("windows", [[2], range(6)], ids=["one window", "all"])
def test_a_diverged_model_has_no_score(source: str, value: float, windows: list[int]) -> None:
    diverged = table()
    diverged.loc[list(windows), f"{source}.logit_1"] = value
    found = compute_scores(diverged, source)
    assert len(found) == 5 and all(math.isnan(v) for v in found.values())


PRESENT = np.array([[True, True, True], [True, False, True], [False, True, False], [True, True, False]])


def logits(seed: int = 0) -> np.ndarray:
    """(windows, modalities, classes), of the modalities that `PRESENT` names; the others' are not numbers."""
    drawn = np.random.default_rng(seed).normal(0, 3, (*PRESENT.shape, 4)).astype(np.float32)
    return np.where(PRESENT[..., None], drawn, np.nan)


def test_the_rules_are_the_two_means_of_the_probabilities_that_a_window_has() -> None:
    found = {rule: softmax(x, axis=1) for rule, x in combine_by_rules(logits(), PRESENT).items()}
    assert tuple(found) == RULE_SOURCES
    for row, (window, there) in enumerate(zip(logits(), PRESENT, strict=True)):
        p = softmax(window[there], axis=1)
        assert found["mean_probability"][row] == pytest.approx(p.mean(0), rel=1e-5)
        geometric = p.prod(0) ** (1 / there.sum())
        assert found["product"][row] == pytest.approx(geometric / geometric.sum(), rel=1e-5)
        assert found["product"][row].argmax() == p.prod(0).argmax()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_modality_that_diverged_leaves_no_rule(value: float) -> None:
    """It is there, so it is not missing: a mean of the others would hide it."""
    diverged = logits()
    diverged[0, 1, 2] = value
    for x in combine_by_rules(diverged, PRESENT).values():
        assert np.isnan(x[0]).all() and np.isfinite(x[1:]).all()
    for x in combine_by_rules(logits(), np.zeros_like(PRESENT)).values():
        assert np.isnan(x).all()


def test_a_recording_is_averaged_over_its_windows_by_every_source_alike() -> None:
    """Against the same by hand: the logits of a window by the rule, then their mean over the windows."""
    names = ["audio", "eeg", "video"]
    drawn, weights = torch.from_numpy(np.nan_to_num(logits())), torch.full(PRESENT.shape, 1 / 3)
    output = ClassifierOutput(drawn[:, 0], {m: drawn[:, i] for i, m in enumerate(names)}, weights, weights)
    ids = pd.DataFrame({"subject": "p", "recording": ["a", "a", "a", "b"], "window": [0, 1, 2, 0]})
    table = average_per_recording(build_predictions(output, ids, PRESENT, names, np.zeros(4, int)))
    windows = [softmax(x[there], axis=1) for x, there in zip(logits(), PRESENT, strict=True)]
    by_hand = {
        "mean_probability": [np.log(p.mean(0)) for p in windows],
        "product": [np.log(p).mean(0) for p in windows],
    }
    for rule, of_window in by_hand.items():
        expected = np.stack([np.mean(of_window[:3], 0), of_window[3]])
        assert softmax(select_logits(table, rule), axis=1) == pytest.approx(softmax(expected, axis=1), rel=1e-5)
        assert predict_classes(table, rule).tolist() == expected.argmax(1).tolist()
