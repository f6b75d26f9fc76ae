"""The files of a checkpoint: named tensors in safetensors and JSON beside them, no pickle, no world size."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from eav_ray.config import Experiment, build_experiment, to_dict
from eav_ray.data.splits import Split
from eav_ray.errors import ConfigError, DataError
from eav_ray.models.encoders.base import DataShapes
from eav_ray.storage import check_format, encode_documents, list_package_versions
from eav_ray.training.run_spec import Position
from eav_ray.training.target_scale import TargetScale

CHECKPOINT_FORMAT = 1  # of `state.json`; raise when any file of a checkpoint changes its form
STATE, EXPERIMENT, SPLIT, METRICS = "state.json", "experiment.json", "split.json", "metrics.json"
VERSIONS = "versions.json"
WEIGHTS, OPTIMIZER_STATE = "model.safetensors", "optimizer.safetensors"
STARTING_WEIGHTS = "starting_weights"  # in metrics.json: published weights by modality, with their licences

Content = TypeVar("Content")


@dataclass(frozen=True)
class CheckpointState:
    """What a checkpoint says of itself in a few words: whose it is, how far it is, what it reads and tells apart."""

    key: str  # of its run
    position: Position  # the next step to take
    finished: bool
    classes: tuple[str, ...]
    shapes: DataShapes
    data_digest: str  # of the content of the shards that it was trained on
    encoder_keys: dict[str, str] = field(default_factory=dict)  # of the encoder runs that a fusion was trained on
    scale: TargetScale | None = None  # of the numbers that are predicted in place of classes


@dataclass(frozen=True)
class Checkpoint:
    """Everything that is needed to predict, and, unless it is finished, to go on training; in memory."""

    state: CheckpointState
    experiment: Experiment
    split: Split
    metrics: dict[str, Any]
    weights: dict[str, Tensor]
    optimizer_state: dict[str, Tensor]  # empty once finished


def encode_checkpoint(checkpoint: Checkpoint) -> dict[str, bytes]:
    """Make the files of a checkpoint: content by name."""
    state = checkpoint.state
    documents = {
        "experiment": to_dict(checkpoint.experiment),
        "split": asdict(checkpoint.split),
        "metrics": checkpoint.metrics,
        "versions": list_package_versions(),
        "state": {
            "format": CHECKPOINT_FORMAT,
            "key": state.key,
            "epoch": state.position.epoch,
            "step": state.position.step,
            "finished": state.finished,
            "classes": list(state.classes),
            "eeg_channels": state.shapes.eeg_channels,
            "eeg_channel_names": list(state.shapes.eeg_channel_names),
            "data_digest": state.data_digest,
            "encoder_keys": state.encoder_keys,
            **({"targets": asdict(state.scale)} if state.scale else {}),
        },
    }
    files = encode_documents(documents)
    files[WEIGHTS] = safetensors.torch.save(checkpoint.weights)
    if checkpoint.optimizer_state:
        files[OPTIMIZER_STATE] = safetensors.torch.save(checkpoint.optimizer_state)
    return files


def parse_checkpoint(files: dict[str, bytes], name: str) -> Checkpoint:
    """Read a checkpoint from the content of its files.

    Args:
        name: Where they lie, for errors.
    Raises:
        DataError: A file is missing, is not one of ours, or is of another format.
    """
    return Checkpoint(
        parse_state(get_file(files, STATE, name), name),
        parse_experiment(get_file(files, EXPERIMENT, name), name),
        parse_split(get_file(files, SPLIT, name), name),
        parse_metrics(get_file(files, METRICS, name), name),
        parse_tensors(get_file(files, WEIGHTS, name), name),
        parse_tensors(files[OPTIMIZER_STATE], name) if OPTIMIZER_STATE in files else {},
    )


def get_file(files: dict[str, Content], file: str, name: str) -> Content:
    """Look up a file that every checkpoint has.

    Raises:
        DataError: There is none.
    """
    if file not in files:
        raise DataError(f"{name} is not a checkpoint of this program: it has no {file}")
    return files[file]


def parse_state(data: bytes, name: str) -> CheckpointState:
    def build() -> CheckpointState:
        tree = json.loads(data)
        number, classes = tree.get("format"), tuple(map(str, tree["classes"]))
        scale = _parse_scale(tree["targets"]) if "targets" in tree else None
        n_outputs = len(scale.names) if scale else len(classes)
        check_format(number, CHECKPOINT_FORMAT, f"{name}/{STATE}", "train it again, or use the version that wrote it")
        return CheckpointState(
            key=str(tree["key"]),
            position=Position(int(tree["epoch"]), int(tree["step"])),
            finished=bool(tree["finished"]),
            classes=classes,
            shapes=DataShapes(int(tree["eeg_channels"]), n_outputs, tuple(map(str, tree["eeg_channel_names"]))),
            data_digest=str(tree["data_digest"]),
            encoder_keys={str(m): str(key) for m, key in tree["encoder_keys"].items()},
            scale=scale,
        )

    return _parse(build, name)


def _parse_scale(tree: dict[str, Any]) -> TargetScale:
    scale = TargetScale(tuple(map(str, tree["names"])), tuple(map(float, tree["mean"])), tuple(map(float, tree["sd"])))
    is_scale = len(scale.names) == len(scale.mean) == len(scale.sd) and all(0 < sd < math.inf for sd in scale.sd)
    if not scale.names or not is_scale or not all(map(math.isfinite, scale.mean)):
        raise ValueError
    return scale


def parse_experiment(data: bytes, name: str) -> Experiment:
    return _parse(lambda: build_experiment(json.loads(data), source=f"{name}/{EXPERIMENT}"), name)


def parse_split(data: bytes, name: str) -> Split:
    def build() -> Split:
        tree = json.loads(data)
        sides = (tuple(tree[side]) for side in ("train", "validation", "test"))
        return Split(tree["protocol"], *sides, unequal_classes=bool(tree.get("unequal_classes", False)))

    return _parse(build, name)


def parse_metrics(data: bytes, name: str) -> dict[str, Any]:
    return _parse(lambda: dict(json.loads(data)), name)


def parse_tensors(data: bytes, name: str) -> dict[str, Tensor]:
    return _parse(lambda: safetensors.torch.load(data), name)


def _parse(build: Callable[[], Content], name: str) -> Content:
    """Whoever wrote the files: what cannot be read is a DataError, and nothing in them is executed."""
    try:
        return build()
    except DataError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, SafetensorError, ConfigError) as error:
        raise DataError(f"{name} is not a checkpoint of this program: {error!r}") from None
