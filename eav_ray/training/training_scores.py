"""Score a model that has just been trained on recordings that it was trained on."""

import numpy as np

from eav_ray.training.dataloader import select_rows_with_modality, subsample_evenly
from eav_ray.training.engines.base import Engine
from eav_ray.training.loop import Metrics
from eav_ray.training.metrics import compute_scores
from eav_ray.training.predictions import predict_rows
from eav_ray.training.prepared_run import PreparedRun

MAX_RECORDINGS = 512  # that are scored, evenly taken


def score_training_recordings(prepared: PreparedRun, engine: Engine) -> Metrics:
    """Score recordings of the training side, on every rank: names begin with `training_`.

    Beside the validation scores they say whether a model has learned at all, and how much of that by heart.
    """
    run, windows = prepared.run, prepared.context.windows
    recordings = tuple(subsample_evenly(np.array(run.split.train), MAX_RECORDINGS).tolist())
    rows = select_rows_with_modality(windows, recordings, tuple(run.experiment.data.modalities))
    if not len(rows):
        return {}
    table = predict_rows(engine, prepared.source, prepared.labels, rows, windows, run.optim.batch)
    return {f"training_{name}": score for name, score in compute_scores(table).items()}
