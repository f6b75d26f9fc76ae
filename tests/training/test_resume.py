"""A run that was stopped and given again ends with the weights of the run that was not, bit for bit."""

import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import ASTConfig, ASTModel

from eav_ray.config import load_experiment, override
from eav_ray.data.shards.window_cache import WindowCache
from eav_ray.data.splits import Split
from eav_ray.errors import DataError, TrainingInterrupted
from eav_ray.models.classifier import Classifier
from eav_ray.models.encoders.base import DataShapes
from eav_ray.models.encoders.mfcc import MFCC
from eav_ray.storage import Store
from eav_ray.training import checkpoint as ckpt
from eav_ray.training import checkpoint_writer
from eav_ray.training.prepared_run import WorkerContext
from eav_ray.training.run_spec import SELECTION_METRIC, Position, Progress, Run, plan_adaptation_run
from eav_ray.training.runner import execute_run
from eav_ray.training.statistics import fit_model_statistics
from tests.helpers.paths import DEMO
from tests.helpers.trainings import TRAIN, Killed, make_experiment, make_windows, train

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> WindowCache:
    return make_windows(tmp_path_factory.mktemp("resume"))


@pytest.mark.parametrize("engine", ["torch", "deepspeed"])
def test_a_run_killed_twice_ends_bit_identical(windows: WindowCache, tmp_path: Path, engine: str) -> None:
    whole = train(windows, tmp_path / "whole", engine)
    resumed = train(windows, tmp_path / "resumed", engine, killed_after=(1, 3))
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name


@pytest.mark.parametrize("engine", ["torch", "deepspeed"])
def test_a_training_from_published_weights_killed_in_each_phase_ends_bit_identical(
    windows: WindowCache, tmp_path: Path, engine: str
) -> None:
    """Two frozen epochs and three others, mixup, SpecAugment, class weights and dropout on."""
    sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    published = ASTModel(ASTConfig(**sizes, time_stride=16, frequency_stride=16, max_length=512))
    published.save_pretrained(tmp_path / "published")
    changes = {"data.modalities": ["audio"], "model.audio.weights": str(tmp_path / "published")}
    changes |= {f"model.audio.{k}": v for k, v in {"mask_bands": 20, "mask_frames": 40, "dropout": 0.1}.items()}
    optim = {"frozen_epochs": 2, "epochs": 3, "batch": 4, "mixup": 0.4, "class_weights": True, "encoder_lr_scale": 0.5}
    changes |= {f"train.encoders.audio.{k}": v for k, v in optim.items()}
    run = Run("encoder", override(make_experiment(engine), changes), Split("within", TRAIN, (), ()), "data")
    whole = train(windows, tmp_path / "whole", engine, run=run)
    resumed = train(windows, tmp_path / "resumed", engine, run=run, killed_after=(1, 2, 4))
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name
    frozen = train(windows, tmp_path / "frozen", engine, run=run, stop=2)
    for name, tensor in published.state_dict().items():
        assert torch.equal(frozen[f"encoders.audio.model.{name}"], tensor), name
        assert not torch.equal(whole[f"encoders.audio.model.{name}"], tensor), name


def test_an_adaptation_moves_heads_and_fusion_and_keeps_the_encoders(windows: WindowCache, tmp_path: Path) -> None:
    store = Store(tmp_path / "results")
    place = WorkerContext(windows, store, torch.device("cpu"))
    e = override(make_experiment("torch"), {"train.adaptation.batch": 4, "train.adaptation.epochs": 2})
    base = execute_run(Run("joint", e, Split("within", TRAIN[:5], (), ()), "data"), place, lambda progress: None)
    path = f"{store}/{base}"
    chosen = Split("adapted", TRAIN[5:6], (), TRAIN[6:])
    commit = ckpt.OpenedCheckpoint(store, base).commit_sha256
    run = plan_adaptation_run(e, chosen, "data", path, commit)
    assert run.dependencies == () and run.phases[0].encoders_frozen and run.epochs == 2
    before, after = (
        ckpt.OpenedCheckpoint(store, p).weights for p in (base, execute_run(run, place, lambda progress: None))
    )
    moved = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert moved and not any(name.startswith(("encoders.", "normalise.")) for name in moved)
    assert any(name.startswith("fusion.") for name in moved) and any(name.startswith("heads.") for name in moved)
    with pytest.raises(DataError, match="has changed since"):
        execute_run(plan_adaptation_run(e, chosen, "data", path, "0" * 64), place, lambda progress: None)


