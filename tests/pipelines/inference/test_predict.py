"""A checkpoint only sees windows that were made as its training windows were, and what is left out is told."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from eav_ray.config import Experiment, override
from eav_ray.data.recordings import Recording
from eav_ray.data.shards.index import ShardIndex
from eav_ray.errors import ConfigError, DataError
from eav_ray.evaluation.compatibility import check_windows, names_training_dataset
from eav_ray.models.encoders.base import DataShapes
from eav_ray.pipelines.inference.inference_windows import cut_raw_windows
from eav_ray.pipelines.inference.prediction_tables import TableWriter
from eav_ray.storage import Store
from eav_ray.training.checkpoint import OpenedCheckpoint
from tests.helpers.checkpoints import make_checkpoint, save_checkpoint

INDEX = ShardIndex("k", ("a", "b"), ("audio", "eeg"), 30, (), {})


Trained = Callable[..., OpenedCheckpoint]


@pytest.fixture
def trained(tmp_path: Path) -> Trained:
    """Makes a checkpoint of an experiment with changes."""

    def make(**changes: Any) -> OpenedCheckpoint:
        e = override(Experiment(), {"data.modalities": ["audio", "eeg"]} | changes)
        return save_checkpoint(Store(tmp_path), make_checkpoint(e))

    return make


def test_another_profile_is_refused_with_the_key_that_differs(trained: Trained) -> None:
    with pytest.raises(ConfigError, match=r"preprocessing\.eeg\.low_hz=1\.0 there, 0\.5 here"):
        check_windows(Experiment(), trained(**{"preprocessing.eeg.low_hz": 1.0}), INDEX)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"preprocessing.video.quality": 80},
        {"preprocessing.on_bad": "drop"},
        {"preprocessing.recordings_per_shard": 3},
        {"optim.lr": 1.0},
    ],
)
def test_what_does_not_change_its_windows_may_differ(change: dict[str, Any], trained: Trained) -> None:
    check_windows(override(Experiment(), change), trained(), INDEX)


@pytest.mark.parametrize(("data", "same"), [("eav", True), ("recordings_table", False)])
def test_a_copy_of_a_data_set_holds_the_people_who_were_trained_on(data: Any, same: bool, trained: Trained) -> None:
    there = override(Experiment(), {"data.dataset": data, "data.root": "/data/here"})
    checkpoint = trained(**{"data.dataset": data, "data.root": "/data/here"})
    assert names_training_dataset(checkpoint, override(there, {"data.root": "/mnt/a/copy"})) == same
    assert names_training_dataset(checkpoint, there)


def test_a_recording_with_nothing_to_predict_from_is_told(trained: Trained) -> None:
    e, shapes = trained().experiment, DataShapes(30, 2)
    units: Any = [(Recording("p", "1", 0, "", 0),)]
    row = {"unit": 0, "eeg_facts": "{}", "eeg": b""}
    (made,) = cut_raw_windows(
        row, units=units, preprocessing=e.preprocessing, modalities=("audio", "eeg"), shapes=shapes
    )
    assert made["reason"] == "it has none of the modalities" and not made["has_audio"] and not made["has_eeg"]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_that_cannot_be_written_is_told_before_anything_is_computed(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"folder{suffix}").mkdir()
    (tmp_path / "file").touch()
    for path in (tmp_path / f"folder{suffix}", tmp_path / "file" / f"p{suffix}"):
        with pytest.raises(DataError, match=f"cannot write {path}: "), TableWriter(path):
            raise AssertionError
    with pytest.raises(KeyError), TableWriter(tmp_path / f"half{suffix}") as table:
        table.add(pd.DataFrame({"a": [1]}))
        raise KeyError
    with TableWriter(tmp_path / f"whole{suffix}") as table:
        table.add(pd.DataFrame({"a": [1]}))
        table.add(pd.DataFrame({"a": [2]}))
    assert {p.name for p in tmp_path.iterdir()} == {f"folder{suffix}", "file", f"whole{suffix}"}
    read = pd.read_csv if suffix == ".csv" else pd.read_parquet
    assert read(tmp_path / f"whole{suffix}")["a"].tolist() == [1, 2]


def test_other_classes_are_refused(trained: Trained) -> None:
    with pytest.raises(DataError, match="trained on the classes a, b, but these shards hold c, d"):
        check_windows(Experiment(), trained(), ShardIndex("k", ("c", "d"), ("eeg",), 30, (), {}))
