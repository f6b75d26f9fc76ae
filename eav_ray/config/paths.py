"""Resolve the paths of an experiment against the folder in which a command was given."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from eav_ray.config.loading import override
from eav_ray.config.sections import Experiment
from eav_ray.errors import ConfigError

STORE_KEYS = ("shards", "results", "cache")
SQLITE_PREFIX = "sqlite:///"  # before the path of a database
SUBMITTED_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray's own name (distributed/ray_workarounds.py)


def resolve_experiment_paths(experiment: Experiment, used_stores: tuple[str, ...] = STORE_KEYS) -> Experiment:
    """Relative folders are relative to where the command was given, on whatever node they are used.

    Raises:
        ConfigError: A relative folder in a submitted job, which runs in a temporary copy of the working directory.
    """
    given_paths = {"data.root": experiment.data.root} | {
        f"store.{k}": getattr(experiment.store, k) for k in used_stores
    }
    if experiment.data.targets.path:
        given_paths["data.targets.path"] = experiment.data.targets.path
    for m in experiment.model:
        weights = getattr(experiment.model[m], "weights", "")
        if weights and Path(weights).expanduser().exists():
            given_paths[f"model.{m}.weights"] = weights
        elif weights and m in experiment.data.modalities and "results" in used_stores:  # otherwise nothing is trained
            given_paths[f"model.{m}.weights"] = find_fetched_weights(f"model.{m}.weights", weights, experiment)
    changes = {key: resolve_user_path(key, path) for key, path in given_paths.items()}
    for key in ("store.shards", "store.results"):
        if not experiment.store.exclusive and "://" in changes.get(key, "") and "exclusive=" not in changes[key]:
            changes[key] += ("&" if "?" in changes[key] else "?") + "exclusive=false"
    for key, uri in (("store.mlflow", experiment.store.mlflow), ("search.storage", experiment.search.storage)):
        if uri.startswith(SQLITE_PREFIX):
            changes[key] = SQLITE_PREFIX + resolve_user_path(key, uri.removeprefix(SQLITE_PREFIX), allow_remote=False)
    return override(experiment, changes)


def find_fetched_weights(key: str, name: str, experiment: Experiment) -> str:
    """Find the folder of published weights among those that were fetched: no job fetches anything by itself.

    Raises:
        ConfigError: They were not fetched.
    """
    folder = Path(resolve_user_path("store.weights", experiment.store.weights, allow_remote=False))
    if not (folder / name).is_dir():
        raise ConfigError(
            f"{key} is {name}, which is no file or folder here and was not fetched into {folder} (store.weights); "
            f"where there is a network, run `eav weights fetch {name} --to {folder}`"
        )
    return str(folder / name)


def resolve_user_path(key: str, path: str, *, allow_remote: bool = True) -> str:
    """A path as the user gave it by `key`, for whatever folder a process is in.

    Args:
        allow_remote: Whether s3:// and gs:// will do.
    Raises:
        ConfigError: A relative path in a submitted job, or a remote one where that will not do.
    """
    if "://" in path and not allow_remote:
        raise ConfigError(f"{key} is {path}; give a path on a disk")
    if not path or "://" in path:
        return path
    full = Path(os.path.expanduser(path))  # Path.expanduser raises for a user who does not exist
    if is_submitted_job() and not full.is_absolute():
        raise ConfigError(
            f"{key} is {path}, a relative path, but a submitted job runs in a temporary copy of this folder; "
            f"give a folder that all nodes share, as an absolute path{', or s3:// or gs://' if allow_remote else ''}"
        )
    return str(full.absolute())


def is_submitted_job() -> bool:
    """Whether this process is the entrypoint of `ray job submit`."""
    return SUBMITTED_JOB_VARIABLE in os.environ


def remove_local_paths(experiment: Experiment) -> Experiment:
    """Leave of every path its last part, and of stores and clusters nothing, so that an experiment can be published."""
    paths = {"data.root": experiment.data.root, "data.targets.path": experiment.data.targets.path}
    paths |= {f"data.features.{m}.path": file.path for m, file in experiment.data.features.items()}
    paths |= {f"model.{m}.weights": getattr(section, "weights", "") for m, section in experiment.model.items()}
    changes: dict[str, Any] = {key: Path(path).name for key, path in paths.items() if path}
    defaults = Experiment()
    changes |= {"search.storage": defaults.search.storage, "runtime.address": defaults.runtime.address}
    return override(replace(experiment, store=defaults.store), changes)


def retarget_experiment(
    experiment: Experiment, changes: dict[str, Any], used_stores: tuple[str, ...] = ()
) -> Experiment:
    """A checkpoint's experiment, pointed at other recordings and at this machine.

    Args:
        used_stores: As of `absolute`.
    """
    defaults = Experiment()
    retargeted = replace(experiment, runtime=replace(defaults.runtime, workers=1), store=defaults.store)
    return resolve_experiment_paths(override(retargeted, changes), used_stores=used_stores)
