"""Training curves for TensorBoard: `tensorboard --logdir <results>/tensorboard`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from eav_ray.config.extras import is_installed
from eav_ray.training.run_spec import Progress

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter


class TensorBoardTracker:
    """One event file for each training, below a local folder, which appears with the first."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writers: dict[str, SummaryWriter] = {}

    def log(self, progress: Progress) -> None:
        from tensorboardX import SummaryWriter

        if progress.key not in self._writers:
            self._writers[progress.key] = SummaryWriter(str(self._folder / progress.key), flush_secs=10)
        writer = self._writers[progress.key]
        for name, value in progress.metrics.items():
            writer.add_scalar(name, value, progress.step, walltime=progress.timestamp)

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


def open_tensorboard_tracker(folder: Path) -> TensorBoardTracker | None:
    """Open a tracker where the optional package is installed; a line on stderr where it is not."""
    if is_installed("tensorboardX"):
        return TensorBoardTracker(folder)
    tqdm.write(
        "no curves for TensorBoard, which need tensorboardX; type `pip install -c constraints.txt -e '.[tensorboard]'`",
        file=sys.stderr,
    )
    return None
