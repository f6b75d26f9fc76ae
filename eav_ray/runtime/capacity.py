"""How many groups of workers a cluster can hold at once: on the nodes that are there, and on those it may grow by.

Ray tells a driver nothing of its autoscaler's limits. Where the driver runs beside the autoscaler, as submitted jobs do
on the head, the file that the autoscaler was started with says them. On Kubernetes the autoscaler runs elsewhere, and
the limits stay unknown.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray
import yaml

from eav_ray.config import Experiment
from eav_ray.errors import ConfigError
from eav_ray.runtime.cluster import each_needs, workers_on

OPTION = "--autoscaling-config="
Node = dict[str, float]  # resource -> how much of it


@dataclass(frozen=True)
class Capacity:
    now: list[Node]
    grown: list[Node] | None  # all nodes, once the cluster has grown as far as it may; None where that is not known


def capacity() -> Capacity:
    """Of the cluster that this process is connected to."""
    now = [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]
    found = _autoscaler(ray.get_runtime_context().gcs_address)
    if found is None:
        return Capacity(now, None)
    if not found:
        return Capacity(now, now)
    try:
        limits = yaml.safe_load(Path(found).expanduser().read_text())
        grown = nodes_of(limits)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        return Capacity(now, None)  # it is Ray's file, not ours
    return Capacity(now, grown)


def _autoscaler(gcs_address: str) -> str | None:
    """The file that the autoscaler of this cluster was started with; empty: it has none; None: it is not here."""
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if any(word.endswith("/monitor.py") for word in words) and f"--gcs-address={gcs_address}" in words:
            return next((word.removeprefix(OPTION) for word in words if word.startswith(OPTION)), "")
    return None


def nodes_of(limits: dict[str, Any]) -> list[Node]:
    """All nodes of a cluster that has grown as far as its configuration lets it.

    Args:
        limits: What Ray's cluster launcher takes and its autoscaler reads.
    """
    head, most = limits["head_node_type"], int(limits["max_workers"])
    types = limits["available_node_types"]
    nodes = [_resources(types[head])]
    for name, kind in types.items():
        if name != head:
            nodes += [_resources(kind)] * int(kind.get("max_workers", most))
    return nodes if len(nodes) <= most + 1 else nodes[:1] + sorted(nodes[1:], key=_size)[:most]


def _resources(kind: dict[str, Any]) -> Node:
    return {name: float(amount) for name, amount in kind.get("resources", {}).items() if name in ("CPU", "GPU")}


def _size(node: Node) -> tuple[float, float]:
    """The largest first: of types that share one limit, those with GPUs are what a search grows by."""
    return -node.get("GPU", 0.0), -node.get("CPU", 0.0)


def count_concurrent_workers(experiment: Experiment, known: Capacity) -> int:
    """How many workers of `search.mode=fusion` train side by side; at least 1, for which a cluster may grow."""
    most = max(workers_on(known.grown or [], experiment.runtime), workers_on(known.now, experiment.runtime))
    return experiment.search.max_concurrent_trials or max(1, most)


def count_concurrent_groups(experiment: Experiment, known: Capacity) -> int:
    """How many candidates of `search.mode=full` are trained side by side, each by a group of `runtime.workers`.

    A candidate's driver takes no CPU: it runs beside the search, and what it costs is memory. So all CPUs and GPUs are
    the workers'.

    Raises:
        ConfigError: The cluster cannot hold one group, or not as many as `search.at_once` asks for, whatever it grows.
    """
    runtime, wanted = experiment.runtime, experiment.search.max_concurrent_trials
    now = workers_on(known.now, runtime) // runtime.min_group_size
    if known.grown is None:
        return wanted or max(1, now)
    workers = max(workers_on(known.grown, runtime), workers_on(known.now, runtime))
    most = workers // runtime.min_group_size
    if most >= max(1, wanted):
        return wanted or most
    asked = f"search.at_once={wanted} candidates" if wanted > 1 else "one candidate"
    need = max(1, wanted) * runtime.min_group_size
    ways = [f"search.at_once to at most {most}"] if most else []
    ways += [f"runtime.workers to at most {workers}"] if not most and workers else []
    way = f"set {ways[0]}" if ways else "lower runtime.cpus_per_worker or runtime.gpus_per_worker"
    raise ConfigError(
        f"{asked} x runtime.workers={runtime.workers} needs {need} workers with {each_needs(runtime)} each (drivers "
        f"need no CPU), but the cluster has room for {workers} on {_describe_nodes(known)}; {way}"
    )


def _describe_nodes(known: Capacity) -> str:
    assert known.grown is not None
    nodes = f"{len(known.now)} node{'s' * (len(known.now) != 1)}"
    more = len(known.grown) - len(known.now)
    return f"its {nodes}" if more <= 0 else f"its {nodes} and the {more} that its autoscaler may add"
