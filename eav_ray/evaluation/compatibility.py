"""Check that a checkpoint and a data set fit each other."""

from collections.abc import Sequence
from dataclasses import asdict

from eav_ray.config import Experiment
from eav_ray.config.digests import flatten_sections
from eav_ray.data.shards.index import ShardIndex
from eav_ray.errors import ConfigError, DataError
from eav_ray.training.checkpoint import OpenedCheckpoint


def check_windows(experiment: Experiment, checkpoint: OpenedCheckpoint, index: ShardIndex) -> None:
    """A checkpoint is worth what it is worth on windows that were made as its training windows were."""
    check_preprocessing(experiment, checkpoint)
    if index.classes != checkpoint.state.classes:
        raise DataError(
            f"{checkpoint.path} was trained on the classes {', '.join(checkpoint.state.classes)}, but these shards "
            f"hold {', '.join(index.classes)}; evaluate it on a data set with the same classes"
        )


def check_preprocessing(
    experiment: Experiment, checkpoint: OpenedCheckpoint, modalities: Sequence[str] | None = None
) -> None:
    """
    Args:
        modalities: Those whose preprocessing must agree; all of the checkpoint's, where none are given.
    """
    sections = ("window_s", *(checkpoint.experiment.data.modalities if modalities is None else modalities))
    wanted, trained = (
        flatten_sections({k: v for k, v in asdict(e.preprocessing).items() if k in sections})
        for e in (experiment, checkpoint.experiment)
    )
    differences = [
        f"preprocessing.{k}={trained[k]} there, {wanted[k]} here" for k in trained if wanted.get(k) != trained[k]
    ]
    if differences:
        raise ConfigError(
            f"{checkpoint.path} was trained with other preprocessing ({'; '.join(differences)}); give the same settings"
        )


def check_channels(experiment: Experiment, checkpoint: OpenedCheckpoint, n_chans: int) -> None:
    if n_chans != checkpoint.state.shapes.eeg_channels:
        raise DataError(
            f"{experiment.data.root} has {n_chans} EEG channels, but {checkpoint.path} was trained on "
            f"{checkpoint.state.shapes.eeg_channels}; use recordings of the same montage"
        )
