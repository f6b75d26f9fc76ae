"""R1: two ranks, killed with SIGKILL at random steps and started again, end with the weights of ranks that were not."""

import os
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from eav_ray.config import override
from eav_ray.data.splits import Split
from eav_ray.errors import TrainingInterrupted
from eav_ray.storage import Store
from eav_ray.training import checkpoint as ckpt
from eav_ray.training import checkpoint_writer
from eav_ray.training.prepared_run import WorkerContext
from eav_ray.training.run_spec import Run
from eav_ray.training.runner import execute_run
from tests.helpers.process_groups import leave_group
from tests.helpers.reliability import CHAOS
from tests.helpers.trainings import TRAIN, make_experiment, make_windows

pytestmark = pytest.mark.slow
KILLS, EPOCHS, EVERY = (20 if CHAOS else 2), 6, 2  # four steps an epoch


def the_run(engine: str) -> Run:
    changes = {"optim.epochs": EPOCHS, "optim.batch": 2, "optim.mixup": 0.4, "fusion.modality_dropout": 0.4}
    changes |= {"train.checkpoint_steps": EVERY, "train.checkpoint_epochs": 100, "runtime.workers": 2}
    return Run(
        "joint", override(make_experiment(engine), changes), Split("within", TRAIN, (), ("subject1/007",)), "data"
    )


def join_group(number: int, folder: str, attempt: int) -> WorkerContext:
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/group-{attempt}",
        rank=number,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    torch.set_num_threads(1)
    windows = make_windows(Path(folder, f"rank-{number}"))
    return WorkerContext(windows, Store(Path(folder, "results")), torch.device("cpu"))


def rank(number: int, folder: str, engine: str, attempt: int, steps: int, victims: tuple[int, ...]) -> None:
    """Train, and kill this process, if it is a victim, after so many steps of this attempt."""
    checkpoint_writer.STOP_POLL_S = 0.0
    place = join_group(number, folder, attempt)
    left = steps

    def ends() -> str:
        nonlocal left
        left -= 1
        if left == 0 and number in victims:
            os.kill(os.getpid(), signal.SIGKILL)
        return ""

    execute_run(the_run(engine), place, lambda progress: None, ends)
    leave_group()


def leave(number: int, folder: str) -> None:
    """Leave at the first step, while the first rank takes its time to save."""
    checkpoint_writer.STOP_POLL_S = 0.0
    write = checkpoint_writer.write_checkpoint
    checkpoint_writer.write_checkpoint = lambda *words: time.sleep(1) or write(*words)
    place = join_group(number, folder, 0)
    with pytest.raises(TrainingInterrupted, match="the node goes"):
        execute_run(the_run("torch"), place, lambda progress: None, lambda: "the node goes")
    assert ckpt.list_checkpoints(place.results, the_run("torch").key)
    leave_group()


def start_ranks(target: Callable[..., None], *arguments: Any) -> list[BaseProcess]:
    context = get_context("forkserver")
    context.set_forkserver_preload(["tests.training.test_kill", "deepspeed"])
    ranks: list[BaseProcess] = [context.Process(target=target, args=(n, *arguments)) for n in range(2)]
    for process in ranks:
        process.start()
    return ranks


def start(folder: Path, engine: str, attempt: int, steps: int, victims: tuple[int, ...]) -> None:
    """Both ranks, until they end; when one was killed, the other goes too, as Ray ends a group."""
    ranks = start_ranks(rank, str(folder), engine, attempt, steps, victims)
    for number in victims or (0, 1):
        ranks[number].join(120)
    for process in ranks:
        if victims and process.is_alive():
            process.kill()
        process.join()
    codes = [process.exitcode for process in ranks]
    assert codes == [0, 0] if not victims else all(codes[v] == -signal.SIGKILL for v in victims), codes


@pytest.mark.parametrize("engine", ["torch", "deepspeed"])
def test_killed_ranks_end_bit_identical(engine: str, tmp_path: Path) -> None:
    """Weights in fp32 on a CPU, two ranks; mixup, dropout and modality dropout on; a checkpoint every second step."""
    run, whole, killed = the_run(engine), tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    start(whole, engine, 0, 0, ())
    rng = np.random.default_rng(len(engine))
    store, position, lost = Store(killed / "results"), 0, []
    for attempt in range(KILLS):
        # At least one interval further each time, so that there is always something left to kill.
        room = EPOCHS * 4 - position - 1
        steps = int(rng.integers(1, max(2, min(room, 2 * EPOCHS * 4 // KILLS + EVERY))))
        victims = ((0,), (1,), (0, 1))[attempt % 3]
        start(killed, engine, attempt, steps, victims)
        found, _ = ckpt.load_latest_checkpoint(store, run.key)
        now = 0 if found is None else 4 * found[1].state.position.epoch + found[1].state.position.step
        lost.append(position + steps - now)
        position = now
    # One interval, and the one that was being written when the end came.
    assert all(0 <= steps <= 2 * EVERY for steps in lost), lost
    start(killed, engine, KILLS, 0, ())
    (a, _), (b, _) = (ckpt.load_latest_checkpoint(Store(folder / "results"), run.key) for folder in (whole, killed))
    assert a and b and a[1].state.finished and b[1].state.finished
    assert a[1].weights.keys() == b[1].weights.keys()
    for name, tensor in a[1].weights.items():
        assert torch.equal(tensor, b[1].weights[name]), name


def test_no_rank_leaves_before_its_groups_checkpoint_is_committed(tmp_path: Path) -> None:
    """Ray ends the whole group with the first rank that leaves, be the other in the middle of writing."""
    ranks = start_ranks(leave, str(tmp_path))
    for process in ranks:
        process.join(120)
    assert [process.exitcode for process in ranks] == [0, 0]
