"""Work around Ray 2.60: every patch of it, and every private or unstable name of it that we use.

Imports no torch: the workers that preprocess import this module too.
"""

import contextlib
import logging
import os
import secrets
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import ray.data
from ray._private import ray_constants
from ray._private.accelerators import get_accelerator_manager_for_resource
from ray.exceptions import GetTimeoutError

from eav_ray.config.environment import environment_variables
from eav_ray.distributed.heap import MAX_ARENAS
from eav_ray.errors import ConfigError
from eav_ray.storage.backends import WITHOUT_LINKS

if TYPE_CHECKING:
    from ray.train.backend import BackendConfig

# `module:attribute` -> (Ray in which it was seen, when it may go). A name in quotes is a text that the module holds.
# tests/distributed/test_private_names.py resolves them all.
PRIVATE_NAMES = {
    "ray._private.accelerators:get_accelerator_manager_for_resource": (
        "2.60.0",
        "when Ray says in public how many GPUs a local Ray would find, before it is started",
    ),
    "ray.data._internal.execution.resource_manager:ResourceManager.GLOBAL_LIMITS_UPDATE_INTERVAL_S": (
        "2.60.0",
        "when Ray Data uses all cores in its first second (benchmarks/preprocess.py)",
    ),
    "ray.data._internal.logging:'console'": ("2.60.0", "when Ray Data can be told to keep tracebacks off the terminal"),
    "ray.data:Dataset.map_batches.ray_remote_args_fn": (
        "2.60.0, deprecated",
        "when Ray Data takes max_retries and max_restarts as arguments of their own",
    ),
    "ray.train.v2.api.data_parallel_trainer:DataParallelTrainer._create_default_callbacks": (
        "2.60.0",
        "when TorchTrainer's controller loads no torch, a group without data sets starts no actor for them, and a "
        "group on a Ray without a dashboard ends at once",
    ),
    "ray.train.v2.api.data_parallel_trainer:DataParallelTrainer._register_sigint_handler": (
        "2.60.0",
        "when Ray Train leaves Ctrl-C to who calls it",
    ),
    "ray.train.v2._internal.callbacks.placement_group_callback:PlacementGroupCleanerCallback": ("2.60.0", "with it"),
    "ray.train.v2._internal.callbacks.datasets:DatasetsCallback": ("2.60.0", "with it"),
    "ray.train.v2._internal.constants:'RAY_TRAIN_ENABLE_PREEMPTION_WATCHER'": (
        "2.60.0",
        "when Ray Train watches no node of a Ray of one node",
    ),
    **{
        name: ("2.60.0", "when TorchTrainer's controller loads no torch")
        for name in (
            "ray.train._internal.utils:get_address_and_port",
            "ray.train.torch.config:_set_torch_distributed_env_vars",
            "ray.train.torch.config:_setup_torch_process_group",
            "ray.train.torch.config:_shutdown_torch",
        )
    },
    "ray.train.v2._internal.exceptions:WorkerHealthCheckFailedError'health_check_failure'": (
        "2.60.0; read by eav_ray.distributed.rank_errors, which imports no torch",
        "when Ray Train says in public why a worker ended",
    ),
    "ray.tune.experiment:Trial.get_pickled_error": (
        "2.60.0",
        "when ResultGrid.errors opens no pickle",
    ),
    "ray.tune.constants:'TUNE_MAX_PENDING_TRIALS_PG'": ("2.60.0", "when TuneConfig says how many trials may wait"),
    "ray.tune.constants:'TUNE_DISABLE_SIGINT_HANDLER'": ("2.60.0", "when TuneConfig says who gets Ctrl-C"),
    "ray.serve.context:_get_global_client": (
        "2.60.0",
        "when ray.serve says in public where its proxies listen",
    ),
    "ray.serve._private.constants:'RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH'": (
        "2.60.0; read by ray.serve's proxy, for eav_ray.pipelines.inference.proxy",
        "when HTTPOptions takes middlewares, and a limit of time for the headers of a request",
    ),
    "ray._private.ray_constants:'RAY_worker_niceness'": (
        "2.60.0",
        "when workers of equal niceness are spread over the cores (docs/log.md)",
    ),
    "ray._private.runtime_env.constants:'RAY_JOB_CONFIG_JSON_ENV_VAR'": (
        "2.60.0; read by eav_ray.config.paths, which may not import this module",
        "when Ray says in public whether a process is a submitted job's entrypoint",
    ),
    "ray._private.services:'--python_worker_command='": (
        "2.60.0; read by eav_ray.cli.interpreter, which runs where Ray cannot be imported",
        "when Ray says to a submitted job by which Python it runs workers",
    ),
    "ray._private.node:'timed out during startup'": (
        "2.60.0",
        "when Ray says in public how long it waits for itself to start",
    ),
    "ray._private.ray_constants:ENABLE_RAY_CLUSTER": (
        "2.60.0",
        "when ray.init takes the address that a local Ray listens on",
    ),
    "ray._private.ray_constants:'RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER'": ("2.60.0", "with it"),
    "ray._private.worker:'_plasma_directory'": (
        "2.60.0",
        "when ray.init says in public where its shared memory lies, and starts where there is no /dev/shm",
    ),
    "ray._private.authentication.authentication_token_setup:'auth_token'": (
        "2.60.0",
        "when Ray writes the file of its token for its owner alone",
    ),
    "ray.core.generated.gcs_service_pb2_grpc:'/ray.rpc.NodeInfoGcsService/GetClusterId'": (
        "2.60.0",
        "when Ray says in public whether a cluster wants a token",
    ),
    "ray.autoscaler._private.monitor:'--autoscaling-config'": (
        "2.60.0",
        "when a driver can ask Ray for the limits of its autoscaler",
    ),
}
# A flag of Ray's C++ core, RAY_<name>, which no Python module holds: it may go when a task that runs out of memory is
# not retried for ever by default.
CORE_FLAGS = ("task_oom_retries",)
# A text of Ray's control service, by which the end of a worker with its node is told from its own end.
CORE_TEXTS = ("its node has died",)

