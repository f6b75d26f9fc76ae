"""What the ranks of a process group tell each other. Alone, all of it is at once true."""

import json
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist

from eav_ray.errors import ConfigError, DataError, StorageError, UnrecoverableError, is_lasting, make_unrecoverable

T = TypeVar("T")


def rank_and_world_size() -> tuple[int, int]:
    """(rank, world size) of the default process group; (0, 1) where there is none."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def gather_bytes(data: bytes) -> list[bytes]:
    """The bytes of each rank, on every rank.

    They travel as tensors, never as pickles: what arrives on a port of a worker is not executed.
    """
    size = rank_and_world_size()[1]
    if size == 1:
        return [data]
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
    lengths = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(size)]
    dist.all_gather(lengths, torch.tensor([len(data)], device=device))
    # All ranks gather equally long tensors.
    padded = torch.zeros(max(int(length) for length in lengths), dtype=torch.uint8, device=device)
    padded[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else padded[:0]
    gathered = [torch.empty_like(padded) for _ in range(size)]
    dist.all_gather(gathered, padded)
    return [tensor[: int(length)].cpu().numpy().tobytes() for tensor, length in zip(gathered, lengths, strict=True)]


def gather_from_all_ranks(value: T) -> list[T]:
    """The value of each rank, on every rank. It must be JSON: lists, not tuples; texts as keys.

    Raises:
        TypeError: It is not.
    """
    text = json.dumps(value)
    assert json.loads(text) == value or "NaN" in text, f"{value!r} is another value as JSON"
    return [json.loads(data) for data in gather_bytes(text.encode())]


def broadcast_object(value: T) -> T:
    """Rank 0's value, which must be JSON."""
    return gather_from_all_ranks(value)[0]


def run_on_first_rank(action: Callable[[], T]) -> T:
    """Do something on rank 0 alone, and return its result, which must be JSON, on every rank. Every rank must call it.

    Raises:
        DataError, StorageError, UnrecoverableError: On every rank, as `run_on_all_ranks`.
    """
    is_first = rank_and_world_size()[0] == 0
    return broadcast_object(run_on_all_ranks(lambda: action() if is_first else None))  # pyright: ignore[reportReturnType]


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
