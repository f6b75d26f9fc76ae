"""What a trained model is in a few words, and in what settings models that are alike otherwise differ."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from eav_ray.config import Experiment, to_dict
from eav_ray.config.digests import flatten_sections
from eav_ray.config.keys import format_value
from eav_ray.data.splits import ALL_SUBJECTS, Split, find_inner_fold
from eav_ray.pipelines.inference.checkpoint_names import shorten_key
from eav_ray.training.checkpoint import OpenedCheckpoint
from eav_ray.training.checkpoint_files import CheckpointState
from eav_ray.words import format_count, make_plural

ADAPTED = "adapted"  # the protocol of a model that was trained on for one subject
LONGEST_NAMES = 24  # letters of the classes or numbers that are listed by name
LONGEST_VALUE = 32  # letters of the value of a key
MAX_DIFFERENCES = 3  # keys that are listed for one model
SEARCH_SETTINGS = tuple(
    f"search.{key}" for key in ("candidates", "mode", "sampler", "space.", "cost", "prune", "rungs")
)


def describe_predicted(state: CheckpointState) -> str:
    """Say what a model predicts: the names of its classes or numbers, or how many there are of them."""
    names, noun = (state.scale.names, "number") if state.scale else (state.classes, "class")
    listed = ", ".join(names)
    if len(listed) > LONGEST_NAMES:
        return format_count(len(names), noun)
    return f"{noun if len(names) == 1 else make_plural(noun)} {listed}"


def describe_split(split: Split, experiment: Experiment) -> str:
    """Say what a model was trained on: `loso 3`, `loso 3, inner 0`, `all subjects`, `adapted to s7`."""
    if split.protocol == ALL_SUBJECTS:
        return "all subjects"
    if split.protocol == ADAPTED:
        return f"adapted to {', '.join(_list_subjects(split.train))}"
    inner = find_inner_fold(split, experiment.split)
    return f"{split.protocol} {experiment.split.index}{'' if inner is None else f', inner {inner}'}"


def list_settings(experiment: Experiment, split: Split, *, is_search: bool = False) -> dict[str, Any]:
    """List the settings on which the weights of a model depend, by their keys, or those of a search that found it.

    What a list of models says already is left out: modalities, what is predicted, the fold, the epochs.
    """
    modalities = sorted(experiment.data.modalities)
    flat = flatten_sections(to_dict(experiment))
    starts = ["seed", "data.", "split.", "runtime.precision", "preprocessing.window_s"]
    for m in modalities:
        starts += [f"preprocessing.{m}.", f"preprocessing.features.{m}.", f"model.{m}.", f"train.encoders.{m}."]
    own_optim = f"train.encoders.{modalities[0]}"
    if len(modalities) > 1:
        own_optim = "optim"
        starts += ["fusion.", "optim.", "train.mode"]
        if experiment.train.mode == "staged_then_joint":
            own_optim = "train.joint"
    if split.protocol == ADAPTED:
        own_optim = "train.adaptation"
    starts += [f"{own_optim}.", *(SEARCH_SETTINGS if is_search else ())]
    said = ["data.root", "data.modalities", "data.targets.", "data.features.", "split.protocol", "split.index"]
    said += [f"{own_optim}.epochs", *(() if is_search else ("split.n_inner_folds",))]
    return {k: v for k, v in flat.items() if k.startswith(tuple(starts)) and not k.startswith(tuple(said))}


def list_data_facts(checkpoint: OpenedCheckpoint) -> dict[str, Any]:
    """List what models may differ in whose settings are equal: the recordings, and what else they were built on."""
    state, split = checkpoint.state, checkpoint.split
    return {
        "classes": list(state.classes),
        "recordings": len(split.train),
        "people": len(_list_subjects(split.train)),
        "data.root": checkpoint.experiment.data.root,
        "shards": state.data_digest[:8],
        "encoders": [shorten_key(key) for _, key in sorted(state.encoder_keys.items())],
    }


def _list_subjects(recordings: Iterable[str]) -> list[str]:
    return sorted({recording.split("/")[0] for recording in recordings})


def list_differences(models: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """List for each model what it has of the keys that are not the same in all of them.

    Where kinds differ, as those of an encoder, the other keys of their sections are no differences of their own.
    """
    keys = list(dict.fromkeys(key for model in models for key in model))
    differing = [key for key in keys if len({repr(model.get(key)) for model in models}) > 1]
    other_kinds = tuple(key.removesuffix("kind") for key in differing if key.endswith(".kind"))
    shown = [key for key in differing if key.endswith(".kind") or not key.startswith(other_kinds)]
    return [{key: model[key] for key in shown if key in model} for model in models]


def format_differences(differences: Mapping[str, Any]) -> str:
    """Format keys and values as they are given on a command line, the first few of them."""
    texts = [f"{key}={_shorten(format_value(value))}" for key, value in differences.items()]
    if len(texts) > MAX_DIFFERENCES:
        texts = [*texts[:MAX_DIFFERENCES], f"and {format_count(len(texts) - MAX_DIFFERENCES, 'more key')}"]
    return " ".join(texts)


def _shorten(text: str) -> str:
    return text if len(text) <= LONGEST_VALUE else f"...{text[-LONGEST_VALUE:]}"
