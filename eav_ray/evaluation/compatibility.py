"""Check that a checkpoint and a data set fit each other."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from eav_ray.config import Experiment
from eav_ray.config.digests import flatten_sections
from eav_ray.data.datasets import registry
from eav_ray.data.shards.index import ShardIndex
from eav_ray.electrodes import describe_left_out, match_channels
from eav_ray.errors import ConfigError, DataError
from eav_ray.training.checkpoint import OpenedCheckpoint
from eav_ray.words import format_count


def check_windows(experiment: Experiment, checkpoint: OpenedCheckpoint, index: ShardIndex) -> None:
    """A checkpoint is worth what it is worth on windows that were made as its training windows were."""
    check_preprocessing(experiment, checkpoint)
    targets = _list_targets(checkpoint)
    if index.targets != targets:
        raise _make_outputs_error(checkpoint, index)
    if index.classes != checkpoint.state.classes:
        raise DataError(
            f"{checkpoint.path} was trained on the classes {', '.join(checkpoint.state.classes)}, but these shards "
            f"hold {', '.join(index.classes)}; evaluate it on a data set with the same classes"
        )


def check_kind_of_outputs(checkpoint: OpenedCheckpoint, index: ShardIndex) -> None:
    """Refuse a checkpoint of numbers for a data set with classes, and the other way round."""
    if bool(index.targets) != bool(_list_targets(checkpoint)):
        raise _make_outputs_error(checkpoint, index)


def _list_targets(checkpoint: OpenedCheckpoint) -> tuple[str, ...]:
    scale = checkpoint.state.scale
    return scale.names if scale else ()


def _make_outputs_error(checkpoint: OpenedCheckpoint, index: ShardIndex) -> DataError:
    predicted = describe_outputs(checkpoint.state.classes, _list_targets(checkpoint))
    return DataError(
        f"{checkpoint.path} predicts {predicted}, but this experiment and its shards are of "
        f"{describe_outputs(index.classes, index.targets)}; give the same data.targets"
    )


def describe_outputs(classes: Sequence[str], targets: Sequence[str]) -> str:
    """Say what a model predicts, or shards hold, in a few words."""
    return f"numbers ({', '.join(targets)})" if targets else f"classes ({', '.join(classes)})"


def check_preprocessing(
    experiment: Experiment, checkpoint: OpenedCheckpoint, modalities: Sequence[str] | None = None
) -> None:
    """
    Args:
        modalities: Those whose preprocessing must agree; all of the checkpoint's, where none are given.
    """
    sections = ("window_s", *(checkpoint.experiment.data.modalities if modalities is None else modalities))
    wanted, trained = (
        flatten_sections({k: v for k, v in _list_preprocessing(e).items() if k in sections})
        for e in (experiment, checkpoint.experiment)
    )
    differences = [
        f"preprocessing.{k}={trained[k]} there, {wanted[k]} here" for k in trained if wanted.get(k) != trained[k]
    ]
    if differences:
        raise ConfigError(
            f"{checkpoint.path} was trained with other preprocessing ({'; '.join(differences)}); give the same settings"
        )


def _list_preprocessing(experiment: Experiment) -> dict[str, Any]:
    """List the preprocessing of each modality, that of given features under its name too."""
    tree = asdict(experiment.preprocessing)
    return tree | tree.pop("features")


def match_dataset_channels(
    experiment: Experiment, checkpoint: OpenedCheckpoint, channels: tuple[str, ...], n_channels: int = 0
) -> tuple[list[int], str]:
    """Find the EEG channels that a checkpoint was trained on among those of a data set, by position.

    Args:
        channels: Names of the data set's channels, in order.
        n_channels: How many there are, for shards that name none: then only the number can be compared.
    Returns:
        The index in `channels` of each channel of the checkpoint, and a line on what is left out, empty where that is
        nothing.
    Raises:
        DataError: One is missing.
    """
    root, wanted = experiment.data.root, checkpoint.state.shapes.eeg_channel_names
    if not channels or not wanted:
        n_channels, n_wanted = len(channels) or n_channels, checkpoint.state.shapes.eeg_channels
        if n_channels != n_wanted:
            raise DataError(
                f"{root} has {n_channels} EEG channels, but {checkpoint.path} was trained on {n_wanted}; use "
                "recordings of the same electrodes"
            )
        return list(range(n_channels)), f"{root}: that EEG channels are those of {checkpoint.path} is not known"
    try:
        order = match_channels(channels, wanted, root)
    except DataError as error:
        raise DataError(f"{checkpoint.path} wants other electrodes: {error}") from None
    left_out = describe_left_out(channels, wanted)
    return order, f"{root}: EEG channels {left_out} are left out, as {checkpoint.path} knows none" if left_out else ""


def names_training_dataset(checkpoint: OpenedCheckpoint, experiment: Experiment) -> bool:
    """Tell whether the data set is the checkpoint's own, as far as its names say.

    A reader names the same people wherever the files lie; two sets of a user need not.
    """
    data, training_data = experiment.data, checkpoint.experiment.data
    return data.dataset == training_data.dataset and (
        data.dataset not in registry.GENERIC_DATASETS
        or os.path.abspath(data.root) == os.path.abspath(training_data.root)
    )


def describe_training_recordings(
    experiment: Experiment, checkpoint: OpenedCheckpoint, recordings: Iterable[str]
) -> str:
    """Say how many recordings a checkpoint was trained on, in a line; empty where it was on none.

    Args:
        experiment: Names the data set of the recordings.
        recordings: Their ids, "subject/recording".
    """
    ids = set(recordings)
    trained = ids & {*checkpoint.split.train, *checkpoint.split.validation}
    if not trained or not names_training_dataset(checkpoint, experiment):
        return ""
    return (
        f"{len(trained)} of {format_count(len(ids), 'recording')} are among those that {checkpoint.path} was trained "
        "on: what it says of them does not show what it is worth"
    )
