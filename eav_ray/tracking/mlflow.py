"""Trainings as runs of MLflow, logged to a server or database (`store.mlflow`). Optional: the extra `mlflow`."""

import contextlib
import json
import queue
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from eav_ray.config import Experiment, to_dict
from eav_ray.config.digests import flatten_sections
from eav_ray.config.environment import environment_variables
from eav_ray.config.extras import require_extra
from eav_ray.tracking.progress import FirstWarning
from eav_ray.training.run_spec import Progress, Run

RUN_KEY_TAG = "eav_ray.key"  # by which a training finds its MLflow run again
MAX_PENDING = 20_000  # entries that wait for a server that is away; about half a day of one training
RETRY_INTERVAL_S = 60.0  # from one failure to the next attempt
CLOSE_TIMEOUT_S = 30.0  # that the end of a job waits for what is not yet logged
MAX_METRICS_PER_REQUEST, MAX_PARAMS_PER_REQUEST = 1000, 100  # of one request, by MLflow's own limits
CLIENT_VARIABLES = {
    # MLflow's defaults ask an unreachable server for four minutes. Here what was not logged is logged at the next
    # attempt.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds
    # A job draws one line a stage.
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def require_mlflow() -> None:
    """Raises ConfigError, with the command to type, where MLflow is missing."""
    require_extra("mlflow", "store.mlflow", {"mlflow": "mlflow-skinny"}, "leave store.mlflow empty")


def make_mlflow_client(uri: str) -> Any:
    """Make MLflow's client. All of MLflow is imported here, after its telemetry is turned off."""
    with mlflow_environment():
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=uri)


@contextlib.contextmanager
def mlflow_environment() -> Iterator[None]:
    """Set what MLflow's client reads with every request: no telemetry, and no patience, unless the user asks for it."""
    with (
        environment_variables({"MLFLOW_DISABLE_TELEMETRY": "true"}),
        environment_variables(CLIENT_VARIABLES, keep_existing=True),
    ):
        yield


class MLflowTracker:
    """One MLflow run for each training, in the MLflow experiment that has the experiment's name.

    A thread of its own tells it: no server can hold up who tells this object, and what goes wrong there is one line on
    stderr. Artefacts are neither written nor read.
    """

    def __init__(self, experiment: Experiment, runs: list[Run]) -> None:
        """
        Args:
            runs: The trainings that may be logged.
        """
        self._uri, self._name = experiment.store.mlflow, experiment.name
        self._runs = {run.key: run for run in runs}
        self._queue: queue.SimpleQueue[Progress | None] = queue.SimpleQueue()
        self._client: Any = None
        self._experiment_id = ""
        self._run_ids: dict[str, str] = {}  # key -> id of the MLflow run
        self._unfinished: set[str] = set()  # keys whose last epoch was not logged
        self._retry_at, self._warning = 0.0, FirstWarning()
        self._environment = contextlib.ExitStack()
        self._environment.enter_context(mlflow_environment())
        self._thread = threading.Thread(target=self._run_sender, daemon=True)
        self._thread.start()

    def log(self, progress: Progress) -> None:
        self._queue.put(progress)

    def close(self) -> None:
        """Log what is left, and mark as failed what is not finished; what was stopped is, until it goes on."""
        self._queue.put(None)
        self._thread.join(CLOSE_TIMEOUT_S)
        if self._thread.is_alive():
            self._warn("no answer")
        self._environment.close()

    def _run_sender(self) -> None:
        pending: deque[Progress] = deque(maxlen=MAX_PENDING)
        closing = False
        while not closing:
            progress = self._queue.get()
            if progress is None:
                closing = True
            else:
                pending.append(progress)
            if not closing and (not self._queue.empty() or time.monotonic() < self._retry_at):
                continue
            try:
                if pending:
                    self._send(pending)
                if closing:
                    self._fail_unfinished()
            except Exception as error:  # whatever it is, the trainings go on
                self._retry_at = time.monotonic() + RETRY_INTERVAL_S
                self._warn(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")

    def _warn(self, reason: str) -> None:
        self._warning.write(f"MLflow at {self._uri} does not take the curves; trainings go on without it: {reason}")

    def _send(self, pending: deque[Progress]) -> None:
        """Log entries, of which the same twice count once: a request that failed in its middle is made again."""
        if not self._experiment_id:
            self._connect()
        from mlflow.entities import Metric

        for key in dict.fromkeys(p.key for p in pending):
            own_progress = [p for p in pending if p.key == key]
            if key not in self._run_ids:
                self._run_ids[key] = self._find_or_create_run(own_progress[0])
            metrics = [
                Metric(n, v, round(1000 * p.timestamp), p.step) for p in own_progress for n, v in p.metrics.items()
            ]
            for start in range(0, len(metrics), MAX_METRICS_PER_REQUEST):
                self._client.log_batch(self._run_ids[key], metrics=metrics[start : start + MAX_METRICS_PER_REQUEST])
            if own_progress[-1].epoch < own_progress[-1].epochs:
                self._unfinished.add(key)
            else:  # now: at the end of a job thousands of requests would be late
                self._client.set_terminated(self._run_ids[key], "FINISHED")
                self._unfinished.discard(key)
        pending.clear()

    def _connect(self) -> None:
        self._client = make_mlflow_client(self._uri)
        experiment = self._client.get_experiment_by_name(self._name)
        self._experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(self._name)

    def _find_or_create_run(self, progress: Progress) -> str:
        """Id of the MLflow run that a training continues, or of a new one."""
        from mlflow.entities import Param

        # One that is finished belongs to a training whose results are gone.
        unfinished = f"tags.`{RUN_KEY_TAG}` = '{progress.key}' and attributes.status != 'FINISHED'"
        matching = self._client.search_runs([self._experiment_id], unfinished, max_results=1)
        if matching:
            run = matching[0]
            self._client.update_run(run.info.run_id, status="RUNNING")
        else:
            run = self._client.create_run(
                self._experiment_id, run_name=progress.title, tags={RUN_KEY_TAG: progress.key}
            )
        # MLflow refuses another value: those of the first time stay, whatever the number of workers is now.
        params = [
            Param(name, value)
            for name, value in flatten_config(to_dict(self._runs[progress.key].experiment)).items()
            if name not in run.data.params
        ]
        for start in range(0, len(params), MAX_PARAMS_PER_REQUEST):
            self._client.log_batch(run.info.run_id, params=params[start : start + MAX_PARAMS_PER_REQUEST])
        return run.info.run_id

    def _fail_unfinished(self) -> None:
        for key in sorted(self._unfinished):
            self._client.set_terminated(self._run_ids[key], "FAILED")


def flatten_config(tree: dict[str, Any]) -> dict[str, str]:
    """Flatten sections to dotted keys, with values as they are typed on the command line."""
    flat = flatten_sections(tree)
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in flat.items()}
