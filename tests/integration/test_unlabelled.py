"""`eav predict` wants no labels: of tables and of BIDS, into CSV and Parquet."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from eav_ray.config import Experiment, load_experiment
from eav_ray.models.classifier import Classifier
from eav_ray.models.encoders.base import DataShapes
from eav_ray.storage import Store
from tests.helpers import checkpoints
from tests.helpers.bids_sets import NAMES, add_column, write_run
from tests.helpers.clusters import Job
from tests.helpers.given_features import write_tables
from tests.helpers.given_targets import read_recordings, write_recordings
from tests.helpers.paths import TINY

pytestmark = pytest.mark.ray
CLASSES = ("calm", "glad")


def write_checkpoint(folder: Path, e: Experiment, channels: tuple[str, ...] = ()) -> str:
    """Write one that nobody trained."""
    torch.manual_seed(0)
    shapes = DataShapes(len(channels), len(CLASSES), channels)
    weights = {name: tensor.contiguous() for name, tensor in Classifier(e, shapes).state_dict().items()}
    made = checkpoints.make_checkpoint(e, CLASSES, shapes=shapes, weights=weights)
    return checkpoints.save_checkpoint(Store(folder), made).path


def predict(job: Job, checkpoint: str, out: Path, *words: str) -> tuple[pd.DataFrame, str]:
    done = job("predict", checkpoint, *words, "--out", str(out))
    read: Callable[[Path], pd.DataFrame] = pd.read_parquet if out.suffix == ".parquet" else pd.read_csv
    windows = read(out.with_name(f"{out.stem}-windows{out.suffix}"))
    table = read(out)
    assert set(windows["recording"]) == set(table["recording"])
    assert np.isfinite(table.filter(like="probability").to_numpy()).all() and set(table["predicted"]) <= set(CLASSES)
    return table, done.stderr


def test_a_table_without_labels_is_predicted(job: Job, tmp_path: Path) -> None:
    e = load_experiment("fusion", write_tables(tmp_path))
    checkpoint, table = write_checkpoint(tmp_path / "model", e), read_recordings(tmp_path)
    known, _ = predict(job, checkpoint, tmp_path / "known.csv")
    assert known["label"].tolist() == table["label"].tolist()

    write_recordings(tmp_path, table.drop(columns="label"))
    found, said = predict(job, checkpoint, tmp_path / "none.csv")
    assert found["label"].isna().all()
    assert found["predicted"].tolist() == known["predicted"].tolist()
    assert f"label of {len(table)} of {len(table)} recordings is not known, and empty in the table" in said

    labels = ["", "NA", "furious", *table["label"][3:]]
    write_recordings(tmp_path, table.assign(label=labels))
    found, said = predict(job, checkpoint, tmp_path / "some.parquet")
    assert found["label"].tolist() == ["", "", *labels[2:]]
    assert f"label of 2 of {len(table)} recordings is not known" in said


def test_a_bids_data_set_without_labels_is_predicted(job: Job, tmp_path: Path) -> None:
    root = tmp_path / "set"
    events = [write_run(root, subject).with_name(f"sub-{subject}_task-film_events.tsv") for subject in ("01", "02")]
    small = {"model.eeg.filters": 2, "model.eeg.width": 16, "model.eeg.temporal_width": 16, "fusion.width": 16}
    data = {"data.dataset": "bids", "data.root": str(root), "data.modalities": ["eeg"]}
    e = load_experiment(TINY, small | data | {"data.bids.label": "events.trial_type"})
    checkpoint = write_checkpoint(tmp_path / "model", e, NAMES)
    found, _ = predict(job, checkpoint, tmp_path / "known.csv")
    assert found["label"].tolist() == ["happy", "sad", "happy"] * 2
    add_column(events[0], "trial_type", ["n/a", "sad", "n/a"])
    events[1].unlink()
    found, said = predict(job, checkpoint, tmp_path / "some.parquet")
    assert found[["subject", "recording", "label"]].to_numpy().tolist() == [
        ["sub-01", "task-film_event-002", "sad"],
        ["sub-02", "task-film", ""],
    ]
    assert "runs without events.tsv are predicted as a whole" in said
    assert "label of 1 of 2 recordings is not known" in said
    found, _ = predict(job, checkpoint, tmp_path / "runs.csv", "data.bids.label=")
    assert found["recording"].tolist() == ["task-film"] * 2 and found["label"].isna().all()
    found, _ = predict(job, checkpoint, tmp_path / "group.csv", "data.bids.label=participants.group")
    assert found["recording"].tolist() == ["task-film"] * 2 and found["label"].isna().all()
