"""Stored windows, predictions and results are read as tables, and EEG as epochs, without Ray."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import mne
import numpy as np
import pandas as pd
import pytest

import eav_ray
from eav_ray.config import Experiment, override, to_dict
from eav_ray.data.datasets.eav import EAV_CHANNELS
from eav_ray.data.io import parquet
from eav_ray.data.shards.index import ShardIndex
from eav_ray.data.shards.window_cache import WindowCache
from eav_ray.pipelines.train.fold_records import FOLDS_FORMAT
from eav_ray.storage import Store, encode_documents
from tests.helpers.audits import PEOPLE, RECORDINGS, make_experiment, store_windows
from tests.helpers.checkpoints import make_checkpoint, save_checkpoint
from tests.helpers.paths import REPOSITORY
from tests.helpers.predictions import CLASSES, MODALITIES, draw_predictions


class StoredSet:
    """A data set that lies elsewhere than its experiment says."""

    def __init__(self, windows: WindowCache, index: ShardIndex) -> None:
        self.windows, self.index, self.shards = windows, index, "shards"


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    windows = store_windows(tmp_path, without=(3,))
    stored = StoredSet(windows, replace(windows.index, eeg_channel_names=EAV_CHANNELS))
    monkeypatch.setattr("eav_ray.reading.open_dataset", lambda experiment: stored)
    return make_experiment()


def test_windows_are_a_table_with_names_for_labels(experiment: Experiment) -> None:
    table = eav_ray.read_windows(experiment)
    assert len(table) == PEOPLE * RECORDINGS and table["label"].tolist()[:3] == ["a", "b", "a"]
    assert table["has_eeg"].tolist()[:5] == [True, True, True, False, True]
    assert {"eeg_seconds", "eeg_bad_channels", "audio_db"} <= set(table.columns)
    assert not {"id", "permutation_labels", "eeg"} & set(table.columns)
    some = eav_ray.read_windows(override(experiment, {"data.subjects": ["p2"]}))
    assert set(some["subject"]) == {"p2"} and list(some.index) == list(range(RECORDINGS))


def test_eeg_becomes_epochs_with_labels_in_volts(experiment: Experiment) -> None:
    epochs = eav_ray.read_epochs(experiment, subjects=["p0", "p1"])
    assert isinstance(epochs, mne.EpochsArray) and len(epochs) == 2 * RECORDINGS - 1
    assert epochs.event_id == {"a": 0, "b": 1} and epochs.info["sfreq"] == 100
    labels, metadata = epochs["b"].metadata, epochs.metadata
    assert labels is not None and metadata is not None
    assert set(labels["label"]) == {"b"} and metadata["recording"].tolist()[2:4] == ["002", "004"]
    values = epochs.get_data(copy=True)
    assert np.std(values[-8:]) == pytest.approx(2e-6, rel=0.05)  # the second subject has twice the noise of the first
    assert epochs.ch_names == list(EAV_CHANNELS) and epochs.get_montage() is not None
    for subjects, problem in ((["p9"], "subjects names p9"), (["p0", "p8"], "subjects names p8")):
        with pytest.raises(eav_ray.ConfigError, match=problem):
            eav_ray.read_epochs(experiment, subjects=subjects)


def write_protocol(store: Store, name: str, predictions: pd.DataFrame, e: Experiment) -> None:
    checkpoint = save_checkpoint(store, make_checkpoint(e, CLASSES, key=f"run-{name}"))
    records = [{"fold": k, "run": "r", "checkpoint": checkpoint.prefix, "test": []} for k in (0, 1)]
    documents = {"experiment": to_dict(e), "folds": {"format": FOLDS_FORMAT, "folds": records}}
    store.commit(
        f"protocols/{name}",
        encode_documents(documents) | {"predictions.parquet": parquet.encode_dataframe(predictions)},
    )


def test_results_and_predictions_of_protocols_are_tables(tmp_path: Path) -> None:
    store, table = Store(tmp_path), draw_predictions()
    e = override(Experiment(), {"split.protocol": "loso", "seed": 3})
    write_protocol(store, "demo-1", table, e)
    write_protocol(store, "demo-nested-2", table, e)
    store.write("protocols/demo-3/experiment.json", b"{}")  # not finished
    found = eav_ray.read_results(tmp_path)
    assert found["protocol_id"].unique().tolist() == ["demo-1", "demo-nested-2"]
    assert set(found["source"][:3]) == set(MODALITIES)
    assert found[found["searched"]]["source"].tolist()[3:] == ["mean_probability", "product", "fusion"]
    fusion = found[found["source"] == "fusion"].iloc[0]
    assert (fusion["protocol"], fusion["seed"], fusion["subjects"], fusion["recordings"]) == ("loso", 3, 8, 96)
    assert fusion["low"] < fusion["mean"] < fusion["high"] and fusion["chance"] == pytest.approx(1 / 3)
    predictions = eav_ray.read_predictions(str(tmp_path), "demo-1")
    assert len(predictions) == len(table) and set(predictions["label"]) == set(CLASSES)
    accuracy = (predictions["label"] == predictions["predicted"]).mean()
    assert 0.5 < accuracy < 1 and "eeg.probability.glad" in predictions
    with pytest.raises(eav_ray.DataError, match="no finished protocol demo-9; it has demo-1, demo-nested-2"):
        eav_ray.read_predictions(tmp_path, "demo-9")
    with pytest.raises(eav_ray.DataError, match="does not exist; give the results store"):
        eav_ray.read_results(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert eav_ray.read_results(tmp_path / "empty").empty


def test_windows_are_read_without_ray() -> None:
    code = "import sys, eav_ray\neav_ray.read_windows, eav_ray.read_epochs\nprint('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False", done.stderr
