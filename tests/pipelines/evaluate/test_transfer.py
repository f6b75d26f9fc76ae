"""A checkpoint that is tested on another data set is asked for the classes that both have, and for nothing else."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import softmax

from eav_ray.config import Experiment, digest, override
from eav_ray.data.datasets.cremad import CREMAD
from eav_ray.data.datasets.ravdess import RAVDESS
from eav_ray.data.shards.dataset import Dataset
from eav_ray.data.shards.index import ShardFile, ShardIndex
from eav_ray.data.splits import LabeledRecording, Split
from eav_ray.distributed.scoring import Scorer, ScoringTask
from eav_ray.errors import ConfigError, DataError
from eav_ray.evaluation.compatibility import check_preprocessing
from eav_ray.models.classifier import Classifier, ClassifierOutput
from eav_ray.models.encoders.base import DataShapes
from eav_ray.pipelines.evaluate.transfer import (
    check_subjects_unseen,
    is_training_dataset,
    map_labels,
    restrict_to_classes,
    select_shared_classes,
    select_shared_modalities,
)
from eav_ray.storage import Store
from eav_ray.training.checkpoint import OpenedCheckpoint
from eav_ray.training.dataloader import RawSource
from eav_ray.training.metrics import select_logits
from eav_ray.training.predictions import build_predictions
from tests.helpers.checkpoints import make_checkpoint, save_checkpoint
from tests.helpers.shards import Shards

INDEX = ShardIndex("k", ("a", "b"), ("audio", "eeg"), 30, (ShardFile("f", "0" * 64, 1),), {})
OTHER = replace(INDEX, shards=(ShardFile("f", "1" * 64, 1),))


Trained = Callable[..., OpenedCheckpoint]


@pytest.fixture
def trained(tmp_path: Path) -> Trained:
    """Makes a checkpoint that was trained on `INDEX`, of an experiment with changes."""

    def make(**changes: Any) -> OpenedCheckpoint:
        e = override(Experiment(), {"data.modalities": ["audio", "eeg"]} | changes)
        split = Split("subject_kfold", ("p1/1", "p2/1"), ("p3/1",), ("p4/1",))
        return save_checkpoint(Store(tmp_path), make_checkpoint(e, split=split, data_digest=digest(INDEX.fingerprint)))

    return make


def target(**changes: Any) -> Experiment:
    return override(Experiment(), changes)


# --- which data set ---


@pytest.mark.parametrize("kind", ["recordings_table", "bids"])
def test_a_readers_data_set_is_one_wherever_it_lies_and_a_users_where_it_is_the_same(
    trained: Trained, kind: str
) -> None:
    eav = trained(**{"data.dataset": "eav", "data.root": "/here"})
    assert is_training_dataset(target(**{"data.dataset": "eav", "data.root": "/there"}), eav, OTHER)
    assert not is_training_dataset(target(**{"data.dataset": "ravdess", "data.root": "/here"}), eav, OTHER)
    mine = trained(**{"data.dataset": kind, "data.root": "/here"})
    there = target(**{"data.dataset": kind, "data.root": "/there"})
    assert not is_training_dataset(there, mine, OTHER)
    assert is_training_dataset(there, mine, INDEX)  # moved
    assert is_training_dataset(target(**{"data.dataset": kind, "data.root": "/here"}), mine, OTHER)  # made anew


@pytest.mark.parametrize("seen", ["p1", "p3"])
def test_people_of_its_own_data_set_that_it_was_trained_on_or_chosen_by_are_refused(
    seen: str, trained: Trained
) -> None:
    items = [LabeledRecording(f"{p}/9", p, 0, "speaking", 0) for p in ("p4", seen)]
    with pytest.raises(ConfigError, match=rf"trained on this very data set, {seen} among.*its own test side"):
        check_subjects_unseen(items, trained())
    check_subjects_unseen(items[:1], trained())


# --- classes ---


def test_classes_are_shared_by_name_in_the_checkpoints_order() -> None:
    shared = select_shared_classes(RAVDESS.classes, CREMAD.classes, "ravdess", "cremad")
    assert shared == ("Neutral", "Sadness", "Anger", "Happiness") and set(shared) == set(CREMAD.classes)
    with pytest.raises(ConfigError, match="have 1 classes in common.*knows a, b; the data set has b, c"):
        select_shared_classes(("a", "b"), ("b", "c"), "x", "y")


def test_labels_and_logits_follow_the_names() -> None:
    """Each recording's logits say which class they are of, so that a wrong column or label would show."""
    theirs, mine = RAVDESS.classes, CREMAD.classes
    shared = select_shared_classes(theirs, mine, "ravdess", "cremad")
    items = [LabeledRecording(f"p/{k}", "p", label, "speaking", 0) for label, k in enumerate(mine)]
    items.append(LabeledRecording("p/heard", "p", 0, "listening", 0))
    label_of = map_labels(items, mine, shared)
    assert label_of == {f"p/{k}": shared.index(k) for k in mine}

    # Calmness is what the model would say, were it asked; of the others it knows the right one.
    right = np.array([theirs.index(k) for k in mine])
    logits = torch.zeros(4, 5)
    logits[torch.arange(4), torch.from_numpy(right)] = 1.0
    logits[:, theirs.index("Calmness")] = 9.0
    weights = torch.full((4, 2), 0.5)
    ids = pd.DataFrame({"subject": ["p"] * 4, "recording": mine, "window": [0] * 4})
    output = ClassifierOutput(logits, {"audio": logits, "eeg": logits}, weights, weights)
    present = np.array([[True, False]] * 4)
    table = build_predictions(output, ids, present, ["audio", "eeg"], np.arange(4))
    found = restrict_to_classes(table, theirs, shared, label_of, ("audio",))
    assert [c for c in found.columns if c.startswith("fusion.")] == [f"fusion.logit_{k}" for k in range(4)]
    assert not [c for c in found.columns if "eeg" in c]
    for source in ("fusion", "product", "mean_probability", "audio"):
        named = found[[f"{source}.logit_{k}" for k in range(4)]].to_numpy().argmax(1)
        assert (named == found["label"]).all() and [shared[k] for k in named] == list(mine)