def test_an_adaptation_takes_the_electrodes_in_the_order_in_which_the_model_knows_them(tmp_path: Path) -> None:
    store = Store(tmp_path / "results")
    e = override(make_experiment("torch"), {"train.adaptation.batch": 4, "train.adaptation.epochs": 2})
    known, permuted = (
        WorkerContext(make_windows(tmp_path / str(n), order), store, torch.device("cpu"))
        for n, order in enumerate((range(30), [*range(7, 30), *range(7)]))
    )
    base = execute_run(Run("joint", e, Split("within", TRAIN[:5], (), ()), "data"), known, lambda progress: None)
    chosen = Split("adapted", TRAIN[5:6], (), TRAIN[6:])
    adapted = []
    for number, place in enumerate((known, permuted)):
        commit = ckpt.OpenedCheckpoint(store, base).commit_sha256
        run = plan_adaptation_run(e, chosen, f"data {number}", f"{store}/{base}", commit)
        adapted.append(ckpt.OpenedCheckpoint(store, execute_run(run, place, lambda progress: None)))
    for name, tensor in adapted[0].weights.items():
        assert torch.equal(tensor, adapted[1].weights[name]), name
    assert adapted[1].state.shapes.eeg_channel_names == known.windows.index.eeg_channel_names


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(windows: WindowCache, tmp_path: Path) -> None:
    whole = train(windows, tmp_path / "whole", "torch")
    with pytest.raises(AssertionError):
        train_until_killed(windows, tmp_path / "damaged")
    last = max((tmp_path / "damaged" / "runs").rglob("model.safetensors"))
    last.write_bytes(last.read_bytes()[:-1])
    reported: set[str] = set()
    resumed = train(windows, tmp_path / "damaged", "torch", reported=reported)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    (line,) = reported
    assert "model.safetensors" in line and last.parent.name in line


def train_until_killed(windows: WindowCache, folder: Path) -> None:
    place = WorkerContext(windows, Store(folder), torch.device("cpu"))
    run = Run("joint", make_experiment("torch"), Split("within", TRAIN, (), ("subject1/007",)), "data")

    def report(progress: Progress) -> None:
        assert progress.epoch < 2, "killed"

    execute_run(run, place, report)


def test_rows_outside_of_what_a_place_may_see_do_not_exist(windows: WindowCache) -> None:
    assert len(windows) == len(TRAIN)
    assert set(windows.ids["id"]) == set(TRAIN)
    assert len(windows.find_rows(("subject1/007",))) == 0


def test_computed_features_are_standardised_by_the_training_rows_that_have_them(
    windows: WindowCache, tmp_path: Path
) -> None:
    kinds = {"model.audio": {"kind": "mfcc", "segments": 2}, "model.eeg": {"kind": "bandpower", "segments": 2}}
    e = override(load_experiment(DEMO), kinds)
    e = override(e, {"data.modalities": ["audio", "eeg"], "train.mode": "end_to_end", "optim.epochs": 1})
    e = override(e, {"runtime.engine": "torch", "runtime.workers": 1, "fusion.width": 16, "optim.batch": 4})
    weights = train(windows, tmp_path, "torch", run=Run("joint", e, Split("within", TRAIN[:5], (), TRAIN[5:]), "data"))
    model = Classifier(e, DataShapes(30, 5))
    model.load_state_dict(weights)
    rows = np.array([0, 1, 3, 4])  # the third has no sound
    encoder = model.encoders["audio"]
    assert isinstance(encoder, MFCC)
    features, mask = encoder.compute_features(torch.from_numpy(windows.get(rows, "audio")))
    made = encoder.standardise(features)[mask]
    torch.testing.assert_close(made.mean(0), torch.zeros(made.shape[1]), atol=1e-3, rtol=0)
    torch.testing.assert_close(made.std(0, unbiased=False), torch.ones(made.shape[1]), atol=1e-3, rtol=0)


@pytest.mark.parametrize("standardise", [True, False])
def test_channels_are_standardised_unless_the_encoder_wants_microvolts(windows: WindowCache, standardise: bool) -> None:
    kind = {"kind": "eav_transformer", "standardise": standardise}
    e = override(load_experiment(DEMO), {"model.eeg": kind, "data.modalities": ["eeg"]})
    model = Classifier(e, DataShapes(30, 5))
    fit_model_statistics(model, windows, TRAIN)
    x = torch.from_numpy(windows.get(np.arange(len(windows)), "eeg"))
    found = model.prepare_input({"eeg": x}, "eeg")
    if standardise:
        torch.testing.assert_close(found.mean((0, 2)), torch.zeros(30), rtol=0, atol=1e-5)
        torch.testing.assert_close(found.std((0, 2), unbiased=False), torch.ones(30), rtol=0, atol=1e-5)
    assert torch.equal(found, x) is not standardise


