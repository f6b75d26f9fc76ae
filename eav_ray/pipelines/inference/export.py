"""Write a checkpoint as a folder to publish: what the Hugging Face hub expects, and what opens without Ray.

It is a checkpoint, of the same files as one that was pulled, so that all that takes a checkpoint opens it. Paths of
this machine are not in it. Beside these files lie a description for other programs and a model card.
"""

import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eav_ray.config import order_modalities, to_dict
from eav_ray.config.paths import remove_local_paths
from eav_ray.data.modalities.registry import get_modality
from eav_ray.errors import ConfigError, DataError
from eav_ray.evaluation.expected_result import format_expected_result, get_expected_result
from eav_ray.evaluation.results_tree import ResultsTree
from eav_ray.pipelines.inference.export_onnx import export_graphs
from eav_ray.reporting.hub_card import render_hub_card
from eav_ray.reporting.results_page import RESULTS_FORMAT
from eav_ray.storage import Store, encode_documents, io_errors
from eav_ray.storage.files import make_partial_path
from eav_ray.storage.published_weights import describe_starting_weights, list_starting_weights
from eav_ray.training.checkpoint import OpenedCheckpoint
from eav_ray.training.checkpoint_files import (
    EXPERIMENT,
    METRICS,
    SPLIT,
    STARTING_WEIGHTS,
    STATE,
    VERSIONS,
    WEIGHTS,
    Checkpoint,
    parse_checkpoint,
)
from eav_ray.words import format_count

CONFIG_FORMAT = 1  # of `config.json` and `preprocessing.json`
CARD = "README.md"
CHECKPOINT_FILES = (STATE, EXPERIMENT, SPLIT, METRICS, VERSIONS, WEIGHTS)


@dataclass(frozen=True)
class ExportedModel:
    path: str
    lines: list[str]  # what whoever publishes it should know


def export_checkpoint(checkpoint: OpenedCheckpoint, to: str, *, results: str = "", onnx: bool = False) -> ExportedModel:
    """Write a checkpoint as a new folder.

    Args:
        to: The folder, which appears when it is complete.
        results: The results store, which may hold what `eav evaluate` found of it.
        onnx: Write the networks as ONNX files, too.
    Raises:
        ConfigError: The folder exists and is not empty, or a network cannot be written as ONNX.
        DataError: A file of the checkpoint is missing or damaged, or there is no place to write to.
    """
    target = Path(to).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target} exists and is not empty; give another folder with --to")
    files = {name: data for name, data in checkpoint.read_files().items() if name in CHECKPOINT_FILES}
    loaded = parse_checkpoint(files, checkpoint.path)
    published = remove_local_paths(loaded.experiment)
    files |= encode_documents({Path(EXPERIMENT).stem: to_dict(published)})
    description = describe_model(loaded, checkpoint.commit_sha256, has_onnx=onnx)
    preprocessing = {"format": CONFIG_FORMAT, "preprocessing": to_dict(published)["preprocessing"]}
    files |= encode_documents({"config": description, "preprocessing": preprocessing})
    files |= export_graphs(loaded, description) if onnx else {}
    starting_weights = loaded.metrics.get(STARTING_WEIGHTS) or describe_starting_weights(loaded.experiment)
    trained_on = _count_training_recordings(loaded)
    tested = _read_results(Store(results), loaded.state.key) if results else None
    expected = get_expected_result(checkpoint)
    expected_line = format_expected_result(expected or {})
    card = render_hub_card(description, trained_on, starting_weights, expected, expected_line, tested)
    _write_folder(target, files, card)
    lines = [
        f"split.json names the {trained_on} that trained it; read it before you publish the folder",
        *list_starting_weights(starting_weights),
    ]
    return ExportedModel(str(target), lines)


def describe_model(checkpoint: Checkpoint, commit_sha256: str, *, has_onnx: bool) -> dict[str, Any]:
    """Describe a model for programs that know nothing of this one: what it reads, what it is made of, what it gives.

    Args:
        commit_sha256: The identity of the checkpoint.
    """
    e, state = checkpoint.experiment, checkpoint.state
    tree = to_dict(e)
    modalities = {}
    for m in order_modalities(e.data.modalities):
        modality, given = get_modality(m), e.preprocessing.features.get(m)
        names = (
            list(state.shapes.eeg_channel_names)
            if m == "eeg"
            else list(given.signals or given.columns if given else [])
        )
        modalities[m] = {
            "shape": list(modality.compute_shape(e.preprocessing, state.shapes.eeg_channels)),
            "dtype": modality.dtype.__name__,
            **asdict(modality.describe_window(e.preprocessing)),
            "channels": names,
            "encoder": _leave_out_paths(tree["model"][m]),
        }
    scale = state.scale
    targets = (
        [{"name": n, "mean": mean, "sd": sd} for n, mean, sd in zip(scale.names, scale.mean, scale.sd, strict=True)]
        if scale
        else []
    )
    return {
        "format": CONFIG_FORMAT,
        "library_name": "eav-ray",
        "model_type": "eav-ray",
        "name": e.name,
        "dataset": e.data.dataset,
        "window_s": e.preprocessing.window_s,
        "modalities": modalities,
        "classes": [] if scale else list(state.classes),
        "targets": targets,  # a number is what the model gives times `sd` plus `mean`, in the unit of its table
        "fusion": tree["fusion"] if len(modalities) > 1 else None,
        "access": e.split.access,
        "normalised": e.list_normalised_modalities(),
        "checkpoint": {"key": state.key, "sha256": commit_sha256},
        "onnx": has_onnx,
    }


def _leave_out_paths(section: dict[str, Any]) -> dict[str, Any]:
    return section | ({"weights": Path(section["weights"]).name} if section.get("weights") else {})


def _count_training_recordings(checkpoint: Checkpoint) -> str:
    recordings = checkpoint.split.train
    subjects = {recording.split("/")[0] for recording in recordings}
    return f"{format_count(len(recordings), 'recording')} of {format_count(len(subjects), 'subject')}"


def _read_results(results: Store, key: str) -> ResultsTree | None:
    """Read what `eav evaluate` found of a checkpoint; None where it was not tested."""
    name = f"results_pages/{key}/results.json"
    if not results.exists(name):
        return None
    tree = results.read_json(name)
    if not isinstance(tree, dict) or tree.get("format") != RESULTS_FORMAT:
        raise DataError(f"{results.format_path(name)} is of another version; run `eav evaluate` again")
    return tree


def _write_folder(target: Path, files: dict[str, bytes], card: str) -> None:
    """Write everything beside the folder, whose name it gets when it is complete; people may change the card then."""
    partial = make_partial_path(target)
    try:
        Store(partial.parent).commit(partial.name, files)
        with io_errors(f"write {target}"):
            (partial / CARD).write_text(card, encoding="utf-8")
            os.replace(partial, target)  # in place of an empty folder at most
    finally:
        shutil.rmtree(partial, ignore_errors=True)
