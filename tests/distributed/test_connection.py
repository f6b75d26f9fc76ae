"""`runtime.gpus_per_worker=auto` becomes a number once, of the nodes that are there and those that may come."""

import os
from contextlib import contextmanager
from typing import Any

import pytest
import yaml

from eav_ray.config import Experiment, RuntimeConfig, override, to_dict
from eav_ray.data.splits import Split
from eav_ray.distributed import cluster, connection
from eav_ray.distributed.capacity import ClusterCapacity, list_max_nodes
from eav_ray.distributed.connection import choose_gpus_per_worker, connect_experiment, connect_runtime
from eav_ray.distributed.ray_workarounds import make_process_group_config
from eav_ray.training.run_spec import plan_runs
from tests.helpers.paths import REPOSITORY

HEAD, GPU, EIGHT, CPU = {"CPU": 0.0}, {"CPU": 8.0, "GPU": 1.0}, {"CPU": 96.0, "GPU": 8.0}, {"CPU": 16.0}
ADDRESS = "head:6379"


@pytest.fixture(autouse=True)
def no_ray_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def fixed(*nodes: dict[str, float]) -> ClusterCapacity:
    return ClusterCapacity(list(nodes), list(nodes))


@pytest.mark.parametrize("capacity", [fixed(CPU), fixed(HEAD, CPU, CPU), ClusterCapacity([HEAD], [HEAD, CPU, CPU])])
def test_without_gpus_there_is_nothing_to_choose_or_to_say(capacity: ClusterCapacity) -> None:
    assert choose_gpus_per_worker(RuntimeConfig(address=ADDRESS), capacity) == (0, "")


@pytest.mark.parametrize(
    ("capacity", "reason"),
    [
        (fixed(EIGHT), "nodes with 8 GPUs are there"),
        (fixed(HEAD, GPU, GPU), "nodes with 2 GPUs are there"),
        (ClusterCapacity([HEAD], [HEAD, GPU, GPU, CPU]), "nodes with 2 GPUs may be added"),
        (ClusterCapacity([HEAD, GPU], [HEAD, GPU, GPU]), "nodes with 1 GPU are there"),
        # KubeRay's autoscaler may add the second.
        (ClusterCapacity([HEAD, GPU], None), "nodes with 1 GPU are there"),
    ],
)
def test_each_worker_gets_a_gpu_where_there_are_or_may_come_enough(capacity: ClusterCapacity, reason: str) -> None:
    assert choose_gpus_per_worker(RuntimeConfig(address=ADDRESS, workers=2), capacity) == (1, reason)


def test_the_cluster_file_of_the_repository_trains_on_gpus() -> None:
    limits = yaml.safe_load((REPOSITORY / "cluster.yaml").read_text())
    gpus, reason = choose_gpus_per_worker(
        RuntimeConfig(address=ADDRESS), ClusterCapacity([HEAD], list_max_nodes(limits))
    )
    assert (gpus, reason) == (1, "nodes with 8 GPUs may be added")


def test_kubernetes_is_asked_for_the_number() -> None:
    """Nothing says which nodes its autoscaler may add."""
    gpus, reason = choose_gpus_per_worker(RuntimeConfig(address=ADDRESS), ClusterCapacity([HEAD, CPU], None))
    assert gpus == 0 and reason.endswith("is not known here; give the number if it may add GPUs")


def test_gpus_that_are_too_few_are_left_alone_with_the_way_out() -> None:
    """The default of two workers on a workstation with one GPU must run; shared GPUs are asked for by a number."""
    assert choose_gpus_per_worker(RuntimeConfig(workers=2), fixed(GPU)) == (
        0,
        "nodes with 1 GPU are there, room for 1 of 2 workers with one each; lower runtime.workers to train on GPUs",
    )
    assert choose_gpus_per_worker(RuntimeConfig(workers=1), fixed(GPU))[0] == 1
    assert choose_gpus_per_worker(RuntimeConfig(workers=2, min_workers=1), fixed(GPU))[0] == 1
    # Counted node by node, and with the CPUs that a worker needs.
    assert choose_gpus_per_worker(RuntimeConfig(workers=2, cpus_per_worker=5), fixed(GPU | {"GPU": 2.0}))[0] == 0


def test_groups_of_a_ray_of_its_own_must_all_fit() -> None:
    gpus, reason = choose_gpus_per_worker(RuntimeConfig(workers=1, groups=3), fixed(GPU | {"GPU": 2.0}))
    assert gpus == 0 and "room for 2 of 3 workers" in reason and "runtime.workers or runtime.groups" in reason
    assert choose_gpus_per_worker(RuntimeConfig(address=ADDRESS, workers=1, groups=3), fixed(GPU, GPU))[0] == 1


@contextmanager
def no_connection(runtime: RuntimeConfig) -> Any:
    yield


