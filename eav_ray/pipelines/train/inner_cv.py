"""Predictions of training people by models that never saw them: what a temperature may be fitted on.

A model that was trained on all of its training people has no rows left to fit anything on. The inner folds, which a
search would choose on, are trained instead, and each is scored on its validation side.
"""

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from eav_ray.config import Experiment
from eav_ray.data.shards.dataset import Dataset
from eav_ray.data.splits import list_labeled_recordings, make_inner_splits
from eav_ray.distributed.connection import connect_experiment
from eav_ray.distributed.scoring import ScoringTask, score_checkpoints
from eav_ray.distributed.worker_groups import train_all_runs
from eav_ray.pipelines.train.workload import announce_workload
from eav_ray.storage import Store
from eav_ray.training.checkpoint import OpenedCheckpoint
from eav_ray.training.run_spec import plan_runs


def out_of_fold_predictions(
    experiment: Experiment, folds: Sequence[tuple[int, Experiment]], data: Dataset
) -> pd.DataFrame:
    """Train what is not trained yet; predictions of the validation side of every inner fold, with a column `fold`.

    Args:
        experiment: Whose stores and runtime are used.
        folds: Of each its number, and the experiment that its model is of.
    Raises:
        ConfigError: The protocol has no inner folds.
    """
    fold_experiments = [
        (number, replace(fold_experiment, store=experiment.store, runtime=experiment.runtime))
        for number, fold_experiment in folds
    ]
    first = fold_experiments[0][1]  # data, seed and fold are those of all
    items = list_labeled_recordings(data.windows.ids, first.data, first.seed)
    inner_folds = [
        (number, inner, plan_runs(replace(one, split=replace(one.split, index=number)), inner, data.digest))
        for number, one in fold_experiments
        for inner in make_inner_splits(items, replace(one.split, index=number))
    ]
    runs = [run for _, _, fold_runs in inner_folds for run in fold_runs]
    with connect_experiment(first) as first:
        announce_workload(first, runs, data)
        done = train_all_runs(first, runs, data, title="train inner folds, for the temperature")
        results = Store(experiment.store.results)
        tasks = [
            ScoringTask(OpenedCheckpoint(results, done[fold_runs[-1].key]), inner.validation)
            for _, inner, fold_runs in inner_folds
        ]
        scored = score_checkpoints(first, tasks, data)
    predictions = [one.require().assign(fold=number) for (number, _, _), one in zip(inner_folds, scored, strict=True)]
    return pd.concat(predictions, ignore_index=True)