LEAVE_TIMEOUT_S = 30.0  # for the workers of a group to leave their process group
NO_DASHBOARD_VARIABLE = "EAV_RAY_NO_DASHBOARD"  # in the environment of a Ray of the job's own that has none
START_TIMEOUT_TEXT = "timed out during startup"  # in the error of a Ray whose machine is too busy to start it
PLASMA_FOLDER_OPTION = "_plasma_directory"  # of ray.init
SERVE_CALLBACK_VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
SERVE_NO_ROUTE_TEXTS = (b"Path '", b"/-/routes")  # in what Ray Serve's proxy answers where it has no application
ASK_TIMEOUT_S = 10.0
AUTOSCALING_CONFIG_OPTION = "--autoscaling-config="
CONNECTION_VARIABLES = {"RAY_USAGE_STATS_ENABLED": "0"}
# All that a Ray of the job's own and its workers listen on is on loopback, as Ray itself has it where there are no
# clusters. It is read by the processes that are started; in this one, `ray_environment` sets what was read of it.
LOOPBACK_VARIABLES = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
LOOPBACK_INTERFACE = "lo0" if sys.platform == "darwin" else "lo"
LOCAL_RAY_VARIABLES = {
    "GLOO_SOCKET_IFNAME": LOOPBACK_INTERFACE,
    "NCCL_SOCKET_IFNAME": LOOPBACK_INTERFACE,
    # Ray gives its workers a low priority, by which Linux spreads them badly: two on one core, the other idle
    # (docs/log.md). This Ray is the job's own, so nobody gains by it.
    "RAY_worker_niceness": "0",
    # Whether its only node is drained, which it never is, asks an actor of each group.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # Ray's default is for ever, and a file that fills the memory would hold a job up.
    "RAY_task_oom_retries": "1",
    # The C library's, of all of Ray's processes: by default a heap a thread, of which each keeps what was freed.
    "MALLOC_ARENA_MAX": str(MAX_ARENAS),
}


@contextmanager
def ray_environment(*, is_local: bool, dashboard: bool) -> Iterator[None]:
    """What Ray reads of the environment when it is joined or started; what the user has set stays.

    Args:
        is_local: A Ray of the job's own is started.
    """
    variables = CONNECTION_VARIABLES | (LOCAL_RAY_VARIABLES if is_local else {})
    variables |= {NO_DASHBOARD_VARIABLE: "1"} if is_local and not dashboard else {}
    is_cluster_enabled = ray_constants.ENABLE_RAY_CLUSTER
    try:
        with (
            environment_variables(variables, keep_existing=True),
            environment_variables(LOOPBACK_VARIABLES if is_local else {}),
        ):
            ray_constants.ENABLE_RAY_CLUSTER = is_cluster_enabled and not is_local
            yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = is_cluster_enabled


def list_variables_for_ray() -> list[str]:
    """List the variables that Ray reads and the user has set, perhaps for another Ray: sorted names."""
    own = CONNECTION_VARIABLES | LOCAL_RAY_VARIABLES | LOOPBACK_VARIABLES
    return sorted(name for name in os.environ if name.startswith("RAY_") and name not in (*own, "RAY_TMPDIR"))


