"""A Ray of a command's own fits this machine, and a Ray that wants no token is not used."""

import importlib
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import torch

from eav_ray.config import RuntimeConfig
from eav_ray.distributed import cluster
from eav_ray.distributed.ray_workarounds import secure_token
from eav_ray.errors import ConfigError
from eav_ray.training.torch_workarounds import bind_rendezvous
from tests.helpers.clusters import find_free_ports


@pytest.fixture(autouse=True)
def no_ray_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("RAY_ADDRESS", "RAY_AUTH_MODE"):
        monkeypatch.delenv(variable, raising=False)


@contextmanager
def control_service(status: grpc.StatusCode | None) -> Iterator[str]:
    """What answers as the control service of a cluster does; yields its address."""
    asked: list[Any] = []

    def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
        asked.append(context.invocation_metadata())
        if status:
            context.abort(status, "no")
        return b""

    handlers = {"GetClusterId": grpc.unary_unary_rpc_method_handler(answer)}
    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("ray.rpc.NodeInfoGcsService", handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}"
        server.stop(None).wait()
    assert len(asked) == 1 and not [key for key, _ in asked[0] if "authorization" in key]


@pytest.mark.parametrize("mode", ["token", "disabled"])
def test_a_cluster_without_a_token_is_refused_whatever_the_client_has(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers, and its address is one of loopback."""
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a" * 64)
    with control_service(None) as address, pytest.raises(ConfigError, match=f"{address} answers without a token"):
        cluster.require_token_of_cluster(address)


@pytest.mark.parametrize("status", [grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED])
def test_a_cluster_that_wants_a_token_is_joined(status: grpc.StatusCode) -> None:
    with control_service(status) as address:
        cluster.require_token_of_cluster(address)


def test_a_cluster_that_does_not_say_is_refused() -> None:
    (port,) = find_free_ports(1)
    with pytest.raises(ConfigError, match="does not say whether it wants a token: UNAVAILABLE"):
        cluster.require_token_of_cluster(f"127.0.0.1:{port}")
    with (
        control_service(grpc.StatusCode.INTERNAL) as address,
        pytest.raises(ConfigError, match="wants a token: INTERNAL"),
    ):
        cluster.require_token_of_cluster(address)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without a token; returns where Ray looks for one."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for variable in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path / ".ray" / "auth_token"


def test_the_token_of_a_ray_of_its_own_is_for_its_owner_alone(home: Path) -> None:
    secure_token(is_local=False)
    assert not home.exists()
    umask = os.umask(0)
    try:
        secure_token(is_local=True)
    finally:
        os.umask(umask)
    token = home.read_text()
    assert re.fullmatch("[0-9a-f]{64}", token) and home.stat().st_mode & 0o777 == 0o600
    home.chmod(0o644)  # as Ray writes it
    secure_token(is_local=True)
    assert home.read_text() == token and home.stat().st_mode & 0o777 == 0o600
    assert os.listdir(home.parent) == [home.name]


def test_a_named_token_that_others_can_read_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = home.parent.parent / "token"
    file.write_text("a" * 64)
    file.chmod(0o640)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    with pytest.raises(ConfigError, match=f"chmod 600 {file}"):
        secure_token(is_local=False)
    file.chmod(0o600)
    secure_token(is_local=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/proc/nowhere/token")
    with pytest.raises(ConfigError, match="/proc/nowhere/token is not for this user alone: No such file"):
        secure_token(is_local=True)


def test_a_user_without_a_home_has_a_token_in_the_environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers that are started with a number for a user."""
    monkeypatch.setenv("HOME", "/proc/nowhere")
    (token,) = secure_token(is_local=True).values()
    assert re.fullmatch("[0-9a-f]{64}", token) and token != secure_token(is_local=True)["RAY_AUTH_TOKEN"]
    assert secure_token(is_local=False) == {}
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(Path, "expanduser", lambda _: (_ for _ in ()).throw(RuntimeError("no home directory")))
    assert list(secure_token(is_local=True)) == ["RAY_AUTH_TOKEN"]
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a" * 64)
    assert secure_token(is_local=True) == {}


def test_a_home_without_links_has_a_token(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert secure_token(is_local=True) == {}
    assert re.fullmatch("[0-9a-f]{64}", home.read_text()) and home.stat().st_mode & 0o777 == 0o600
    assert os.listdir(home.parent) == [home.name]


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "no.such.host.invalid:6379", "[::1]:{port}"])
def test_a_cluster_that_has_ended_is_one_line_at_once(address: str) -> None:
    """Ray itself waits for more than a minute."""
    address = address.format(port=find_free_ports(1)[0])
    with (
        pytest.raises(
            ConfigError, match=rf"no Ray cluster answers at {re.escape(address)}: \[Errno .*leave runtime.addr"
        ),
        cluster.connect_to_ray(RuntimeConfig(address=address)),
    ):
        pass


