"""What encoders compute of windows before anything is learned is computed once, and is what each step would compute."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from eav_ray.config import Experiment, override
from eav_ray.data.shards.window_cache import WindowCache
from eav_ray.data.splits import Split
from eav_ray.models.encoders.base import DataShapes
from eav_ray.storage import Store
from eav_ray.training.checkpoint import OpenedCheckpoint
from eav_ray.training.computed_features import FeatureMemory, StoredFeatures, list_computed_modalities
from eav_ray.training.dataloader import RawSource
from eav_ray.training.prepared_run import WorkerContext
from eav_ray.training.run_spec import Run
from eav_ray.training.runner import execute_run
from tests.helpers.trainings import TRAIN, make_experiment, make_windows

KNOWN_SUBJECTS = {"split.access": "unlabelled_block", "model.eeg.subject_normalisation": "standardise"}
MFCC, COVARIANCE = {"model.audio.kind": "mfcc"}, {"model.eeg.kind": "covariance"} | KNOWN_SUBJECTS


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> WindowCache:
    return make_windows(tmp_path_factory.mktemp("features"))


class CountingSource(RawSource):
    """Stored windows, counted as they are read."""

    n_read = 0

    def get_modality(self, rows: np.ndarray, modality: str) -> Tensor:
        self.n_read += len(rows)
        return super().get_modality(rows, modality)


def change(modality: str, changes: dict[str, Any]) -> Experiment:
    return override(make_experiment("torch"), {"data.modalities": [modality]} | changes)


@pytest.mark.parametrize(("modality", "changes"), [("audio", MFCC), ("eeg", COVARIANCE)])
def test_a_window_is_read_once_and_has_the_features_that_its_encoder_computes(
    windows: WindowCache, modality: str, changes: dict[str, Any]
) -> None:
    e, source = change(modality, changes), CountingSource(windows, [modality])
    stored = StoredFeatures(e, modality, DataShapes(30, 5), source, windows, FeatureMemory())
    rows = np.array([3, 0, 3, 5])
    first, again = stored.get(rows), stored.get(rows[::-1])
    assert source.n_read == 3
    assert torch.equal(first.values, again.values.flip(0)) and torch.equal(first.known, again.known.flip(0))
    expected = stored.compute(rows)
    torch.testing.assert_close(first.values, expected.values, rtol=1e-4, atol=1e-4)
    assert torch.equal(first.known, expected.known)


def test_what_does_not_fit_is_computed_anew(windows: WindowCache) -> None:
    source = CountingSource(windows, ["audio"])
    e = change("audio", MFCC)
    size = StoredFeatures(e, "audio", DataShapes(30, 5), source, windows, FeatureMemory()).get(np.array([0])).values
    memory = FeatureMemory(max_bytes=2 * (size.numel() * size.element_size() + size.shape[1]))
    stored = StoredFeatures(e, "audio", DataShapes(30, 5), source, windows, memory)
    source.n_read = 0
    first, again = stored.get(np.arange(4)), stored.get(np.arange(4))
    assert source.n_read == 4 + 2 and torch.equal(first.values, again.values)


@pytest.mark.parametrize(("modality", "changes"), [("audio", MFCC), ("eeg", COVARIANCE)])
def test_a_training_ends_with_the_same_weights_whether_features_are_kept_or_not(
    windows: WindowCache, tmp_path: Path, modality: str, changes: dict[str, Any]
) -> None:
    e = change(modality, changes | {f"train.encoders.{modality}.epochs": 2})
    weights = []
    for name, memory in (("kept", FeatureMemory()), ("anew", FeatureMemory(0))):
        context = WorkerContext(windows, Store(tmp_path / name), torch.device("cpu"), features=memory)
        prefix = execute_run(Run("encoder", e, Split("within", TRAIN, (), ()), "data"), context, lambda progress: None)
        weights.append(OpenedCheckpoint(context.results, prefix).weights)
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name


def test_features_that_fitted_numbers_go_into_are_computed_in_each_step() -> None:
    """Channels are standardised by training rows before band powers; within subjects nothing comes before them."""
    bands = {"model.eeg.kind": "bandpower"}
    assert list_computed_modalities(change("eeg", bands)) == []
    assert list_computed_modalities(change("eeg", bands | KNOWN_SUBJECTS)) == ["eeg"]
    assert list_computed_modalities(change("audio", MFCC)) == ["audio"]
    assert list_computed_modalities(change("audio", {})) == []
