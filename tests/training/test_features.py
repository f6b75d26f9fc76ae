"""An encoder that keeps its published weights runs once; its head ends where it would, trained on the whole."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import ASTConfig, ASTModel

from eav_ray.config import Experiment, RuntimeConfig, override
from eav_ray.data.shards.dataset import Dataset
from eav_ray.data.shards.index import read_index
from eav_ray.data.shards.window_cache import WindowCache
from eav_ray.data.splits import Split
from eav_ray.distributed.frozen_features import FrozenEncoder
from eav_ray.models.classifier import Classifier
from eav_ray.models.encoders.base import DataShapes
from eav_ray.storage import Store
from eav_ray.training.embeddings import EmbeddingSource, build_embedding_key, commit_embeddings, get_token_times
from eav_ray.training.run_spec import Run
from tests.helpers.trainings import TRAIN, make_experiment, make_windows, train

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
SEEN, REST = TRAIN[:5], TRAIN[5:]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    torch.manual_seed(5)
    ASTModel(ASTConfig(**sizes, time_stride=16, frequency_stride=16, max_length=512)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, WindowCache]:
    folder = tmp_path_factory.mktemp("features")
    return folder / "shards", make_windows(folder)


def frozen(published: Path, engine: str = "torch", **optim: Any) -> Experiment:
    """Two phases of a head under dropout, on an encoder that stays as it is."""
    changes = {"data.modalities": ["audio"], "model.audio.weights": str(published), "model.audio.dropout": 0.1}
    own = {"encoder_lr_scale": 0.0, "frozen_epochs": 2, "epochs": 3, "batch": 4} | optim
    return override(make_experiment(engine), changes | {f"train.encoders.audio.{k}": v for k, v in own.items()})


def run_of(e: Experiment, embed: tuple[str, ...] = TRAIN) -> Run:
    return Run("encoder", e, Split("within", SEEN, REST, ()), "data", embedded_recordings=embed)


def embed(run: Run, stored: tuple[Path, WindowCache], results: Path) -> None:
    """As Ray Data does, in this process: all that is stored, the recording that is never trained on too."""
    shards, windows = stored
    here = {"store.results": str(results), "store.cache": str(results / "cache")}
    mine, index = replace(run, experiment=override(run.experiment, here)), read_index(Store(shards))
    data = Dataset(Store(shards), index, mine.experiment.store.cache, 1)
    actor = FrozenEncoder(mine, run.features_prefix, data, DataShapes(30, 5), RuntimeConfig(gpus_per_worker=0))
    assert actor({"file": np.array([index.shards[0].file])})["windows"].tolist() == [8]
    commit_embeddings(Store(results), run.features_prefix, "shards", get_token_times(actor.model))
    assert len(windows) == 7


@pytest.mark.parametrize("engine", ["torch", "deepspeed"])
def test_a_head_on_features_ends_where_a_head_on_the_frozen_encoder_does(
    stored: tuple[Path, WindowCache], published: Path, tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fp32, ten steps, embeddings and weights within 1e-5; every other tensor is the published one."""
    run, (_, windows) = run_of(frozen(published, engine)), stored
    assert run.features_prefix and not run_of(override(run.experiment, {"model.audio.weights": ""})).features_prefix
    embed(run, stored, tmp_path / "once")
    found = train(windows, tmp_path / "once", engine, run=run)
    resumed = tmp_path / "resumed"
    embed(run, stored, resumed)
    for name, tensor in train(windows, resumed, engine, run=run, killed_after=(1, 3)).items():
        assert torch.equal(tensor, found[name]), name
    key = run.key
    with monkeypatch.context() as patch:
        patch.setattr(Run, "features_prefix", "")
        assert run.key == key
        expected = train(windows, tmp_path / "whole", engine, run=run)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-5)
        assert name.startswith("heads.") or torch.equal(found[name], tensor), name
    fresh = Classifier(run.experiment, DataShapes(30, 5))
    fresh.load_state_dict(found)
    keys = {"audio": build_embedding_key(key, run.embedded_recordings)}
    once, whole = (EmbeddingSource(Store(tmp_path / place), keys, windows) for place in ("once", "whole"))
    assert torch.equal(once.times_s["audio"], whole.times_s["audio"])
    rows = windows.find_rows(run.embedded_recordings)
    for name, tensor in whole.get(rows).items():
        torch.testing.assert_close(once.get(rows)[name].float(), tensor.float(), rtol=1e-5, atol=1e-5)


def test_features_are_of_the_data_and_the_weights_and_of_nobody_trained_on(published: Path, tmp_path: Path) -> None:
    one = run_of(frozen(published))
    assert one.features_prefix.startswith("features/audio-")
    same = [replace(one, split=Split("within", TRAIN[:3], (), ())), replace(one, embedded_recordings=SEEN)]
    same += [run_of(frozen(published, lr=1e-2, epochs=9)), run_of(override(one.experiment, {"seed": 3}))]
    assert {run.features_prefix for run in same} == {one.features_prefix} and same[0].key != one.key
    (tmp_path / "model.safetensors").write_bytes(b"others")
    others = [replace(one, data_digest="other"), run_of(override(one.experiment, {"model.audio.max_length": 1024}))]
    others += [run_of(override(one.experiment, {"runtime.precision": "bf16"})), run_of(frozen(tmp_path))]
    assert len({one.features_prefix, *(run.features_prefix for run in others)}) == 5


@pytest.mark.parametrize("change", [{"encoder_lr_scale": 0.1}, {"mixup": 0.2}])
def test_what_changes_from_epoch_to_epoch_is_computed_in_each(published: Path, change: dict[str, float]) -> None:
    assert not run_of(frozen(published, **change)).features_prefix
    assert not run_of(override(frozen(published), {"model.audio.mask_bands": 8})).features_prefix


def test_an_encoder_whose_input_is_standardised_by_training_rows_is_computed_for_each_fold(tmp_path: Path) -> None:
    keys = {"kind": "braindecode", "name": "EEGNet", "weights": str(tmp_path), "scale": "microvolts"}
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    changes = {"data.modalities": ["eeg"], "model.eeg": keys, "train.encoders.eeg.encoder_lr_scale": 0.0}
    e = override(make_experiment("torch"), changes)
    assert run_of(e).features_prefix.startswith("features/eeg-")
    assert not run_of(override(e, {"model.eeg": keys | {"scale": "standardised"}})).features_prefix
