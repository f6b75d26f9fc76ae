"""A Ray of a command's own fits this machine, and nothing listens beyond loopback without a token."""

import pytest

from eav_ray.config import RuntimeConfig
from eav_ray.distributed import cluster
from eav_ray.errors import ConfigError


@pytest.fixture(autouse=True)
def no_ray_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("RAY_ADDRESS", "RAY_AUTH_MODE"):
        monkeypatch.delenv(variable, raising=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "[::1]"])
def test_loopback_needs_no_token(host: str) -> None:
    cluster.require_protected_address(host, "host")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "head.example.org"])
def test_beyond_loopback_a_token_is_needed(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="token"):
        cluster.require_protected_address(host, "host")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    cluster.require_protected_address(host, "host")


def test_a_local_request_that_fits_is_accepted() -> None:
    cluster.check_local_resources(RuntimeConfig(workers=1))


@pytest.mark.parametrize("where", ["runtime.address", "RAY_ADDRESS"])
def test_an_address_of_local_is_this_machine(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if where == "RAY_ADDRESS":
        monkeypatch.setenv("RAY_ADDRESS", "local")
    address = "local" if where == "runtime.address" else ""
    assert cluster.resolve_address(RuntimeConfig(address=address)) == ""
    with pytest.raises(ConfigError, match="needs 4096 CPUs"):
        cluster.check_local_resources(RuntimeConfig(address=address, workers=4096))
    with pytest.raises(ConfigError, match="RAY_AUTH_MODE=token"):
        cluster.check_local_resources(
            RuntimeConfig(address=address, workers=1, dashboard=True, dashboard_host="0.0.0.0")
        )


def test_what_a_cluster_has_is_not_asked_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    many = RuntimeConfig(address="head:6379", workers=4096, gpus_per_worker=8)
    assert cluster.resolve_address(many) == "head:6379"
    cluster.check_local_resources(many)
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    cluster.check_local_resources(RuntimeConfig(workers=4096, gpus_per_worker=8))


def test_groups_that_do_not_fit_are_refused_with_a_number_that_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    with pytest.raises(ConfigError, match="needs 6 CPUs.*has 4; set runtime.workers to at most 2"):
        cluster.check_local_resources(RuntimeConfig(workers=3, groups=2))
    with pytest.raises(ConfigError, match="needs 8 CPUs.*has 4; lower runtime.groups or runtime.cpus_per_worker"):
        cluster.check_local_resources(RuntimeConfig(workers=1, groups=8))


@pytest.mark.parametrize(
    ("have", "asked", "expected"),
    [
        (0, 1, "needs 1 GPUs, but this machine has 0; set runtime.gpus_per_worker=0, or join a cluster"),
        (1, 1, ""),
        (1, 2, "needs 2 GPUs.*has 1; set runtime.workers to at most 1 or runtime.gpus_per_worker=0, or join a cluster"),
    ],
)
def test_gpus_that_this_machine_lacks_are_refused(
    have: int, asked: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr(cluster, "count_local_gpus", lambda: have)
    runtime = RuntimeConfig(workers=asked, gpus_per_worker=1)
    if not expected:
        cluster.check_local_resources(runtime)
        return
    with pytest.raises(ConfigError, match=expected):
        cluster.check_local_resources(runtime)


def test_gpus_that_are_hidden_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert cluster.count_local_gpus() == 0
