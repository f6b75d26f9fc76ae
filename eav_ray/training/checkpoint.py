"""Checkpoints: named tensors in safetensors and JSON beside them, no pickle, no world size.

A run's folder is `runs/<key>/<attempt>/e<epoch>-s<step>/`. What has no valid COMMIT does not exist. An attempt is named
`a<number>-<random>`: two processes that start at once on a store without locks do not share a name.
"""

import contextlib
import json
import re
import uuid
from dataclasses import asdict, dataclass
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from eav_ray.config import Experiment, build_experiment, to_dict
from eav_ray.data.splits import Split
from eav_ray.errors import ConfigError, DataError
from eav_ray.models.classifier import Classifier
from eav_ray.models.encoders.base import DataShapes
from eav_ray.storage import Store, list_package_versions, split_store_path
from eav_ray.training.run_spec import SELECTION_METRIC, Position

CHECKPOINT_NAME = re.compile(r"(a\d+(?:-[0-9a-f]+)?)/e(\d+)-s(\d+)$")


@dataclass(frozen=True)
class Checkpoint:
    """Everything that is needed to predict, and, unless it is finished, to go on training."""

    experiment: Experiment
    split: Split
    classes: tuple[str, ...]
    shapes: DataShapes
    weights: dict[str, Tensor]
    optimizer_state: dict[str, Tensor]  # empty once finished
    position: Position
    finished: bool
    metrics: dict[str, Any]
    encoder_keys: dict[str, str]  # keys of the encoder runs that a fusion was trained on
    data_digest: str = (
        ""  # digest of the content of the shards that it was trained on; empty in those of earlier versions
    )


def make_checkpoint_prefix(key: str, attempt: str, position: Position) -> str:
    return f"runs/{key}/{attempt}/e{position.epoch:04d}-s{position.step:06d}"


def write_checkpoint(store: Store, key: str, attempt: str, checkpoint: Checkpoint) -> str:
    """Write one checkpoint, COMMIT last; returns its prefix."""
    prefix = make_checkpoint_prefix(key, attempt, checkpoint.position)
    documents = {
        "experiment": to_dict(checkpoint.experiment),
        "split": asdict(checkpoint.split),
        "metrics": checkpoint.metrics,
        "versions": list_package_versions(),
        "state": {
            "key": key,
            "epoch": checkpoint.position.epoch,
            "step": checkpoint.position.step,
            "finished": checkpoint.finished,
            "classes": list(checkpoint.classes),
            "eeg_channels": checkpoint.shapes.eeg_channels,
            "encoders": checkpoint.encoder_keys,
            "data": checkpoint.data_digest,
        },
    }
    files = {f"{name}.json": json.dumps(tree, indent=1, sort_keys=True).encode() for name, tree in documents.items()}
    files["model.safetensors"] = safetensors.torch.save(checkpoint.weights)
    if checkpoint.optimizer_state:
        files["optimizer.safetensors"] = safetensors.torch.save(checkpoint.optimizer_state)
    store.commit(prefix, files)
    return prefix


def read_checkpoint(store: Store, prefix: str) -> Checkpoint:
    """Read a committed checkpoint, each file against its hash.

    Raises:
        DataError: Not committed, damaged, or not one of ours.
    """
    return parse_checkpoint(store.read_committed(prefix), name=f"{store}/{prefix}")


def parse_checkpoint(files: dict[str, bytes], *, name: str) -> Checkpoint:
    try:
        documents = {d: json.loads(files[f"{d}.json"]) for d in ("experiment", "split", "metrics", "state")}
        state, split = documents["state"], documents["split"]
        experiment = build_experiment(documents["experiment"], source=f"{name}/experiment.json")
        classes = tuple(map(str, state["classes"]))
        return Checkpoint(
            experiment=experiment,
            split=Split(split["protocol"], tuple(split["train"]), tuple(split["validation"]), tuple(split["test"])),
            classes=classes,
            shapes=DataShapes(int(state["eeg_channels"]), len(classes)),
            weights=safetensors.torch.load(files["model.safetensors"]),
            optimizer_state=safetensors.torch.load(files.get("optimizer.safetensors", EMPTY_SAFETENSORS)),
            position=Position(int(state["epoch"]), int(state["step"])),
            finished=bool(state["finished"]),
            metrics=dict(documents["metrics"]),
            encoder_keys={str(k): str(v) for k, v in state["encoders"].items()},
            data_digest=str(state.get("data", "")),
        )
    except (KeyError, TypeError, ValueError, AttributeError, SafetensorError, ConfigError) as error:
        raise DataError(f"{name} is not a checkpoint of this program: {error!r}") from None


