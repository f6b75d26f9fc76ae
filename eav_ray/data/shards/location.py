"""Locate the shards of an experiment in its store.

Shards are keyed by what their recordings hold (`shards.content`), so all data sets of one kind and preprocessing share
them. Each has an index of its own, under what its experiment says of where it lies: it is found without the recordings.
"""

from dataclasses import asdict
from typing import Any

from eav_ray.config import Experiment, Preprocessing, digest
from eav_ray.data.shards.index import SHARDS_FORMAT
from eav_ray.storage import Store

INDEXES_FOLDER = "datasets"  # with a folder for each data set


def select_content_settings(preprocessing: Preprocessing) -> dict[str, Any]:
    """What of the preprocessing shards depend on. Equal content, equal windows."""
    # `fail` leaves only shards without a problem, which are those of `partial`.
    policy = "drop" if preprocessing.on_bad == "drop" else "partial"
    return {**asdict(preprocessing), "on_bad": policy, "recordings_per_shard": 0, "file_timeout_s": 0}


def open_shard_store(experiment: Experiment) -> Store:
    """Where the shards of this kind of data set and preprocessing lie; other preprocessing lies elsewhere."""
    e = experiment
    key = digest(SHARDS_FORMAT, select_content_settings(e.preprocessing), e.data.dataset, e.data.tasks)
    return Store(e.store.shards).open_substore(f"{e.data.dataset}-{key}")


def name_index_folder(experiment: Experiment) -> str:
    """Name the folder of that store in which the index, the problems and the quality page of this data set lie."""
    data = experiment.data
    # Of given features those that are used: the rows of another table are other windows.
    features = {m: asdict(file) for m, file in data.features.items() if m in data.modalities}
    columns = [asdict(data.bids)] if data.dataset == "bids" else []  # other labels are another data set
    columns += [asdict(data.targets)] if data.predicts_numbers else []
    return f"{INDEXES_FOLDER}/{digest(data.root, features, *columns, length=10)}"
