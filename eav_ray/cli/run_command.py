"""What all jobs share: arguments, paths, and one clear line for whatever a user can get wrong."""

import sys
import textwrap
from collections.abc import Callable

from eav_ray.cli.arguments import Arguments, parse_arguments
from eav_ray.config.keys import format_keys
from eav_ray.distributed.ray_errors import RayError, explain_error
from eav_ray.errors import ConfigError, DataError, TrainingInterrupted


def run_command(help_text: str, command: Callable[[Arguments], int | None], *, flags: tuple[str, ...] = ()) -> None:
    """Run a job: exit 0 when it is done, 2 with one line a problem when the request or the data are at fault.

    Args:
        help_text: The job's docstring; `--help` prints it, and every key of an experiment.
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
