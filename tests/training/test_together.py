"""What fails on one rank fails on all: a rank that went on alone would wait for the others until a time limit."""

from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

from eav_ray.errors import DataError
from eav_ray.training.run import together


def rank(number: int, folder: str, size: int) -> None:
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/group",
        rank=number,
        world_size=size,
        timeout=timedelta(seconds=60),
    )

    def fails_on_the_first() -> int:
        if number == 0:
            raise DataError("the disk is full")
        return number

    def fails_on_the_last() -> None:
        if number == size - 1:
            raise OSError(28, "No space left on device", "model.safetensors")

    for action, words in ((fails_on_the_first, "the disk is full"), (fails_on_the_last, "model.safetensors: No space")):
        try:
            together(action)
        except DataError as error:
            assert words in str(error)
            continue
        raise AssertionError(f"rank {number} went on")
    assert together(lambda: number) == number  # and the ranks are still in step
    Path(folder, f"rank-{number}").touch()
    dist.destroy_process_group()


@pytest.mark.slow
def test_an_error_on_one_rank_reaches_every_rank(tmp_path: Path) -> None:
    mp.spawn(rank, args=(str(tmp_path), 2), nprocs=2)
    assert {p.name for p in tmp_path.glob("rank-*")} == {"rank-0", "rank-1"}


def test_alone_the_error_is_the_same() -> None:
    with pytest.raises(DataError, match="no disk"):
        together(lambda: (_ for _ in ()).throw(DataError("no disk")))
