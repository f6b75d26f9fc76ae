"""What this machine lets a Ray of the job's own have: CPUs, memory, files, and a folder for sockets and logs.

Ray counts what the hardware has. What a scheduler, a container or `ulimit` leaves of that is counted here, and what
Ray cannot start with is said in one line before it starts.
"""

import contextlib
import errno
import math
import os
import resource
import shutil
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path

import psutil

from eav_ray.errors import ConfigError

CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
SHARED_MEMORY = Path("/dev/shm")
# What Slurm gave: to each task of a step, else to the job on this node.
SLURM_CPU_VARIABLES = ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE")

MAX_SOCKET_BYTES = 107  # of the path of a socket, on Linux
# Below Ray's temporary folder; the last number is that of a process, at most seven digits.
LONGEST_SOCKET = "ray/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store"
MAX_FOLDER_BYTES = MAX_SOCKET_BYTES - len(LONGEST_SOCKET) - 1
MIN_FREE_BYTES = 100 * 2**20  # for logs and sockets
MIN_OPEN_FILES = 256
RAY_THREADS, WORKER_THREADS = 200, 50  # of Ray's own processes, and of each worker: one a CPU
LOOPBACK_TIMEOUT_S = 5.0
MIN_ADDRESS_BYTES = 6 * 2**30  # a process of Ray with torch maps that much, most of it never used
MIN_FILE_BYTES = 2**30  # a Ray that is starting makes files of half a GiB, which stay empty

OBJECT_STORE_BYTES = 2**30  # shards pass by it, they are written by the workers
MIN_OBJECT_STORE_BYTES = 80 * 2**20  # of which Ray starts with
MEMORY_SHARE = 0.3  # of what the job may take


@dataclass(frozen=True)
class CgroupLimits:
    """What a container or a scheduler lets the processes of this one's group have; infinite where nothing is set."""

    cpus: float = math.inf
    memory_bytes: float = math.inf
    free_bytes: float = math.inf
    free_processes: float = math.inf  # and threads


def read_cgroup_limits(groups: Path = CGROUPS, own: Path = OWN_CGROUPS) -> CgroupLimits:
    """Read the limits of this process' control group and of those around it; the tightest holds.

    Args:
        groups: Where control groups are mounted, of version 1 or 2.
        own: Lists the groups of this process, `number:controllers:path` each.
    """
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return CgroupLimits()
    cpus = memory = free = processes = math.inf
    for _, controllers, path in (line for line in lines if len(line) == 3):
        # In a container the path may be the host's, and what is mounted be the container's group alone.
        for folder in {groups / controllers, *(groups / name for name in controllers.split(","))}:
            for level in [folder, *_list_levels(folder, path)]:
                cpus = min(cpus, _read_cpu_quota(level))
                limit = _read_number(level / "memory.max", level / "memory.limit_in_bytes")
                memory, free = min(memory, limit), min(free, max(0.0, limit - _measure_used_memory(level)))
                running = _read_number(level / "pids.current", default=0.0)
                processes = min(processes, _read_number(level / "pids.max") - running)
    return CgroupLimits(cpus, memory, free, processes)


def _list_levels(folder: Path, path: str) -> list[Path]:
    parts = [part for part in path.split("/") if part not in ("", "..")]
    return [folder.joinpath(*parts[: n + 1]) for n in range(len(parts))]


def _read_cpu_quota(level: Path) -> float:
    with contextlib.suppress(OSError, ValueError):
        quota, period = (level / "cpu.max").read_text().split()
        return float(quota) / float(period) if quota != "max" else math.inf
    quota, period = _read_number(level / "cpu.cfs_quota_us"), _read_number(level / "cpu.cfs_period_us")
    return quota / period if 0 < quota < math.inf and 0 < period < math.inf else math.inf


def _measure_used_memory(level: Path) -> float:
    """Measure what cannot be taken back: without what is only cached of files that nobody reads now."""
    used = _read_number(level / "memory.current", level / "memory.usage_in_bytes", default=0.0)
    with contextlib.suppress(OSError, ValueError):
        facts = dict(line.split() for line in (level / "memory.stat").read_text().splitlines())
        used -= float(facts.get("total_inactive_file", facts.get("inactive_file", 0.0)))
    return used


