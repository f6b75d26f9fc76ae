"""What the ranks of a process group tell each other. Alone, all of it is at once true."""

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist

from eav_ray.errors import ConfigError, DataError, StorageError, UnrecoverableError, is_lasting, make_unrecoverable

T = TypeVar("T")


def rank_and_world_size() -> tuple[int, int]:
    """(rank, world size) of the default process group; (0, 1) where there is none."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def gather_from_all_ranks(value: T) -> list[T]:
    """The value of each rank, on every rank."""
    size = rank_and_world_size()[1]
    if size == 1:
        return [value]
    gathered: list[T | None] = [None] * size
    dist.all_gather_object(gathered, value)
    return gathered  # pyright: ignore[reportReturnType]


def broadcast_object(value: T) -> T:
    """Rank 0's value."""
    return gather_from_all_ranks(value)[0]


def broadcast_int(number: int, device: torch.device) -> int:
    """Rank 0's number; cheap enough for every step."""
    if rank_and_world_size()[1] == 1:
        return number
    tensor = torch.tensor(number, device=device)
    dist.broadcast(tensor, 0)
    return int(tensor)


def run_on_all_ranks(action: Callable[[], T]) -> T:
    """Do something that may fail on one rank alone, and fail on all of them if it does. Every rank must call it.

    Raises:
        UnrecoverableError: The reason of the first rank that has one which no further attempt would heal.
        StorageError: Otherwise, where a store did not answer the first rank that has a reason.
        DataError: Otherwise the reason of that rank.
    """
    value, failure = None, {"reason": "", "kind": ""}
    try:
        value = action()
    except (ConfigError, DataError, OSError) as error:
        failure["reason"] = str(error)
        if is_lasting(error):
            failure = {"reason": str(make_unrecoverable(error)), "kind": "lasting"}
        elif isinstance(error, StorageError):
            failure["kind"] = "storage"
        elif isinstance(error, OSError):
            failure["reason"] = f"{error.filename or 'storage'}: {error.strerror or error}"
    failures = [one for one in gather_from_all_ranks(failure) if one["reason"]]
    if lasting_reason := next((one["reason"] for one in failures if one["kind"] == "lasting"), ""):
        raise UnrecoverableError(lasting_reason)
    if first := next(iter(failures), None):
        first_reason = first["reason"]
        if first["kind"] == "storage":
            raise StorageError(first_reason)
        raise DataError(first_reason)
    return value  # pyright: ignore[reportReturnType]
