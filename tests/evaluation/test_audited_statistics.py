"""The audit computes means and SDs itself, finds test rows in them, and says where they would not show."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler

from eav_ray.config import override
from eav_ray.data.shards.window_cache import WindowCache
from eav_ray.evaluation.leak_audit.checks import LeakCheck
from eav_ray.evaluation.leak_audit.statistics import Moments, audit_statistics, merge_moments
from eav_ray.models.classifier import Classifier
from eav_ray.models.encoders.base import Encoder
from eav_ray.models.layers import FeatureStandardizer
from eav_ray.training import statistics
from eav_ray.training.checkpoint_files import Checkpoint
from tests.helpers.audits import make_honest_checkpoint, store_windows

NAMES = ("encoders.audio.standardise", "normalise")


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> WindowCache:
    return store_windows(tmp_path_factory.mktemp("statistics"))


def judge(checkpoint: Checkpoint, windows: WindowCache) -> LeakCheck:
    return audit_statistics(checkpoint, checkpoint.split.train, checkpoint.split.test, windows)


def fit_on(checkpoint: Checkpoint, windows: WindowCache, recordings: tuple[str, ...]) -> Checkpoint:
    """The same checkpoint, its statistics fitted on other recordings by the training's own code."""
    model = Classifier(checkpoint.experiment, checkpoint.state.shapes)
    model.load_state_dict(checkpoint.weights)
    statistics.fit_model_statistics(model, windows, recordings)
    return replace(checkpoint, weights=model.state_dict())


@pytest.mark.parametrize("protocol", ["loso", "within", "paper"])
def test_statistics_of_the_training_rows_pass(windows: WindowCache, protocol: str) -> None:
    found = judge(make_honest_checkpoint(windows, protocol), windows)
    assert found.outcome == "passed" and found.detail.startswith(", ".join(NAMES))


def test_a_training_that_puts_test_rows_into_its_statistics_is_found(windows: WindowCache) -> None:
    one = make_honest_checkpoint(windows)
    leaked = fit_on(one, windows, (*one.split.train, *one.split.test))
    found = judge(leaked, windows)
    assert found.outcome == "failed"
    for name in NAMES:
        assert f"{name} is off the training rows alone" in found.detail
    assert found.detail.count("match training and test rows together") == 2


@pytest.mark.parametrize("name", [f"{name}.{part}" for name in NAMES for part in ("mean", "sd")])
def test_one_number_that_saw_test_rows_is_found(windows: WindowCache, name: str) -> None:
    one = make_honest_checkpoint(windows)
    leaked = fit_on(one, windows, (*one.split.train, *one.split.test))
    found = judge(replace(one, weights=one.weights | {name: leaked.weights[name]}), windows)
    assert found.outcome == "failed" and name.rsplit(".", 1)[0] in found.detail


def test_statistics_of_fewer_rows_or_of_none_match_nothing(windows: WindowCache) -> None:
    one = make_honest_checkpoint(windows)
    unfitted = Classifier(one.experiment, one.state.shapes).state_dict()
    for wrong in (fit_on(one, windows, one.split.train[:5]), replace(one, weights=unfitted)):
        found = judge(wrong, windows)
        assert found.outcome == "failed" and "do not match training and test rows together either" in found.detail


def test_arithmetic_of_the_training_that_is_wrong_is_not_repeated(
    windows: WindowCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit_wrongly(self: FeatureStandardizer, batches: object) -> None:
        self.mean.fill_(3.0)

    monkeypatch.setattr(FeatureStandardizer, "fit_features", fit_wrongly)
    monkeypatch.setattr(
        statistics, "compute_channel_statistics", lambda *_: (torch.full((30,), 0.5), torch.full((30,), 2.0))
    )
    found = judge(make_honest_checkpoint(windows), windows)
    assert found.outcome == "failed" and all(name in found.detail for name in NAMES)


def test_test_rows_that_would_change_nothing_leave_it_open(tmp_path: Path) -> None:
    equal = store_windows(tmp_path, equal=True)
    found = judge(make_honest_checkpoint(equal), equal)
    assert found.outcome == "cannot tell"
    assert all(f"{name} would be the same with test rows among the training rows" in found.detail for name in NAMES)


def test_without_the_windows_nothing_is_told(windows: WindowCache) -> None:
    one = make_honest_checkpoint(windows)
    elsewhere = replace(one, split=replace(one.split, train=(*one.split.train, "p9/000")))
    found = judge(elsewhere, windows)
    assert (found.outcome, found.detail) == ("cannot tell", "the windows of p9/000 are not at hand")


def without_statistics(one: Checkpoint) -> Checkpoint:
    e = one.experiment
    changes = {"data.modalities": ["audio"], "model.audio.kind": "ast", "model.audio.width": 12}
    e = override(e, changes | {"model.audio.depth": 1, "model.audio.heads": 2, "model.audio.stride": 16})
    return replace(one, experiment=e, weights=Classifier(e, one.state.shapes).state_dict())


def without_buffers(one: Checkpoint) -> Checkpoint:
    return replace(one, weights={n: t for n, t in one.weights.items() if not n.startswith("normalise.")})


@pytest.mark.parametrize(
    ("change", "reason"),
    [(without_statistics, "have no statistics of data"), (without_buffers, "normalise is not among its weights")],
)
def test_what_is_not_stored_cannot_be_compared(
    windows: WindowCache, change: Callable[[Checkpoint], Checkpoint], reason: str
) -> None:
    found = judge(change(make_honest_checkpoint(windows)), windows)
    assert found.outcome == "cannot tell" and reason in found.detail


def test_an_encoder_that_fits_itself_in_its_own_way_is_named(
    windows: WindowCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = without_statistics(make_honest_checkpoint(windows))
    encoder = type(Classifier(one.experiment, one.state.shapes).encoders["audio"])
    monkeypatch.setattr(encoder, "fit_statistics", lambda self, batches: None)
    assert issubclass(encoder, Encoder)
    found = judge(one, windows)
    assert found.outcome == "cannot tell" and f"{encoder.__name__} of audio fits itself" in found.detail


def test_moments_are_those_of_sklearn_however_rows_are_cut_and_wherever_they_lie() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(1e6, [1e-2, 1.0, 50.0], (1000, 3))
    reference = StandardScaler().fit(x)
    assert reference.mean_ is not None and reference.scale_ is not None
    for cuts in ([], [1, 2, 500], [0, 999]):
        found = merge_moments(np.split(x, cuts))
        assert found is not None
        np.testing.assert_allclose(found.mean, reference.mean_, rtol=1e-12)
        np.testing.assert_allclose(found.sd, reference.scale_, rtol=1e-6)
    assert merge_moments([]) is None and merge_moments([np.zeros((0, 3))]) is None


def test_a_distance_is_in_sds_and_knows_nothing_of_what_never_changes() -> None:
    own = Moments(np.array([0.0, 5.0]), np.array([2.0, 0.0]))
    assert own.measure_distance(Moments(np.array([1.0, 9.0]), np.array([2.0, 1.0]))) == 0.5
    assert own.measure_distance(Moments(np.array([0.0, 5.0]), np.array([np.nan, 0.0]))) == np.inf
    assert own.measure_distance(Moments(np.zeros(3), np.ones(3))) == np.inf
