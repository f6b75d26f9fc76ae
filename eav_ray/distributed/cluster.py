"""Which Ray a job runs on: one of its own, or a cluster that it joins. Refuses one that wants no token."""

import ipaddress
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from eav_ray.config import RuntimeConfig
from eav_ray.config.environment import environment_variables
from eav_ray.config.sections import StoreConfig
from eav_ray.distributed.heap import limit_heaps
from eav_ray.distributed.machine_limits import (
    SHARED_MEMORY,
    check_limits,
    check_loopback,
    check_ray_folder,
    choose_object_store,
    count_usable_cpus,
    find_ray_folder,
)
from eav_ray.distributed.ray_workarounds import (
    PLASMA_FOLDER_OPTION,
    START_TIMEOUT_TEXT,
    answers_without_token,
    count_local_gpus,
    list_variables_for_ray,
    ray_environment,
    secure_token,
)
from eav_ray.errors import ConfigError, describe_error
from eav_ray.processes import TERMINAL_SIGNALS, defer_signals, keep_signals_from_children

if TYPE_CHECKING:
    import torch

FAKE_GPUS_ENV = "EAV_RAY_FAKE_GPUS"  # in the environment of the nodes of a test cluster: their GPUs are only counted
ANSWER_TIMEOUT_S = 10.0
MAX_START_ATTEMPTS = 3  # of a Ray of its own, which gives itself half a minute each time
NO_GPUS = {"CUDA_VISIBLE_DEVICES": ""}  # in the environment of a worker that asked for none


@contextmanager
def connect_to_ray(runtime: RuntimeConfig) -> Iterator[None]:
    """A connection to Ray for the length of a job.

    With `runtime.address`, or RAY_ADDRESS as `ray job submit` sets it, the job joins that cluster. Otherwise it starts
    a Ray of its own on this machine and ends it. Within an open session this does nothing.

    Raises:
        ConfigError: More workers than this machine has CPUs or GPUs, no cluster at the address, a Ray that wants no
            token, a token that others can read, or a machine on which Ray does not start.
    """
    if ray.is_initialized():
        yield
        return
    limit_heaps()
    address = resolve_address(runtime)
    token = secure_token(is_local=not address)
    with environment_variables(token), ray_environment(is_local=not address, dashboard=runtime.dashboard):
        try:
            if address:
                _join_cluster(address)
            else:
                _start_local_ray(runtime)
            require_token_of_cluster(ray.get_runtime_context().gcs_address)
            yield
        finally:
            with defer_signals(*TERMINAL_SIGNALS):  # to who presses Ctrl-C twice too, nothing of it is left behind
                ray.shutdown()


def find_scratch_folder(store: StoreConfig) -> str:
    """Find the folder where Ray Train and Tune keep their own state, which nothing of ours is resumed from.

    It lies beside the results; where these are in an object store, on this machine.
    """
    root = store.cache if "://" in store.results else store.results
    return str(Path(root).absolute() / "ray")


def resolve_address(runtime: RuntimeConfig) -> str:
    """The cluster to join; empty for a Ray of its own, which Ray's own word for is "local"."""
    address = runtime.address or os.environ.get("RAY_ADDRESS", "")
    return "" if address == "local" else address


def check_local_resources(runtime: RuntimeConfig) -> None:
    """What a machine cannot do is said before anything is read or started."""
    if resolve_address(runtime):
        return
    _check_resource(runtime, "cpus_per_worker", count_usable_cpus())
    if runtime.gpus_per_worker not in ("auto", 0):
        _check_resource(runtime, "gpus_per_worker", count_local_gpus(), "runtime.gpus_per_worker=0")


def check_local_start(runtime: RuntimeConfig) -> None:
    """Say, before anything is read, what keeps a Ray of its own from starting on this machine.

    Raises:
        ConfigError: A limit of the shell, or a temporary folder that Ray cannot use.
    """
    if not resolve_address(runtime) and not ray.is_initialized():
        check_limits()
        check_loopback()
        check_ray_folder(find_ray_folder())


