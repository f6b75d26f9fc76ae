"""Tell what ended a group's workers: which rank's error came first, and which are its consequences on other ranks.

Imports no torch: the queue is a process of its own.
"""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

from ray.exceptions import OutOfMemoryError, RayActorError

from eav_ray.errors import ConfigError, DataError, TrainingInterrupted, is_lasting, make_unrecoverable

NO_MESSAGE = "the workers exited without an error message (possibly out of memory)"
# A rank whose peer has ended gets an error of the connection: of torch's process groups, of gloo, of NCCL.
CONNECTION_TYPES = {"DistError", "DistBackendError", "DistNetworkError", "DistStoreError"}
CONNECTION_TEXT = re.compile(
    r"gloo|nccl|connection (?:was )?(?:closed|reset|refused|aborted)|broken pipe|socket (?:closed|timeout)|"
    r"timed out waiting \d+ms|process group .*(?:abort|shut ?down|terminat)",
    re.IGNORECASE,
)
NODE_DIED = "its node has died"  # in the text of Ray's error (`ray_workarounds.CORE_TEXTS`)


@dataclass(frozen=True)
class RankError:
    """What one rank of a group says of its end."""

    rank: int
    timestamp: float  # seconds since 1970, by the clock of its machine
    text: str
    world_size: int = 0  # 0: not known
    is_consequence: bool = False  # of the end of another rank
    is_lasting: bool = False  # no further attempt heals it: it ends all runs


def describe_rank_error(
    error: BaseException, rank: int, world_size: int = 0, timestamp: float | None = None
) -> RankError:
    names = {each.__name__ for each in type(error).__mro__}
    is_connection = bool(names & CONNECTION_TYPES) or (
        bool(names & {"RuntimeError", "OSError"}) and bool(CONNECTION_TEXT.search(str(error)))
    )
    lasting = not is_connection and is_lasting(error)
    text = str(make_unrecoverable(error)) if lasting else " ".join(str(error).split())[:300]
    if not lasting and not isinstance(error, ConfigError | DataError):
        text = f"{type(error).__name__}: {text}"
    timestamp = time.time() if timestamp is None else timestamp
    return RankError(rank, timestamp, text, world_size, is_connection, lasting)


def find_first_error(errors: Sequence[RankError]) -> RankError | None:
    """Find the earliest error that is no consequence of another rank's end.

    Where every rank of the group has an error of its connections, the connections are what failed.
    """
    in_order = sorted(errors, key=lambda error: (error.timestamp, error.rank))
    original = next((error for error in in_order if not error.is_consequence), None)
    if original or not in_order:
        return original
    has_reported = {error.rank for error in in_order}
    return in_order[0] if in_order[0].world_size and len(has_reported) >= in_order[0].world_size else None


@dataclass(frozen=True)
class Loss:
    """The end of a group's workers, as the group's controller saw it."""

    errors: tuple[RankError, ...] = ()  # those that no rank reported itself
    is_machine_lost: bool = False  # a machine went away: no fault of the run


def classify_worker_errors(errors: dict[int, Exception]) -> Loss | None:
    """Classify the errors that Ray Train has of a group's ranks.

    Returns:
        None where the workers left by themselves, or because their machine was announced to go: nothing is lost.
    """
    deaths = {rank: getattr(error, "health_check_failure", error) for rank, error in errors.items()}
    actor_deaths = [death for death in deaths.values() if isinstance(death, RayActorError)]
    if any(isinstance(error, TrainingInterrupted) for error in errors.values()):
        return None
    if any(death.preempted for death in actor_deaths):
        return None
    described = [
        # Those that ranks reported themselves are earlier.
        describe_rank_error(death, rank, len(errors), float("inf"))
        for rank, death in deaths.items()
        if isinstance(death, OutOfMemoryError) or death is errors[rank]
    ]
    return Loss(tuple(described), any(NODE_DIED in str(death) for death in actor_deaths))
