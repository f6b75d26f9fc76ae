"""Read from a results store what its searches chose, and which recordings they saw."""

from collections.abc import Mapping
from typing import Any

from eav_ray.config import Experiment, build_experiment
from eav_ray.data.shards.dataset import Dataset
from eav_ray.data.splits import list_labeled_recordings, make_inner_splits
from eav_ray.errors import ConfigError
from eav_ray.evaluation.leak_audit.origins import SearchRecord
from eav_ray.pipelines.evaluate.audited_checkpoint import DAMAGED_FILE_ERRORS
from eav_ray.storage import Store
from eav_ray.tuning.best import read_best_record


def read_search_records(results: Store, data: Dataset, dataset: str) -> list[SearchRecord]:
    """Read the finished searches of a results store over a data set.

    A damaged record is skipped here: the page names it (`related_results.collect_searches`).

    Args:
        data: The recordings that inner folds are made of again.
        dataset: Its name.
    """
    records: list[SearchRecord] = []
    for study in results.list_folders("searches"):
        try:
            best = read_best_record(results, study)
            if best is None:
                continue
            ranked = [best, *best.get("runners_up", [])]
            checkpoints = {_read_key(one): dict(one.get("changes") or {}) for one in ranked}
            e = _read_experiment(results, study)
        except DAMAGED_FILE_ERRORS:
            continue
        if e is None or e.data.dataset == dataset:
            records.append(SearchRecord(study, checkpoints, None if e is None else _list_seen(e, data)))
    return records


def _read_key(record: Mapping[str, Any]) -> str:
    """Read the key of a run out of the prefix of its checkpoint, `runs/<key>/...`; empty where there is none."""
    return "".join(str(record.get("checkpoint", "")).split("/")[1:2])


def _read_experiment(results: Store, study: str) -> Experiment | None:
    """Read the experiment beside a search; None where there is none, or it is of a version with other keys."""
    name = f"searches/{study}/experiment.json"
    if not results.exists(name):
        return None
    try:
        return build_experiment(results.read_json(name), source=results.format_path(name))
    except ConfigError:
        return None


def _list_seen(e: Experiment, data: Dataset) -> frozenset[str] | None:
    """Make the inner folds of a search again; None where the recordings for them are not stored any more."""
    try:
        inner = make_inner_splits(list_labeled_recordings(data.windows.ids, e.data, e.seed), e.split)
    except ConfigError:
        return None
    return frozenset(i for one in inner for i in (*one.train, *one.validation))
