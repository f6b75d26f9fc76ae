"""Fit an experiment to the machine that runs it, before anything is read or started."""

from eav_ray.config import Experiment
from eav_ray.config.paths import STORE_KEYS, resolve_experiment_paths
from eav_ray.config.published import adopt_published_settings
from eav_ray.distributed import cluster
from eav_ray.tracking import mlflow


def prepare_experiment(experiment: Experiment, used_stores: tuple[str, ...] = STORE_KEYS) -> Experiment:
    """Return the experiment with absolute paths, checked against this machine.

    Args:
        experiment: As it was loaded; its relative paths are relative to the current folder.
        used_stores: The stores that are read or written; the paths of the others do not matter.

    Raises:
        ConfigError: Published weights of another encoder, a relative path in a submitted job, more workers than this
            machine holds, a machine on which Ray does not start, an open dashboard without a token, or an optional
            package that is missing.
    """
    experiment = adopt_published_settings(resolve_experiment_paths(experiment, used_stores))
    cluster.check_local_resources(experiment.runtime)
    if used_stores:  # what uses none starts no Ray
        cluster.check_local_start(experiment.runtime)
    if experiment.store.mlflow:
        mlflow.require_mlflow()
    return experiment
