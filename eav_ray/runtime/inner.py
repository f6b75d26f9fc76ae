"""Predictions of training people by models that never saw them: what a temperature may be fitted on.

A model that was trained on all of its training people has no rows left to fit anything on. The inner folds, which a
search would choose on, are trained instead, and each is scored on its validation side.
"""

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from eav_ray.config import Experiment
from eav_ray.data.split import list_labeled_recordings, make_inner_splits
from eav_ray.errors import DataError
from eav_ray.runtime import cluster
from eav_ray.runtime.groups import run_all
from eav_ray.runtime.score import Task, score
from eav_ray.runtime.train import Data, announce, runs_of
from eav_ray.storage import Store


def held_out(e: Experiment, folds: Sequence[tuple[int, Experiment]], data: Data) -> pd.DataFrame:
    """Train what is not trained yet; predictions of the validation side of every inner fold, with a column `fold`.

    Args:
        e: Whose stores and runtime are used.
        folds: Of each its number, and the experiment that its model is of.
    Raises:
        ConfigError: The protocol has no inner folds.
    """
    each = [(number, replace(one, store=e.store, runtime=e.runtime)) for number, one in folds]
    own = each[0][1]  # data, seed and fold are those of all
    items = list_labeled_recordings(data.windows.ids, own.data, own.seed)
    asked = [
        (number, inner, runs_of(replace(one, fold=replace(one.split, index=number)), inner, data.digest))
        for number, one in each
        for inner in make_inner_splits(items, replace(one.split, index=number))
    ]
    runs = [run for _, _, needed in asked for run in needed]
    seen = tuple(sorted({i for _, inner, _ in asked for i in (*inner.train, *inner.validation)}))
    with cluster.connect_to_ray(e.runtime):
        announce(own, runs, data)
        done = run_all(own, runs, data.shards, data.index, seen, title="train inner folds, for the temperature")
        results = Store(e.store.results)
        tasks = [Task(f"{results}/{done[needed[-1].key]}", inner.validation) for _, inner, needed in asked]
        tables = score(own, tasks, data.shards, data.index)
    found = []
    for (number, _, _), table in zip(asked, tables, strict=True):
        if isinstance(table, str):
            raise DataError(table)
        found.append(table.assign(fold=number))
    return pd.concat(found, ignore_index=True)