def secure_token(*, is_local: bool) -> dict[str, str]:
    """Let nobody but this user read the token by which Ray is reached.

    Ray 2.60 draws one for a Ray that it starts, and writes its file as the umask says: for all to read, as a rule.

    Args:
        is_local: A Ray is going to be started; without a token one is drawn.
    Returns:
        Variables for the environment of a Ray that is started: its token, where this user has no home to keep it in.
    Raises:
        ConfigError: The file cannot be written, or others can read one that RAY_AUTH_TOKEN_PATH names or that is not
            this user's.
    """
    if os.environ.get("RAY_AUTH_TOKEN"):
        return {}
    named = os.environ.get("RAY_AUTH_TOKEN_PATH", "")
    path = Path(named or "~/.ray/auth_token")
    try:
        path = path.expanduser()
        if not path.exists():
            if is_local:
                _write_token_file(path)
        elif path.stat().st_mode & 0o077:
            if named:
                raise PermissionError(f"others can read it; type `chmod 600 {path}`")
            path.chmod(0o600)
    except (OSError, RuntimeError) as error:  # RuntimeError: a user without a home, as containers have them
        if is_local and not named and not _is_there(path):
            return {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"the token of Ray in {path} is not for this user alone: {reason}; or name another file by "
            "RAY_AUTH_TOKEN_PATH"
        ) from None
    return {}


