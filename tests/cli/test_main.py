"""One command at a time: what it prints and returns, what it imports before it runs, and how errors are told."""

import re
import subprocess
import sys
from collections.abc import Callable

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayTaskError, UserCodeException

from eav_ray.cli.main import COMMANDS, main, run_command
from eav_ray.errors import ConfigError, DataError, TrainingInterrupted
from tests.helpers.paths import REPOSITORY

NAMES = [command.__name__ for command in COMMANDS]


def test_every_command_is_a_file_and_a_job_runs_it() -> None:
    files = {path.stem for path in (REPOSITORY / "eav_ray" / "cli").glob("*.py")}
    assert files == {*NAMES, "__init__", "main", "arguments", "interpreter", "process"}
    jobs = {path.stem: path.read_text() for path in (REPOSITORY / "jobs").glob("*.py")}
    assert set(jobs) == {*NAMES} - {"keys"}
    assert all(f'main("{name}")' in text and len(text.splitlines()) < 10 for name, text in jobs.items())


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], *([name, "--help"] for name in NAMES)], ids=" ".join)
def test_help_fits_a_screen(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run_command(words) == 0
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert len(lines) <= 32 and max(map(len, lines)) <= 80
    assert not re.search(r"<\w+( \w+)?>", text), "it shows a type of Python's"
    assert ("CHECKPOINT is a folder" in text) == ("CHECKPOINT" in text.replace("CHECKPOINT is a folder", ""))
    if words and words[0] in NAMES:
        assert any(line.startswith(f"  eav {words[0]}") for line in lines), "it has no example"
    else:
        assert all(any(line.startswith(f"  {name} ") for line in lines) for name in NAMES)
        assert not any("..." in line for line in lines if line.split()[:1] and line.split()[0] in NAMES)


def test_keys_are_listed_by_prefix(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["keys", "optim.l"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == [
        "optim.lr",
        "optim.label_smoothing",
    ]
    assert run_command(["keys", "model.eeg.width"]) == 0
    assert "With model.eeg.kind=bandpower instead:" in capsys.readouterr().out
    assert run_command(["keys", "data."]) == 0
    assert "data.modalities = [audio, eeg, video]  (list of text)" in capsys.readouterr().out
    assert run_command(["keys"]) == 0
    assert len(capsys.readouterr().out.splitlines()) > 150


# What is imported before a command is known to be right

HEAVY = ("av", "h5py", "mne", "numpy", "optuna", "pandas", "pyarrow", "ray", "rich", "scipy", "sklearn", "torch")
IMPORTS = f"""
import sys
from eav_ray.cli.main import run_command
code = run_command(sys.argv[1:])
print(code, *sorted(set(sys.modules) & set({HEAVY})), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("--help", 0),
        ("train --help", 0),
        ("serve --help", 0),
        ("keys optim", 0),
        ("tran", 2),
        ("train", 2),
        ("train nosuch", 2),
        ("train fusion split.indx=2", 2),
        ("train fusion split.protocol=nosuch", 2),
        ("train fusion --nosuch", 2),
        ("evaluate fusion --checkpoint", 2),
        ("pull", 2),
        ("predict", 2),
    ],
)
def test_a_command_line_is_parsed_before_anything_heavy_is_imported(words: str, code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS, *words.split()], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    assert done.stderr.splitlines()[-1].split() == [str(code)]


def test_a_job_takes_the_words_of_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["jobs/train.py", "nosuch"])
    with pytest.raises(SystemExit) as ended:
        main("train")
    assert ended.value.code == 2 and "no experiment nosuch" in capsys.readouterr().err


# What Ray raises in the driver for an error of a task


def stored(cause: Exception, text: str) -> RayTaskError:
    return RayTaskError("f", f"Traceback (most recent call last):\n{text}", cause, "ray::f", 1, "127.0.0.1")


def wrapped(cause: Exception, text: str) -> RayTaskError:
    return stored(cause, text).as_instanceof_cause()


NOTE = "Failed to apply UDF transform after 1/1 attempts (total backoff 0.0s).\nTo change retry attempts, configure"
OURS = 'File "x.py", line 6, in f\n    raise DataError(x)\neav_ray.errors.DataError: a.wav is damaged; take it out\n'
OTHER = "File \"x.py\", line 6, in f\n    raise KeyError(x)\nKeyError: 'x'\n"
USER = f"\nThe above exception was the direct cause of:\n\nray.exceptions.UserCodeException: UDF failed\n{NOTE}"
RAISED: dict[str, tuple[Callable[[], Exception], list[str]]] = {
    "ours": (lambda: DataError("a.wav is damaged; take it out"), ["error: a.wav is damaged; take it out"]),
    "all problems": (lambda: ConfigError("a: x\nb: y"), ["error: a: x", "error: b: y"]),
    "a task's": (
        lambda: wrapped(DataError("a.wav is damaged; take it out"), OURS),
        ["error: a.wav is damaged; take it out"],
    ),
    "with a note of Ray Data": (
        lambda: wrapped(DataError(f"a.wav is damaged; take it out\n{NOTE}"), OURS + NOTE),
        ["error: a.wav is damaged; take it out"],
    ),
    "a task's of a task": (
        lambda: wrapped(wrapped(DataError("a.wav is damaged; take it out"), OURS), OURS),
        ["error: a.wav is damaged; take it out"],
    ),
    # Only the text of ours comes back
    "of a function of Ray Data": (
        lambda: wrapped(UserCodeException(f"UDF failed\n{NOTE}"), OURS + USER),
        ["error: a.wav is damaged; take it out"],
    ),
    "of an actor of Ray Data": (
        lambda: ActorDiedError(stored(DataError("a.wav is damaged; take it out"), OURS)),
        ["error: a.wav is damaged; take it out"],
    ),
    "another error of a task": (lambda: wrapped(KeyError("x"), OTHER), ["error: a Ray task failed: KeyError: 'x';"]),
    "another error of a function of Ray Data": (
        lambda: wrapped(UserCodeException(f"UDF failed\n{NOTE}"), OTHER + USER),
        ["error: a Ray task failed: KeyError: 'x';"],
    ),
    "an error with a name of its own": (
        lambda: wrapped(UserCodeException("UDF failed"), 'File "x.py", line 6, in f\n    raise Again()\nzmq.Again: x'),
        ["error: a Ray task failed: zmq.Again: x;"],
    ),
    "out of memory": (
        lambda: OutOfMemoryError("Task was killed due to the node running low on memory.\nMore: https://docs"),
        ["error: a Ray task failed: Task was killed due to the node running low on memory.;"],
    ),
}


def chained() -> Exception:
    error = UserCodeException("UDF failed")
    error.__cause__ = DataError("a.wav is damaged; take it out")
    return error


RAISED["with a cause"] = (chained, ["error: a.wav is damaged; take it out"])


def fail_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run a command whose work raises an error."""

    def fail(prefix: str) -> str:
        raise error

    monkeypatch.setattr("eav_ray.config.keys.format_keys", fail)
    return run_command(["keys"])


@pytest.mark.parametrize("case", RAISED)
def test_an_error_of_a_task_is_told_as_an_error_of_the_command(
    case: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make, expected = RAISED[case]
    assert fail_with(make(), monkeypatch) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(expected)
    for line, start in zip(lines, expected, strict=True):
        assert line.startswith(start)


def test_a_mistake_of_the_program_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyError):
        fail_with(KeyError("x"), monkeypatch)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (KeyboardInterrupt(), "stopped; rerun the same command to continue\n"),
        (TrainingInterrupted("SIGTERM came"), "stopped; rerun the same command to continue (SIGTERM came)\n"),
    ],
)
def test_a_command_that_was_stopped_says_that_it_continues(
    error: BaseException, expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fail_with(error, monkeypatch) == 130
    assert capsys.readouterr().err == expected
