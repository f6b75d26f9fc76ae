"""What a scheduler, a container and a shell leave of a machine is counted, and refused in one line where Ray cannot."""

import math
import os
import resource
import shutil
import socket
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import ray._private.node as ray_node

from eav_ray.config import RuntimeConfig
from eav_ray.distributed import cluster, machine_limits
from eav_ray.distributed.machine_limits import CgroupLimits, check_ray_folder, choose_object_store, read_cgroup_limits
from eav_ray.errors import ConfigError

GIB = 2**30
DiskUsage = namedtuple("DiskUsage", "total used free")


@pytest.fixture(autouse=True)
def no_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE", "RAY_ADDRESS", "RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.setattr(machine_limits, "read_cgroup_limits", CgroupLimits)


def write_files(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def read_limits(folder: Path, own: str, files: dict[str, str]) -> CgroupLimits:
    write_files(folder, {f"groups/{name}": text for name, text in files.items()} | {"own": own})
    return read_cgroup_limits(folder / "groups", folder / "own")


# Control groups


def test_the_limits_of_a_container(tmp_path: Path) -> None:
    """Version 2, whose own group is the root of what is mounted; a quota of one and a half CPUs."""
    files = {"cpu.max": "150000 100000\n", "memory.max": "4294967296\n", "memory.current": "3221225472\n"}
    files |= {"memory.stat": "anon 1073741824\ninactive_file 2147483648\n", "pids.max": "512\n", "pids.current": "12\n"}
    assert read_limits(tmp_path, "0::/\n", files) == CgroupLimits(1.5, 4 * GIB, 3 * GIB, 500)


def test_the_limits_of_an_old_container_that_sees_its_path_on_the_host(tmp_path: Path) -> None:
    """Version 1: the path of the host is not below what is mounted, which is the container's own group."""
    files = {
        "cpu,cpuacct/cpu.cfs_quota_us": "200000\n",
        "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        "memory/memory.limit_in_bytes": f"{2 * GIB}\n",
        "memory/memory.usage_in_bytes": f"{GIB}\n",
        "memory/memory.stat": f"inactive_file 0\ntotal_inactive_file {GIB // 2}\n",
    }
    own = "4:memory:/docker/1a2b\n3:cpu,cpuacct:/docker/1a2b\n1:name=systemd:/docker/1a2b\n"
    assert read_limits(tmp_path, own, files) == CgroupLimits(2, 2 * GIB, 1.5 * GIB)


def test_the_limits_of_a_job_of_slurm_are_those_of_the_groups_around_it(tmp_path: Path) -> None:
    files = {
        "system.slice/slurmstepd.scope/job_7/memory.max": f"{8 * GIB}\n",
        "system.slice/slurmstepd.scope/job_7/memory.current": f"{6 * GIB}\n",
        "system.slice/slurmstepd.scope/job_7/step_0/memory.max": "max\n",
        "system.slice/slurmstepd.scope/job_7/step_0/cpu.max": "max 100000\n",
        "system.slice/cpu.max": "400000 100000\n",
    }
    own = "0::/system.slice/slurmstepd.scope/job_7/step_0\n"
    assert read_limits(tmp_path, own, files) == CgroupLimits(4, 8 * GIB, 2 * GIB)


@pytest.mark.parametrize("own", ["", "0::/\n", "nonsense\n", "5:cpu:/\n4:memory:/../../x\n"])
def test_without_limits_there_are_none(own: str, tmp_path: Path) -> None:
    files = {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n", "cpu.max": "max 100000\n"}
    assert read_limits(tmp_path, own, files) == CgroupLimits()
    assert read_cgroup_limits(tmp_path / "no", tmp_path / "nothing") == CgroupLimits()


# CPUs


@pytest.mark.parametrize(
    ("affinity", "quota", "variables", "expected"),
    [
        (64, math.inf, {}, 64),
        (3, math.inf, {}, 3),
        (64, 1.5, {}, 2),
        (64, 0.25, {}, 1),
        (64, math.inf, {"SLURM_CPUS_PER_TASK": "8", "SLURM_CPUS_ON_NODE": "32"}, 8),
        (64, math.inf, {"SLURM_CPUS_ON_NODE": "32"}, 32),
        (4, 6.0, {"SLURM_CPUS_PER_TASK": "8"}, 4),
        (64, math.inf, {"SLURM_CPUS_PER_TASK": "", "SLURM_CPUS_ON_NODE": "many"}, 64),
        (64, math.inf, {"SLURM_CPUS_PER_TASK": "0"}, 1),
    ],
)
def test_the_cpus_that_a_process_may_use(
    affinity: int, quota: float, variables: dict[str, str], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(affinity)), raising=False)
    monkeypatch.setattr(machine_limits, "read_cgroup_limits", lambda: CgroupLimits(cpus=quota))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert machine_limits.count_usable_cpus() == expected


def test_more_workers_than_a_process_may_use_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "2")
    expected = "needs 3 CPUs, but this machine has 2 for this process, of 64; set runtime.workers to at most 2"
    with pytest.raises(ConfigError, match=expected):
        cluster.check_local_resources(RuntimeConfig(workers=3))
    cluster.check_local_resources(RuntimeConfig(workers=2))


