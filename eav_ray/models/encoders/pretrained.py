"""Published weights for our encoders: from safetensors only, renamed where two libraries name the same thing twice.

A file of weights holds tensors and nothing that could run. Every tensor of the encoder must be found, in its shape.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from eav_ray.config.published import SETTINGS_FILES, read_published_settings
from eav_ray.errors import ConfigError
from eav_ray.storage.published_weights import check_weights_files

HEAD_PREFIXES = ("head.", "head_dist.", "fc_norm.", "pooler.", "classifier.")  # of published classifiers: not taken
# Both libraries' older name of a module, and the one of transformers 5.
RENAMING_RULES = (
    (r"^(audio_spectrogram_transformer|vit)\.", ""),
    (r"^encoder\.layer\.", "layers."),
    (r"\.attention\.attention\.(query|key|value)\.", lambda m: f".attention.{m[1][0]}_proj."),
    (r"\.attention\.output\.dense\.", ".attention.o_proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"(layers\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
)


def read_weights(weights: str, key: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by name, and what `config.json` and `preprocessor_config.json` beside them say."""
    path = Path(weights).expanduser()
    if not path.exists():
        raise ConfigError(f"{key} is {weights}, which is not on this node; put its folder where all nodes see it")
    folder = path if path.is_dir() else path.parent
    files = [path] if path.is_file() else sorted(folder.glob("*.safetensors"))
    if folder / "model.safetensors" in files:  # others beside it are the same in half precision, or an adapter
        files = [folder / "model.safetensors"]
    if not files or any(f.suffix != ".safetensors" for f in files):
        raise ConfigError(
            f"{key} is {weights}, where there is no .safetensors file; other formats can run code when they are "
            "opened. transformers' save_pretrained and timm's save_for_hf write safetensors"
        )
    where = f"{key} is {weights}"
    state: dict[str, Tensor] = {}
    try:
        check_weights_files(folder, [*files, *(folder / n for n in SETTINGS_FILES if (folder / n).is_file())])
        for file in files:
            state |= load_file(file)
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigError(f"{where}, which cannot be read: {' '.join(str(error).split())}") from None
    return state, read_published_settings(folder, where)


def rename_tensors(state: dict[str, Tensor], rules: Any) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in state.items():
        for pattern, new in rules:
            name = re.sub(pattern, new, name)
        renamed[name] = tensor
    return renamed


@dataclass(frozen=True)
class ExpectedSetting:
    """Something that shapes do not show, and that moves outputs and raises nothing where it differs."""

    name: str  # in the files
    expected_value: Any
    remedy: str  # which key to set, and to what; or why not


def check_settings(settings: dict[str, Any], expected: list[ExpectedSetting], key: str, weights: str) -> None:
    """Compare what the files beside the weights say with the encoder; what they do not say is not checked."""
    wrong = []
    for setting in expected:
        value = settings.get(setting.name)
        if setting.name not in settings:
            continue
        try:
            if isinstance(setting.expected_value, str):
                matches = value == setting.expected_value
            else:
                matches = np.allclose(np.asarray(value, dtype=float), setting.expected_value, rtol=1e-6, atol=0)
        except (TypeError, ValueError):
            matches = False
        if not matches:
            wrong.append(f"{setting.name} is {value!r} there and {setting.expected_value!r} here ({setting.remedy})")
    if wrong:
        raise ConfigError(f"{key} is {weights}: {'; '.join(wrong)}")


# Arguments of timm's networks that change nothing that is predicted.
HARMLESS_ARGUMENTS = {"drop_rate", "drop_path_rate", "pretrained", "proj_drop_rate", "attn_drop_rate"}


def check_timm_arguments(settings: dict[str, Any], model: nn.Module, known: set[str], key: str, weights: str) -> None:
    """Refuse weights of a network that timm made with other arguments: shapes show few of them.

    Args:
        settings: What the files beside the weights say.
        model: The network that the weights are for.
        known: Arguments that the experiment gives, or that are compared elsewhere.
    Raises:
        ConfigError: An argument is not the network's usual one.
    """
    arguments = settings.get("model_args")
    others = dict(arguments) if isinstance(arguments, dict) else {}
    if settings.get("global_pool"):
        others["global_pool"] = settings["global_pool"]
    usual = {"global_pool": find_pooling(model), "in_chans": 3}
    wrong = [
        f"{name}={value!r}"
        for name, value in others.items()
        if name not in known | HARMLESS_ARGUMENTS and (name not in usual or usual[name] not in (None, value))
    ]
    if wrong:
        raise ConfigError(
            f"{key} is {weights}, of a network that was made with {', '.join(wrong)}, which this encoder does not have"
        )


def find_pooling(model: nn.Module) -> str | None:
    """Find how a network of timm pools its features; None where it does not say."""
    for owner in (model, getattr(model, "head", None)):
        pool = getattr(owner, "global_pool", None)
        name = pool if isinstance(pool, str) else getattr(pool, "pool_type", None)
        if isinstance(name, str):
            return name
    return None


def load_tensors(
    module: nn.Module, state: dict[str, Tensor], key: str, weights: str, left_out: tuple[str, ...] = HEAD_PREFIXES
) -> None:
    """Load every tensor of a module.

    Args:
        state: Tensors by name; each must have its place.
        left_out: How the names of those begin that have none, such as a classifier.
    Raises:
        ConfigError: A tensor is missing, of another shape, not finite, or has no place.
    """
    # Adapters have no published weights, and what they are added to has another name (`models.adapters`).
    names = {name: name.replace(".base_layer.", ".") for name in module.state_dict() if ".lora_" not in name}
    places = {names[name]: tensor for name, tensor in module.state_dict().items() if name in names}
    unknown = [n for n in state if n not in places and not n.startswith(left_out)]
    if unknown:
        raise ConfigError(
            f"{key} is {weights}, which has {unknown[0]}{f' and {len(unknown) - 1} more' if unknown[1:] else ''}, for "
            "which this encoder has no place; these are weights of another model"
        )
    for name, tensor in places.items():
        pretrained = state.get(name)
        if pretrained is None:
            raise ConfigError(f"{key} is {weights}, which has no tensor {name}; these are weights of another model")
        if pretrained.shape != tensor.shape:
            raise ConfigError(
                f"{key} is {weights}, where {name} is {tuple(pretrained.shape)}, but the experiment's sizes make it "
                f"{tuple(tensor.shape)}; set the sizes under {key.rsplit('.', 1)[0]} to those of the weights"
            )
        if not pretrained.isfinite().all():
            raise ConfigError(f"{key} is {weights}, where {name} has values that are not finite")
    module.load_state_dict(
        {inner: state[name] for inner, name in names.items()}, strict=len(names) == len(module.state_dict())
    )
