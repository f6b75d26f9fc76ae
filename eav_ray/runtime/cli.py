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
from eav_ray.errors import ConfigError, DataError, Interrupted
from eav_ray.report import mlflow
from eav_ray.runtime import cluster

STORES = ("shards", "results", "cache")
SQLITE = "sqlite:///"  # before the path of a database


@dataclass(frozen=True)
class Arguments:
    paths: list[str]  # words without "="
    changes: dict[str, Any]  # words with "="
    flags: dict[str, str]  # --name value, or --name alone

    def number(self, flag: str, default: int) -> int:
        """A whole number from 1, given as `--flag`."""
        text = self.flags.get(flag, str(default))
        if not re.fullmatch(r"0*[1-9][0-9]{0,8}", text):
            raise ConfigError(f"--{flag} is {text!r}; give a whole number from 1, for example --{flag} {default}")
        return int(text)


def run_command(usage: str, command: Callable[[Arguments], int | None], *, flags: tuple[str, ...] = ()) -> None:
    """Run a job: exit 0 when it is done, 2 with one line a problem when the request or the data are at fault.

    Args:
        usage: The job's docstring; `--help` prints it, and every key of an experiment.
        flags: Names of the `--name value` options that the job takes; `name!` takes no value.
    """
    words = sys.argv[1:]
    try:
        if "--help" in words or "-h" in words:
            print(textwrap.dedent(usage).strip() + "\n\n" + _keys_text())
            code = 0
        else:
            code = command(_parse(words, flags)) or 0
    except (ConfigError, DataError, RayError) as error:
        for line in problems(error):
            print(f"error: {line}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        code = 130
    except Interrupted as error:
        print(f"stopped: {error}; the same command continues", file=sys.stderr)
        code = 130
    sys.exit(code)


def problems(error: BaseException) -> list[str]:
    """Lines that say what was at fault, for one of our errors or for what Ray raises in place of a task's error."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, ConfigError | DataError) and not isinstance(link, RayError):
            return RAY_DATA_NOTE.sub("", str(link)).splitlines()
        link = getattr(link, "cause", None) or link.__cause__
    # An error that Ray Data or an actor raised came through a pickle, which keeps its text and not its cause.
    text = str(error)
    ours = OUR_ERROR.findall(text)
    if ours:
        return ours[-1:]
    lines = text.strip().splitlines() or [type(error).__name__]
    others = ANY_ERROR.findall(text) or [lines[-1 if isinstance(error, RayTaskError) else 0]]
    reason = others[-1]
    return [f"a Ray task failed: {reason}; Ray's logs, by default in /tmp/ray/session_latest/logs, have the traceback"]


OUR_ERROR = re.compile(r"^eav_ray\.errors\.(?:ConfigError|DataError): (.+)", re.MULTILINE)
ANY_ERROR = re.compile(r"^(?!ray\.)[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit)(?:: .*)?$", re.MULTILINE)
RAY_DATA_NOTE = re.compile(r"\nFailed to .* after \d+/\d+ attempts .*", re.DOTALL)


def _parse(words: list[str], flags: tuple[str, ...]) -> Arguments:
    paths: list[str] = []
    changes: list[str] = []
    given: dict[str, str] = {}
    rest = iter(words)
    for word in rest:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            if name + "!" in flags:
                given[name] = "yes"
            elif name in flags:
                given[name] = value if equals else next(rest, "")
            else:
                allowed = ", ".join(f"--{f.removesuffix('!')}" for f in ("help", *flags))
                raise ConfigError(f"--{name} is not an option of this job; it takes {allowed}, and key=value changes")
        elif "=" in word:
            changes.append(word)
        else:
            paths.append(word)
    return Arguments(paths, parse_changes(changes), given)


def experiment_of(arguments: Arguments, uses: tuple[str, ...] = STORES) -> Experiment:
    """The experiment of the command line, with absolute paths, checked against this machine.

    Args:
        uses: The stores that the job reads or writes; the paths of the others do not matter.
    """
    if len(arguments.paths) != 1:
        raise ConfigError(
            f"give exactly one experiment file, for example jobs/experiments/demo.yaml; got {arguments.paths or 'none'}"
        )
    experiment = absolute(load_experiment(arguments.paths[0], arguments.changes), uses)
    cluster.check_local(experiment.runtime)
    if experiment.store.mlflow:
        mlflow.require()
    return experiment


def absolute(experiment: Experiment, uses: tuple[str, ...] = STORES) -> Experiment:
    """Relative folders are relative to where the command was given, on whatever node they are used.

    Raises:
        ConfigError: A relative folder in a submitted job, which runs in a temporary copy of the working directory.
    """
    named = {"data.root": experiment.data.root} | {f"store.{k}": getattr(experiment.store, k) for k in uses}
    for m in ("audio", "video"):
        weights = getattr(getattr(experiment.model, m), "weights", "")
        if weights and Path(weights).expanduser().exists():  # otherwise a name on a hub
            named[f"model.{m}.weights"] = weights
    changes = {key: absolute_path(key, path) for key, path in named.items()}
    for key, uri in (("store.mlflow", experiment.store.mlflow), ("search.storage", experiment.search.storage)):
        if uri.startswith(SQLITE):
            changes[key] = SQLITE + absolute_path(key, uri.removeprefix(SQLITE), remote=False)
    return override(experiment, changes)


def absolute_path(key: str, path: str, *, remote: bool = True) -> str:
    """A path as the user gave it by `key`, for whatever folder a process is in.

    Args:
        remote: Whether s3:// and gs:// will do.
    Raises:
        ConfigError: A relative path in a submitted job, or a remote one where that will not do.
    """
    if "://" in path and not remote:
        raise ConfigError(f"{key} is {path}; give a path on a disk")
    if not path or "://" in path:
        return path
    full = Path(os.path.expanduser(path))  # Path.expanduser raises for a user who does not exist
    if submitted() and not full.is_absolute():
        raise ConfigError(
            f"{key} is {path}, a relative path, but a submitted job runs in a temporary copy of this folder; "
            f"give a folder that all nodes share, as an absolute path{', or s3:// or gs://' if remote else ''}"
        )
    return str(full.absolute())


def submitted() -> bool:
    """Whether this process is the entrypoint of `ray job submit`."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def with_data(experiment: Experiment, changes: dict[str, Any], uses: tuple[str, ...] = ()) -> Experiment:
    """A checkpoint's experiment, pointed at other recordings and at this machine.

    Args:
        uses: As of `absolute`.
    """
    here = Experiment()
    own = replace(experiment, runtime=replace(here.runtime, workers=1), store=here.store)
    return absolute(override(own, changes), uses=uses)


def _keys_text() -> str:
    lines = ["Keys of an experiment, each may be given as key=value (default, type, meaning):"]
    for title, table in [("", list_keys()), *list_other_kinds()]:
        lines += [f"With {title} instead:"] if title else []
        for key, (kind, default, meaning) in table.items():
            shown = repr(default) if not isinstance(default, dict) else "{...}"
            lines.append(f"  {key} = {shown}  [{kind}]  {meaning}".rstrip())
    return "\n".join(lines)
