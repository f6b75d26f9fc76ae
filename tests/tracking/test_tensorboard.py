"""What TensorBoard is given is what the trainings told."""

import struct
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event

from eav_ray.tracking.tensorboard import TensorBoardTracker
from eav_ray.training.run_spec import Progress


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
    board.close()
    assert {p.name for p in (tmp_path / "board").iterdir()} == {"encoder-a", "fusion-b"}
    found = curves(tmp_path / "board" / "encoder-a")
    assert found["train_loss"] == [(5, 4.0), (10, 2.0), (20, 1.0)]
    assert [v for _, v in curves(tmp_path / "board" / "fusion-b")["train_loss"]] == pytest.approx([2.0, 1.0, 0.5])
    assert {v for _, v in found["windows_per_s"]} == {7.0}
