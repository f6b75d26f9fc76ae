"""A store that fails single requests, and one that two processes share (R21, R25, R28)."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from eav_ray.data.shards.window_cache import WindowCache
from eav_ray.data.splits import Split
from eav_ray.errors import ConfigError, DataError, StorageError
from eav_ray.storage import Store, lease, object_backend
from eav_ray.storage.backends import LocalBackend
from eav_ray.storage.lease import Lease
from eav_ray.storage.location import parse_location
from eav_ray.storage.object_backend import ObjectBackend
from eav_ray.training.checkpoint import list_checkpoints
from eav_ray.training.prepared_run import WorkerContext
from eav_ray.training.run_spec import Run
from eav_ray.training.runner import choose_start, execute_run
from tests.helpers.reliability import CHAOS
from tests.helpers.s3_servers import CREDENTIALS, FaultyProxy, open_conditional_server, open_faulty_proxy
from tests.helpers.trainings import TRAIN, Killed, make_experiment, make_windows

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
FAULTS = ("refuse", "lose", "hide", "cut")
STEP = 1 if CHAOS else 13  # every so many requests of a run are failed


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with open_conditional_server() as address:
        yield address


@pytest.fixture
def proxied(server: str) -> Iterator[tuple[str, FaultyProxy]]:
    with open_faulty_proxy(server) as opened:
        yield opened


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses between requests are short."""
    monkeypatch.setattr(object_backend, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(object_backend, "MISSING_PAUSE_S", 0.01)


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> WindowCache:
    return make_windows(tmp_path_factory.mktemp("faulty"))


def fail_request(proxy: FaultyProxy, number: int, fault: str) -> None:
    """Fail the request of this number, from now on."""
    proxy.requests.clear()
    proxy.choose_fault = lambda method, path: fault if len(proxy.requests) == number + 1 else ""


def use_store(store: Store, folder: str) -> dict[str, bytes]:
    """Everything that a store is asked for."""
    files = {"model": b"w" * 5000, "state.json": b"{}"}
    store.commit(f"{folder}/one", files)
    with store.open_writer(f"{folder}/streamed") as stream:
        stream.write(b"12345" * 100)
    assert (
        store.list_folders(folder) == ["one"] and store.exists(f"{folder}/one") and store.is_committed(f"{folder}/one")
    )
    assert not store.exists(f"{folder}/nothing") and store.read(f"{folder}/streamed") == b"12345" * 100
    with store.lock(f"{folder}/lock") as guarded:
        for text in (b"first", b"second"):
            guarded.write(f"{folder}/shared", text)
        guarded.check_lock()
    assert store.write_if_missing(f"{folder}/once", b"1") and not store.write_if_missing(f"{folder}/once", b"2")
    assert (store.read(f"{folder}/shared"), store.read(f"{folder}/once")) == (b"second", b"1")
    found = store.read_committed(f"{folder}/one")
    for name in ("one", "once", "shared"):
        store.delete(f"{folder}/{name}")
    assert store.list_files(folder) == [f"{folder}/lock", f"{folder}/streamed"]
    return found


@pytest.mark.parametrize("fault", FAULTS)
def test_each_request_may_fail_once(proxied: tuple[str, FaultyProxy], fault: str) -> None:
    address, proxy = proxied
    store = Store(f"s3://lab/once-{fault}?endpoint={address}&retry_s=20")
    whole = use_store(store, "whole")
    total = len(proxy.requests)
    assert total > 10
    for number in range(0, total, STEP):
        fail_request(proxy, number, fault)
        assert use_store(store, f"at{number}") == whole


def test_a_resume_whose_request_fails_takes_no_older_position(
    proxied: tuple[str, FaultyProxy], windows: WindowCache
) -> None:
    address, proxy = proxied
    run = Run("joint", make_experiment("torch"), Split("within", TRAIN, (), ()), "data")
    store = Store(f"s3://lab/resume?endpoint={address}&retry_s=20")

    def stop(progress: object) -> None:
        if len(list_checkpoints(store, run.key)) >= 2:
            raise Killed

    with pytest.raises(Killed):
        execute_run(run, WorkerContext(windows, store, torch.device("cpu")), stop)
    proxy.requests.clear()
    expected = choose_start(run, store)
    assert expected.checkpoint and not expected.damaged
    total = len(proxy.requests)
    for number in range(0, total, STEP):
        for fault in FAULTS:
            fail_request(proxy, number, fault)
            found = choose_start(run, store)
            assert (found.prefix, found.damaged) == (expected.prefix, [])
    # A store that does not answer for good is not a damaged checkpoint.
    proxy.choose_fault = lambda method, path: "refuse" if "model.safetensors" in path else ""
    with pytest.raises(StorageError, match="cannot read s3://lab/resume/runs.*503"):
        choose_start(run, Store(f"s3://lab/resume?endpoint={address}&retry_s=0.1"))


def test_missing_rights_are_said_at_once(proxied: tuple[str, FaultyProxy]) -> None:
    address, _ = proxied
    with pytest.raises(StorageError, match="cannot write s3://nobodys/x/a") as caught:
        Store(f"s3://nobodys/x?endpoint={address}&retry_s=0.1").write("a", b"1")
    assert "\n" not in str(caught.value)


# Leases


@pytest.fixture(params=["folder", "s3"])
def backend(request: pytest.FixtureRequest, server: str, tmp_path: Path) -> LocalBackend | ObjectBackend:
    if request.param == "folder":
        return LocalBackend(str(tmp_path))
    return ObjectBackend(parse_location(f"s3://lab/{tmp_path.name}?endpoint={server}&retry_s=5"))


def test_a_lease_that_is_renewed_is_refused_and_one_that_ended_is_free(backend: LocalBackend | ObjectBackend) -> None:
    first, second = (Lease(backend, "lock", "the lock", ttl_s=0.6) for _ in range(2))
    first.acquire()
    with pytest.raises(DataError, match="the lock is held by process [0-9]+ on .* since 20.*; wait for it, or end it"):
        second.acquire()
    first.check()
    first.release()
    second.acquire()
    assert second.fence == first.fence + 1
    second.release()


def test_a_lease_without_renewal_is_taken_over_and_the_late_one_writes_nothing_more(
    backend: LocalBackend | ObjectBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    paused = Lease(backend, "lock", "the lock", ttl_s=0.5)
    with monkeypatch.context() as patch:
        patch.setattr(Lease, "renew_until_ended", lambda self: None)
        paused.acquire()
    other = Lease(backend, "lock", "the lock", ttl_s=0.5)
    other.acquire()
    with pytest.raises(DataError, match="was taken over by process"):
        paused.check()
    paused.release()
    other.check()  # the late one has not ended it
    other.release()


def test_a_holder_that_stands_still_before_it_reads_an_answer_has_lost_the_lease(
    backend: LocalBackend | ObjectBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    paused, other = (Lease(backend, "lock", "the lock", ttl_s=0.5) for _ in range(2))
    with monkeypatch.context() as patch:
        patch.setattr(Lease, "renew_until_ended", lambda self: None)
        paused.acquire()
    replace, has_stood_still = type(backend).replace, threading.Event()

    def stand_still(self: Any, name: str, data: bytes, version: str) -> str | None:
        new_version = replace(self, name, data, version)
        if not has_stood_still.is_set():
            has_stood_still.set()
            time.sleep(1.5)
        return new_version

    monkeypatch.setattr(type(backend), "replace", stand_still)
    time.sleep(0.3)  # so that the next check renews it
    renewing = threading.Thread(target=paused.check)
    renewing.start()
    has_stood_still.wait()
    other.acquire()
    renewing.join()
    with pytest.raises(DataError, match="was taken over by process"):
        paused.write("best.json", b"late")
    other.write("best.json", b"1")
    other.release()


def test_an_earlier_renewal_whose_answer_was_lost_is_ones_own(backend: LocalBackend | ObjectBackend) -> None:
    holder = Lease(backend, "lock", "the lock", ttl_s=0.5)
    holder.acquire()
    found = backend.read_version("lock")
    assert found
    assert backend.replace("lock", found[0].replace(b'"renewals": 0', b'"renewals": 1'), found[1])
    time.sleep(0.6)
    holder.check()
    holder.release()


def test_processes_of_one_holder_take_a_lease_over_at_once(backend: LocalBackend | ObjectBackend) -> None:
    dead = Lease(backend, "lock", "the lock", holder="job")
    dead.acquire()
    again = Lease(backend, "lock", "the lock", holder="job")
    again.acquire()
    assert again.fence == dead.fence + 1
    again.release()


def test_a_lease_outlives_a_store_that_is_away_for_longer_than_it_lasts(
    proxied: tuple[str, FaultyProxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, proxy = proxied
    monkeypatch.setattr(object_backend, "LONGEST_PAUSE_S", 0.05)
    monkeypatch.setattr(lease, "TTL_S", 1.0)
    store = Store(f"s3://lab/away?endpoint={address}&retry_s=60")
    with store.lock("lock") as guarded:
        refused: list[DataError] = []

        def want() -> None:
            try:
                with store.lock("lock", timeout_s=3.0):
                    pass
            except DataError as error:
                refused.append(error)

        other = threading.Thread(target=want)
        other.start()
        other.join(0.3)  # it has seen the lease
        proxy.choose_fault = lambda method, path: "refuse"
        other.join(2.0)
        proxy.choose_fault = lambda method, path: ""
        other.join()
        guarded.write("best.json", b"1")
        assert refused and "is held by process" in str(refused[0])


def test_a_server_that_writes_whatever_the_condition_is_named(
    proxied: tuple[str, FaultyProxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, _ = proxied
    monkeypatch.setattr(ObjectBackend, "create", lambda self, name, data: self.write(name, data) or "1")
    store = Store(f"s3://lab/careless?endpoint={address}")
    with pytest.raises(ConfigError, match="cannot write conditionally.*store.exclusive=false"), store.lock("lock"):
        pass
    with Store(f"s3://lab/careless?endpoint={address}&exclusive=false").lock("lock"):
        pass


# What a server can do


def test_a_server_that_does_all_is_used_and_nothing_is_left_there(server: str) -> None:
    for checksum in ("", "&checksum=sha256", "&checksum=none"):
        store = Store(f"s3://lab/probed?endpoint={server}{checksum}")
        store.probe()
        assert store.list_files() == []
        store.write("a", b"1" * 10**7)
        assert store.read("a") == b"1" * 10**7
        store.delete("a")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (lambda method, path: "411" if method == "PUT" else "", "411 .*checksum=sha256 or checksum=none in the URL"),
        (lambda method, path: "501" if method == "PUT" else "", "501 .*checksum=sha256 or checksum=none in the URL"),
        (lambda method, path: "403" if method == "PUT" else "", "cannot write s3://lab/probed/probe-.*403"),
        (lambda method, path: "403" if "delete" in path else "", "does not delete.*give the right to delete"),
    ],
)
def test_what_a_server_cannot_do_is_said_before_anything_starts(
    proxied: tuple[str, FaultyProxy], fault: Callable[[str, str], str], words: str
) -> None:
    address, proxy = proxied
    store = Store(f"s3://lab/probed?endpoint={address}&retry_s=0.2")
    proxy.choose_fault = fault
    with pytest.raises((ConfigError, StorageError), match=words) as caught:
        store.probe()
    assert "\n" not in str(caught.value)


def test_keys_come_from_the_environment_or_the_file_of_amazons_tools(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"s3://lab/keys?endpoint={server}&region=us-east-1"
    for name in CREDENTIALS:
        monkeypatch.delenv(name)
    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    with pytest.raises(ConfigError, match="there are no credentials for s3://lab/keys.*on every machine"):
        Store(url)
    file.write_text("[lab]\naws_access_key_id = a\naws_secret_access_key = b\n")
    with pytest.raises(ConfigError, match="there are no credentials"):
        Store(url)
    monkeypatch.setenv("AWS_PROFILE", "lab")
    Store(url).probe()
