"""Published weights for our encoders: from safetensors only, renamed where two libraries name the same thing twice.

A file of weights holds tensors and nothing that could run. Every tensor of the encoder must be found, in its shape.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from eav_ray.errors import ConfigError

CONFIG_FILE = "config.json"
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
        path = _download(weights, key)
    folder = path if path.is_dir() else path.parent
    files = [path] if path.is_file() else sorted(folder.glob("*.safetensors"))
    if not files or any(f.suffix != ".safetensors" for f in files):
        raise ConfigError(
            f"{key} is {weights}, where there is no .safetensors file; other formats can run code when they are "
            "opened. transformers' save_pretrained and timm's save_for_hf write safetensors"
        )
    state: dict[str, Tensor] = {}
    settings: dict[str, Any] = {}
    try:
        for file in files:
            state |= load_file(file)
        for name in (CONFIG_FILE, "preprocessor_config.json"):
            if (folder / name).is_file():
                document = json.loads((folder / name).read_text(encoding="utf-8"))
                if not isinstance(document, dict):
                    raise ValueError(f"{name} is no JSON object")
                timm_config = document.get("pretrained_cfg")
                settings |= document | (timm_config if isinstance(timm_config, dict) else {})
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigError(f"{key} is {weights}, which cannot be read: {' '.join(str(error).split())}") from None
    return state, settings


def _download(name: str, key: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=["*.safetensors", "*.json"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ConfigError(
            f"{key} is {name}, which is no folder here and could not be fetched from the hub "
            f"({type(error).__name__}); give a folder with config.json and model.safetensors"
        ) from None


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


def load_tensors(module: nn.Module, state: dict[str, Tensor], key: str, weights: str) -> None:
    """Every tensor of the module from `state`; a classifier that is there too is left."""
    unknown = [n for n in state if n not in module.state_dict() and not n.startswith(HEAD_PREFIXES)]
    if unknown:
        raise ConfigError(
            f"{key} is {weights}, which has {unknown[0]}{f' and {len(unknown) - 1} more' if unknown[1:] else ''}, for "
            "which this encoder has no place; these are weights of another model"
        )
    for name, tensor in module.state_dict().items():
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
    module.load_state_dict({name: state[name] for name in module.state_dict()})
