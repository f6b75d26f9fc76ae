"""How many groups of workers a cluster can hold is counted before a search, and what it cannot hold is refused."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from eav_ray.config import Experiment, override
from eav_ray.distributed import capacity
from eav_ray.distributed.capacity import (
    ClusterCapacity,
    count_concurrent_groups,
    count_concurrent_workers,
    list_max_nodes,
)
from eav_ray.errors import ConfigError
from tests.helpers.paths import REPOSITORY

CLUSTER = REPOSITORY / "cluster.yaml"
HEAD, GPU, CPU = {"CPU": 0.0}, {"CPU": 8.0, "GPU": 1.0}, {"CPU": 16.0}


def experiment(**changes: Any) -> Experiment:
    changes = {k.replace("__", "."): v for k, v in changes.items()}
    return override(Experiment(), {"search.mode": "full", "runtime.gpus_per_worker": 0} | changes)


def test_a_cluster_that_has_grown_has_as_many_nodes_as_its_limits() -> None:
    limits = yaml.safe_load(CLUSTER.read_text())
    grown = list_max_nodes(limits)
    assert grown.count(HEAD) == 1 and grown.count(GPU) == 8 and grown.count(CPU) == 4 and len(grown) == 13
    # Types that share a limit: the one with GPUs takes it.
    assert list_max_nodes(limits | {"max_workers": 9}) == [HEAD, *[GPU] * 8, CPU]
    assert list_max_nodes(limits | {"max_workers": 2}) == [HEAD, GPU, GPU]


def test_drivers_take_nothing_and_workers_fit_node_by_node() -> None:
    known = ClusterCapacity([HEAD], [HEAD, *[GPU] * 8, *[CPU] * 4])
    assert count_concurrent_groups(experiment(runtime__workers=2, runtime__gpus_per_worker=1), known) == 4
    assert count_concurrent_groups(experiment(runtime__workers=4, runtime__gpus_per_worker=0.5), known) == 4
    # 7 of 8 and 14 of 16 CPUs: what is left over on two nodes holds no worker.
    assert count_concurrent_groups(experiment(runtime__workers=2, runtime__cpus_per_worker=7), known) == 8
    # Fewer workers will do, so more groups may start.
    fewer = experiment(runtime__workers=2, runtime__min_workers=1, runtime__gpus_per_worker=1)
    assert count_concurrent_groups(fewer, known) == 8
    assert (
        count_concurrent_groups(
            experiment(runtime__workers=2, search__max_concurrent_trials=3, runtime__gpus_per_worker=1), known
        )
        == 3
    )


def test_no_more_candidates_start_than_this_node_has_memory_for_their_drivers() -> None:
    nodes = [HEAD, *[GPU] * 40]
    for free_gib, expected in ((100, 200), (20, 40), (0.1, 1)):
        known = ClusterCapacity(nodes, nodes, free_bytes=free_gib * 2**30)
        assert count_concurrent_groups(experiment(runtime__workers=1), known) == min(expected, 320)
    with pytest.raises(ConfigError) as reported:
        count_concurrent_groups(experiment(runtime__workers=1, search__max_concurrent_trials=41), known)
    assert str(reported.value) == (
        "search.max_concurrent_trials=41 needs 20.5 GiB of memory on this node, where their drivers and controllers "
        "run, but it has 0.1 GiB free; set search.max_concurrent_trials to at most 1, or give the head more memory"
    )


def test_what_the_cluster_can_never_hold_is_refused_with_the_arithmetic() -> None:
    known = ClusterCapacity([HEAD, GPU], [HEAD, GPU, GPU, GPU])
    with pytest.raises(ConfigError) as reported:
        count_concurrent_groups(experiment(runtime__workers=4, runtime__gpus_per_worker=1), known)
    assert str(reported.value) == (
        "one candidate x runtime.workers=4 needs 4 workers with 1 CPU and 1 GPU each (drivers need no CPU), but the "
        "cluster has room for 3 on its 2 nodes and the 2 that its autoscaler may add; set runtime.workers to at most 3"
    )
    with pytest.raises(
        ConfigError, match="search.max_concurrent_trials=2 candidates x runtime.workers=2 needs 4 workers .* room for "
    ):
        count_concurrent_groups(
            experiment(runtime__workers=2, runtime__gpus_per_worker=1, search__max_concurrent_trials=2), known
        )
    with pytest.raises(ConfigError, match="room for 0 on its 1 node; lower runtime.cpus_per_worker or runtime.gpus"):
        count_concurrent_groups(
            experiment(runtime__workers=1, runtime__gpus_per_worker=1), ClusterCapacity([CPU], [CPU])
        )


def test_limits_that_are_not_known_refuse_nothing() -> None:
    wanted = experiment(runtime__workers=4, runtime__gpus_per_worker=1)
    assert count_concurrent_groups(wanted, ClusterCapacity([HEAD], None)) == 1  # it may grow
    assert (
        count_concurrent_groups(override(wanted, {"search.max_concurrent_trials": 5}), ClusterCapacity([HEAD], None))
        == 5
    )
    assert count_concurrent_groups(wanted, ClusterCapacity([GPU] * 9, None)) == 2
    one = override(Experiment(), {"runtime.gpus_per_worker": 0.5})
    assert count_concurrent_workers(one, ClusterCapacity([HEAD], None)) == 1
    assert count_concurrent_workers(one, ClusterCapacity([HEAD], [HEAD, GPU, GPU])) == 4


class Process:
    def __init__(self, *words: str) -> None:
        self.info = {"cmdline": list(words)}


@pytest.mark.parametrize("broken", ["", "max_workers: x", "[1]", "max_workers: 1", "{"])
def test_the_autoscalers_file_is_found_by_its_process(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = tmp_path / "limits.yaml"
    limits.write_text(CLUSTER.read_text())
    mine = ["python", "-u", "/ray/autoscaler/v2/monitor.py", "--gcs-address=10.0.0.1:6379"]
    option = f"--autoscaling-config={limits}"
    processes = [Process("python", "/ray/autoscaler/v2/monitor.py", "--gcs-address=10.0.0.1:1", option), Process()]
    monkeypatch.setattr("psutil.process_iter", lambda names: processes)

    class Context:
        gcs_address = "10.0.0.1:6379"

    monkeypatch.setattr("ray.get_runtime_context", Context)
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": HEAD}, {"Alive": False, "Resources": GPU}])
    assert capacity.read_cluster_capacity() == ClusterCapacity([HEAD], None)  # the autoscaler runs elsewhere
    processes.append(Process(*mine))
    assert capacity.read_cluster_capacity() == ClusterCapacity([HEAD], [HEAD])  # and has nothing to grow by
    processes[-1] = Process(*mine, option)
    assert capacity.read_cluster_capacity() == ClusterCapacity(
        [HEAD], list_max_nodes(yaml.safe_load(CLUSTER.read_text()))
    )
    limits.write_text(broken)
    assert capacity.read_cluster_capacity() == ClusterCapacity([HEAD], None)
