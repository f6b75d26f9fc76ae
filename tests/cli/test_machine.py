"""What a machine, a shell or a terminal does to a command ends in one line, or not at all; never in a traceback."""

import errno
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eav_ray import config
from eav_ray.cli.main import run_command
from eav_ray.cli.process import provide_home
from tests.helpers.paths import REPOSITORY, TINY

COMMAND = [sys.executable, "-c", "from eav_ray.cli.main import main; main()"]


def run(
    *words: str, variables: dict[str, str] | None = None, before: Callable[[], object] | None = None, **options: Any
) -> "subprocess.CompletedProcess[str]":
    """Run a command in a process of its own, which ends before it starts Ray."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SLURM_"))}
    environment |= {"PYTHONPATH": str(REPOSITORY)} | (variables or {})
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.run([*COMMAND, *words], env=environment, preexec_fn=before, text=True, timeout=300, **pipes)


@pytest.mark.parametrize(
    ("variables", "before", "expected"),
    [
        ({"RAY_TMPDIR": "/tmp/" + "x" * 80}, None, "RAY_TMPDIR=/tmp/xxx"),
        ({"RAY_TMPDIR": "/proc/nowhere"}, None, "Ray cannot keep its sockets and logs in /proc/nowhere/ray"),
        ({}, lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)), "`ulimit -n` is 64 open files"),
        ({}, lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}), "needs 2 CPUs, but this machine has 1"),
    ],
)
def test_a_machine_that_cannot_is_one_line_before_anything_is_read(
    variables: dict[str, str], before: Callable[[], object] | None, expected: str, tmp_path: Path
) -> None:
    words = ("preprocess", str(TINY), "data.root=/nowhere", "runtime.workers=2", f"store.shards={tmp_path}")
    done = run(*words, variables=variables, before=before)
    assert done.returncode == 2 and done.stderr.startswith("error: "), done.stderr
    assert expected in done.stderr and done.stderr.count("\n") == 1 and not done.stdout


def test_a_reader_that_has_enough_ends_a_command_quietly() -> None:
    """`eav keys | head`: the pipe is closed before all is printed."""
    reads, writes = os.pipe()
    os.close(reads)
    try:
        done = run("keys", stdout=writes)
    finally:
        os.close(writes)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_streams_that_are_closed_are_no_file_of_ours(tmp_path: Path) -> None:
    """A file that is opened by the number of a closed stream would get what is printed."""
    program = (
        "import os, sys\n"
        "from eav_ray.cli.main import main\n"
        "try:\n    main('keys', 'optim')\nexcept SystemExit as end:\n    assert end.code == 0\n"
        f"number = os.open({str(tmp_path / 'file')!r}, os.O_WRONLY | os.O_CREAT)\n"
        "print('printed', flush=True)\nprint('printed', file=sys.stderr, flush=True)\n"
        "os._exit(number)\n"
    )
    done = subprocess.run(
        ["sh", "-c", 'exec <&- >&- 2>&-; exec "$0" "$@"', sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        timeout=300,
    )
    assert done.returncode >= 3 and (tmp_path / "file").read_bytes() == b""


def test_a_name_that_a_terminal_cannot_show_is_printed_with_escapes() -> None:
    """Names of files need not be UTF-8, and a terminal may be of the locale C."""
    program = (
        "from eav_ray.cli import main as cli\n"
        "cli.run_command = lambda words: print('subject\\u00c4/caf\\udce9.wav') or 0\n"
        "cli.main()\n"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    for encoding, shown in (
        ("ascii", b"subject\\xc4/caf\\udce9.wav"),
        ("utf-8", "subject\u00c4/caf\\udce9.wav".encode()),
    ):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=environment | {"PYTHONIOENCODING": encoding},
            capture_output=True,
            timeout=300,
        )
        assert (done.returncode, done.stdout.strip(), done.stderr) == (0, shown, b"")


def test_a_user_without_a_home_gets_a_folder_that_is_theirs_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Libraries keep settings and caches there, and end where there is no home."""
    home = "/proc/nowhere"
    monkeypatch.setenv("HOME", home)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    provide_home()
    folder = Path(os.environ["HOME"])
    assert folder.parent == tmp_path and folder.stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv("HOME", home)
    provide_home()
    assert os.environ["HOME"] == str(folder)
    folder.chmod(0o755)  # as if it were somebody else's
    monkeypatch.setenv("HOME", home)
    provide_home()
    other = Path(os.environ["HOME"])
    assert other != folder and other.parent == tmp_path and other.stat().st_mode & 0o777 == 0o700
    provide_home()  # a home that is there stays
    assert os.environ["HOME"] == str(other)
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != str(other))  # as where it cannot be written
    folder.chmod(0o700)
    provide_home()
    assert os.environ["HOME"] == str(folder)
    monkeypatch.setenv("HOME", str(other))
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as where no user has this number
    folder.chmod(0o700)
    provide_home()
    assert os.environ["HOME"] == str(folder)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), "this process got no more memory; give it more"),
        (OSError(errno.EMFILE, "Too many open files", "/data/x"), "/data/x: Too many open files (on the machine "),
        (OSError(errno.EFBIG, "File too large"), "File too large (on the machine "),
        (OSError(errno.EIO, "Input/output error", "/mnt/x"), "/mnt/x: Input/output error (on the machine "),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device (on the machine "),
    ],
)
def test_an_error_of_the_machine_is_one_line(
    error: BaseException, expected: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(config, "load_experiment", fail)
    assert run_command(["check", "demo"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {expected}") and printed.count("\n") == 1


def test_an_error_that_is_a_mistake_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "x")

    monkeypatch.setattr(config, "load_experiment", fail)
    with pytest.raises(FileNotFoundError):
        run_command(["check", "demo"])


def test_a_closed_terminal_ends_a_command_as_ctrl_c_does() -> None:
    """Also where stderr is that terminal, and nothing can be printed any more."""
    program = (
        "import os, signal\nfrom eav_ray import config\nfrom eav_ray.cli.main import main\n"
        "config.load_experiment = lambda *_: {}\nmain('check', 'demo')\n"
    )
    hang_up = "signal.raise_signal(signal.SIGHUP)"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}

    def end(before: str, then: str, stderr: Any) -> "subprocess.CompletedProcess[str]":
        text = f"import signal\n{before}\n" + program.format(then)
        return subprocess.run([sys.executable, "-c", text], env=environment, stderr=stderr, text=True, timeout=300)

    done = end("", hang_up, subprocess.PIPE)
    assert (done.returncode, done.stderr) == (130, "stopped; rerun the same command to continue\n")
    with open("/dev/full", "w") as full:
        assert end("", hang_up, full).returncode == 130
    goes_on = f"({hang_up}, os._exit(7))"
    assert end("signal.signal(signal.SIGHUP, signal.SIG_IGN)", goes_on, subprocess.PIPE).returncode == 7  # nohup
