"""Locate the shards of an experiment in its store."""

from dataclasses import asdict
from typing import Any

from eav_ray.config import Experiment, Preprocessing, digest
from eav_ray.data.shards.index import INDEX_FILE, ShardIndex, read_index
from eav_ray.errors import DataError
from eav_ray.storage import Store

SHARDS_FORMAT = 3  # raise when windows come out differently: shards of another version are not reused


def select_content_settings(preprocessing: Preprocessing) -> dict[str, Any]:
    """What of the preprocessing shards depend on. Equal content, equal windows."""
    # `fail` leaves only shards without a problem, which are those of `partial`.
    policy = "drop" if preprocessing.on_bad == "drop" else "partial"
    return {**asdict(preprocessing), "on_bad": policy, "recordings_per_shard": 0, "file_timeout_s": 0}


def open_shard_store(experiment: Experiment) -> Store:
    """Where the shards of this data set and preprocessing lie; other preprocessing lies elsewhere."""
    e = experiment
    key = digest(SHARDS_FORMAT, select_content_settings(e.preprocessing), e.data.dataset, e.data.root, e.data.tasks)
    return Store(e.store.shards).open_substore(f"{e.data.dataset}-{key}")


def open_index(experiment: Experiment) -> tuple[Store, ShardIndex]:
    """The finished shards of an experiment.

    Raises:
        DataError: There are none, or they hold fewer people or modalities than the experiment asks for.
    """
    store = open_shard_store(experiment)
    index = read_index(store)
    stored_subjects = tuple(store.read_json(INDEX_FILE).get("data", {}).get("subjects", ()))
    wanted_subjects = experiment.data.subjects
    if stored_subjects and not (wanted_subjects and set(wanted_subjects) <= set(stored_subjects)):
        raise DataError(
            f"the shards in {store} hold data.subjects={list(stored_subjects)} only; run `eav preprocess` with the "
            "same experiment first, or give the same data.subjects"
        )
    absent = [m for m in experiment.data.modalities if m not in index.modalities]
    if absent:
        raise DataError(
            f"the shards in {store} hold {', '.join(index.modalities)}, not {', '.join(absent)}; run "
            "`eav preprocess` with the same experiment first"
        )
    return store, index