@pytest.fixture
def fake_nodes(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, float]]:
    """The nodes of a Ray that is not there, for a test to fill."""
    nodes: list[dict[str, float]] = []
    monkeypatch.setattr(cluster, "connect_to_ray", no_connection)
    monkeypatch.setattr(connection, "read_current_nodes", lambda: nodes)
    monkeypatch.setattr(connection, "read_cluster_capacity", lambda: ClusterCapacity(nodes, None))
    return nodes


def test_the_choice_is_printed_once(
    fake_nodes: list[dict[str, float]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_nodes.append(EIGHT)
    with connect_experiment(Experiment()) as connected:
        assert connected.runtime == RuntimeConfig(gpus_per_worker=1) and connected.runtime.gpus == 1
        assert capsys.readouterr().out == "runtime.gpus_per_worker=1: nodes with 8 GPUs are there\n"
        monkeypatch.setattr("ray.is_initialized", lambda: True)
        with connect_experiment(Experiment()) as again:
            assert again == connected
    with connect_runtime(RuntimeConfig(gpus_per_worker=0)) as given:
        assert given.gpus == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("address", "expected"), [("", ""), (ADDRESS, "runtime.gpus_per_worker=0: no node has a GPU")])
def test_without_gpus_only_a_cluster_that_may_grow_says_a_word(
    address: str, expected: str, fake_nodes: list[dict[str, float]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Without an address the job starts a Ray of its own, which never grows."""
    fake_nodes.append(CPU)
    with connect_runtime(RuntimeConfig(address=address)) as runtime:
        assert runtime.gpus == 0
    printed = capsys.readouterr().out
    assert printed.startswith(expected) and bool(printed) == bool(expected)


def test_drivers_of_trials_know_that_they_are_on_a_cluster(
    fake_nodes: list[dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what they are given: RAY_ADDRESS is in the environment of the job alone."""
    monkeypatch.setenv("RAY_ADDRESS", ADDRESS)
    with connect_runtime(RuntimeConfig(gpus_per_worker=0)) as runtime:
        assert runtime == RuntimeConfig(gpus_per_worker=0, address=ADDRESS)


def test_a_number_is_asked_for_only_once_it_is_chosen() -> None:
    with pytest.raises(AssertionError, match="connect to Ray first"):
        _ = RuntimeConfig().gpus


def test_the_choice_is_part_of_no_key() -> None:
    """A training that was begun on GPUs is the same one on CPUs."""
    experiments = [override(Experiment(), {"runtime.gpus_per_worker": value}) for value in ("auto", 0, 0.5, 1)]
    assert [to_dict(e)["runtime"]["gpus_per_worker"] for e in experiments] == ["auto", 0, 0.5, 1]
    split = Split("within", ("p0/0",), ("p0/1",), ("p0/2",))
    keys = {tuple(run.key for run in plan_runs(e, split, "data")) for e in experiments}
    assert len(keys) == 1


@pytest.mark.parametrize(
    ("address", "gpus", "local_gpus", "hides"),
    [("", 0, 1, True), ("", 0, 0, False), ("", 0.5, 1, False), (ADDRESS, 0, 0, True), (ADDRESS, 1, 0, False)],
)
def test_a_worker_without_a_gpu_is_shown_none(
    address: str, gpus: float, local_gpus: int, hides: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine that has none there is nothing to hide, and a process less to start."""
    monkeypatch.setattr(cluster, "count_local_gpus", lambda: local_gpus)
    runtime = RuntimeConfig(address=address, gpus_per_worker=gpus)
    assert cluster.list_worker_variables(runtime) == ({"CUDA_VISIBLE_DEVICES": ""} if hides else {})


@pytest.mark.parametrize(
    ("asked", "sees_gpu", "taken"),
    [("nccl", [True, True], "nccl"), ("nccl", [True, False], "gloo"), ("gloo", [False, False], "gloo")],
)
def test_workers_whose_gpu_torch_cannot_use_start_and_say_so(
    asked: str, sees_gpu: list[bool], taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NCCL would end the group before they can."""
    joined: list[tuple[Any, ...]] = []

    class Group:
        execute = staticmethod(lambda function: sees_gpu)
        execute_single = staticmethod(lambda rank, function: ("10.0.0.1", 1234))
        execute_single_async = staticmethod(lambda rank, function, *given: joined.append((rank, *given)))

        def __len__(self) -> int:
            return len(sees_gpu)

    monkeypatch.setattr("ray.get", lambda futures: futures)
    config = make_process_group_config(asked)
    config.backend_cls().on_start(Group(), config)  # pyright: ignore[reportArgumentType]
    assert joined == [(rank, taken, "10.0.0.1", 1234, rank, 2) for rank in range(2)]


def test_an_actor_without_a_gpu_hides_those_of_its_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr("torch.set_num_threads", lambda threads: None)
    assert cluster.set_up_torch(RuntimeConfig(gpus_per_worker=0)).type == "cpu"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