def _check_resource(runtime: RuntimeConfig, key: str, available: int, alternative: str = "") -> None:
    per_worker = getattr(runtime, key)
    needed, max_count = (
        runtime.min_group_size * runtime.groups * per_worker,
        int(available / per_worker / runtime.groups),
    )
    if needed <= available:
        return
    count = "min_workers" if runtime.min_workers else "workers"
    remedies = [f"runtime.{count} to at most {max_count}"] if max_count else []
    remedies += [alternative] if alternative else []
    remedy = f"set {' or '.join(remedies)}" if remedies else f"lower runtime.groups or runtime.{key}"
    n_cpus = os.cpu_count() or 1
    limit = f" for this process, of {n_cpus}" if key == "cpus_per_worker" and available < n_cpus else ""
    raise ConfigError(
        f"runtime.{count}={runtime.min_group_size} x runtime.groups={runtime.groups} x runtime.{key}={per_worker:g} "
        f"needs {needed:g} {key[:3].upper()}s, but this machine has {available}{limit}; {remedy}, or join a cluster "
        "with runtime.address"
    )


def require_token_of_cluster(address: str) -> None:
    """Ask a cluster for something without a token, and refuse one that answers: whoever reaches it can run any code.

    Neither its address nor the environment says that it is protected: a dashboard on loopback is one of many ports, and
    a token that a client sends is one that the cluster need not want.

    Args:
        address: HOST:PORT of its control service, to which all that join it talk.
    """
    if answers_without_token(address):
        raise ConfigError(
            f"the Ray at {address} answers without a token: anyone who reaches it could run code there; start its head "
            "and its nodes with RAY_AUTH_MODE=token, and set the same for this command (for a Ray of its own, unset it)"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def has_gpu(runtime: RuntimeConfig) -> bool:
    """Whether this worker computes on a GPU: if it has asked for one.

    Raises:
        ConfigError: Ray counts a GPU on this node that torch does not see; computing on without it would take for ever.
    """
    import torch

    if not runtime.gpus or FAKE_GPUS_ENV in os.environ:
        return False
    if torch.cuda.is_available():
        return True
    raise ConfigError(
        f"Ray counts a GPU on node {ray.util.get_node_ip_address()}, but torch sees none there; check its driver, or "
        "set runtime.gpus_per_worker=0"
    )


def list_worker_variables(runtime: RuntimeConfig) -> dict[str, str]:
    """List what a worker must have in its environment from its start, which costs Ray a new process: about a second.

    Ray 2.60 leaves all GPUs of a node visible to actors that asked for none, and libraries take what they see.
    """
    is_own_machine = not resolve_address(runtime)
    return {} if runtime.gpus or (is_own_machine and not count_local_gpus()) else NO_GPUS


def set_up_torch(runtime: RuntimeConfig) -> "torch.device":
    """Give torch the threads and GPUs of one worker in this process, and return the device that it computes on.

    To be called in an actor, before anything there asks torch for a GPU.

    Raises:
        ConfigError: As `has_gpu`.
    """
    import torch

    if not runtime.gpus:
        os.environ.update(NO_GPUS)
    torch.set_num_threads(max(1, int(runtime.cpus_per_worker)))
    return torch.device("cuda" if has_gpu(runtime) else "cpu")


def choose_driver_device(runtime: RuntimeConfig) -> "torch.device":
    """Return where a driver measures what workers do: its own GPU, where they have one each and it sees one."""
    import torch

    return torch.device("cuda" if runtime.gpus and torch.cuda.is_available() else "cpu")


def describe_worker_needs(runtime: RuntimeConfig) -> str:
    """What one worker needs, and how many nodes there are, as words."""
    return f"a node with {describe_worker_resources(runtime)} free ({_describe_node_count()})"


def describe_group_needs(runtime: RuntimeConfig) -> str:
    """What a group of workers needs, and how many nodes there are, as words."""
    if runtime.min_group_size == 1:
        return describe_worker_needs(runtime)
    resources = describe_worker_resources(runtime)
    return f"{runtime.min_group_size} workers' {resources} each to be free ({_describe_node_count()})"


def describe_worker_resources(runtime: RuntimeConfig) -> str:
    return " and ".join(f"{each:g} {k}" for k, each in get_worker_resources(runtime).items())


def _describe_node_count() -> str:
    nodes = sum(node["Alive"] for node in ray.nodes())
    return f"{nodes} {'node is' if nodes == 1 else 'nodes are'} there"


def get_worker_resources(runtime: RuntimeConfig) -> dict[str, float]:
    """Return what one worker takes, by Ray's names."""
    return {k: each for k, each in (("CPU", runtime.cpus_per_worker), ("GPU", runtime.gpus)) if each}


def count_fitting_workers(runtime: RuntimeConfig) -> int:
    """How many workers fit on the nodes that are there now; at least 1, for which a cluster may grow."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return max(1, count_workers_on(nodes, runtime))


def count_workers_on(nodes: list[dict[str, float]], runtime: RuntimeConfig) -> int:
    """Counted node by node: what two nodes have left over between them holds no worker."""
    needs = get_worker_resources(runtime)
    return sum(min(int(resources.get(k, 0) / each) for k, each in needs.items()) for resources in nodes)


def make_local_strategy() -> Any:
    """Place an actor or a task where this process is: a node that goes must not take along what it waits for."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def start_actor_here(actor_class: type, *arguments: Any, restarts: bool = False) -> Any:
    """Start an actor on this node that takes no CPU of a worker.

    Args:
        restarts: Ray starts it again, with the same arguments, whenever its process ends; calls wait for that.
    """
    lives: dict[str, Any] = {"max_restarts": -1, "max_task_retries": -1} if restarts else {}
    return ray.remote(num_cpus=0, scheduling_strategy=make_local_strategy(), **lives)(actor_class).remote(*arguments)


def _start_local_ray(runtime: RuntimeConfig) -> None:
    check_local_resources(runtime)
    check_local_start(runtime)
    folder = find_ray_folder()
    shared, size = choose_object_store(folder)
    options: dict[str, Any] = {} if shared == SHARED_MEMORY else {PLASMA_FOLDER_OPTION: str(shared)}
    for attempt in range(1, MAX_START_ATTEMPTS + 1):
        try:
            with (
                environment_variables({"RAY_TMPDIR": str(folder)}),
                defer_signals(*TERMINAL_SIGNALS),  # a Ray that has half started would be left behind
                keep_signals_from_children(*TERMINAL_SIGNALS),
            ):
                # A plain init would follow an address that a dead cluster left in Ray's temporary folder.
                ray.init(
                    address="local",
                    num_cpus=count_usable_cpus(),
                    include_dashboard=runtime.dashboard,
                    dashboard_host="127.0.0.1",
                    object_store_memory=size,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    **options,
                )
            return
        except Exception as error:  # noqa: BLE001 - Ray raises Exception itself, and whatever its processes met
            ray.shutdown()
            if START_TIMEOUT_TEXT in str(error) and attempt < MAX_START_ATTEMPTS:
                continue  # the machine is busy, as where several people use it
            variables = list_variables_for_ray()
            raise ConfigError(
                f"Ray does not start on this machine: {describe_error(error)}; its logs lie in "
                f"{folder}/ray/session_latest/logs; the cause may be a limit (`ulimit -a`), too little memory, a "
                f"firewall on loopback{', or what is set: ' if variables else ''}{', '.join(variables)}"
            ) from None


def _join_cluster(address: str) -> None:
    try:
        _require_answer(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
        reason = describe_error(error)
        if "ersion mismatch" in reason:
            raise ConfigError(
                f"the Ray cluster at {address} is of other versions than this command: {reason}; install the same Ray "
                "and Python there and here"
            ) from None
        raise ConfigError(
            f"no Ray cluster answers at {address}: {reason}; start one with `ray start --head`, or leave "
            "runtime.address and RAY_ADDRESS empty for a local one"
        ) from None


def _require_answer(address: str) -> None:
    """Knock at HOST:PORT: Ray itself waits for minutes for a cluster that has ended.

    Raises:
        OSError: Nobody listens there, or the name has no address.
    """
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "://" not in address:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_TIMEOUT_S).close()
