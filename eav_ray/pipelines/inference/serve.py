"""A checkpoint behind Ray Serve, on a Ray of its own or on a cluster that it joins."""

import http.client
import logging
import re
import signal
import socket
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from starlette.types import ASGIApp

from eav_ray.config import RuntimeConfig
from eav_ray.config.paths import retarget_experiment
from eav_ray.distributed import cluster
from eav_ray.distributed.connection import connect_runtime
from eav_ray.distributed.ray_workarounds import get_serve_address
from eav_ray.errors import ConfigError, DataError
from eav_ray.evaluation.predictor import Predictor
from eav_ray.pipelines.inference.auth import hash_token, read_token, require_token
from eav_ray.pipelines.inference.http_app import make_app
from eav_ray.pipelines.inference.proxy import LimitedProtocol, list_proxy_variables
from eav_ray.processes import on_signals
from eav_ray.training.checkpoint import OpenedCheckpoint, open_finished_checkpoint

with warnings.catch_warnings():  # of Ray's own declarations, by pydantic
    warnings.simplefilter("ignore", DeprecationWarning)
    from ray import serve
    from ray.serve.config import HTTPOptions, ProxyLocation
    from ray.serve.exceptions import RayServeException
    from ray.serve.schema import LoggingConfig

MAX_ONGOING_REQUESTS = 64  # requests and streams that one replica has open: `http_app.Limits` are below
HEAD_RESOURCE = "node:__internal_head__"  # of the node where Ray Serve's proxy is
HEALTH_CHECK_INTERVAL_S = 10.0
LOGGING_CONFIG = LoggingConfig(log_level="WARNING", enable_access_log=False)


def serve_checkpoint(
    path: str, changes: dict[str, Any], *, host: str, port: int, token_file: str, name: str, route: str, replicas: int
) -> None:
    """Serve until SIGINT or SIGTERM comes.

    Args:
        changes: `runtime.*`: which Ray, and what a replica may use (`cpus_per_worker`, `gpus_per_worker`).
        token_file: Holds the token; empty for that in the environment, if any.
        name: Of the application on the cluster.
        route: Prefix of its paths.
    Raises:
        ConfigError: Beyond loopback without a token, a port or a name that is taken, or what does not fit the machine.
        DataError: The checkpoint is damaged or not finished, or cannot be opened where it is to be served.
    """
    checkpoint = open_finished_checkpoint(path)
    experiment = retarget_experiment(checkpoint.experiment, changes)
    runtime = experiment.runtime
    token = read_token(token_file)
    require_token(host, token)
    cluster_address = cluster.resolve_address(runtime)
    if not cluster_address:
        cluster.check_local_resources(runtime)
        _check_port(host, port)
    with (
        connect_runtime(runtime) as runtime,
        _watch_stop_signals() as stop_requested,
    ):  # Ray sets a handler of its own when it starts
        url = _start_serve(host, port, token, route)
        _deploy(checkpoint, hash_token(token) if token else "", runtime, name, route, replicas)
        print(
            f"serving {path} at {url} (health, predict, measure, stream){'' if token else ', without a token'}",
            flush=True,
        )
        try:
            while not stop_requested.wait(HEALTH_CHECK_INTERVAL_S):
                serve.status()  # raises where the cluster is gone
        finally:
            # Not Ray Serve itself, by which others may serve; it ends with a Ray of our own.
            with suppress(RayServeException):
                serve.delete(name)
    print("stopped", flush=True)


