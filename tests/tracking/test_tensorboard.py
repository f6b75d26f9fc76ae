"""What TensorBoard is given is what the trainings told, however many there are and whatever the disk takes (R32)."""

import os
import struct
import threading
import time
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event

from eav_ray.distributed.watchers import poll_in_background
from eav_ray.tracking.tensorboard import TensorBoardTracker
from eav_ray.training.run_spec import Progress
from tests.helpers.disks import small_disk


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Name -> (step, value), read as TensorBoard reads the files: a length and its checksum, an event and its own."""
    found: dict[str, list[tuple[int, float]]] = {}
    for path in folder.iterdir():
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack("<Q", data[at : at + 8])
            event = Event.FromString(data[at + 12 : at + 12 + length])
            at += length + 16
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def test_each_training_has_curves_of_its_own(tmp_path: Path) -> None:
    board = TensorBoardTracker(tmp_path / "board")
    assert not (tmp_path / "board").exists()
    for key, start in (("encoder-a", 2.0), ("fusion-b", 1.0)):
        for epoch in (0.5, 1, 2):
            board.log(
                Progress(key, "x", epoch, 2, int(10 * epoch), {"train_loss": start / epoch, "windows_per_s": 7.0})
            )
    assert {p.name for p in (tmp_path / "board").iterdir()} == {"encoder-a", "fusion-b"}
    found = curves(tmp_path / "board" / "encoder-a")
    assert found["train_loss"] == [(5, 4.0), (10, 2.0), (20, 1.0)]
    assert [v for _, v in curves(tmp_path / "board" / "fusion-b")["train_loss"]] == pytest.approx([2.0, 1.0, 0.5])
    assert {v for _, v in found["windows_per_s"]} == {7.0}


def test_300_trainings_keep_no_file_and_no_thread(tmp_path: Path) -> None:
    board = TensorBoardTracker(tmp_path)
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    for epoch in (1, 2):
        for number in range(300):
            board.log(Progress(f"run-{number}", "x", epoch, 2, epoch, {"train_loss": float(number)}))
        assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before
    assert curves(tmp_path / "run-299") == {"train_loss": [(1, 299.0), (2, 299.0)]}
    assert all(len(list(folder.iterdir())) == 1 for folder in tmp_path.iterdir())


def test_a_full_disk_is_one_line_and_the_watcher_lives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    board, steps = TensorBoardTracker(tmp_path / "disk" / "board"), 0

    def poll() -> None:
        nonlocal steps
        steps += 1
        board.log(Progress("run", "x", steps, 10**6, steps, {f"metric_{k}": 1.0 for k in range(20)}))

    def wait_until(more: int) -> None:
        deadline = time.monotonic() + 60
        while steps < more and time.monotonic() < deadline:
            time.sleep(0.01)
        assert steps >= more

    with small_disk(tmp_path / "disk", 64):
        with poll_in_background(poll, 0.001):
            wait_until(3)
            (tmp_path / "disk" / "filler").write_bytes(b"")
            with pytest.raises(OSError, match="No space"), open(tmp_path / "disk" / "filler", "wb", 0) as file:
                while file.write(b"x" * 4096):
                    pass
            full_at = steps
            wait_until(full_at + 200)
            (tmp_path / "disk" / "filler").unlink()
            free_at = steps
            wait_until(free_at + 5)
        found = [step for step, _ in curves(tmp_path / "disk" / "board" / "run")["metric_0"]]
    assert found == sorted(set(found)) and set(found) >= {1, 2, free_at + 3}
    assert not set(found) >= set(range(full_at + 150))  # what did not fit is missing, not damaged
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("miss curves; trainings go on without it: No space left on device")