def _read_number(*files: Path, default: float = math.inf) -> float:
    for file in files:
        with contextlib.suppress(OSError, ValueError):
            return float(file.read_text())
    return default


def count_usable_cpus() -> int:
    """Count the CPUs that this process may use: its affinity, its container's quota, and what Slurm gave it."""
    counts: list[float] = [os.cpu_count() or 1, math.ceil(min(read_cgroup_limits().cpus, 1e6))]
    if hasattr(os, "sched_getaffinity"):
        counts.append(len(os.sched_getaffinity(0)))
    given = [os.environ[name] for name in SLURM_CPU_VARIABLES if os.environ.get(name, "").isdecimal()]
    counts += map(int, given[:1])
    return max(1, int(min(counts)))


def measure_free_memory() -> float:
    """Measure the bytes of memory that processes on this machine may still take, within this one's control group."""
    return min(psutil.virtual_memory().available, read_cgroup_limits().free_bytes)


def find_ray_folder() -> Path:
    """Find where a Ray of its own keeps sockets and logs, below which it makes `ray`.

    That is what RAY_TMPDIR names; else TMPDIR or /tmp, where this user may write there; else a folder of this user's
    own in /tmp: several people share a machine, and the first one's Ray may keep `ray` to them.
    """
    if os.environ.get("RAY_TMPDIR"):
        return Path(os.environ["RAY_TMPDIR"]).absolute()
    for folder in (os.environ.get("TMPDIR"), "/tmp"):
        if folder and _is_usable(Path(folder).absolute()):
            return Path(folder).absolute()
    return name_own_folder()


def name_own_folder() -> Path:
    return Path(f"/tmp/eav-ray-{os.getuid()}")


def _is_usable(folder: Path) -> bool:
    """Whether a folder is near enough, and `ray` in it is this user's own, or can be made."""
    own = folder / "ray"
    with contextlib.suppress(OSError):
        is_near = len(os.fsencode(folder)) <= MAX_FOLDER_BYTES
        is_own = own.stat().st_uid == os.getuid() if own.exists() else folder.is_dir()
        return is_near and is_own and os.access(own if own.exists() else folder, os.W_OK | os.X_OK)
    return False


def check_ray_folder(folder: Path) -> None:
    """Refuse a folder in which Ray cannot make its sockets and write its logs.

    Raises:
        ConfigError: Its path is too long, it is somebody else's, cannot be made or written, is full, or is on a file
            system without sockets.
    """
    if len(os.fsencode(folder)) > MAX_FOLDER_BYTES:
        raise ConfigError(
            f"RAY_TMPDIR={folder} is too long: the paths of Ray's sockets below it would have more than "
            f"{MAX_SOCKET_BYTES} bytes; set RAY_TMPDIR to a folder whose path has at most {MAX_FOLDER_BYTES}, for "
            "example RAY_TMPDIR=/tmp"
        )
    own = folder / "ray"
    try:
        if not folder.exists():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder == name_own_folder() and folder.lstat().st_uid != os.getuid():  # somebody was there first
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        own.mkdir(exist_ok=True)
        free = shutil.disk_usage(own).free
        with tempfile.TemporaryDirectory(prefix="probe", dir=own) as probe, socket.socket(socket.AF_UNIX) as one:
            Path(probe, "file").write_bytes(bytes(2**20))
            one.bind(f"{probe}/socket")
    except OSError as error:
        raise ConfigError(
            f"Ray cannot keep its sockets and logs in {own}: {error.strerror or error}{_describe_owner(own)}; set "
            "RAY_TMPDIR to a short folder of your own on a disk of this machine, for example "
            f"RAY_TMPDIR=/tmp/{os.getuid()}"
        ) from None
    if free < MIN_FREE_BYTES:
        raise ConfigError(
            f"{own} has {free / 2**20:.0f} MiB free, but Ray needs {MIN_FREE_BYTES / 2**20:.0f} for its logs; make "
            "room there, or set RAY_TMPDIR to a short folder on another disk"
        )


