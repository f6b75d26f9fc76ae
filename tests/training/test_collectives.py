"""What fails on one rank fails on all: a rank that went on alone would wait for the others until a time limit."""

from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from eav_ray.config import Experiment, override
from eav_ray.errors import DataError
from eav_ray.models.classifier import Classifier
from eav_ray.models.encoders.base import DataShapes
from eav_ray.training.collectives import broadcast_object, gather_bytes, gather_from_all_ranks, run_on_all_ranks
from eav_ray.training.dataloader import Batch
from eav_ray.training.engines.select import make_engine
from tests.helpers.process_groups import leave_group


def rank(number: int, folder: str, size: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/group",
        rank=number,
        world_size=size,
        timeout=timedelta(seconds=300),
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
            run_on_all_ranks(action)
        except DataError as error:
            assert words in str(error)
            continue
        raise AssertionError(f"rank {number} went on")
    assert run_on_all_ranks(lambda: number) == number  # and the ranks are still in step
    assert gather_bytes(bytes(number) + b"x" * number) == [b"", b"\0x"]
    said = [{"loss": float("inf"), "texts": ["ä"] * rank, "none": None} for rank in range(size)]
    assert gather_from_all_ranks(said[number]) == said and broadcast_object(said[number]) == said[0]
    for engine in ("torch", "deepspeed"):
        batch_statistics_become_equal(number, size, engine)
    Path(folder, f"rank-{number}").touch()
    leave_group()


def batch_statistics_become_equal(number: int, size: int, engine: str) -> None:
    """What a batch normalisation gathers from a rank's own rows, all ranks have after `settle`."""
    changes = {"data.modalities": ["eeg"], "model.eeg.kind": "eav_transformer", "model.eeg.depth": 1}
    e = override(Experiment(), changes | {"runtime.engine": engine, "train.encoders.eeg.batch": 4})
    torch.manual_seed(0)
    module = Classifier(e, DataShapes(5, 3))
    made = make_engine(module, e.train.encoders["eeg"], e.runtime, device=torch.device("cpu"))
    x_BST = (1 + 9 * number) * torch.randn(2, 5, 100)
    ones = torch.ones(2)
    made.train_step(Batch({"eeg": x_BST}, ones[:, None].bool(), torch.arange(2), ones, 2 * size, 0), 1e-3)

    def spread() -> float:
        gathered: list[torch.Tensor | None] = [None] * size
        dist.all_gather_object(gathered, made.gather_weights()["encoders.eeg.conv.1.running_var"])
        first = gathered[0]
        assert first is not None
        return max(float((other - first).abs().max()) for other in gathered if other is not None)

    assert spread() > 0.1
    made.sync_buffers()
    assert spread() == 0
    made.close()


@pytest.mark.slow
def test_an_error_on_one_rank_reaches_every_rank_and_what_they_gather_becomes_equal(tmp_path: Path) -> None:
    mp.spawn(rank, args=(str(tmp_path), 2), nprocs=2)
    assert {p.name for p in tmp_path.glob("rank-*")} == {"rank-0", "rank-1"}


def test_what_is_not_json_is_refused() -> None:
    for value in ((1, 2), {1: 2}, Path("a")):
        with pytest.raises((TypeError, AssertionError)):
            gather_from_all_ranks(value)


def test_alone_the_error_is_the_same() -> None:
    with pytest.raises(DataError, match="no disk"):
        run_on_all_ranks(lambda: (_ for _ in ()).throw(DataError("no disk")))