# Ray's folder


def test_the_folder_of_ray_is_the_one_that_it_takes(monkeypatch: pytest.MonkeyPatch, short: Path) -> None:
    monkeypatch.setenv("TMPDIR", str(short))
    assert machine_limits.find_ray_folder() == short
    monkeypatch.setenv("RAY_TMPDIR", "")  # an empty one is none
    assert machine_limits.find_ray_folder() == short
    monkeypatch.chdir(short)
    monkeypatch.setenv("RAY_TMPDIR", "mine")
    assert machine_limits.find_ray_folder() == short / "mine"


@pytest.mark.parametrize("hindrance", ["theirs", "is only read", "is not there", "is far"])
def test_a_second_user_of_a_machine_gets_a_folder_of_their_own(
    hindrance: str, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where /tmp/ray is another user's, and where TMPDIR, which a change of user keeps, is of no use."""
    uid, access = short.stat().st_uid, os.access
    (short / "ray").mkdir()
    folder = {"is not there": short / "none", "is far": short / ("x" * 60)}.get(hindrance, short)
    (short / ("x" * 60)).mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    if hindrance == "theirs":
        monkeypatch.setattr(os, "getuid", lambda: uid + 1)
    if hindrance == "is only read":
        monkeypatch.setattr(os, "access", lambda path, mode: short not in (path, path.parent) and access(path, mode))
    found = machine_limits.find_ray_folder()
    assert found == Path("/tmp") or found == Path(f"/tmp/eav-ray-{os.getuid()}")
    if hindrance == "theirs" and Path("/tmp/ray").exists() and Path("/tmp/ray").stat().st_uid == uid:
        assert found == Path(f"/tmp/eav-ray-{uid + 1}")


def test_a_folder_of_that_name_that_is_somebody_elses_is_refused(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_limits, "name_own_folder", lambda: short)
    monkeypatch.setattr(os, "getuid", lambda: short.stat().st_uid + 1)
    with pytest.raises(ConfigError, match=rf"in {short}/ray: Permission denied \({short} belongs to "):
        check_ray_folder(short)


def test_a_path_that_is_too_long_for_sockets(tmp_path: Path) -> None:
    """The longest that is taken makes a path of as many bytes as Ray itself takes; one more is refused."""
    spare = 107 - len(f"/{machine_limits.LONGEST_SOCKET}")
    longest = Path("/proc/" + "x" * (spare - len("/proc/")))
    with pytest.raises(ConfigError, match="Ray cannot keep its sockets and logs in /proc/xxx"):  # not its length
        check_ray_folder(longest)
    with pytest.raises(ConfigError, match=f"RAY_TMPDIR=/proc/x+ is too long: .* 107 bytes.* at most {spare}"):
        check_ray_folder(Path(f"{longest}x"))
    ray_node.ray._private.utils.validate_socket_filepath(f"{longest}/{machine_limits.LONGEST_SOCKET}")


@pytest.fixture
def short(tmp_path: Path) -> Any:
    """A folder with a short path: those of tests are long."""
    folder = Path("/tmp", f"m{os.getpid()}")
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def test_a_folder_that_is_missing_is_made(short: Path) -> None:
    check_ray_folder(short / "new")
    assert os.listdir(short / "new" / "ray") == []


def test_a_folder_that_is_a_file(short: Path) -> None:
    (short / "file").touch()
    with pytest.raises(ConfigError, match=f"in {short}/file/ray: Not a directory; set RAY_TMPDIR to a short folder"):
        check_ray_folder(short / "file")


def test_a_folder_of_another_user_is_named_with_its_owner(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = short / "ray"
    own.mkdir()
    monkeypatch.setattr(os, "getuid", lambda: own.stat().st_uid + 1)

    def refuse(*_: Any, **options: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(machine_limits.tempfile, "TemporaryDirectory", refuse)
    expected = rf"in {own}: Permission denied \({own} belongs to {own.owner()}\); set RAY_TMPDIR to .*RAY_TMPDIR=/tmp/"
    with pytest.raises(ConfigError, match=expected):
        check_ray_folder(short)


def test_a_disk_without_sockets(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Socket(socket.socket):
        def bind(self, address: Any) -> None:
            raise OSError(95, "Operation not supported")

    monkeypatch.setattr(machine_limits.socket, "socket", Socket)
    with pytest.raises(ConfigError, match="Operation not supported; set RAY_TMPDIR .* on a disk of this machine"):
        check_ray_folder(short)


def test_a_disk_that_is_full(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: DiskUsage(GIB, GIB - 3 * 2**20, 3 * 2**20))
    with pytest.raises(ConfigError, match=f"{short}/ray has 3 MiB free, but Ray needs 100"):
        check_ray_folder(short)


# Limits of the shell, loopback, shared memory


@pytest.mark.parametrize(
    ("name", "limit", "expected"),
    [
        ("RLIMIT_NOFILE", 64, "`ulimit -n` is 64 open files, but Ray needs 256"),
        ("RLIMIT_AS", GIB, "`ulimit -v` is 1048576 KiB of address space, but Ray needs"),
        ("RLIMIT_FSIZE", 2**20, "`ulimit -f` is 1024 KiB a file, but Ray needs 1048576"),
    ],
)
def test_limits_of_a_shell(name: str, limit: int, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    infinite = resource.RLIM_INFINITY
    limits = {getattr(resource, name): (limit, limit)}
    monkeypatch.setattr(resource, "getrlimit", lambda number: limits.get(number, (infinite, infinite)))
    with pytest.raises(ConfigError, match=expected):
        machine_limits.check_limits()
    # Ray raises the soft limit of open files by itself.
    limits = {resource.RLIMIT_NOFILE: (64, 4096)}
    machine_limits.check_limits()


@pytest.mark.parametrize(("user", "limit", "refused"), [(7, 1000, False), (7, 999, True), (0, 999, False)])
def test_a_limit_of_processes_counts_those_that_run(
    user: int, limit: int, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    Process, Ids = namedtuple("Process", "info"), namedtuple("Ids", "real")
    mine, other, gone = ({"uids": uids, "num_threads": 400} for uids in (Ids(user), Ids(8), None))
    monkeypatch.setattr(machine_limits.psutil, "process_iter", lambda _: [Process(x) for x in (mine, other, gone)])
    monkeypatch.setattr(machine_limits, "count_usable_cpus", lambda: 8)
    monkeypatch.setattr(os, "getuid", lambda: user)
    limits = {resource.RLIMIT_NPROC: (limit, limit)}
    monkeypatch.setattr(resource, "getrlimit", lambda number: limits.get(number, (resource.RLIM_INFINITY,) * 2))
    if not refused:
        machine_limits.check_limits()
        return
    expected = "`ulimit -u` is 999 processes and threads, of which you have 400, but Ray needs 600 more"
    with pytest.raises(ConfigError, match=expected):
        machine_limits.check_limits()


def test_a_container_with_few_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_limits, "count_usable_cpus", lambda: 2)
    monkeypatch.setattr(machine_limits, "read_cgroup_limits", lambda: CgroupLimits(free_processes=300))
    machine_limits.check_limits()
    monkeypatch.setattr(machine_limits, "read_cgroup_limits", lambda: CgroupLimits(free_processes=299))
    with pytest.raises(ConfigError, match="lets this job start 299 more processes and threads, but Ray needs 300"):
        machine_limits.check_limits()


def test_a_machine_that_does_not_reach_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    machine_limits.check_loopback()

    def refuse(*_: Any, **options: Any) -> Any:
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(machine_limits.socket, "create_connection", refuse)
    with pytest.raises(
        ConfigError, match="not reach itself at 127.0.0.1: Network is unreachable; .*`ip link set lo up`"
    ):
        machine_limits.check_loopback()


@pytest.mark.parametrize(
    ("shared", "disk", "memory", "expected"),
    [
        (8 * GIB, 100 * GIB, math.inf, ("shared", GIB)),
        (GIB // 2, 100 * GIB, math.inf, ("shared", int(0.9 * GIB / 2))),
        (64 * 2**20, 100 * GIB, math.inf, ("disk", GIB)),  # a container's
        (None, 100 * GIB, math.inf, ("disk", GIB)),
        (None, GIB, math.inf, ("disk", GIB // 2)),
        (8 * GIB, 100 * GIB, 2 * GIB, ("shared", int(0.3 * 2 * GIB))),
        (8 * GIB, 100 * GIB, GIB // 8, ("shared", 80 * 2**20)),
    ],
)
def test_shared_memory_fits_the_machine(
    shared: int | None, disk: int, memory: float, expected: tuple[str, int], tmp_path: Path, monkeypatch: Any
) -> None:
    folders = {name: tmp_path / name for name in ("shared", "disk")}
    folders["disk"].mkdir()
    if shared is not None:
        folders["shared"].mkdir()
    free = {folders["shared"]: shared, folders["disk"]: disk}

    def measure(path: Path) -> DiskUsage:
        os.stat(path)
        return DiskUsage(0, 0, free[path])

    monkeypatch.setattr(shutil, "disk_usage", measure)
    monkeypatch.setattr(machine_limits, "read_cgroup_limits", lambda: CgroupLimits(memory_bytes=memory))
    monkeypatch.setattr(machine_limits.psutil, "virtual_memory", lambda: namedtuple("Memory", "total")(16 * GIB))
    name, size = expected
    assert choose_object_store(folders["disk"], folders["shared"]) == (folders[name], size)


def test_free_memory_is_that_of_the_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_limits, "read_cgroup_limits", lambda: CgroupLimits(free_bytes=5.0))
    assert machine_limits.measure_free_memory() == 5.0
