"""What all jobs share: arguments, paths, and one clear line for whatever a user can get wrong."""

import os
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eav_ray.config import Experiment, keys, load, override, parse_changes
from eav_ray.errors import ConfigError, DataError
from eav_ray.runtime import cluster


@dataclass(frozen=True)
class Arguments:
    paths: list[str]  # words without "="
    changes: dict[str, Any]  # words with "="
    flags: dict[str, str]  # --name value, or --name alone


def door(usage: str, job: Callable[[Arguments], int | None], *, flags: tuple[str, ...] = ()) -> None:
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
            code = job(_parse(words, flags)) or 0
    except (ConfigError, DataError) as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        code = 130
    sys.exit(code)


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


def experiment_of(arguments: Arguments) -> Experiment:
    """The experiment of the command line, with absolute paths, checked against this machine."""
    if len(arguments.paths) != 1:
        raise ConfigError(
            f"give exactly one experiment file, for example jobs/experiments/demo.yaml; got {arguments.paths or 'none'}"
        )
    experiment = absolute(load(arguments.paths[0], arguments.changes))
    cluster.check_local(experiment.runtime)
    return experiment


def absolute(experiment: Experiment) -> Experiment:
    """Relative folders are relative to where the command was given, on whatever node they are used.

    Raises:
        ConfigError: A relative folder in a submitted job, which runs in a temporary copy of the working directory.
    """
    named = {"data.root": experiment.data.root} | {
        f"store.{k}": getattr(experiment.store, k) for k in ("shards", "results", "cache")
    }
    changes: dict[str, Any] = {}
    for key, path in named.items():
        if not path or "://" in path or Path(path).is_absolute():
            continue
        if submitted():
            raise ConfigError(
                f"{key} is {path}, a relative path, but a submitted job runs in a temporary copy of this folder; "
                "give a folder that all nodes share, as an absolute path, or s3:// or gs://"
            )
        changes[key] = str(Path(path).absolute())
    return override(experiment, changes)


def submitted() -> bool:
    """Whether this process is the entrypoint of `ray job submit`."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def with_data(experiment: Experiment, changes: dict[str, Any]) -> Experiment:
    """A checkpoint's experiment, pointed at other recordings and at this machine."""
    here = Experiment()
    own = replace(experiment, runtime=replace(here.runtime, workers=1), store=here.store)
    return absolute(override(own, changes))


def _keys_text() -> str:
    lines = ["Keys of an experiment, each may be given as key=value (default, type, meaning):"]
    for key, (kind, default, meaning) in keys().items():
        shown = repr(default) if not isinstance(default, dict) else "{...}"
        lines.append(f"  {key} = {shown}  [{kind}]  {meaning}".rstrip())
    return "\n".join(lines)
