"""Load the experiment that a command line names, and check it against this machine."""

from eav_ray.cli.arguments import Arguments
from eav_ray.config import Experiment, load_experiment
from eav_ray.config.paths import STORE_KEYS, resolve_experiment_paths
from eav_ray.distributed import cluster
from eav_ray.errors import ConfigError
from eav_ray.tracking import mlflow


def prepare_experiment(arguments: Arguments, used_stores: tuple[str, ...] = STORE_KEYS) -> Experiment:
    """The experiment of the command line, with absolute paths, checked against this machine.

    Args:
        used_stores: The stores that the job reads or writes; the paths of the others do not matter.
    """
    if len(arguments.paths) != 1:
        raise ConfigError(
            "give exactly one experiment file, for example eav_ray/experiments/demo.yaml; got "
            f"{arguments.paths or 'none'}"
        )
    experiment = resolve_experiment_paths(load_experiment(arguments.paths[0], arguments.changes), used_stores)
    cluster.check_local_resources(experiment.runtime)
    if experiment.store.mlflow:
        mlflow.require_mlflow()
    return experiment
