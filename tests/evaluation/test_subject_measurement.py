"""What was measured of a subject adds up, survives the network to the last bit, and is refused where it is damaged."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eav_ray.errors import DataError
from eav_ray.evaluation.subject_measurement import SubjectMeasurement
from eav_ray.training.subject_statistics import FeatureSums

N_FEATURES = {"audio": 3, "face": 2}


def measure(x: np.ndarray, modality: str = "audio") -> SubjectMeasurement:
    """Measure windows by their features, NaN where one is not known."""
    known = np.isfinite(x)
    values = np.where(known, x, 0)
    sums = FeatureSums(known.sum(0).astype(float), values.sum(0), np.square(values).sum(0))
    return SubjectMeasurement({modality: sums}, {modality: len(x)}, 1)


def test_parts_add_up_to_the_whole() -> None:
    x = np.random.default_rng(0).normal(3, 2, (40, 3))
    x[5:20, 1] = np.nan
    total = measure(x[:7]) + measure(x[7:9]) + measure(np.ones((2, 2)), "face") + measure(x[9:])
    assert total.n_windows == {"audio": 40, "face": 2} and total.n_recordings == 4
    found = total.compute_moments("p1", N_FEATURES)
    np.testing.assert_allclose(found["audio"].mean["p1"], np.nanmean(x, 0))
    np.testing.assert_allclose(found["audio"].sd["p1"], np.nanstd(x, 0))


def test_what_was_measured_too_rarely_counts_as_the_mean_whatever_it_is() -> None:
    x = np.random.default_rng(0).normal(1000, 2, (6, 3))
    x[1:, 0], x[:, 1] = np.nan, np.nan  # known once, and never
    found = measure(x).compute_moments("p1", N_FEATURES)
    statistics = found["audio"].get(["p1"], "audio")
    normalised = statistics.normalise(torch.tensor([[1005.0, 1005.0, 1005.0]]))[0]
    assert normalised[:2].tolist() == [0, 0] and normalised[2] != 0
    assert np.isinf(found["face"].sd["p1"]).all()


def test_one_window_or_copies_of_one_measure_nobody() -> None:
    one, another = measure(np.ones((1, 3))), measure(np.full((1, 3), 2.0))
    assert not one.has("audio") and not (one + one).has("audio") and (one + one).is_constant("audio")
    assert (one + another).has("audio") and not (one + another).has("face") and not (one + another).has("audio", 3)
    assert not measure(np.full((5, 3), np.nan)).has("audio")


def test_it_goes_over_the_network_to_the_last_bit() -> None:
    total = measure(np.random.default_rng(0).normal(0, 1e-3, (9, 3))) + measure(np.ones((2, 2)) / 3, "face")
    again = SubjectMeasurement.from_tree(json.loads(json.dumps(total.to_tree("best"))), "best", N_FEATURES)
    assert again.n_windows == total.n_windows and again.n_recordings == total.n_recordings
    for m, sums in total.sums.items():
        for name in ("count", "total", "squares"):
            assert getattr(again.sums[m], name).tobytes() == getattr(sums, name).tobytes()


def test_of_another_model_it_is_refused() -> None:
    tree = measure(np.ones((4, 3))).to_tree("best")
    with pytest.raises(DataError, match="measured for another model than second"):
        SubjectMeasurement.from_tree(tree, "second", N_FEATURES)
    with pytest.raises(DataError, match="subject is damaged .*4 numbers"):
        SubjectMeasurement.from_tree(tree, "best", {"audio": 4})


@pytest.mark.parametrize(
    "change",
    [
        {"modalities": None},
        {"modalities": {"smell": {}}},
        {"recordings": -1},
        {"recordings": True},
        {"recordings": 10**400},
        {"modalities": {"audio": {"windows": 4, "count": [4] * 3, "total": [0] * 3}}},
        {"modalities": {"audio": {"windows": 4, "count": [4] * 3, "total": [0] * 3, "squares": [float("nan")] * 3}}},
        {"modalities": {"audio": {"windows": 4, "count": [-4] * 3, "total": [0] * 3, "squares": [0] * 3}}},
        {"modalities": {"audio": {"windows": 4, "count": ["4"] * 3, "total": [0] * 3, "squares": [0] * 3}}},
        {"modalities": {"audio": {"windows": 4, "count": [0.5] * 3, "total": [0] * 3, "squares": [0] * 3}}},
        {"modalities": {"audio": {"windows": 4, "count": [4] * 3, "total": [9] * 3, "squares": [1] * 3}}},
        {"modalities": {"audio": {"windows": 4, "count": [4] * 3, "total": [0] * 3, "squares": [1e300] * 3}}},
        {"modalities": {"audio": {"windows": 4.5, "count": [4] * 3, "total": [0] * 3, "squares": [0] * 3}}},
        {"modalities": {"audio": {"windows": 4, "count": [[4]] * 3, "total": [0] * 3, "squares": [0] * 3}}},
    ],
)
def test_what_is_damaged_is_refused_in_a_line(change: dict[str, Any]) -> None:
    tree = measure(np.ones((4, 3))).to_tree("best") | change
    with pytest.raises(DataError, match="POST /measure") as refused:
        SubjectMeasurement.from_tree(tree, "best", N_FEATURES)
    assert "\n" not in str(refused.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(JSON, st.sampled_from(["model", "recordings", "modalities", "windows", "count", "total", "squares"]))
def test_no_tree_of_json_raises_anything_else(value: Any, key: str) -> None:
    tree = measure(np.ones((4, 3))).to_tree("best")
    (tree if key in tree else tree["modalities"]["audio"])[key] = value
    for sent in (tree, value):
        try:
            SubjectMeasurement.from_tree(sent, "best", N_FEATURES)
        except DataError as error:
            assert "\n" not in str(error)
