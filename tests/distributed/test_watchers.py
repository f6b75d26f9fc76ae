"""What a closing terminal does to a job, and to the processes that it has started."""

import os
import signal
import subprocess
import sys

from eav_ray.distributed.watchers import keep_hangup_from_children, on_signals

SLEEP = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"]


def test_a_job_is_told_of_a_closed_terminal_unless_it_goes_on_below_nohup() -> None:
    heard: list[str] = []
    earlier = signal.signal(signal.SIGHUP, lambda *_: heard.append("outside"))
    try:
        with on_signals(lambda: heard.append("inside"), signal.SIGTERM, signal.SIGHUP):
            signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGHUP)
        assert heard == ["inside", "outside"]
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with on_signals(lambda: heard.append("inside"), signal.SIGTERM, signal.SIGHUP):
            signal.raise_signal(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert heard == ["inside", "outside"]
    finally:
        signal.signal(signal.SIGHUP, earlier)


def start() -> "subprocess.Popen[str]":
    process = subprocess.Popen(SLEEP, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    process.stdout.readline()  # it has begun
    return process


def test_what_is_started_meanwhile_outlives_the_terminal_and_the_job_still_hears_of_it() -> None:
    heard: list[int] = []
    earlier = signal.signal(signal.SIGHUP, lambda number, _: heard.append(number))
    try:
        with keep_hangup_from_children():
            kept = start()
            os.kill(os.getpid(), signal.SIGHUP)
        assert heard == [signal.SIGHUP]  # it came late, and was not lost
        other = start()
        for process in (kept, other):
            process.send_signal(signal.SIGHUP)
            process.communicate("", timeout=60)
        assert (kept.returncode, other.returncode) == (0, -signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, earlier)
