"""Open the shards of an experiment as one data set: store, index and windows."""

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from eav_ray.config import Experiment, digest
from eav_ray.data.shards.index import INDEX_FILE, ShardIndex, read_index
from eav_ray.data.shards.location import INDEXES_FOLDER, name_index_folder, open_shard_store
from eav_ray.data.shards.window_cache import WindowCache
from eav_ray.data.splits import check_subjects
from eav_ray.errors import DataError
from eav_ray.storage import Store

MAX_SHOWN_ROOTS = 3


@dataclass(frozen=True)
class Dataset:
    """The shards of an experiment, opened; their windows are when they are first asked for.

    It travels between processes without its windows, which each node has its own files of.
    """

    shards: Store
    index: ShardIndex
    cache: str  # folder of the memory-mapped windows
    cache_gb: float
    index_file: str = INDEX_FILE  # name of the index in `shards`

    @cached_property
    def windows(self) -> WindowCache:
        """All windows."""
        return self.open_windows()

    def open_windows(self, allowed_recordings: tuple[str, ...] | None = None) -> WindowCache:
        """Open the windows of some recordings; there are no others for whoever is given them."""
        return WindowCache(
            self.shards, self.index, cache=self.cache, cache_gb=self.cache_gb, allowed_recordings=allowed_recordings
        )

    @property
    def digest(self) -> str:
        return digest(self.index.fingerprint)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "windows"}


def open_dataset(experiment: Experiment) -> Dataset:
    """Open the finished shards of an experiment.

    Raises:
        DataError: There are none, or they hold fewer people or modalities than the experiment asks for.
        ConfigError: `data.subjects` names people whom they do not hold.
    """
    data = open_shards(experiment)
    check_subjects(data.windows.ids, experiment.data)
    return data


def open_shards(experiment: Experiment) -> Dataset:
    """Open the finished shards of an experiment without looking at their windows.

    Raises:
        DataError: As `open_dataset`.
    """
    store, name = open_shard_store(experiment), f"{name_index_folder(experiment)}/{INDEX_FILE}"
    _check_preprocessed(experiment, store, name)
    index = read_index(store, name)
    stored_subjects = tuple(store.read_json(name).get("data", {}).get("subjects", ()))
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
    return Dataset(store, index, experiment.store.cache, experiment.store.cache_gb, name)


def _check_preprocessed(experiment: Experiment, store: Store, name: str) -> None:
    """Say what there is where there is no index of this data set."""
    others = [n for n in store.list_files(INDEXES_FOLDER) if n.endswith(f"/{INDEX_FILE}")]
    if name in others or not others:
        return
    stored = [store.read_json(n).get("data", {}) for n in others]
    wanted = json.loads(json.dumps(asdict(experiment.data.targets)))
    same_root = [data.get("targets", {}) for data in stored if data.get("root") == experiment.data.root]
    if same_root and wanted not in same_root:
        raise DataError(
            f"the shards in {store} of data.root={experiment.data.root} hold {_describe_truth(same_root[0])}, not "
            f"{_describe_truth(wanted)}; run `eav preprocess` with the same experiment first"
        )
    roots = [str(data.get("root", "?")) for data in stored[:MAX_SHOWN_ROOTS]]
    raise DataError(
        f"no shards in {store} of data.root={experiment.data.root}, but of {', '.join(roots)}; run `eav preprocess` "
        "with the same experiment first: what is equal, wherever it lies, is not made again"
    )


def _describe_truth(targets: dict[str, Any]) -> str:
    """Describe what is predicted by the section `data.targets` of an experiment."""
    if not targets.get("columns"):
        return "classes"
    return f"data.targets.columns=[{', '.join(targets['columns'])}] of {targets.get('path') or 'its own tables'}"
