"""What Ctrl-C and a closing terminal do to a job, and to the processes that it has started."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from eav_ray.processes import TERMINAL_SIGNALS, defer_signals, keep_signals_from_children, map_in_processes, on_signals

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
        with keep_signals_from_children(*TERMINAL_SIGNALS):
            kept = start()
            os.kill(os.getpid(), signal.SIGHUP)
        deadline = time.monotonic() + 60
        while not heard and time.monotonic() < deadline:  # another thread may be the one that it was delivered to
            time.sleep(0.01)
        assert heard == [signal.SIGHUP]  # it came late, and was not lost
        other = start()
        for process in (kept, other):
            process.send_signal(signal.SIGHUP)
            process.communicate("", timeout=60)
        assert (kept.returncode, other.returncode) == (0, -signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, earlier)


def test_what_was_begun_is_finished_before_a_signal_is_heard() -> None:
    done: list[str] = []
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), defer_signals(*TERMINAL_SIGNALS):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            done.append("all")
        assert done == ["all"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, earlier)


def test_results_come_in_order_from_other_processes() -> None:
    found = list(map_in_processes(square, range(5), 2, initializer=_remember, arguments=(10,)))
    assert [value for value, _ in found] == [10, 11, 14, 19, 26]
    assert os.getpid() not in {pid for _, pid in found}


_offset: list[int] = []


def _remember(offset: int) -> None:
    _offset.append(offset)


def test_nothing_of_the_processes_is_left_when_no_more_is_asked_for() -> None:
    threads = set(threading.enumerate())
    found = map_in_processes(time.sleep, [0.0, 300.0, 300.0], 2)
    assert next(found) is None and multiprocessing.active_children()
    found.close()
    # What is still closing as the interpreter exits prints an error.
    assert set(threading.enumerate()) == threads and not multiprocessing.active_children()


def square(number: int) -> tuple[int, int]:
    return number**2 + _offset[0], os.getpid()


INTERRUPTED = """
import sys, time
from eav_ray.processes import map_in_processes
if __name__ == "__main__":
    for _ in map_in_processes(time.sleep, [0.0, 300.0, 300.0, 300.0], 2):
        print("begun", flush=True)
"""


def test_ctrl_c_ends_other_processes_at_once_and_without_a_word_of_theirs(tmp_path: str) -> None:
    program = os.path.join(tmp_path, "program.py")
    with open(program, "w") as file:
        file.write(INTERRUPTED)
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, program], stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    assert process.stdout and process.stdout.readline() == "begun\n"
    children = psutil.Process(process.pid).children(recursive=True)
    began = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, reported = process.communicate(timeout=120)
    assert time.monotonic() - began < 60
    assert reported.count("Traceback") == 1 and reported.rstrip().endswith("KeyboardInterrupt")  # of this program alone
    assert not psutil.wait_procs(children, timeout=30)[1]
