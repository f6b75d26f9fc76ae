"""How many groups of workers a cluster can hold at once: on the nodes that are there, and on those it may grow by.

Ray tells a driver nothing of its autoscaler's limits. Where the driver runs beside the autoscaler, as submitted jobs do
on the head, the file that the autoscaler was started with says them. On Kubernetes the autoscaler runs elsewhere, and
the limits stay unknown.
"""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray
import yaml

from eav_ray.config import Experiment
from eav_ray.distributed.cluster import count_workers_on, describe_worker_resources
from eav_ray.distributed.machine_limits import measure_free_memory
from eav_ray.distributed.ray_workarounds import find_autoscaler_config
from eav_ray.errors import ConfigError

# Memory of their own on the node of the job (`benchmarks/scale.py`): of a group the task that waits for it and Ray
# Train's controller, of a candidate a driver, which loads torch, and a controller.
GROUP_BYTES, TRIAL_BYTES = 2**28, 2**29

NodeResources = dict[str, float]  # resource -> how much of it


@dataclass(frozen=True)
class ClusterCapacity:
    current_nodes: list[NodeResources]
    max_nodes: (
        list[NodeResources] | None
    )  # all nodes, once the cluster has grown as far as it may; None where that is not known
    free_bytes: float = field(default=math.inf, compare=False)  # of memory on the node of this process


def read_cluster_capacity() -> ClusterCapacity:
    """Of the cluster that this process is connected to."""
    return replace(_read_nodes(), free_bytes=measure_free_memory())


def _read_nodes() -> ClusterCapacity:
    current_nodes = read_current_nodes()
    config_path = find_autoscaler_config(ray.get_runtime_context().gcs_address)
    if config_path is None:
        return ClusterCapacity(current_nodes, None)
    if not config_path:
        return ClusterCapacity(current_nodes, current_nodes)
    try:
        limits = yaml.safe_load(Path(config_path).expanduser().read_text())
        max_nodes = list_max_nodes(limits)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        return ClusterCapacity(current_nodes, None)  # it is Ray's file, not ours
    return ClusterCapacity(current_nodes, max_nodes)


def read_current_nodes() -> list[NodeResources]:
    """Read what each node has, busy or not, of the cluster that this process is connected to."""
    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def list_max_nodes(limits: dict[str, Any]) -> list[NodeResources]:
    """All nodes of a cluster that has grown as far as its configuration lets it.

    Args:
        limits: What Ray's cluster launcher takes and its autoscaler reads.
    """
    head, max_workers = limits["head_node_type"], int(limits["max_workers"])
    types = limits["available_node_types"]
    nodes = [_parse_resources(types[head])]
    for name, kind in types.items():
        if name != head:
            nodes += [_parse_resources(kind)] * int(kind.get("max_workers", max_workers))
    return nodes if len(nodes) <= max_workers + 1 else nodes[:1] + sorted(nodes[1:], key=_rank_by_size)[:max_workers]


def _parse_resources(kind: dict[str, Any]) -> NodeResources:
    return {name: float(amount) for name, amount in kind.get("resources", {}).items() if name in ("CPU", "GPU")}


def _rank_by_size(node: NodeResources) -> tuple[float, float]:
    """The largest first: of types that share one limit, those with GPUs are what a search grows by."""
    return -node.get("GPU", 0.0), -node.get("CPU", 0.0)


def count_concurrent_workers(experiment: Experiment, capacity: ClusterCapacity) -> int:
    """How many workers of `search.mode=fusion` train side by side; at least 1, for which a cluster may grow."""
    max_workers = max(
        count_workers_on(capacity.max_nodes or [], experiment.runtime),
        count_workers_on(capacity.current_nodes, experiment.runtime),
    )
    return experiment.search.max_concurrent_trials or max(1, max_workers)


def count_concurrent_groups(experiment: Experiment, capacity: ClusterCapacity) -> int:
    """How many candidates of `search.mode=full` are trained side by side, each by a group of `runtime.workers`.

    A candidate's driver takes no CPU: it runs beside the search, and what it costs is memory. So all CPUs and GPUs are
    the workers', and no more groups start than this node has memory for their drivers.

    Raises:
        ConfigError: The cluster cannot hold one group, or not as many as `search.max_concurrent_trials` asks for,
            whatever it grows, or this node not as many drivers.
    """
    requested = experiment.search.max_concurrent_trials
    check_head_memory("search.max_concurrent_trials", requested, TRIAL_BYTES, capacity.free_bytes)
    drivers = max(1.0, capacity.free_bytes / TRIAL_BYTES)
    return int(min(_count_groups(experiment, capacity), drivers))


def check_head_memory(key: str, count: int, bytes_each: int, free_bytes: float) -> None:
    """Refuse more processes on this node than it has memory for.

    Raises:
        ConfigError: Naming the key, and what would fit.
    """
    if count > 1 and count * bytes_each > free_bytes:
        raise ConfigError(
            f"{key}={count} needs {count * bytes_each / 2**30:.1f} GiB of memory on this node, where their drivers and "
            f"controllers run, but it has {free_bytes / 2**30:.1f} GiB free; set {key} to at most "
            f"{max(1, int(free_bytes // bytes_each))}, or give the head more memory"
        )


def _count_groups(experiment: Experiment, capacity: ClusterCapacity) -> int:
    """Count the groups that CPUs and GPUs allow, as `count_concurrent_groups`."""
    runtime, requested = experiment.runtime, experiment.search.max_concurrent_trials
    current_groups = count_workers_on(capacity.current_nodes, runtime) // runtime.min_group_size
    if capacity.max_nodes is None:
        return requested or max(1, current_groups)
    workers = max(count_workers_on(capacity.max_nodes, runtime), count_workers_on(capacity.current_nodes, runtime))
    max_groups = workers // runtime.min_group_size
    if max_groups >= max(1, requested):
        return requested or max_groups
    request = f"search.max_concurrent_trials={requested} candidates" if requested > 1 else "one candidate"
    needed_workers = max(1, requested) * runtime.min_group_size
    remedies = [f"search.max_concurrent_trials to at most {max_groups}"] if max_groups else []
    remedies += [f"runtime.workers to at most {workers}"] if not max_groups and workers else []
    remedy = f"set {remedies[0]}" if remedies else "lower runtime.cpus_per_worker or runtime.gpus_per_worker"
    raise ConfigError(
        f"{request} x runtime.workers={runtime.workers} needs {needed_workers} workers with "
        f"{describe_worker_resources(runtime)} each (drivers need no CPU), but the cluster has room for {workers} on "
        f"{_describe_nodes(capacity)}; {remedy}"
    )


def _describe_nodes(capacity: ClusterCapacity) -> str:
    assert capacity.max_nodes is not None
    nodes = f"{len(capacity.current_nodes)} node{'s' * (len(capacity.current_nodes) != 1)}"
    additional = len(capacity.max_nodes) - len(capacity.current_nodes)
    return f"its {nodes}" if additional <= 0 else f"its {nodes} and the {additional} that its autoscaler may add"
