"""A set of files counts only when it is whole, and nothing is read or written outside of its store."""

import contextlib
import errno
import fcntl
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from eav_ray.errors import ConfigError, DataError, StorageError
from eav_ray.storage import COMMIT, Store, check_store_name, lease, sha256, split_store_path
from eav_ray.storage.backends import LocalBackend
from tests.helpers.reliability import CHAOS

FILES = {"a.json": b'{"a": 1}', "b.bin": bytes(range(256)), "deep/c.bin": b"c" * 1000}
OUTSIDE = ["../secret", "a/../../secret", "/etc/passwd", "", "a\\..\\b", "a\0b", ".."]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def committed(store: Store) -> Path:
    store.commit("run", FILES)
    return Path(store.resolve_path("run"))


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_the_old_content(
    store: Store, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write("x", b"old")

    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(DataError if isinstance(error, OSError) else KeyboardInterrupt):
            store.write("x", b"new")
    assert store.read("x") == b"old"
    assert [p.name for p in Path(store.root).iterdir()] == ["x"]


def test_a_partial_file_of_a_killed_writer_is_never_listed(store: Store) -> None:
    store.write("x", b"old")
    Path(store.resolve_path("x.1234.partial")).write_bytes(b"ne")
    assert store.list_files() == ["x"]


def test_what_is_committed_reads_back(store: Store) -> None:
    committed(store)
    assert store.read_committed("run") == FILES
    assert store.list_files("run") == sorted([f"run/{COMMIT}", *(f"run/{n}" for n in FILES)])
    assert store.list_folders("run") == ["deep"]
    commit = Path(store.root) / "run" / COMMIT
    os.utime(commit, (1e9, 1e9))
    assert store.list_times("run")[COMMIT] == 1e9 < min(store.list_times("run")[name] for name in FILES)


def test_without_its_commit_nothing_counts(store: Store) -> None:
    (committed(store) / COMMIT).unlink()
    assert not store.is_committed("run")
    with pytest.raises(DataError, match="never finished"):
        store.read_committed("run")


@pytest.mark.parametrize("name", [*FILES, COMMIT])
def test_a_cut_anywhere_in_a_file_is_noticed(store: Store, name: str) -> None:
    path = committed(store) / name
    whole = path.read_bytes()
    random = np.random.default_rng().integers(0, len(whole) - 1, 100 if CHAOS else 5)
    for length in sorted({0, 1, len(whole) // 2, len(whole) - 2, *random.tolist()}):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=name):
            store.read_committed("run")
    path.write_bytes(whole)
    assert store.read_committed("run") == FILES


@pytest.mark.parametrize("name", list(FILES))
def test_a_missing_file_and_a_single_flipped_bit_are_noticed(store: Store, name: str) -> None:
    path = committed(store) / name
    whole = path.read_bytes()
    for bit in np.random.default_rng().integers(0, 8 * len(whole), 100 if CHAOS else 5).tolist():
        harmed = bytearray(whole)
        harmed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(harmed)
        with pytest.raises(DataError, match=f"{name} is damaged"):
            store.read_committed("run")
    path.unlink()
    with pytest.raises(DataError, match=name):
        store.read_committed("run")


def test_a_commit_comes_after_every_file_it_names(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    replace = os.replace

    def noted(source: str, target: str) -> None:
        order.append(os.path.relpath(target, store.resolve_path("run")))
        replace(source, target)

    monkeypatch.setattr(os, "replace", noted)
    store.commit("run", FILES)
    assert order == [*FILES, COMMIT]


def test_a_disk_that_is_full_at_any_write_leaves_no_commit(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = os.replace
    for allowed in range(len(FILES) + 1):
        left = allowed

        def limited(source: str, target: str) -> None:
            nonlocal left
            if not left:
                raise OSError(28, "No space left on device")
            left -= 1
            replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", limited)
            with pytest.raises(DataError, match="No space left"):
                store.commit(f"run{allowed}", FILES)
        assert not store.is_committed(f"run{allowed}")


@pytest.mark.parametrize("listed", [b"[]", b"{}", b'{"files": []}', b'{"files": {"a.json": "x"}}', b"{", b"\xff\xfe"])
def test_a_commit_that_lists_nothing_readable_is_damaged(store: Store, listed: bytes) -> None:
    (committed(store) / COMMIT).write_bytes(listed)
    with pytest.raises(DataError):
        store.read_committed("run")


def test_json_that_is_damaged_is_a_data_error(store: Store) -> None:
    for data in (b"{", b"", b"\x80\x04N.", b"{'a': 1}"):
        store.write("x.json", data)
        with pytest.raises(DataError, match=r"x\.json is not JSON"):
            store.read_json("x.json")


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_that_leads_outside_is_refused(store: Store, name: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    with pytest.raises(DataError):
        check_store_name(name)
    for use in (store.read, store.exists, store.open_substore, lambda n: store.write(n, b"x")):
        with pytest.raises(DataError):
            use(name)
    assert (tmp_path / "secret").read_text() == "secret"


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd"])
def test_a_commit_that_names_a_file_outside_reads_nothing_there(store: Store, name: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    committed(store)
    store.write_json(f"run/{COMMIT}", {"files": {name: {"sha256": "0" * 64, "bytes": 6}}})
    with pytest.raises(DataError, match="not a name inside a store"):
        store.read_committed("run")


def test_links_that_lead_outside_are_refused(store: Store, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("kept")
    committed(store)
    Path(store.resolve_path("linked")).symlink_to(outside)
    Path(store.resolve_path("run")).joinpath("file").symlink_to(outside / "file")
    for use in (store.read, store.exists, lambda n: store.write(n, b"x")):
        for name in ("linked/file", "run/file"):
            with pytest.raises(DataError, match="leads outside"):
                use(name)
    with pytest.raises(DataError, match="leads outside"):
        store.delete("linked")
    store.delete("run")
    assert (outside / "file").read_text() == "kept"


@pytest.mark.parametrize("killed_after", range(5))
def test_a_deletion_that_is_cut_off_leaves_nothing_that_counts_and_can_be_found(
    killed_after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception): ...

    left = killed_after

    def count(delete: Callable[[Path], None]) -> Callable[..., None]:
        """Deletes, until the process is killed."""

        def delete_or_die(path: Path, **_: bool) -> None:
            nonlocal left
            if not left:
                raise Killed
            left -= 1
            delete(path)

        return delete_or_die

    store = Store(tmp_path / "store")
    store.commit("run/one", {"model": b"weights"})
    store.write("run/lock", b"")
    store.write("run/owner.json", b"1")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", count(os.unlink))
        patch.setattr(shutil, "rmtree", count(shutil.rmtree))
        with contextlib.suppress(Killed):
            Store(tmp_path / "store").delete("run", last="owner.json")
    assert store.is_committed("run/one") == (killed_after == 0)
    assert store.exists("run/owner.json") == (killed_after < 4) and store.exists("run/lock") == (killed_after < 3)
    store.delete("run", last="owner.json")
    assert not store.exists("run")


HOLDER = """
import sys
from eav_ray.storage import Store
with Store(sys.argv[1]).lock("lock"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_has_one_holder_and_dies_with_it(store: Store) -> None:
    command = [sys.executable, "-c", HOLDER, store.root]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout and holder.stdout.readline() == b"held\n"
        with pytest.raises(DataError, match=f"is held by process {holder.pid} on .* since 20"), store.lock("lock"):
            pass
        holder.kill()
        holder.wait()
    with store.lock("lock") as one:
        assert one.fence == 2
        with pytest.raises(DataError, match="is held by process"), Store(store.root).lock("lock"):
            pass


def test_a_lock_whose_folder_its_holder_deletes_is_not_taken_twice(store: Store) -> None:
    has_it, may_end = threading.Event(), threading.Event()

    def wait() -> None:
        with store.lock("run/lock", timeout_s=20):
            has_it.set()
            may_end.wait(20)

    waiter = threading.Thread(target=wait)
    with store.lock("run/lock") as holder:
        waiter.start()
        waiter.join(0.2)
        holder.delete("run")
    assert has_it.wait(20)
    with pytest.raises(DataError, match="is held by process"), store.lock("run/lock"):
        pass
    may_end.set()
    waiter.join()


@pytest.mark.parametrize("links", [True, False])
def test_a_disk_without_locks_has_leases(store: Store, links: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Network file systems without `flock`, and those in user space that have no links either."""

    def refuse(number: int) -> Callable[..., None]:
        def raise_error(*args: object) -> None:
            raise OSError(number, os.strerror(number))

        return raise_error

    monkeypatch.setattr(fcntl, "flock", refuse(errno.ENOLCK))
    monkeypatch.setattr(lease, "TTL_S", 0.4)
    if not links:
        monkeypatch.setattr(os, "link", refuse(errno.EPERM))
    with contextlib.ExitStack() as stack:
        with monkeypatch.context() as patch:
            patch.setattr(lease.Lease, "renew_until_ended", lambda self: None)  # it stands still after this
            first = stack.enter_context(store.lock("lock"))
            first.write("best.json", b"1")
            first.write("best.json", b"2")
        with store.lock("lock") as second:
            assert second.fence == 2
            second.write("best.json", b"3")
            with pytest.raises(DataError, match="was taken over by process"):
                first.write("best.json", b"late")
            with pytest.raises(DataError, match="is held by process"), store.lock("lock"):
                pass
    assert store.read("best.json") == b"3" and not list(Path(store.root).glob("*.partial"))


def test_a_disk_that_does_not_answer_is_not_said_to_be_held(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is told that another process holds the lock would wait for ever."""

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(DataError, match="cannot write .*/lock: Input/output error"), store.lock("lock", timeout_s=60):
        pass


def test_a_root_that_cannot_be_a_folder_is_said_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=f"{tmp_path}/file is a file, and a store is a folder; give another path"):
        Store(tmp_path / "file").probe()
    with pytest.raises(DataError, match=f"cannot use {tmp_path}/file/below.*: Not a directory"):
        Store(tmp_path / "file" / "below").probe()
    Store(tmp_path / "new" / "store").probe()
    assert (tmp_path / "new" / "store").is_dir()


def test_a_folder_that_is_only_read_is_said_before_work_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    store.require_writable()
    assert os.listdir(tmp_path) == []

    def refuse(*_: object, **options: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(
        DataError, match=f"cannot write {tmp_path}/probe-.*: Read-only file system; nothing was changed"
    ):
        store.require_writable()
    assert os.listdir(tmp_path) == []


def test_a_replacement_that_was_cut_off_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = LocalBackend(str(tmp_path))
    version = backend.create("lock", b"1")
    assert version
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", lambda source, target: (_ for _ in ()).throw(KeyboardInterrupt))
        backend.replace("lock", b"2", version)
    assert backend.replace("lock", b"3", version) is None  # the one that was cut off counts
    found = backend.read_version("lock")
    assert found and found[0] == b"2" and backend.replace("lock", b"4", found[1])


@pytest.mark.parametrize(
    ("path", "root", "name"),
    [
        ("/a/b/ckpt", "/a/b", "ckpt"),
        ("/a/b/ckpt/", "/a/b", "ckpt"),
        ("/a/../b/ckpt", "/b", "ckpt"),
        ("/ckpt", "/", "ckpt"),
        ("ckpt", "{here}", "ckpt"),
        ("./ckpt//", "{here}", "ckpt"),
        ("deep/ckpt", "{here}/deep", "ckpt"),
        ("~/ckpt", "{home}", "ckpt"),
        ("s3://lab/results/runs/ckpt/", "s3://lab/results/runs", "ckpt"),
        ("s3://lab/ckpt", "s3://lab", "ckpt"),
    ],
)
def test_a_path_is_split_into_a_store_and_a_name(
    path: str, root: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    store, found = split_store_path(path)
    assert (str(store), found) == (root.format(here=tmp_path, home="/home/me"), name)


@pytest.mark.parametrize("path", ["", "/", "s3://", "s3://lab", "s3://lab/"])
def test_a_path_with_nothing_below_a_store_is_refused(path: str) -> None:
    with pytest.raises(DataError, match="names no folder"):
        split_store_path(path)


def test_the_root_of_the_disk_is_a_store(tmp_path: Path) -> None:
    store = Store("/")
    inside = str(tmp_path / "x").lstrip("/")
    store.write(inside, b"1")
    assert store.read(inside) == b"1" and store.resolve_path(inside) == str(tmp_path / "x")
    assert store.list_files(inside.rpartition("/")[0]) == [inside]
    assert str(store.open_substore(inside)) == str(tmp_path / "x")


@pytest.mark.parametrize("root", ["http://x", "://x", "s3://", "hdfs://x/y", "nowhere://x"])
def test_a_store_of_an_unknown_kind_is_refused_with_the_known_ones(root: str) -> None:
    with pytest.raises(DataError, match=r"s3://.*gs://") as caught:
        Store(root)
    assert root in str(caught.value) and "\n" not in str(caught.value)


def test_a_remote_store_that_does_not_answer_is_a_storage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "nobody")
    store = Store("s3://lab/results?endpoint=http://127.0.0.1:9&retry_s=0.01&region=eu")
    uses = {
        "exists": lambda: store.exists("x"),
        "names": lambda: store.list_files("x"),
        "all names": lambda: store.list_files(),
        "folders": lambda: store.list_folders("x"),
        "read": lambda: store.read("x"),
        "write": lambda: store.write("x", b""),
        "delete": lambda: store.delete("x"),
        "commit": lambda: store.commit("run", FILES),
        "is_committed": lambda: store.is_committed("run"),
    }
    for name, use in uses.items():
        with pytest.raises(StorageError, match=r"s3://lab/results.*error sending request") as caught:
            use()
        assert "\n" not in str(caught.value) and not caught.value.permanent, name


def test_options_of_a_store_stand_last_in_the_names_of_what_it_holds() -> None:
    store = Store("s3://lab/results/?region=eu-1&exclusive=false")
    assert str(store) == "s3://lab/results?exclusive=false&region=eu-1"
    assert store.format_path("runs/a") == "s3://lab/results/runs/a?exclusive=false&region=eu-1"
    assert split_store_path(store.format_path("runs/a")) == (store.open_substore("runs"), "a")
    with pytest.raises(DataError, match=r"has the option regoin.*did you mean \"region\""):
        Store("s3://lab/results?regoin=eu-1")


@pytest.mark.parametrize(
    "url",
    [
        "s3://KEY:PLANTED@lab/results",
        "s3://lab/results?password=PLANTED",
        "s3://lab/results?secret_key=PLANTED",
        "s3://lab/results?X-Amz-Signature=PLANTED",
        "az://account:PLANTED@box/results",
    ],
)
def test_a_secret_in_a_url_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigError, match="has a secret in") as caught:
        Store(url)
    assert "PLANTED" not in str(caught.value)


def test_a_folder_that_cannot_be_written_is_a_data_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    store = Store(tmp_path / "file")  # as a folder without permission, and root is refused too
    for use in (lambda: store.write("x", b""), lambda: store.write("a/x", b""), lambda: store.commit("run", FILES)):
        with pytest.raises(DataError, match=f"cannot write {tmp_path}/file/"):
            use()
    with pytest.raises(DataError, match=f"cannot write {tmp_path}/file/"), store.lock("a/lock"):
        pass
    assert (tmp_path / "file").read_text() == "kept"


def test_a_stream_appears_whole_and_has_the_hash_of_what_it_holds(tmp_path: Path) -> None:
    store, pieces = Store(tmp_path), [bytes([i]) * 3 * 2**20 for i in range(5)]
    with store.open_writer("a/b.bin") as stream:
        for piece in pieces:
            stream.write(piece)
        assert not store.exists("a/b.bin")
    assert store.read("a/b.bin") == b"".join(pieces) and stream.sha256 == sha256(b"".join(pieces))
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b.bin"]


def test_a_stream_that_is_broken_off_leaves_nothing_behind(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write("a.bin", b"old")
    with pytest.raises(ZeroDivisionError), store.open_writer("a.bin") as stream:
        stream.write(bytes(10))
        raise ZeroDivisionError
    assert store.read("a.bin") == b"old" and [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_a_full_disk_ends_a_stream_with_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found beside the caller's work, when a part is brought to the disk."""

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    store = Store(tmp_path)
    with (
        pytest.raises(DataError, match=r"cannot write .*a\.bin: No space left on device"),
        store.open_writer("a.bin") as s,
    ):
        for _ in range(4):
            s.write(bytes(5 * 2**20))
    assert list(tmp_path.iterdir()) == []