def _check_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind((host.strip("[]"), port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ConfigError(f"cannot listen at --host {host} --port {port}: {reason}; use another") from None


@contextmanager
def _watch_stop_signals() -> Iterator[threading.Event]:
    """Set an event when SIGINT or SIGTERM comes."""
    stop_requested = threading.Event()

    def handle() -> None:
        if stop_requested.is_set():
            raise KeyboardInterrupt  # asked twice
        stop_requested.set()

    with on_signals(handle, signal.SIGINT, signal.SIGTERM):
        yield stop_requested


def _start_serve(host: str, port: int, token: str, route: str) -> str:
    """Ray Serve at this address, unless the cluster has one; its address."""
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(
        proxy_location=ProxyLocation.HeadOnly,
        http_options=HTTPOptions(host=host, port=port, keep_alive_timeout_s=round(LimitedProtocol.head_timeout_s)),
        controller_options={"runtime_env": {"env_vars": list_proxy_variables(token)}},
        logging_config=LOGGING_CONFIG,
    )
    actual_host, actual_port = get_serve_address() or (host, port)
    if actual_host and actual_host != host:
        require_token(actual_host, token)
    url = f"http://{actual_host}:{actual_port}"
    asker = ray.remote(num_cpus=0, resources={HEAD_RESOURCE: 0.001})(check_proxy)
    if problem := ray.get(asker.remote(actual_host, actual_port, token)):
        raise ConfigError(
            f"Ray Serve at {url} {problem}; give the token that it was started with by --token-file, or end it by "
            "`serve shutdown` and start this again"
        )
    return url + ("" if route == "/" else route)


def check_proxy(host: str, port: int, token: str) -> str:
    """Ask Ray Serve which applications it has, without the token and with it; returns what is wrong with its answers.

    It may have been started by another job, with another token or without a guard. To be called on its node, where it
    may listen on loopback.
    """
    if token and _ask_for_routes(host, port, {}) != 401:
        return "answers without a token"
    if _ask_for_routes(host, port, {"Authorization": f"Bearer {token}"} if token else {}) == 401:
        return "wants another token"
    return ""


def _ask_for_routes(host: str, port: int, headers: dict[str, str]) -> int:
    this_machine = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}
    connection = http.client.HTTPConnection(this_machine.get(host, host), port, timeout=30)
    try:
        connection.request("GET", "/-/routes", headers=headers)
        return connection.getresponse().status
    finally:
        connection.close()


def _deploy(
    checkpoint: OpenedCheckpoint, token_digest: str, runtime: RuntimeConfig, name: str, route: str, replicas: int
) -> None:
    applications = serve.status().applications
    if name in applications:
        raise ConfigError(f"the cluster serves an application {name} already; give another --name and --route")
    try:
        serve.run(_bind(checkpoint, token_digest, runtime, replicas), name=name, route_prefix=route)
    except (RayServeException, RuntimeError, ValueError) as error:
        reason = serve.status().applications.get(name)
        text = " ".join((reason.message if reason and reason.message else str(error)).split())
        messages = re.findall(r"(?:eav_ray\.errors|ray\.serve\.exceptions)\.\w+: (.+?)(?= Traceback|$)", text)
        raise DataError(f"{name} cannot be served: {messages[-1] if messages else text[-400:]}") from None


def build_application(arguments: dict[str, Any]) -> Any:
    """Build what a RayService serves, whose `import_path` names this function (infra/kuberay-serve.yaml).

    Args:
        arguments: `checkpoint` and `token_file`, and `runtime.*` as `eav serve` takes them; no GPU by default.
    Raises:
        ConfigError: No token, or a key that there is not.
        DataError: The checkpoint is damaged or not finished.
    """
    changes = {"runtime.gpus_per_worker": 0, **arguments}
    path, token = changes.pop("checkpoint", ""), read_token(changes.pop("token_file", ""))
    require_token("0.0.0.0", token)
    checkpoint = open_finished_checkpoint(path)
    runtime = retarget_experiment(checkpoint.experiment, changes).runtime
    return _bind(checkpoint, hash_token(token), runtime, replicas=1)


def _bind(checkpoint: OpenedCheckpoint, token_digest: str, runtime: RuntimeConfig, replicas: int) -> Any:
    deployment: Any = serve.deployment(
        name="model",
        num_replicas=replicas,
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        max_queued_requests=MAX_ONGOING_REQUESTS,  # with their bodies, in the proxy
        ray_actor_options={"num_cpus": runtime.cpus_per_worker, "num_gpus": runtime.gpus},
        graceful_shutdown_timeout_s=2,
        logging_config=LOGGING_CONFIG,
    )(serve.ingress()(ServedModel))
    return deployment.bind(checkpoint, token_digest, runtime)


class ServedModel:
    """A replica: one loaded checkpoint."""

    def __init__(self, checkpoint: OpenedCheckpoint, token_digest: str, runtime: RuntimeConfig) -> None:
        predictor = Predictor(checkpoint, cluster.set_up_torch(runtime))
        self._app = make_app(predictor, checkpoint.prefix.rsplit("/", 1)[-1], token_digest)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return self._app
