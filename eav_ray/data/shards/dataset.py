"""Open the shards of an experiment as one data set: store, index and windows."""

from dataclasses import dataclass

from eav_ray.config import Experiment, digest
from eav_ray.data.shards.index import ShardIndex
from eav_ray.data.shards.location import open_index
from eav_ray.data.shards.window_cache import WindowCache
from eav_ray.data.splits import check_subjects
from eav_ray.storage import Store


@dataclass(frozen=True)
class Dataset:
    """The shards of an experiment, opened."""

    shards: Store
    index: ShardIndex
    windows: WindowCache

    @property
    def digest(self) -> str:
        return digest(self.index.fingerprint)


def open_dataset(experiment: Experiment) -> Dataset:
    shards, index = open_index(experiment)
    store = experiment.store
    windows = WindowCache(shards, index, cache=store.cache, cache_gb=store.cache_gb)
    check_subjects(windows.ids, experiment.data)
    return Dataset(shards, index, windows)