def test_rules_of_fusion_are_of_the_probabilities_among_the_shared_classes() -> None:
    """The mean of two distributions over all classes, cut to some, is another: it heeds most who spares the rest."""
    rng, weights = np.random.default_rng(0), torch.full((6, 2), 0.5)
    logits = {m: torch.from_numpy(rng.normal(0, 3, (6, 3)).astype(np.float32)) for m in ("audio", "eeg")}
    ids = pd.DataFrame({"subject": "p", "recording": [str(n) for n in range(6)], "window": 0})
    output = ClassifierOutput(logits["audio"], logits, weights, weights)
    present = np.array([[True, True]] * 5 + [[False, True]])
    table = build_predictions(output, ids, present, ["audio", "eeg"], np.zeros(6, int))
    label_of = {f"p/{n}": 0 for n in range(6)}
    found = restrict_to_classes(table, ("a", "b", "c"), ("c", "a"), label_of, ("audio", "eeg"))
    p = {m: x[:, [2, 0]].softmax(-1).numpy() for m, x in logits.items()}
    mean = np.where(present[:, :1], (p["audio"] + p["eeg"]) / 2, p["eeg"])
    geometric = np.where(present[:, :1], np.sqrt(p["audio"] * p["eeg"]), p["eeg"])
    for rule, expected in (("mean_probability", mean), ("product", geometric / geometric.sum(1, keepdims=True))):
        assert softmax(select_logits(found, rule), axis=1) == pytest.approx(expected, rel=1e-4)


# --- modalities ---


def test_modalities_are_those_of_both(trained: Trained) -> None:
    shown, reported = select_shared_modalities(target(**{"data.modalities": ["audio", "video"]}), trained(), 0)
    assert shown == ("audio",)
    assert reported == ["masked, as not in data.modalities: eeg", "ignored, as never trained on: video"]
    with pytest.raises(ConfigError, match="data.modalities names video, but .* was trained on audio, eeg: none"):
        select_shared_modalities(target(**{"data.modalities": ["video"]}), trained(), 0)


def index_of(n_channels: int, names: tuple[str, ...] = ()) -> ShardIndex:
    return ShardIndex("k", ("a", "b"), ("audio", "eeg"), n_channels, (), {}, names)


def test_another_montage_is_masked_and_told_or_refused_where_there_is_nothing_else(trained: Trained) -> None:
    both = target(**{"data.modalities": ["audio", "eeg"]})
    shown, notes = select_shared_modalities(both, trained(), index_of(30))
    assert shown == ("audio", "eeg") and "is not known" in notes[0]
    shown, notes = select_shared_modalities(both, trained(), index_of(19))
    assert shown == ("audio",) and "eeg is masked: " in notes[0] and "19 EEG channels, but" in notes[0]
    with pytest.raises(DataError, match="19 EEG channels, but .* was trained on 30"):
        select_shared_modalities(target(**{"data.modalities": ["eeg"]}), trained(), index_of(19))


