"""Every model of a results store is listed, under a short name of its own, with what tells it from the others."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from eav_ray.config import Experiment, override
from eav_ray.data.splits import LabeledRecording, Split, make_final_split, make_inner_splits, make_split
from eav_ray.models.encoders.base import DataShapes
from eav_ray.pipelines.inference.checkpoint_names import find_checkpoint, find_model, record_latest, shorten_keys
from eav_ray.pipelines.inference.store_listing import HEAD, describe_models, format_models
from eav_ray.pipelines.train.fold_records import FOLDS_FORMAT
from eav_ray.storage import COMMIT, Store, encode_documents
from eav_ray.training.checkpoint import OpenedCheckpoint
from eav_ray.training.run_spec import Position
from eav_ray.training.target_scale import TargetScale
from tests.helpers.checkpoints import change_state, make_checkpoint, save_checkpoint, write_best

CLASSES = ("calm", "happy", "sad")
BASE = override(
    Experiment(), {"split.protocol": "subject_kfold", "split.n_folds": 3, "split.n_inner_folds": 3, "split.index": 1}
)
ITEMS = [LabeledRecording(f"s{s}/{n}", f"s{s}", n % 3, "speaking", n) for s in range(9) for n in range(6)]
SPLIT = make_split(ITEMS, BASE.split)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "results")


def save(
    store: Store,
    key: str,
    changes: dict[str, object] | None = None,
    *,
    modalities: tuple[str, ...] = ("eeg",),
    split: Split = SPLIT,
    epochs: int = 3,
    score: float | None = None,
    encoders: dict[str, str] | None = None,
    scale: TargetScale | None = None,
    written: float = 1.7e9,
) -> OpenedCheckpoint:
    """Save a training that was finished at a moment, in seconds since 1970."""
    e = override(BASE, {"data.modalities": modalities, **(changes or {})})
    made = make_checkpoint(e, CLASSES, split, key=key, shapes=DataShapes(3, 3), position=Position(epochs, 0))
    made = change_state(made, encoder_keys=encoders or {}, scale=scale)
    checkpoint = save_checkpoint(store, replace(made, metrics={} if score is None else {"validation_score": score}))
    for path in (Path(store.root) / "runs" / key).rglob("*"):
        os.utime(path, (written, written))
    return checkpoint


def read_table(store: Store, **given: int) -> dict[str, dict[str, str]]:
    """Read the cells of each line, by name and column."""
    models, _ = describe_models(store, **given)
    return {model.name: {column: model.get(column) for column in HEAD} for model in models}


def test_what_a_training_is_and_when_it_was_finished_is_shown(store: Store) -> None:
    save(store, "fusion-3f0c2a91b7d45e68", modalities=("eeg", "audio"), score=0.61234, epochs=7)
    (row,) = read_table(store).values()
    assert row["name"] == "fusion-3f0c2a91" and row["what"] == "training" and row["modalities"] == "audio, eeg"
    assert row["predicts"] == "classes calm, happy, sad" and row["split"] == "subject_kfold 1"
    assert row["score"] == "0.6123" and row["epochs"] == "7" and row["date"].startswith("2023-11-14 ")
    assert row["notes"] == ""


def test_the_table_has_a_line_for_each_model(store: Store) -> None:
    save(store, "fusion-3f0c2a91b7d45e68", modalities=("eeg", "audio"), score=0.61234, epochs=7)
    save(store, "encoder-10", epochs=12)
    record_latest(store, "runs", "fusion-3f0c2a91b7d45e68")
    head, *lines = format_models(str(store)).splitlines()
    assert head.split() == list(HEAD)
    fusion = next(line for line in lines if line.startswith("fusion"))
    assert [line.index(text) for line, text in ((head, "modalities"), (fusion, "audio, eeg"))] == [
        head.index("mod")
    ] * 2
    assert " 0.6123       7  2023" in fusion
    assert [line.partition(":")[0] for line in lines[2:]] == ["score", "split", "latest"]
    assert lines[-1] == "latest: fusion-3f0c2a91b7d45e68 (training)"


def test_trainings_of_one_encoder_say_what_they_differ_in(store: Store) -> None:
    save(store, "encoder-00", {"search.candidates": 3})
    save(store, "encoder-11", {"seed": 1, "store.cache": "elsewhere"})
    save(store, "encoder-22", {"train.encoders.eeg.lr": 0.01}, epochs=9)
    table = read_table(store)
    assert {name: row["notes"] for name, row in table.items()} == {
        "encoder-00": "seed=0 train.encoders.eeg.lr=0.0001",
        "encoder-11": "seed=1 train.encoders.eeg.lr=0.0001",
        "encoder-22": "seed=0 train.encoders.eeg.lr=0.01",
    }
    assert [row["epochs"] for row in table.values()] == ["3", "3", "9"]


def test_kinds_that_differ_are_named_and_not_all_of_their_keys(store: Store) -> None:
    save(store, "encoder-00", {"model.eeg.kind": "covariance"})
    save(store, "encoder-11")
    notes = {name: row["notes"] for name, row in read_table(store).items()}
    assert notes == {
        "encoder-00": "model.eeg.kind=covariance",
        "encoder-11": f"model.eeg.kind={BASE.model['eeg'].kind}",
    }


def test_many_differences_are_counted(store: Store) -> None:
    changes = {"seed": 1} | {f"train.encoders.eeg.{key}": 0.5 for key in ("lr", "weight_decay", "warmup", "clip")}
    save(store, "encoder-00")
    save(store, "encoder-11", changes)
    assert read_table(store)["encoder-11"]["notes"].endswith("and 2 more keys")


def test_other_modalities_and_numbers_are_models_of_another_kind(store: Store) -> None:
    save(store, "encoder-00")
    save(store, "encoder-11", {"seed": 1}, modalities=("audio",))
    changes = {"data.targets.columns": ["valence", "arousal"], "fusion.kind": "mean", "seed": 2}
    scale = TargetScale(("valence", "arousal"), (0.0, 0.0), (1.0, 1.0))
    save(store, "encoder-22", changes, scale=scale)
    table = read_table(store)
    assert table["encoder-22"]["predicts"] == "numbers valence, arousal"
    assert [row["notes"] for row in table.values()] == ["", "", ""]


def test_inner_folds_final_models_and_adapted_ones_are_told_apart(store: Store) -> None:
    for number, split in enumerate(make_inner_splits(ITEMS, BASE.split)):
        save(store, f"encoder-{number}0", split=split)
    save(store, "encoder-30", split=make_final_split(ITEMS))
    save(store, "encoder-40", split=Split("adapted", ("s7/0",), (), ("s7/1",)))
    assert {name: row["split"] for name, row in read_table(store).items()} == {
        "encoder-00": "subject_kfold 1, inner 0",
        "encoder-10": "subject_kfold 1, inner 1",
        "encoder-20": "subject_kfold 1, inner 2",
        "encoder-30": "all subjects",
        "encoder-40": "adapted to s7",
    }


def test_equal_settings_on_other_recordings_are_told_apart(store: Store) -> None:
    save(store, "encoder-00")
    save(store, "encoder-11", split=replace(SPLIT, train=SPLIT.train[1:]))
    notes = {name: row["notes"] for name, row in read_table(store).items()}
    assert notes == {"encoder-00": "recordings=36", "encoder-11": "recordings=35"}


def test_experiments_of_several_names_are_named(store: Store) -> None:
    save(store, "encoder-00", {"name": "mine"})
    save(store, "encoder-11", {"name": "other", "seed": 4})
    assert {name: row["notes"] for name, row in read_table(store).items()} == {
        "encoder-00": "mine",
        "encoder-11": "other",
    }


def test_every_training_is_listed_the_last_first_and_encoders_of_a_fusion_after_it(store: Store) -> None:
    """They can be pulled like all others: none is left out."""
    save(store, "encoder-aa", written=4e8)
    save(store, "encoder-bb", modalities=("audio",), written=3e8)
    save(store, "encoder-cc", {"seed": 1}, written=1e8)
    encoders = {"eeg": "encoder-aa", "audio": "encoder-bb"}
    save(store, "fusion-dd", modalities=("eeg", "audio"), encoders=encoders, written=2e8)
    table = read_table(store)
    assert list(table) == ["fusion-dd", "encoder-cc", "encoder-aa", "encoder-bb"]
    assert table["encoder-aa"]["notes"] == "seed=0; part of fusion-dd"
    assert [find_checkpoint(name, store.root).key for name in table] == list(table)
    assert list(read_table(store, top=2)) == ["fusion-dd", "encoder-cc"]
    assert "and 2 trainings more; --top lists so many" in format_models(str(store), top=2)


def test_short_names_are_unique(store: Store) -> None:
    keys = ["encoder-3f0c2a91b7d45e68", "encoder-3f0c2a91ffffffff", "fusion-3f0c2a91b7d45e68", "run-1"]
    names = shorten_keys(keys)
    assert list(names.values()) == [*keys[:2], "fusion-3f0c2a91", "run-1"]
    for key, name in names.items():
        save(store, key)
        assert find_model(store, name).key == key


def test_a_search_and_a_protocol_say_what_their_models_are(store: Store) -> None:
    folds = []
    for number in range(2):
        one = save(store, f"fusion-{number}0", {"split.index": number}, modalities=("eeg", "audio"))
        folds.append({"fold": number, "checkpoint": one.prefix, "commit_sha256": one.commit_sha256})
    store.commit("protocols/mine-bb", encode_documents({"folds": {"format": FOLDS_FORMAT, "folds": folds}}))
    store.write("searches/open-1/journal.log", b"")
    write_best(store, "mine-aa", **{k: v for k, v in folds[0].items() if k != "fold"})
    write_best(store, "mine-cc", checkpoint="runs/gone/x")
    record_latest(store, "protocols", "mine-bb")
    table = read_table(store)
    protocol, search = table["mine-bb"], table["mine-aa"]
    assert protocol["split"] == "subject_kfold, 2 folds" and protocol["notes"] == "a model for each fold, as mine-bb/0"
    assert protocol["modalities"] == "audio, eeg" and protocol["epochs"] == "3" and protocol["date"]
    assert search["score"] == "0.7500" and search["split"] == "subject_kfold 0" and search["epochs"] == "3"
    assert search["notes"] == "candidate 3: optim.lr=0.1"
    assert table["mine-cc"]["notes"].startswith("its checkpoint is damaged or gone; candidate 3")
    assert table["open-1"]["notes"].startswith("not finished; `eav pull ")
    assert format_models(str(store)).splitlines()[-1] == "latest: mine-bb (protocol)"


def test_what_is_not_whole_is_listed_all_the_same(store: Store) -> None:
    store.write("runs/left-1/lock", b"")
    store.write("protocols/half-1/lock", b"")
    checkpoint = save(store, "encoder-00")
    (Path(checkpoint.path) / "split.json").write_bytes(b"[" + (Path(checkpoint.path) / "split.json").read_bytes()[1:])
    found = {name: row["notes"] for name, row in read_table(store).items()}
    assert found == {"left-1": "not finished", "half-1": "not finished", "encoder-00": "damaged"}
    assert (Path(checkpoint.path) / COMMIT).exists()
