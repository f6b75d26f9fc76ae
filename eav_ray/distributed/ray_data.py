"""Run Ray Data stages that retry what a lost worker took along."""

import warnings
from collections.abc import Callable
from typing import Any

import ray
import ray.data


def map_with_retries(
    method: Callable[..., ray.data.Dataset], work: Any, retries: int = 1, **options: Any
) -> ray.data.Dataset:
    """A map of a dataset whose tasks are tried again a few times only.

    Ray Data's default is for ever, and a file that ends the process which reads it would hold the job up for ever. Ray
    2.60 deprecates the argument that says so, and has no other yet.
    """

    def make_remote_args() -> dict[str, Any]:
        actor = "compute" in options
        return {"max_restarts": retries, "max_task_retries": retries} if actor else {"max_retries": retries}

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*ray_remote_args_fn")
        return method(work, ray_remote_args_fn=make_remote_args, **options)
