"""Connect to Ray, and choose `runtime.gpus_per_worker=auto` there, once: what runs within sees a number."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import ray

from eav_ray.config import Experiment, RuntimeConfig
from eav_ray.distributed import cluster
from eav_ray.distributed.capacity import ClusterCapacity, NodeResources, read_cluster_capacity, read_current_nodes
from eav_ray.storage import Store


@contextmanager
def connect_experiment(experiment: Experiment) -> Iterator[Experiment]:
    """As `connect_runtime`, once the results store has been tried; yields the experiment with that runtime."""
    Store(experiment.store.results).probe()
    with connect_runtime(experiment.runtime) as runtime:
        yield replace(experiment, runtime=runtime)


@contextmanager
def connect_runtime(runtime: RuntimeConfig) -> Iterator[RuntimeConfig]:
    """A connection to Ray for the length of a job (`cluster.connect_to_ray`), for what may compute on GPUs.

    Yields:
        The runtime with a number of GPUs, and with the address, which drivers on other nodes do not have in their
        environment. The job prints the choice, if there was one.
    """
    is_first = not ray.is_initialized()
    with cluster.connect_to_ray(runtime):
        runtime = replace(runtime, address=cluster.resolve_address(runtime))
        if runtime.gpus_per_worker == "auto":
            gpus, reason = choose_gpus_per_worker(runtime, _read_capacity(runtime))
            runtime = replace(runtime, gpus_per_worker=gpus)
            if reason and is_first:
                print(f"runtime.gpus_per_worker={gpus}: {reason}", flush=True)
        yield runtime


def _read_capacity(runtime: RuntimeConfig) -> ClusterCapacity:
    if cluster.resolve_address(runtime):
        return read_cluster_capacity()
    nodes = read_current_nodes()
    return ClusterCapacity(nodes, nodes)  # a Ray of its own never grows


def choose_gpus_per_worker(runtime: RuntimeConfig, capacity: ClusterCapacity) -> tuple[int, str]:
    """Choose one GPU a worker where a group of workers can have that, now or once the cluster has grown, else none.

    Counted is what Ray counts: a worker that gets a GPU which torch cannot use says so (`cluster.has_gpu`).

    Returns:
        (GPUs of a worker, why); without a reason where there are no GPUs and none may come.
    """
    here, later = _count_gpus(capacity.current_nodes), _count_gpus(capacity.max_nodes or [])
    if not here and capacity.max_nodes is None:
        return 0, (
            "no node has a GPU, and which nodes the autoscaler may add is not known here; give the number if it may "
            "add GPUs"
        )
    if not max(here, later):
        return 0, ""
    found = f"nodes with {_format_gpus(here)} are there" if here else f"nodes with {_format_gpus(later)} may be added"
    # All groups of a Ray of its own must fit on this machine; those of a cluster may come and go.
    groups = 1 if cluster.resolve_address(runtime) else runtime.groups
    needed, on_gpus = runtime.min_group_size * groups, replace(runtime, gpus_per_worker=1)
    room = max(cluster.count_workers_on(nodes, on_gpus) for nodes in (capacity.current_nodes, capacity.max_nodes or []))
    if room >= needed or capacity.max_nodes is None:
        return 1, found
    keys = "runtime.workers" if groups == 1 else "runtime.workers or runtime.groups"
    return 0, f"{found}, room for {room} of {needed} workers with one each; lower {keys} to train on GPUs"


def _count_gpus(nodes: list[NodeResources]) -> float:
    return sum(node.get("GPU", 0.0) for node in nodes)


def _format_gpus(count: float) -> str:
    return f"{count:g} GPU{'s' * (count != 1)}"
