"""R5: a disk that fills up at any write is one line; what was committed before loads, and the run goes on from it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from eav_ray.config import override
from eav_ray.data.shards.window_cache import WindowCache
from eav_ray.data.splits import Split
from eav_ray.errors import DataError
from eav_ray.storage import Store
from eav_ray.training import checkpoint as ckpt
from eav_ray.training.prepared_run import WorkerContext
from eav_ray.training.run_spec import Run
from eav_ray.training.runner import execute_run
from tests.helpers.disks import small_disk
from tests.helpers.reliability import CHAOS
from tests.helpers.trainings import TRAIN, make_experiment, make_windows

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> WindowCache:
    return make_windows(tmp_path_factory.mktemp("windows"))


def test_a_disk_that_fills_up_costs_nothing_that_was_committed(windows: WindowCache, tmp_path: Path) -> None:
    """Disks from one that holds nothing to one that is nearly large enough."""
    run = Run(
        "joint",
        override(make_experiment("torch"), {"train.keep_checkpoints": 3}),
        Split("within", TRAIN, (), ()),
        "data",
    )
    ample = Store(tmp_path / "ample")
    whole = ckpt.OpenedCheckpoint(
        ample, execute_run(run, WorkerContext(windows, ample, torch.device("cpu")), lambda progress: None)
    ).load()
    # Weights and moments of three checkpoints lie there at once, and the last, of weights alone.
    most = 4 * 3 * sum(len(ample.read(n)) for n in ample.list_files("runs")) // 1024
    outcomes = set()
    for number, kib in enumerate(np.linspace(most // 16, most, 40 if CHAOS else 5).astype(int)):
        disk = tmp_path / f"disk-{number}"
        with small_disk(disk, int(kib)):
            store = Store(disk / "results")
            place = WorkerContext(windows, store, torch.device("cpu"))
            try:
                execute_run(run, place, lambda progress: None)
                outcomes.add("finished")
            except DataError as error:
                assert "No space left on device" in str(error) and "\n" not in str(error)
                outcomes.add("full")
            found, damaged = ckpt.load_latest_checkpoint(store, run.key)
            assert damaged == []
            # What there is goes on, elsewhere, to the very same end.
            moved = Store(tmp_path / f"moved-{number}")
            for name in store.list_files("runs"):
                moved.write(name, store.read(name))
            outcomes.add("saved" if found else "nothing")
        prefix = execute_run(run, WorkerContext(windows, moved, torch.device("cpu")), lambda progress: None)
        ended = ckpt.OpenedCheckpoint(moved, prefix).load()
        assert all(torch.equal(tensor, ended.weights[name]) for name, tensor in whole.weights.items())
    assert outcomes == {"full", "finished", "saved", "nothing"}
