"""Scores over windows and recordings; what a diverged model says has none."""

import math

import numpy as np
import pandas as pd
import pytest

from eav_ray.training.metrics import compute_scores


def table() -> pd.DataFrame:
    """Two recordings of three windows each; audio is missing in one window, and one window's fusion is wrong."""
    label = np.repeat([0, 1], 3)
    right = np.eye(2)[label]
    fusion, audio = right.copy(), right.copy()
    fusion[0], audio[5] = [0.4, 0.6], np.nan
    columns = {"subject": "p", "recording": label.astype(str), "window": [0, 1, 2] * 2, "label": label}
    for source, logits in (("fusion", fusion), ("late_mean", right), ("audio", audio)):
        columns |= {f"{source}.logit_{k}": logits[:, k] for k in range(2)}
    return pd.DataFrame(columns)


def test_windows_and_recordings_are_scored_apart() -> None:
    expected = {"window_accuracy": 5 / 6, "window_balanced_accuracy": 5 / 6}
    assert compute_scores(table()) == pytest.approx(
        expected | {"recording_accuracy": 1, "recording_balanced_accuracy": 1}
    )


def test_a_modality_that_a_window_lacks_is_no_divergence() -> None:
    assert compute_scores(table(), "audio")["recording_accuracy"] == 1
    assert compute_scores(table(), "audio")["window_accuracy"] == 5 / 6


@pytest.mark.parametrize("source", ["fusion", "late_mean"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("windows", [[2], range(6)], ids=["one window", "all"])
def test_a_diverged_model_has_no_score(source: str, value: float, windows: list[int]) -> None:
    diverged = table()
    diverged.loc[list(windows), f"{source}.logit_1"] = value
    found = compute_scores(diverged, source)
    assert len(found) == 4 and all(math.isnan(v) for v in found.values())
