"""Find the cause of an error that crossed Ray's processes, as lines a user can act on."""

import re

from ray.exceptions import RayError, RayTaskError

from eav_ray.errors import ConfigError, DataError


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


PROJECT_ERROR = re.compile(
    r"^eav_ray\.errors\.(?:ConfigError|DataError|StorageError|UnrecoverableError): (.+)", re.MULTILINE
)


ANY_ERROR = re.compile(r"^(?!ray\.)[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit)(?:: .*)?$", re.MULTILINE)


RAY_DATA_NOTE = re.compile(r"\nFailed to .* after \d+/\d+ attempts .*", re.DOTALL)
