"""Training curves for TensorBoard: `tensorboard --logdir <results>/tensorboard`."""

from pathlib import Path

from tensorboardX import SummaryWriter

from eav_ray.training.run_spec import Progress


class TensorBoardTracker:
    """One event file for each training, below a local folder, which appears with the first."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writers: dict[str, SummaryWriter] = {}

    def log(self, progress: Progress) -> None:
        if progress.key not in self._writers:
            self._writers[progress.key] = SummaryWriter(str(self._folder / progress.key), flush_secs=10)
        writer = self._writers[progress.key]
        for name, value in progress.metrics.items():
            writer.add_scalar(name, value, progress.step, walltime=progress.timestamp)

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()