@pytest.mark.parametrize("engine", ["torch", "deepspeed"])
def test_a_run_that_ends_at_any_step_goes_on_bit_identical(
    windows: WindowCache, tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saved every third step, inside epochs; mixup, dropout and modality dropout on; ends that no one announced."""
    monkeypatch.setattr(checkpoint_writer, "STOP_POLL_S", 0.0)
    e = override(make_experiment(engine), {"train.checkpoint_steps": 3, "optim.mixup": 0.4, "optim.batch": 2})
    e = override(e, {"fusion.modality_dropout": 0.4, "train.keep_checkpoints": 1, "train.checkpoint_epochs": 9})
    run = Run("joint", e, Split("within", TRAIN, (), ("subject1/007",)), "data")
    whole = train(windows, tmp_path / "whole", engine, run=run)
    place, seen = WorkerContext(windows, Store(tmp_path / "resumed"), torch.device("cpu")), []
    for steps in (1, 5, 2, 4, 7):  # until the end of the process, of 16 in all

        def ends(left: list[int]) -> str:
            left[0] -= 1
            if not left[0]:
                raise Killed
            return ""

        with pytest.raises(Killed):
            execute_run(run, place, lambda progress: None, partial(ends, [steps]))
        found, _ = ckpt.load_latest_checkpoint(place.results, run.key)
        seen.append(found and found[1].state.position)
    assert seen == [None, Position(0, 3), Position(0, 3), Position(1, 2), Position(2, 4)]
    saved = ckpt.OpenedCheckpoint(place.results, execute_run(run, place, lambda progress: None))
    assert all(torch.equal(tensor, saved.weights[name]) for name, tensor in whole.items())
    assert [p for _, p, _ in ckpt.list_checkpoints(place.results, run.key)] == [Position(4, 0)]


def test_a_run_that_is_asked_to_leave_saves_at_that_step_and_counts_the_whole_epoch(
    windows: WindowCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_writer, "STOP_POLL_S", 0.0)
    e = override(make_experiment("torch"), {"train.checkpoint_epochs": 9, "optim.batch": 2})
    run = Run("joint", e, Split("within", TRAIN, (), ("subject1/007",)), "data")
    reported: dict[float, float] = {}

    def report(progress: Progress) -> None:
        reported[progress.epoch] = progress.metrics["train_loss"]

    execute_run(run, WorkerContext(windows, Store(tmp_path / "whole"), torch.device("cpu")), report)
    whole = dict(reported)
    assert set(whole) == {k / 4 for k in range(1, 17)} | {1, 2, 3, 4}
    place = WorkerContext(windows, Store(tmp_path / "left"), torch.device("cpu"))
    with pytest.raises(TrainingInterrupted, match="the node goes"):
        execute_run(run, place, report, iter(["", "", "", "", "", "the node goes"]).__next__)
    found, _ = ckpt.load_latest_checkpoint(place.results, run.key)
    assert found and found[1].state.position == Position(1, 2)
    reported.clear()
    execute_run(run, place, report)
    assert reported == {epoch: loss for epoch, loss in whole.items() if epoch > 1.5}


def test_a_run_that_is_asked_to_leave_in_the_middle_of_a_save_ends_that_one(
    windows: WindowCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_writer, "STOP_POLL_S", 0.0)
    asked, write = threading.Event(), checkpoint_writer.write_checkpoint
    monkeypatch.setattr(checkpoint_writer, "write_checkpoint", lambda *words: asked.wait(60) and write(*words))

    def ask(left: list[int]) -> str:
        left[0] -= 1
        if left[0]:
            return ""
        asked.set()
        return "the node goes"

    e = override(make_experiment("torch"), {"train.checkpoint_steps": 1, "optim.batch": 2})
    run = Run("joint", e, Split("within", TRAIN, (), ("subject1/007",)), "data")
    place = WorkerContext(windows, Store(tmp_path), torch.device("cpu"))
    with pytest.raises(TrainingInterrupted, match="the node goes"):
        execute_run(run, place, lambda progress: None, partial(ask, [2]))
    assert [p for _, p, _ in ckpt.list_checkpoints(place.results, run.key)] == [Position(0, 1)]


def test_validation_on_the_way_is_told_and_the_best_is_kept(windows: WindowCache, tmp_path: Path) -> None:
    e = override(make_experiment("torch"), {"train.validate_epochs": 1, "train.keep_checkpoints": 1})
    run = Run("joint", e, Split("within", TRAIN[:5], TRAIN[5:], ()), "data")
    place, reported = WorkerContext(windows, Store(tmp_path), torch.device("cpu")), []
    execute_run(
        run,
        place,
        lambda p: reported.append(p.metrics[SELECTION_METRIC]) if SELECTION_METRIC in p.metrics else None,
    )
    kept = {p.epoch for _, p, _ in ckpt.list_checkpoints(place.results, run.key)}
    assert len(reported) == 4 and kept == {4, 4 - reported[::-1].index(max(reported))}
