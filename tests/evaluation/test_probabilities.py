"""Probabilities are the softmax of logits, of a recording that of its windows' mean, however the windows come."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eav_ray.evaluation.probabilities import (
    RecordingAverager,
    add_probabilities,
    name_logit_column,
    name_probability_column,
    softmax,
)
from eav_ray.evaluation.window_predictor import build_prediction_trees
from eav_ray.training.metrics import average_per_recording, list_modality_sources

CLASSES = ("calm", "sad", "logit_0")
NAMES = ("audio", "video")


def windows(count: int = 12, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    ids = {"subject": ["b", "a"] * (count // 2), "recording": [f"{i // 6}" for i in range(count)]}
    table = pd.DataFrame(ids | {"window": range(count), "label": ["sad"] * count})
    for source in ("fusion", "product", "mean_probability", *NAMES):
        for k in range(len(CLASSES)):
            table[f"{source}.logit_{k}"] = rng.normal(0, 3, count)
    table.loc[table["subject"] == "a", [f"video.logit_{k}" for k in range(len(CLASSES))]] = np.nan
    for m in NAMES:
        table[f"weight.{m}"] = table[f"corrected.{m}"] = 0.5
    return table


def test_softmax_is_that_of_torch_and_says_nothing_of_what_is_not_finite() -> None:
    x = np.random.default_rng(0).normal(0, 50, (20, 5))
    assert np.allclose(softmax(x), torch.softmax(torch.from_numpy(x), 1).numpy())
    for bad in (np.nan, np.inf, -np.inf):
        x[3, 2] = bad
        assert np.isnan(softmax(x)[3]).all() and np.isfinite(softmax(x)[:3]).all()
    assert softmax(np.array([[1e300, -1e300]])).tolist() == [[1, 0]]


def test_each_row_has_the_class_with_the_highest_probability() -> None:
    table = add_probabilities(windows(), CLASSES)
    assert list_modality_sources(windows()) == list(NAMES)
    p = table[[name_probability_column("fusion", c) for c in CLASSES]].to_numpy()
    assert np.allclose(p.sum(1), 1) and table["predicted"].tolist() == [CLASSES[i] for i in p.argmax(1)]
    assert table.loc[table["subject"] == "a", "video.probability.calm"].isna().all()
    assert list(table.columns[:4]) == ["subject", "recording", "window", "label"]


def test_every_source_has_probabilities_and_logits_by_the_names_of_classes() -> None:
    found = add_probabilities(windows(), CLASSES)
    for source in ("fusion", *NAMES, "mean_probability", "product"):
        logits = found[[name_logit_column(source, c) for c in CLASSES]].to_numpy()
        assert np.array_equal(logits, windows()[[f"{source}.logit_{k}" for k in range(3)]], equal_nan=True)
        p = found[[name_probability_column(source, c) for c in CLASSES]].to_numpy()
        assert np.allclose(p, softmax(logits), equal_nan=True)
    names = ["logit.calm", "logit.sad", "logit.logit_0"]
    assert [c for c in found if c.startswith(("logit", "fusion"))] == names
    assert list(found.columns[-4:]) == ["weight.audio", "corrected.audio", "weight.video", "corrected.video"]


def test_of_one_modality_rules_of_fusion_say_nothing_more() -> None:
    table = windows().drop(columns=[c for c in windows() if "video" in c])
    found = add_probabilities(table, CLASSES)
    assert not [c for c in found if c.startswith(("mean_probability", "product"))]
    assert {"probability.sad", "audio.probability.sad", "logit.sad", "audio.logit.sad"} <= set(found)


@settings(max_examples=12)
@given(st.lists(st.integers(1, 11), max_size=4))
def test_blocks_have_the_means_of_the_whole(cuts: list[int]) -> None:
    table, recordings = windows(), RecordingAverager()
    edges = [0, *sorted(set(cuts)), len(table)]
    for start, stop in zip(edges, edges[1:], strict=False):
        recordings.add(table.iloc[start:stop])
    found = recordings.compute_means().sort_values(["subject", "recording"], ignore_index=True)
    assert found["windows"].tolist() == [3, 3, 3, 3]
    pd.testing.assert_frame_equal(found.drop(columns="windows"), average_per_recording(table), check_like=True)


@pytest.mark.filterwarnings("error")
def test_a_model_that_has_diverged_predicts_nothing() -> None:
    table = windows()
    table.loc[0, "fusion.logit_1"] = np.nan
    first, second = build_prediction_trees(table, CLASSES)[:2]
    assert first["predicted"] is None and set(first["probabilities"].values()) == {None}
    assert second["predicted"] in CLASSES and set(second["by_modality"]["video"].values()) == {None}
