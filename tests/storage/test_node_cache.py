"""A node fetches each shard once, whatever its processes do at the same time (R33)."""

import contextlib
import errno
import fcntl
import multiprocessing as mp
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from eav_ray.data.shards.index import write_index
from eav_ray.errors import ConfigError
from eav_ray.storage import NodeCache, Store
from tests.helpers.node_caches import die_while_making, open_windows
from tests.helpers.reliability import CHAOS
from tests.helpers.s3_servers import BUCKET, open_conditional_server, open_faulty_proxy
from tests.helpers.shards import Shards

GIB = 2**30


@contextlib.contextmanager
def processes(*calls: tuple[Callable[..., None], tuple[Any, ...]]) -> Iterator[list[Any]]:
    """Start calls in processes of their own, and wait for all of them at the end."""
    started = [mp.get_context("spawn").Process(target=call, args=arguments) for call, arguments in calls]
    for process in started:
        process.start()
    try:
        yield started
    finally:
        for process in started:
            process.join(120)
            process.kill()


def measure(cache: Path) -> int:
    return sum(p.stat().st_size for p in cache.glob("*.arrow"))


def test_the_processes_of_a_node_fetch_each_shard_once(tmp_path: Path) -> None:
    shards = Shards(tmp_path / "shards")
    with open_conditional_server() as server, open_faulty_proxy(server) as (address, proxy):
        root = f"s3://{BUCKET}/shards?endpoint={address}"
        for name in shards.store.list_files():
            Store(root).write(name, shards.store.read(name))
        write_index(Store(root), shards.index)
        proxy.requests.clear()
        workers = [(open_windows, (root, str(tmp_path / "cache"), 1.0, 1))] * (8 if CHAOS else 3)
        with processes(*workers) as started:
            pass
    assert [process.exitcode for process in started] == [0] * len(workers)
    fetched = Counter(path for method, path in proxy.requests if method == "GET" and path.endswith(".parquet"))
    assert sorted(fetched.values()) == [1] * len(shards.files)


def test_what_a_killed_process_left_counts_and_goes(tmp_path: Path) -> None:
    with processes((die_while_making, (str(tmp_path), "dead.arrow"))) as (killed,):
        pass
    assert killed.exitcode == -9
    (leftover,) = tmp_path.glob(".*.partial")
    cache = NodeCache(tmp_path, 1500 / GIB)
    with pytest.raises(ConfigError, match=r"store\.cache_gb is .* GiB so far\); raise store\.cache_gb"):
        cache.reserve(600)  # it is 1000 bytes
    cache.reserve(500)

    def make(path: Path) -> None:
        cache.reserve(600)  # nothing of the dead one is left
        path.write_bytes(b"y" * 600)

    assert cache.open("dead.arrow", make, Path.read_bytes) == b"y" * 600
    assert not leftover.exists() and [p.name for p in tmp_path.glob("*.arrow")] == ["dead.arrow"]


def test_an_entry_that_could_not_be_made_leaves_nothing(tmp_path: Path) -> None:
    def make(path: Path) -> None:
        path.mkdir()
        (path / "half").write_bytes(b"x")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        NodeCache(tmp_path, 1).open("a.embeddings", make, Path.read_bytes)
    assert [p.name for p in tmp_path.iterdir()] == [".lock"]


def test_an_entry_that_is_evicted_while_it_is_opened_is_made_anew(tmp_path: Path) -> None:
    """Threads with room for one entry, each of which makes those of the others go."""
    errors: list[BaseException] = []
    entries = {f"{name}.arrow": name.encode() * 1000 for name in "abc"}

    def use(seed: int) -> None:
        cache = NodeCache(tmp_path, 1100 / GIB)

        def make(path: Path, data: bytes) -> None:
            cache.reserve(1000)
            path.write_bytes(data)

        try:
            for number in range(2000 if CHAOS else 100):
                name = sorted(entries)[(seed + number) % 3]
                assert cache.open(name, lambda p, d=entries[name]: make(p, d), Path.read_bytes) == entries[name]
        except BaseException as error:  # noqa: BLE001 - said below
            errors.append(error)

    threads = [threading.Thread(target=use, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and not list(tmp_path.glob(".*.partial"))


@pytest.mark.slow
def test_two_data_sets_that_fit_one_at_a_time_are_both_read(tmp_path: Path) -> None:
    made = [Shards(tmp_path / f"shards{n}", seeds) for n, seeds in enumerate(((0, 1), (2, 3)))]
    for shards in made:
        write_index(shards.store, shards.index)
        shards.windows(tmp_path / "whole")
    cache_gb = 0.7 * measure(tmp_path / "whole") / GIB
    calls = [(open_windows, (s.store.root, str(tmp_path / "cache"), cache_gb, 100 if CHAOS else 10)) for s in made]
    with processes(*calls) as started:
        pass
    assert [process.exitcode for process in started] == [0, 0]
    assert measure(tmp_path / "cache") <= cache_gb * GIB


def test_a_disk_without_locks_has_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease guards it then: an entry is made once, and what is half made by another is left alone."""

    def fail(number: int) -> Callable[..., None]:
        def raise_error(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        return raise_error

    monkeypatch.setattr(fcntl, "flock", fail(errno.ENOSYS))
    made: list[str] = []
    may_end = threading.Event()

    def make(path: Path) -> None:
        made.append(path.name)
        assert may_end.wait(60)
        path.write_text("a")

    def open_entry() -> str:
        return NodeCache(tmp_path / "cache", 1.0).open("a.arrow", make, Path.read_text)

    with ThreadPoolExecutor(2) as pool:
        opened = [pool.submit(open_entry) for _ in range(2)]
        while not made:
            assert not any(future.done() for future in opened)
        may_end.set()
        assert [future.result(60) for future in opened] == ["a", "a"]
    assert len(made) == 1 and not list((tmp_path / "cache").rglob("*.partial"))
    monkeypatch.setattr(fcntl, "flock", fail(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        NodeCache(tmp_path / "cache", 1.0).open("c.arrow", make, Path.read_text)


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_cache_that_is_a_file_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=f"store.cache is {tmp_path}/{name}, which is no folder"):
        NodeCache(tmp_path / name, 1.0)