def test_a_cluster_of_other_versions_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise RuntimeError(
            "Version mismatch: The cluster was started with:\n    Ray: 1.0\n    Python: 3.8\nThis process"
        )

    monkeypatch.setattr(cluster.ray, "init", refuse)
    expected = (
        "the Ray cluster at auto is of other versions .*: Version mismatch: .* Ray: 1.0 Python: 3.8 .*install the same"
    )
    with pytest.raises(ConfigError, match=expected), cluster.connect_to_ray(RuntimeConfig(address="auto")):
        pass


@pytest.mark.parametrize("error", [OSError(13, "Permission denied"), Exception("The current node timed out\nat x")])
def test_a_ray_that_does_not_start_is_one_line(error: Exception, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(cluster.ray, "init", fail)
    monkeypatch.setenv("RAY_USE_TLS", "1")  # kept for another Ray
    expected = "Ray does not start on this machine: .*session_latest/logs; .*loopback, or what is set: .*RAY_USE_TLS"
    with (
        pytest.raises(ConfigError, match=expected) as reported,
        cluster.connect_to_ray(RuntimeConfig(workers=1)),
    ):
        pass
    assert "\n" not in str(reported.value)


def test_a_ray_that_a_busy_machine_did_not_start_in_time_is_started_again(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[int] = []

    def fail(**_: object) -> None:
        attempts.append(1)
        raise Exception("The current node timed out during startup. This could happen because some of the raylet")

    monkeypatch.setattr(cluster.ray, "init", fail)
    with (
        pytest.raises(ConfigError, match="Ray does not start on this machine: The current node timed out"),
        cluster.connect_to_ray(RuntimeConfig(workers=1)),
    ):
        pass
    assert len(attempts) == cluster.MAX_START_ATTEMPTS > 1


def test_ranks_find_each_other_at_one_address() -> None:
    """The store that PyTorch would open to every address is read and written at that one alone."""
    bind_rendezvous()
    (port,) = find_free_ports(1)
    rendezvous = importlib.import_module("torch.distributed.rendezvous")
    try:
        ranks = [f"tcp://127.0.0.1:{port}?rank={rank}&world_size=2" for rank in (0, 1)]
        with ThreadPoolExecutor(2) as pool:
            stores = [found[0] for found in pool.map(lambda url: next(rendezvous.rendezvous(url)), ranks)]
        stores[0].set("a", "b")
        assert stores[1].get("a") == b"b"
        listening = [
            c.laddr.ip for c in psutil.Process().net_connections("tcp") if c.laddr.port == port and not c.raddr
        ]
        assert listening == ["127.0.0.1"]
    finally:
        rendezvous.TCPStore = torch.distributed.TCPStore


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


def test_what_a_cluster_has_is_not_asked_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    many = RuntimeConfig(address="head:6379", workers=4096, gpus_per_worker=8)
    assert cluster.resolve_address(many) == "head:6379"
    cluster.check_local_resources(many)
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    cluster.check_local_resources(RuntimeConfig(workers=4096, gpus_per_worker=8))


def test_groups_that_do_not_fit_are_refused_with_a_number_that_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "count_usable_cpus", lambda: 4)
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
    monkeypatch.setattr(cluster, "count_usable_cpus", lambda: 8)
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
