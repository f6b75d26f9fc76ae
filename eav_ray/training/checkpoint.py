"""Checkpoints: named tensors in safetensors and JSON beside them, no pickle, no world size.

A run's folder is `runs/<key>/a<attempt>/e<epoch>-s<step>/`. What has no valid COMMIT does not exist.
"""

import json
import re
from dataclasses import asdict, dataclass
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from eav_ray.config import Experiment, build, to_dict
from eav_ray.data.split import Split
from eav_ray.errors import ConfigError, DataError
from eav_ray.models.build import Classifier, Shapes
from eav_ray.storage import Store, versions
from eav_ray.training.loop import Position

NAME = re.compile(r"a(\d+)/e(\d+)-s(\d+)$")


@dataclass(frozen=True)
class Checkpoint:
    """Everything that is needed to predict, and, unless it is finished, to go on training."""

    experiment: Experiment
    split: Split
    classes: tuple[str, ...]
    shapes: Shapes
    weights: dict[str, Tensor]
    moments: dict[str, Tensor]  # empty once finished
    position: Position
    finished: bool
    metrics: dict[str, Any]
    encoders: dict[str, str]  # keys of the encoder runs that a fusion was trained on


def prefix_of(key: str, attempt: int, position: Position) -> str:
    return f"runs/{key}/a{attempt:04d}/e{position.epoch:04d}-s{position.step:06d}"


def save(store: Store, key: str, attempt: int, checkpoint: Checkpoint) -> str:
    """Write one checkpoint, COMMIT last; returns its prefix."""
    prefix = prefix_of(key, attempt, checkpoint.position)
    documents = {
        "experiment": to_dict(checkpoint.experiment),
        "split": asdict(checkpoint.split),
        "metrics": checkpoint.metrics,
        "versions": versions(),
        "state": {
            "key": key,
            "epoch": checkpoint.position.epoch,
            "step": checkpoint.position.step,
            "finished": checkpoint.finished,
            "classes": list(checkpoint.classes),
            "eeg_channels": checkpoint.shapes.eeg_channels,
            "encoders": checkpoint.encoders,
        },
    }
    files = {f"{name}.json": json.dumps(tree, indent=1, sort_keys=True).encode() for name, tree in documents.items()}
    files["model.safetensors"] = safetensors.torch.save(checkpoint.weights)
    if checkpoint.moments:
        files["optimizer.safetensors"] = safetensors.torch.save(checkpoint.moments)
    store.commit(prefix, files)
    return prefix


# Keys that checkpoints of earlier versions do not have, with what the program did then: their defaults are others.
LATER: dict[str, dict[str, Any]] = {"fusion": {"skip": False, "weight_loss": 0.0}}


def load(store: Store, prefix: str) -> Checkpoint:
    """Read a committed checkpoint, each file against its hash.

    Raises:
        DataError: Not committed, damaged, or not one of ours.
    """
    return from_files(store.read_committed(prefix), name=f"{store}/{prefix}")


def from_files(files: dict[str, bytes], *, name: str) -> Checkpoint:
    try:
        documents = {d: json.loads(files[f"{d}.json"]) for d in ("experiment", "split", "metrics", "state")}
        state, split = documents["state"], documents["split"]
        for section, before in LATER.items():
            documents["experiment"][section] = before | documents["experiment"][section]
        experiment = build(documents["experiment"], source=f"{name}/experiment.json")
        classes = tuple(map(str, state["classes"]))
        return Checkpoint(
            experiment=experiment,
            split=Split(split["protocol"], tuple(split["train"]), tuple(split["validation"]), tuple(split["test"])),
            classes=classes,
            shapes=Shapes(int(state["eeg_channels"]), len(classes)),
            weights=safetensors.torch.load(files["model.safetensors"]),
            moments=safetensors.torch.load(files.get("optimizer.safetensors", EMPTY)),
            position=Position(int(state["epoch"]), int(state["step"])),
            finished=bool(state["finished"]),
            metrics=dict(documents["metrics"]),
            encoders={str(k): str(v) for k, v in state["encoders"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError, SafetensorError, ConfigError) as error:
        raise DataError(f"{name} is not a checkpoint of this program: {error!r}") from None


def load_model(checkpoint: Checkpoint) -> Classifier:
    """The whole model, on the CPU, in training mode.

    Raises:
        DataError: The tensors are not those of the experiment beside them.
    """
    model = Classifier(checkpoint.experiment, checkpoint.shapes)
    try:
        model.load_state_dict(checkpoint.weights)
    except RuntimeError as error:
        raise DataError(f"the weights do not fit the experiment beside them: {str(error).splitlines()[-1]}") from None
    return model


EMPTY = safetensors.torch.save({})


def committed(store: Store, key: str) -> list[tuple[Position, int, str]]:
    """(position, attempt, prefix) of a run's committed checkpoints, the furthest first."""
    found = []
    for name in store.names(f"runs/{key}"):
        match = NAME.search(name.removesuffix("/COMMIT"))
        if name.endswith("/COMMIT") and match:
            attempt, epoch, step = map(int, match.groups())
            found.append((Position(epoch, step), attempt, name.removesuffix("/COMMIT")))
    return sorted(found, reverse=True)


def latest(store: Store, key: str) -> tuple[tuple[str, Checkpoint] | None, list[str]]:
    """The prefix and content of a run's furthest whole checkpoint, and a line for each damaged one passed over."""
    damaged = []
    for _, _, prefix in committed(store, key):
        try:
            return (prefix, load(store, prefix)), damaged
        except DataError as error:
            damaged.append(str(error))
    return None, damaged


def is_finished(store: Store, key: str) -> bool:
    found, _ = latest(store, key)
    return found is not None and found[1].finished


def next_attempt(store: Store, key: str) -> int:
    attempts = [int(name[1:]) for name in store.folders(f"runs/{key}") if re.fullmatch(r"a\d+", name)]
    return max(attempts, default=-1) + 1


def prune(store: Store, key: str, *, keep: str) -> None:
    """Delete a run's other checkpoints, once `keep` is committed."""
    for _, _, prefix in committed(store, key):
        if prefix != keep:
            store.delete(prefix)