def _describe_owner(path: Path) -> str:
    """Say whose the nearest folder is that exists, where it is another user's."""
    while not path.exists() and path != path.parent:
        path = path.parent
    with contextlib.suppress(OSError, KeyError):
        if path.stat().st_uid != os.getuid():
            return f" ({path} belongs to {path.owner()})"
    return ""


def check_limits() -> None:
    """Refuse limits of this shell with which Ray does not start, or ends while it works.

    Raises:
        ConfigError: Naming the limit and what is needed.
    """
    limits = (
        # Ray raises the soft limit to the hard one.
        ("-n", "open files", resource.getrlimit(resource.RLIMIT_NOFILE)[1], MIN_OPEN_FILES, 1),
        ("-v", "KiB of address space", resource.getrlimit(resource.RLIMIT_AS)[0], MIN_ADDRESS_BYTES, 1024),
        ("-f", "KiB a file", resource.getrlimit(resource.RLIMIT_FSIZE)[0], MIN_FILE_BYTES, 1024),
    )
    for option, what, limit, needed, unit in limits:
        if limit != resource.RLIM_INFINITY and limit < needed:
            raise ConfigError(
                f"`ulimit {option}` is {limit // unit} {what}, but Ray needs {needed // unit}; raise it in this shell, "
                "or have it raised in /etc/security/limits.conf or by the scheduler"
            )
    _check_process_limit()


def _check_process_limit() -> None:
    """Refuse a limit of processes and threads, which are counted over all of a user's, that Ray would soon meet.

    Its processes end then, or wait for ever.
    """
    limit, user = resource.getrlimit(resource.RLIMIT_NPROC)[0], os.getuid()
    needed = RAY_THREADS + WORKER_THREADS * count_usable_cpus()
    free = read_cgroup_limits().free_processes
    if free < needed:
        raise ConfigError(
            f"the container or the scheduler lets this job start {free:g} more processes and threads, but Ray needs "
            f"{needed}; have that limit raised (`--pids-limit`, TasksMax, pids.max)"
        )
    if user == 0 or limit == resource.RLIM_INFINITY or limit > 2**14:  # root has none; to count takes a moment
        return
    facts = (process.info for process in psutil.process_iter(["uids", "num_threads"]))
    used = sum(fact["num_threads"] or 0 for fact in facts if fact["uids"] and fact["uids"].real == user)
    if limit - used < needed:
        raise ConfigError(
            f"`ulimit -u` is {limit} processes and threads, of which you have {used}, but Ray needs {needed} more; end "
            "some of yours, or have it raised in /etc/security/limits.conf or by the scheduler"
        )


def check_loopback() -> None:
    """Refuse a machine whose processes do not reach each other: Ray would wait for them for ever.

    Raises:
        ConfigError: Its loopback interface is down, or closed by a firewall.
    """
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=LOOPBACK_TIMEOUT_S).close()
    except OSError as error:
        raise ConfigError(
            f"this machine does not reach itself at 127.0.0.1: {error.strerror or error}; Ray needs that: type "
            "`ip link set lo up`, or open loopback in the firewall or the container"
        ) from None


def choose_object_store(folder: Path, shared: Path = SHARED_MEMORY) -> tuple[Path, int]:
    """Choose where the memory lies that Ray's processes share, and its bytes.

    Containers often have 64 MB of shared memory, or none: then it lies in Ray's folder.

    Returns:
        The folder of the files that are mapped, and their bytes in all.
    """
    memory = min(psutil.virtual_memory().total, read_cgroup_limits().memory_bytes)
    size = min(OBJECT_STORE_BYTES, int(MEMORY_SHARE * memory))
    with contextlib.suppress(OSError):
        room = int(0.9 * shutil.disk_usage(shared).free)
        if room >= MIN_OBJECT_STORE_BYTES and os.access(shared, os.W_OK | os.X_OK):
            return shared, max(MIN_OBJECT_STORE_BYTES, min(size, room))
    room = int(0.5 * shutil.disk_usage(folder).free)
    return folder, max(MIN_OBJECT_STORE_BYTES, min(size, room))
