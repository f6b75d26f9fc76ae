"""Work around Ray 2.60: every patch of it and every private name of it that we use."""

import contextlib
import logging
from typing import Any

import ray
import ray.data
import ray.train
from ray.train.torch import TorchTrainer
from ray.tune.experiment import Trial

from eav_ray.distributed import cluster


def configure_ray_data() -> None:
    """At once and quietly: the jobs draw one line a stage of their own, and tell errors in one line.

    Ray's log file has the tracebacks.
    """
    shorten_ray_data_startup()
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logger = logging.getLogger("ray.data")
    logger.setLevel(logging.ERROR)
    for handler in logger.handlers:
        if handler.name == "console":
            handler.setLevel(logging.CRITICAL)


def shorten_ray_data_startup() -> None:
    """All cores from the first moment on, instead of one core for the first second.

    Ray Data 2.60 refreshes its limits once a second, and takes them for the first time before its coordinator has
    answered, when they are zero (docs/log.md). The name is Ray's own: a Ray that has it no more starts as it does.
    """
    with contextlib.suppress(ImportError):
        from ray.data._internal.execution.resource_manager import ResourceManager

        ResourceManager.GLOBAL_LIMITS_UPDATE_INTERVAL_S = 0.1  # pyright: ignore[reportAttributeAccessIssue]


class FastShutdownTorchTrainer(TorchTrainer):
    """Ray Train's, which on a Ray without a dashboard ends at once.

    Ray Train 2.60 starts an actor that frees the workers' resources should their controller die. It asks the dashboard
    whether that lives, and where there is none, each group waits twelve seconds in the end for it to stop asking
    (docs/log.md). Such a Ray is the job's own, and ends with it.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()  # pyright: ignore[reportAttributeAccessIssue]
        if not cluster.is_without_dashboard():
            return callbacks
        return [c for c in callbacks if type(c).__name__ != "PlacementGroupCleanerCallback"]


def skip_pickled_errors() -> None:
    """Tune opens the pickled error of a failed trial, which lies in the results store; its text lies beside it."""
    Trial.get_pickled_error = lambda self: None