def test_electrodes_are_matched_by_name(tmp_path: Path) -> None:
    """In whatever order and with whatever others: those that the checkpoint knows are found, or named."""
    both = target(**{"data.modalities": ["audio", "eeg"]})
    shapes = DataShapes(3, 2, ("Fp1", "C3", "O1"))
    checkpoint = save_checkpoint(Store(tmp_path), make_checkpoint(both, shapes=shapes))
    shown, notes = select_shared_modalities(both, checkpoint, index_of(4, ("O1", "Cz", "Fp1", "C3")))
    assert shown == ("audio", "eeg") and "EEG channels Cz are left out" in notes[0]
    shown, notes = select_shared_modalities(both, checkpoint, index_of(3, ("O1", "Cz", "Fp1")))
    assert shown == ("audio",) and "has no EEG channel C3" in notes[0]


def test_only_what_is_seen_needs_the_same_profile(trained: Trained) -> None:
    other = target(**{"preprocessing.eeg.low_hz": 1.0})
    check_preprocessing(other, trained(), ("audio",))
    with pytest.raises(ConfigError, match=r"preprocessing\.eeg\.low_hz"):
        check_preprocessing(other, trained(), ("audio", "eeg"))
    with pytest.raises(ConfigError, match=r"preprocessing\.window_s"):
        check_preprocessing(
            target(**{"preprocessing.window_s": 6, "model.audio.max_length": 600}), trained(), ("audio",)
        )


def small() -> Experiment:
    """Of the windows of `Shards`, but for the number of EEG channels."""
    changes = {"data.modalities": ["audio", "eeg"], "preprocessing.window_s": 1, "preprocessing.eeg.hz": 50}
    changes |= {"model.audio.kind": "mfcc", "model.eeg.kind": "bandpower", "model.eeg.segments": 1}
    return override(Experiment(), changes | {"preprocessing.eeg.high_hz": 20.0, "model.video.frames": 5})


def test_what_a_data_set_lacks_is_missing_to_the_model(tmp_path: Path) -> None:
    """Windows with EEG of another montage are to it as windows whose EEG is masked, whatever that holds."""
    windows = Shards(tmp_path / "shards").windows(tmp_path / "cache")
    rows = np.flatnonzero(windows.ids["has_eeg"] & windows.ids["has_audio"])[:3]
    source, whole = RawSource(windows, ["eeg", "audio"], {"eeg": (30, 50)}), RawSource(windows, ["eeg", "audio"])
    inputs = source.get(rows)
    assert source.get_presence(rows).tolist() == [[True, False]] * 3 and whole.get_presence(rows).all()
    assert torch.equal(inputs["audio"], whole.get(rows)["audio"])
    assert inputs["eeg"].shape == (3, 30, 50) and inputs["eeg"].dtype == whole.get(rows)["eeg"].dtype
    e = small()
    torch.manual_seed(0)
    model = Classifier(e, DataShapes(30, 2)).eval()
    present = torch.from_numpy(source.get_presence(rows))
    with torch.no_grad():
        lacking = model(inputs, present)
        masked = model(inputs | {"eeg": torch.randn(3, 30, 50)}, present)
        heard = model(inputs | {"eeg": torch.randn(3, 30, 50)}, torch.ones_like(present))
    torch.testing.assert_close(lacking.logits_BK, masked.logits_BK)
    torch.testing.assert_close(lacking.weights_BM[:, 0], torch.ones(3), rtol=0, atol=4 * torch.finfo().eps)
    assert (lacking.weights_BM[:, 0] <= 1).all() and (lacking.weights_BM[:, 1] == 0).all()
    assert not torch.allclose(lacking.logits_BK, heard.logits_BK)


def test_an_equal_id_of_another_data_set_is_another_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scored where the sets differ, refused where they are one; and another montage's EEG is never read."""
    shards, results = Shards(tmp_path / "shards"), Store(tmp_path / "results")
    changes = {"store.results": str(results), "store.cache": str(tmp_path / "cache"), "runtime.gpus_per_worker": 0}
    e = override(small(), changes)
    model = Classifier(e, DataShapes(30, 5))
    split = Split("subject_kfold", ("p0/0", "p0/1"), (), ("p1/0",))
    whole = save_checkpoint(results, make_checkpoint(e, tuple("abcde"), split, weights=model.state_dict()))
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)  # which an actor does for its own process
    scorer = Scorer(e, Dataset(shards.store, shards.index, e.store.cache, e.store.cache_gb), ("p0/0",))
    _, refused, _ = scorer.score(0, ScoringTask(whole, ("p0/0",), ("audio",)))
    assert "recording p0/0 is both in train and in test" in refused.problem
    _, scored, count = scorer.score(0, ScoringTask(whole, ("p0/0",), ("audio",), is_other_dataset=True))
    table = scored.require()
    assert (len(table), count) == (4, 1)
    assert (table["weight.eeg"] == 0).all() and table["eeg.logit_0"].isna().all()
    assert np.isfinite(table[[f"fusion.logit_{k}" for k in range(5)]]).all(axis=None)