def build_trained_model(checkpoint: Checkpoint) -> Classifier:
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


EMPTY_SAFETENSORS = safetensors.torch.save({})


def list_checkpoints(store: Store, key: str) -> list[tuple[str, Position, str]]:
    """(attempt, position, prefix) of a run's committed checkpoints, the newest first.

    The latest attempt comes before all others, however far they are: one that was given up, and writes on because
    it does not know, cannot win.
    """
    checkpoints = []
    for name in store.list_files(f"runs/{key}"):
        match = CHECKPOINT_NAME.search(name.removesuffix("/COMMIT"))
        if name.endswith("/COMMIT") and match:
            attempt, epoch, step = match.groups()
            checkpoints.append((attempt, Position(int(epoch), int(step)), name.removesuffix("/COMMIT")))
    return sorted(checkpoints, reverse=True)


def find_latest_checkpoint(store: Store, key: str) -> tuple[tuple[str, Checkpoint] | None, list[str]]:
    """The prefix and content of a run's newest whole checkpoint, and a line for each damaged one skipped."""
    damaged = []
    for _, _, prefix in list_checkpoints(store, key):
        try:
            return (prefix, read_checkpoint(store, prefix)), damaged
        except DataError as error:
            damaged.append(str(error))
    return None, damaged


def make_attempt_name(store: Store, key: str) -> str:
    """A name that sorts after those of all attempts that were made."""
    number = max((_parse_attempt_number(name) for name in _list_attempts(store, key)), default=-1) + 1
    return f"a{number:04d}-{uuid.uuid4().hex[:8]}"


def _list_attempts(store: Store, key: str) -> list[str]:
    return [name for name in store.list_folders(f"runs/{key}") if re.fullmatch(r"a\d+(-[0-9a-f]+)?", name)]


def _parse_attempt_number(attempt: str) -> int:
    return int(attempt[1:].split("-")[0])


def prune_checkpoints(store: Store, key: str, attempt: str, *, keep: int) -> None:
    """Delete what an attempt and those before it committed, but for the newest `keep`, and the best by validation.

    Of attempts before it that have nothing left, what they were writing when they died goes too.

    Args:
        attempt: Who asks. What later attempts committed is left alone.
    """
    own = [(position, prefix) for name, position, prefix in list_checkpoints(store, key) if name <= attempt]
    best = _find_best_prefix(store, [prefix for _, prefix in own])
    obsolete = {prefix for _, prefix in own[keep:] if prefix != best}
    for prefix in obsolete:
        store.delete(prefix)
    attempts_left = {prefix.split("/")[2] for _, prefix in own if prefix not in obsolete}
    for name in _list_attempts(store, key):
        if _parse_attempt_number(name) < _parse_attempt_number(attempt) and name not in attempts_left:
            store.delete(f"runs/{key}/{name}")


def _find_best_prefix(store: Store, prefixes: list[str]) -> str:
    """The one with the best validation score, the newest of equals; empty where none was validated."""
    scored = []
    for prefix in prefixes:
        try:
            score = store.read_json(f"{prefix}/metrics.json").get(SELECTION_METRIC)
        except (DataError, AttributeError):
            continue
        if isinstance(score, float) and score == score:
            scored.append((score, prefix))
    return max(scored, key=lambda s: s[0], default=(0.0, ""))[1]


def load_finished_checkpoint(path: str) -> Checkpoint:
    """A checkpoint by the path that `pull` or `train` printed: a folder, or `s3://.../runs/<key>/a0000/e0010-s000000`.

    Raises:
        DataError: There is none, it is not finished, or a file is damaged.
    """
    store, name = split_store_path(path)
    checkpoint = read_checkpoint(store, name)
    if not checkpoint.finished:
        raise DataError(f"{path} is from the middle of a training; the command that trained it continues it")
    return checkpoint


def find_finished_prefix(results: Store, key: str) -> str:
    """The prefix of a run's finished checkpoint, empty where there is none. Reads no weights."""
    for _, _, prefix in list_checkpoints(results, key):
        with contextlib.suppress(DataError):  # a damaged one is skipped, as in training
            if results.read_json(f"{prefix}/state.json")["finished"]:
                return prefix
    return ""
