"""Locate the shards of an experiment in its store."""

from dataclasses import asdict
from typing import Any

from eav_ray.config import Experiment, Preprocessing, digest
from eav_ray.data.shards.index import SHARDS_FORMAT
from eav_ray.storage import Store


def select_content_settings(preprocessing: Preprocessing) -> dict[str, Any]:
    """What of the preprocessing shards depend on. Equal content, equal windows."""
    # `fail` leaves only shards without a problem, which are those of `partial`.
    policy = "drop" if preprocessing.on_bad == "drop" else "partial"
    return {**asdict(preprocessing), "on_bad": policy, "recordings_per_shard": 0, "file_timeout_s": 0}


def open_shard_store(experiment: Experiment) -> Store:
    """Where the shards of this data set and preprocessing lie; other preprocessing lies elsewhere."""
    e = experiment
    # Of given features those that are used: the rows of another table are other windows.
    features = {m: asdict(file) for m, file in e.data.features.items() if m in e.data.modalities}
    settings = select_content_settings(e.preprocessing)
    columns = [asdict(e.data.bids)] if e.data.dataset == "bids" else []  # other labels are another data set
    key = digest(SHARDS_FORMAT, settings, e.data.dataset, e.data.root, e.data.tasks, features, *columns)
    return Store(e.store.shards).open_substore(f"{e.data.dataset}-{key}")
