"""Predict the test rows of a checkpoint's own split."""

from dataclasses import replace

import pandas as pd

from eav_ray.config import Experiment
from eav_ray.data.shards.dataset import Dataset
from eav_ray.data.splits import check_split, list_labeled_recordings
from eav_ray.distributed.scoring import ScoringTask, score_checkpoints
from eav_ray.errors import ConfigError
from eav_ray.evaluation.compatibility import check_windows
from eav_ray.training.checkpoint import OpenedCheckpoint


def predict_test_split(experiment: Experiment, checkpoint: OpenedCheckpoint, data: Dataset) -> pd.DataFrame:
    """Predict the test rows of a checkpoint's own split, once; the predictions are kept.

    Args:
        data: The data set that it was trained on.
    Raises:
        ConfigError: No test rows, the split leaks, or the experiment's windows are not those of the checkpoint.
        DataError: The shards hold other classes, or one is damaged.
    """
    check_windows(experiment, checkpoint, data.index)
    checkpoint_split = checkpoint.split
    if not checkpoint_split.test:
        raise ConfigError(
            f"{checkpoint.path} was trained on an inner fold, which has no test rows; evaluate the refit checkpoint"
        )
    # The split of an encoder that a fusion follows also names recordings without its modality.
    all_modalities = replace(checkpoint.experiment.data, modalities=data.index.modalities)
    check_split(checkpoint_split, list_labeled_recordings(data.windows.ids, all_modalities, checkpoint.experiment.seed))
    # One worker, as its batches must not matter here; scoring takes all that there is room for.
    runtime = replace(experiment.runtime, workers=1)
    scoring_experiment = replace(checkpoint.experiment, store=experiment.store, runtime=runtime)
    task = ScoringTask(checkpoint, checkpoint_split.test)
    (scored,) = score_checkpoints(scoring_experiment, [task], data)
    return scored.require()
