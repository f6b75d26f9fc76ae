"""Run one command of `eav`, with one clear line for whatever a user can get wrong."""

import contextlib
import inspect
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import typer

from eav_ray.cli.ablate import ablate
from eav_ray.cli.adapt import adapt
from eav_ray.cli.arguments import WORDS_HELP
from eav_ray.cli.baseline import baseline
from eav_ray.cli.check import check
from eav_ray.cli.compare import compare
from eav_ray.cli.demo import demo
from eav_ray.cli.evaluate import evaluate
from eav_ray.cli.export import export
from eav_ray.cli.keys import keys
from eav_ray.cli.predict import predict
from eav_ray.cli.preprocess import preprocess
from eav_ray.cli.process import end_when_terminal_closes, prepare_streams, provide_home, silence_unread_streams
from eav_ray.cli.protocol import protocol
from eav_ray.cli.pull import pull
from eav_ray.cli.robustness import robustness
from eav_ray.cli.search import search
from eav_ray.cli.serve import serve
from eav_ray.cli.train import train
from eav_ray.cli.weights import weights
from eav_ray.cli.withdraw import withdraw
from eav_ray.errors import ConfigError, DataError, TrainingInterrupted, is_of_machine, make_unrecoverable

COMMANDS: tuple[Callable[..., int | None], ...] = (
    demo,
    check,
    preprocess,
    train,
    protocol,
    search,
    pull,
    export,
    baseline,
    compare,
    evaluate,
    predict,
    serve,
    ablate,
    robustness,
    adapt,
    weights,
    withdraw,
    keys,
)
HELP = """Recognise emotions from EEG, audio and video: from raw recordings to a checkpoint that predicts.

Commands are resumable: rerun the same command to continue.
"""
HELP_END = "`eav COMMAND --help` says what a command takes; `eav keys` lists all keys."
STOPPED = "stopped; rerun the same command to continue"
NO_MEMORY = (
    "this process got no more memory; give it more (`ulimit -v`, the container, the scheduler), or use smaller "
    "recordings, fewer workers or a smaller batch; rerun the same command to continue"
)


def main(*command: str) -> NoReturn:
    """Run the command line of this process, after the words of `command`, and exit."""
    prepare_streams()
    provide_home()
    end_when_terminal_closes()
    try:
        code = run_command([*command, *sys.argv[1:]])
        sys.stdout.flush()
    except BrokenPipeError:  # who reads what is printed has enough: `eav check ... | head`
        if not silence_unread_streams():
            raise
        code = 128 + signal.SIGPIPE
    except KeyboardInterrupt:  # before the command had begun
        code = _print_end(STOPPED)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing is left to save: Python would show where it was
    sys.exit(code)


def run_command(words: Sequence[str]) -> int:
    """Run a command line and print what came of it.

    Args:
        words: The command and its words, as after `eav`.

    Returns:
        0 when it is done; 2, with one line a problem, when the request or the data are at fault; 130 when it was
        stopped; 1 where the command says so.
    """
    app = typer.main.get_command(build_app())
    try:
        with app.make_context("eav", list(words) or ["--help"]) as context:
            return app.invoke(context) or 0
    except typer.Exit as exit_request:  # after --help
        return exit_request.exit_code
    except typer.TyperException as error:  # a word that no command takes
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "eav"
        return _print_errors([f"{error.format_message().rstrip('.')} (`{command} --help` lists what it takes)"])
    except list_user_errors() as error:
        return _print_errors(_explain(error))
    except BrokenPipeError:
        raise
    except OSError as error:
        if not is_of_machine(error):
            raise
        return _print_errors([str(make_unrecoverable(error))])
    except MemoryError:
        return _print_errors([NO_MEMORY])
    except KeyboardInterrupt:
        return _print_end(STOPPED)
    except TrainingInterrupted as error:
        return _print_end(f"{STOPPED} ({error})")


def build_app() -> typer.Typer:
    """Build the parser of all commands. It prints plain text: to import Rich takes as long as all the rest."""
    app = typer.Typer(
        help=HELP,
        epilog=HELP_END,
        add_completion=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    for command in COMMANDS:
        app.command(help=format_help(command), epilog=explain_words(command))(command)
    return app


def format_help(command: Callable[..., Any]) -> str:
    """Return the docstring of a command with the lines of its examples kept apart, which Typer would join."""
    paragraphs = inspect.cleandoc(command.__doc__ or "").split("\n\n")
    return "\n\n".join(f"\b\n{text}" if text.startswith("eav ") else text for text in paragraphs)


def explain_words(command: Callable[..., Any]) -> str:
    """Explain the words that a command takes, as its help names them."""
    parameters = inspect.signature(command).parameters.values()
    settings = [each for parameter in parameters for each in getattr(parameter.annotation, "__metadata__", ())]
    shown = " ".join(str(getattr(each, "metavar", "")) for each in settings)
    return " ".join(text for word, text in WORDS_HELP.items() if word in shown)


def list_user_errors() -> tuple[type[BaseException], ...]:
    """List the errors that are shown in one line: ours, and Ray's where Ray has been imported, which takes a second."""
    if "ray" not in sys.modules:
        return ConfigError, DataError
    from eav_ray.distributed.ray_errors import RayError

    return ConfigError, DataError, RayError


def _explain(error: BaseException) -> list[str]:
    if "ray" not in sys.modules:
        return str(error).splitlines()
    from eav_ray.distributed.ray_errors import explain_error

    return explain_error(error)


def _print_end(line: str) -> int:
    with contextlib.suppress(OSError):  # the terminal may be closed, which was why
        print(line, file=sys.stderr, flush=True)
    return 130


def _print_errors(problems: list[str]) -> int:
    for line in problems:
        print(f"error: {line}", file=sys.stderr)
    return 2
