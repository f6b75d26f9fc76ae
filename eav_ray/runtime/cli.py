"""What all jobs share: arguments, paths, and one clear line for whatever a user can get wrong."""

import os
import re
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ray.exceptions import RayError, RayTaskError

from eav_ray.config import Experiment, list_keys, list_other_kinds, load_experiment, override, parse_changes
from eav_ray.errors import ConfigError, DataError, TrainingInterrupted
from eav_ray.report import mlflow
from eav_ray.runtime import cluster

STORE_KEYS = ("shards", "results", "cache")
SQLITE_PREFIX = "sqlite:///"  # before the path of a database


@dataclass(frozen=True)
class Arguments:
    paths: list[str]  # words without "="
    changes: dict[str, Any]  # words with "="
    flags: dict[str, str]  # --name value, or --name alone

    def parse_count(self, flag: str, default: int) -> int:
        """A whole number from 1, given as `--flag`."""
        text = self.flags.get(flag, str(default))
        if not re.fullmatch(r"0*[1-9][0-9]{0,8}", text):
            raise ConfigError(f"--{flag} is {text!r}; give a whole number from 1, for example --{flag} {default}")
        return int(text)


def run_command(help_text: str, command: Callable[[Arguments], int | None], *, flags: tuple[str, ...] = ()) -> None:
    """Run a job: exit 0 when it is done, 2 with one line a problem when the request or the data are at fault.

    Args:
        usage: The job's docstring; `--help` prints it, and every key of an experiment.
        flags: Names of the `--name value` options that the job takes; `name!` takes no value.
    """
    words = sys.argv[1:]
    try:
        if "--help" in words or "-h" in words:
            print(textwrap.dedent(help_text).strip() + "\n\n" + format_keys())
            code = 0
        else:
            code = command(parse_arguments(words, flags)) or 0
    except (ConfigError, DataError, RayError) as error:
        for line in explain_error(error):
            print(f"error: {line}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        code = 130
    except TrainingInterrupted as error:
        print(f"stopped: {error}; the same command continues", file=sys.stderr)
        code = 130
    sys.exit(code)


def explain_error(error: BaseException) -> list[str]:
    """Lines that say what was at fault, for one of our errors or for what Ray raises in place of a task's error."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ConfigError | DataError) and not isinstance(cause, RayError):
            return RAY_DATA_NOTE.sub("", str(cause)).splitlines()
        cause = getattr(cause, "cause", None) or cause.__cause__
    # An error that Ray Data or an actor raised came through a pickle, which keeps its text and not its cause.
    text = str(error)
    own_errors = PROJECT_ERROR.findall(text)
    if own_errors:
        return own_errors[-1:]
    lines = text.strip().splitlines() or [type(error).__name__]
    other_errors = ANY_ERROR.findall(text) or [lines[-1 if isinstance(error, RayTaskError) else 0]]
    reason = other_errors[-1]
    return [f"a Ray task failed: {reason}; Ray's logs, by default in /tmp/ray/session_latest/logs, have the traceback"]


PROJECT_ERROR = re.compile(r"^eav_ray\.errors\.(?:ConfigError|DataError): (.+)", re.MULTILINE)
ANY_ERROR = re.compile(r"^(?!ray\.)[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit)(?:: .*)?$", re.MULTILINE)
RAY_DATA_NOTE = re.compile(r"\nFailed to .* after \d+/\d+ attempts .*", re.DOTALL)


def parse_arguments(words: list[str], flags: tuple[str, ...]) -> Arguments:
    paths: list[str] = []
    changes: list[str] = []
    given_flags: dict[str, str] = {}
    rest = iter(words)
    for word in rest:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            if name + "!" in flags:
                given_flags[name] = "yes"
            elif name in flags:
                given_flags[name] = value if equals else next(rest, "")
            else:
                allowed = ", ".join(f"--{f.removesuffix('!')}" for f in ("help", *flags))
                raise ConfigError(f"--{name} is not an option of this job; it takes {allowed}, and key=value changes")
        elif "=" in word:
            changes.append(word)
        else:
            paths.append(word)
    return Arguments(paths, parse_changes(changes), given_flags)


def prepare_experiment(arguments: Arguments, used_stores: tuple[str, ...] = STORE_KEYS) -> Experiment:
    """The experiment of the command line, with absolute paths, checked against this machine.

    Args:
        uses: The stores that the job reads or writes; the paths of the others do not matter.
    """
    if len(arguments.paths) != 1:
        raise ConfigError(
            f"give exactly one experiment file, for example jobs/experiments/demo.yaml; got {arguments.paths or 'none'}"
        )
    experiment = resolve_experiment_paths(load_experiment(arguments.paths[0], arguments.changes), used_stores)
    cluster.check_local_resources(experiment.runtime)
    if experiment.store.mlflow:
        mlflow.require_mlflow()
    return experiment


def resolve_experiment_paths(experiment: Experiment, used_stores: tuple[str, ...] = STORE_KEYS) -> Experiment:
    """Relative folders are relative to where the command was given, on whatever node they are used.

    Raises:
        ConfigError: A relative folder in a submitted job, which runs in a temporary copy of the working directory.
    """
    given_paths = {"data.root": experiment.data.root} | {
        f"store.{k}": getattr(experiment.store, k) for k in used_stores
    }
    for m in ("audio", "video"):
        weights = getattr(getattr(experiment.model, m), "weights", "")
        if weights and Path(weights).expanduser().exists():  # otherwise a name on a hub
            given_paths[f"model.{m}.weights"] = weights
    changes = {key: resolve_user_path(key, path) for key, path in given_paths.items()}
    for key, uri in (("store.mlflow", experiment.store.mlflow), ("search.storage", experiment.search.storage)):
        if uri.startswith(SQLITE_PREFIX):
            changes[key] = SQLITE_PREFIX + resolve_user_path(key, uri.removeprefix(SQLITE_PREFIX), allow_remote=False)
    return override(experiment, changes)


def resolve_user_path(key: str, path: str, *, allow_remote: bool = True) -> str:
    """A path as the user gave it by `key`, for whatever folder a process is in.

    Args:
        remote: Whether s3:// and gs:// will do.
    Raises:
        ConfigError: A relative path in a submitted job, or a remote one where that will not do.
    """
    if "://" in path and not allow_remote:
        raise ConfigError(f"{key} is {path}; give a path on a disk")
    if not path or "://" in path:
        return path
    full = Path(os.path.expanduser(path))  # Path.expanduser raises for a user who does not exist
    if is_submitted_job() and not full.is_absolute():
        raise ConfigError(
            f"{key} is {path}, a relative path, but a submitted job runs in a temporary copy of this folder; "
            f"give a folder that all nodes share, as an absolute path{', or s3:// or gs://' if allow_remote else ''}"
        )
    return str(full.absolute())


def is_submitted_job() -> bool:
    """Whether this process is the entrypoint of `ray job submit`."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def retarget_experiment(
    experiment: Experiment, changes: dict[str, Any], used_stores: tuple[str, ...] = ()
) -> Experiment:
    """A checkpoint's experiment, pointed at other recordings and at this machine.

    Args:
        uses: As of `absolute`.
    """
    defaults = Experiment()
    retargeted = replace(experiment, runtime=replace(defaults.runtime, workers=1), store=defaults.store)
    return resolve_experiment_paths(override(retargeted, changes), used_stores=used_stores)


def format_keys() -> str:
    lines = ["Keys of an experiment, each may be given as key=value (default, type, meaning):"]
    for title, table in [("", list_keys()), *list_other_kinds()]:
        lines += [f"With {title} instead:"] if title else []
        for key, (kind, default, meaning) in table.items():
            shown = repr(default) if not isinstance(default, dict) else "{...}"
            lines.append(f"  {key} = {shown}  [{kind}]  {meaning}".rstrip())
    return "\n".join(lines)