def _is_there(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return path.exists()
    return True  # it is kept from this user: theirs or not, it is not to be passed by


def _write_token_file(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    token = secrets.token_hex(32)
    with tempfile.NamedTemporaryFile("w", dir=path.parent) as file:  # which only its owner can read
        file.write(token)
        file.flush()
        with contextlib.suppress(FileExistsError):  # another command was faster, and its Ray has read that one
            try:
                os.link(file.name, path)
            except OSError as error:
                if error.errno not in WITHOUT_LINKS:
                    raise
                with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as written:
                    written.write(token)


def answers_without_token(gcs_address: str) -> bool:
    """Ask the control service of a cluster for the cluster's number, without a token.

    Raises:
        ConfigError: It does not say whether it wants one.
    """
    import grpc

    with grpc.insecure_channel(gcs_address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")(b"", timeout=ASK_TIMEOUT_S)
        except grpc.RpcError as error:
            code = error.code()  # pyright: ignore[reportAttributeAccessIssue]
            if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
                return False
            raise ConfigError(
                f"the Ray at {gcs_address} does not say whether it wants a token: {code.name}; check what is between, "
                "and start it without RAY_USE_TLS"
            ) from None
    return True


def count_local_gpus() -> int:
    """Count as many as a local Ray will find: by Ray's own count, which neither starts Ray nor loads torch."""
    manager = get_accelerator_manager_for_resource("GPU")
    if manager is None:
        return 0
    found, visible = manager.get_current_node_num_accelerators(), manager.get_current_process_visible_accelerator_ids()
    return found if visible is None else min(found, len(visible))


def find_autoscaler_config(gcs_address: str) -> str | None:
    """Find the file that a cluster's autoscaler was started with, among the processes of this machine.

    Returns:
        Its path; empty: the cluster has no autoscaler; None: its autoscaler is not here.
    """
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if any(word.endswith("/monitor.py") for word in words) and f"--gcs-address={gcs_address}" in words:
            options = [word for word in words if word.startswith(AUTOSCALING_CONFIG_OPTION)]
            return options[0].removeprefix(AUTOSCALING_CONFIG_OPTION) if options else ""
    return None


def configure_ray_data() -> None:
    """Let Ray Data start at once and quietly: the jobs draw one line a stage of their own, and tell errors in one line.

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
    """Use all cores from the first moment on, instead of one core for the first second.

    Ray Data 2.60 refreshes its limits once a second, and takes them for the first time before its coordinator has
    answered, when they are zero (docs/log.md). A Ray that has the name no more starts as it does.
    """
    with contextlib.suppress(ImportError):
        from ray.data._internal.execution.resource_manager import ResourceManager

        ResourceManager.GLOBAL_LIMITS_UPDATE_INTERVAL_S = 0.1  # pyright: ignore[reportAttributeAccessIssue]


def map_with_retries(
    method: Callable[..., ray.data.Dataset], work: Any, retries: int = 1, **options: Any
) -> ray.data.Dataset:
    """Map a dataset by tasks that are tried again a few times only.

    Ray Data's default is for ever, and a file that ends the process which reads it would hold the job up for ever. Ray
    2.60 deprecates the argument that says so, and has no other yet.
    """

    def make_remote_args() -> dict[str, Any]:
        actor = "compute" in options
        return {"max_restarts": retries, "max_task_retries": retries} if actor else {"max_retries": retries}

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*ray_remote_args_fn")
        return method(work, ray_remote_args_fn=make_remote_args, **options)


def get_trainer_class() -> type[Any]:
    """Return Ray Train's trainer, which leaves Ctrl-C to us; on a Ray without a dashboard, one that ends at once.

    By itself it takes Ctrl-C as the end of the process, before anything is saved.

    TorchTrainer would load torch in every controller, which takes none of it and half a GiB on the head (docs/log.md).

    Ray Train 2.60 starts an actor for the data sets that it is given, also where it is given none (docs/log.md): our
    workers read the store. It starts another that frees the workers' resources should their controller die. That asks
    the dashboard whether the controller lives, and where there is no dashboard, each group waits twelve seconds in the
    end for it to stop asking (docs/log.md). Such a Ray is the job's own, and ends with it.
    """
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    left_out = {"DatasetsCallback"}
    if NO_DASHBOARD_VARIABLE in os.environ:
        left_out.add("PlacementGroupCleanerCallback")

    class Trainer(DataParallelTrainer):
        def _register_sigint_handler(self, controller: Any) -> None:
            pass

        def _create_default_callbacks(self) -> list[Any]:
            return [c for c in super()._create_default_callbacks() if type(c).__name__ not in left_out]

    return Trainer


def make_process_group_config(backend: str) -> "BackendConfig":
    """Make the configuration of a group's process group, which only its workers load torch for.

    NCCL only where torch sees a GPU in each worker: without one it ends the group, by an error that names neither the
    node nor the way out. By gloo the workers start and say both (`cluster.has_gpu`).
    """
    from ray.train.backend import Backend, BackendConfig

    class ProcessGroupBackend(Backend):
        share_cuda_visible_devices = True

        def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
            from ray.train._internal.utils import get_address_and_port

            chosen = "nccl" if backend == "nccl" and all(worker_group.execute(_sees_gpu)) else "gloo"
            address, size = worker_group.execute_single(0, get_address_and_port), len(worker_group)
            join = worker_group.execute_single_async
            ray.get([join(rank, _join_process_group, chosen, *address, rank, size) for rank in range(size)])

        def on_shutdown(self, worker_group: Any, backend_config: BackendConfig) -> None:
            with contextlib.suppress(GetTimeoutError):
                ray.get(
                    worker_group.execute_async(_leave_process_group, len(worker_group) > 1), timeout=LEAVE_TIMEOUT_S
                )

    class ProcessGroupConfig(BackendConfig):
        @property
        def backend_cls(self) -> type[Backend]:
            return ProcessGroupBackend

        @property
        def train_func_context(self) -> Any:
            return _choose_gpu

    return ProcessGroupConfig()


@contextmanager
def _choose_gpu() -> Iterator[None]:
    """Make a worker's GPU the one that torch takes by default."""
    import torch
    from ray.train.torch import get_device

    if torch.cuda.is_available() and (device := get_device()).type == "cuda":
        torch.cuda.set_device(device)
    yield


def _sees_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _join_process_group(backend: str, address: str, port: int, rank: int, world_size: int) -> None:
    from ray.train.torch.config import _set_torch_distributed_env_vars, _setup_torch_process_group

    from eav_ray.training.torch_workarounds import bind_rendezvous

    bind_rendezvous()
    os.environ |= {"MASTER_ADDR": address, "MASTER_PORT": str(port)}
    _set_torch_distributed_env_vars()
    _setup_torch_process_group(backend, rank, world_size, "env://")


def _leave_process_group(destroy: bool) -> None:
    from ray.train.torch.config import _shutdown_torch

    _shutdown_torch(destroy_process_group=destroy)


@contextmanager
def tune_settings(max_pending_trials: int) -> Iterator[None]:
    """Let Tune show its waiting trials to the autoscaler, leave Ctrl-C to us, and open no pickle.

    By default it shows one trial at a time, and a cluster would grow by one. It would take Ctrl-C as the end of the
    search, and what is half searched would be refitted as the best. The pickled error of a failed trial lies in the
    results store, where its text lies beside it.
    """
    from ray.tune.experiment import Trial

    variables = {"TUNE_MAX_PENDING_TRIALS_PG": str(max_pending_trials), "TUNE_DISABLE_SIGINT_HANDLER": "1"}
    read_pickled_error, Trial.get_pickled_error = Trial.get_pickled_error, lambda self: None
    try:
        with environment_variables(variables):
            yield
    finally:
        Trial.get_pickled_error = read_pickled_error


def get_serve_address() -> tuple[str, int] | None:
    """Return (host, port) where the running Ray Serve listens, as another job may have said; None where it has none."""
    from ray.serve.context import _get_global_client

    client = _get_global_client()
    return None if client is None else (str(client.http_config.host or ""), client.http_config.port)
