"""A data set in BIDS is preprocessed, trained on and tested."""

from pathlib import Path

import numpy as np
import torch

from eav_ray.config import load_experiment
from eav_ray.data.shards.dataset import open_dataset
from eav_ray.data.splits import list_labeled_recordings, make_split
from eav_ray.evaluation.predictor import Predictor
from eav_ray.storage import Store
from eav_ray.training.checkpoint import OpenedCheckpoint
from eav_ray.training.prepared_run import WorkerContext
from eav_ray.training.run_spec import plan_runs
from eav_ray.training.runner import execute_run
from tests.helpers.bids_sets import NAMES, write_run
from tests.helpers.in_process_shards import write_shards
from tests.helpers.paths import DEMO


def test_a_bids_data_set_is_trained_on_and_tested(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for subject in ("01", "02", "03"):
        for session in ("a", "b"):
            write_run(root, subject, session=session, bads=["Cz"], seed=int(subject))
    stores = {f"store.{name}": str(tmp_path / name) for name in ("shards", "results", "cache")}
    small = {"model.eeg.filters": 2, "model.eeg.width": 16, "model.eeg.temporal_width": 16, "fusion.width": 16}
    small |= {"train.mode": "end_to_end", "optim.epochs": 1, "runtime.engine": "torch", "runtime.workers": 1}
    data = {"data.dataset": "bids", "data.root": str(root), "data.bids.label": "events.trial_type"}
    data |= {"data.modalities": ["eeg"], "split.protocol": "loso", "split.index": 1}
    e = load_experiment(DEMO, data | small | stores)
    write_shards(e)
    dataset = open_dataset(e)
    assert dataset.index.eeg_channel_names == NAMES and dataset.index.classes == ("happy", "sad")
    split = make_split(list_labeled_recordings(dataset.windows.ids, e.data, e.seed), e.split)
    # Both sessions of a person are on one side.
    assert {name.split("/")[0] for name in split.test} == {"sub-02"} and len(split.test) == 6
    assert {name.split("/")[0] for name in (*split.train, *split.validation)} == {"sub-01", "sub-03"}
    (run,) = plan_runs(e, split, dataset.digest)
    results = Store(e.store.results)
    prefix = execute_run(run, WorkerContext(dataset.windows, results, torch.device("cpu")), lambda progress: None)
    checkpoint = OpenedCheckpoint(results, prefix)
    assert checkpoint.state.finished and checkpoint.state.classes == ("happy", "sad")
    rows = dataset.windows.find_rows(split.test)
    ids = dataset.windows.ids.iloc[rows]
    batch = {c: ids[c].to_numpy() for c in ("subject", "recording", "window", "label", "has_eeg")}
    found = Predictor(checkpoint, torch.device("cpu"))(batch | {"eeg": dataset.windows.get(rows, "eeg")})
    assert len(found) == len(rows) and np.isfinite(found.filter(like="logit").to_numpy(float)).all()
