"""Published weights for our encoders: from safetensors only, renamed where two libraries name the same thing twice.

A file of weights holds tensors and nothing that could run. Every tensor of the encoder must be found, in its shape.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from eav_ray.errors import ConfigError
from eav_ray.models.encoders.ast import AST, AUDIOSET_MEAN, AUDIOSET_SD
from eav_ray.models.encoders.base import Encoder
from eav_ray.models.encoders.vit import ViT

CONFIG_FILE = "config.json"
# For timm, which otherwise opens pytorch_model.bin, or a file of an address of its own, where there are no safetensors.
SAFETENSORS_ONLY_OVERLAY = {"hf_hub_filename": "model.safetensors", "url": ""}
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
TIMM_RENAMING_RULES = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^layers\.(\d+)\.layernorm_before\.", r"blocks.\1.norm1."),
    (r"^layers\.(\d+)\.layernorm_after\.", r"blocks.\1.norm2."),
    (r"^layers\.(\d+)\.attention\.o_proj\.", r"blocks.\1.attn.proj."),
    (r"^layers\.(\d+)\.mlp\.", r"blocks.\1.mlp."),
    (r"^layernorm\.", "norm."),
)


def load_pretrained(encoder: Encoder, weights: str) -> None:
    """Put published weights into an encoder.

    Args:
        encoder: An AST or ViT.
        weights: A folder as the hub has them (`config.json` and safetensors), a safetensors file, a name on the hub,
            or "timm" for timm's own weights of a ViT of timm.
    Raises:
        ConfigError: There are no such weights, or they are of another shape than the encoder.
    """
    match encoder:
        case AST():
            state, settings = _read_weights(weights, "model.audio.weights")
            _check_settings(settings, _list_ast_settings(encoder), "model.audio.weights", weights)
            _load_tensors(
                encoder.model,
                _crop_position_table(encoder, _rename_tensors(state, RENAMING_RULES)),
                "model.audio.weights",
                weights,
            )
        case ViT():
            state, settings = (
                _load_timm_weights(encoder) if weights == "timm" else _read_weights(weights, "model.video.weights")
            )
            state = _rename_tensors(state, RENAMING_RULES)
            _check_settings(settings, _list_vit_settings(encoder), "model.video.weights", weights)
            if "embeddings.cls_token" in state:
                state = _convert_to_timm(state)
            _load_tensors(encoder.model, state, "model.video.weights", weights)
        case _:
            raise ConfigError(f"{type(encoder).__name__} has no published weights to start from")


def _read_weights(weights: str, key: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
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


def _load_timm_weights(encoder: ViT) -> tuple[dict[str, Tensor], dict[str, Any]]:
    import timm  # loaded only where it is used: it takes a second

    try:
        model: Any = timm.create_model(
            encoder.name,
            pretrained=True,
            pretrained_cfg_overlay=SAFETENSORS_ONLY_OVERLAY,
            num_classes=0,
            img_size=encoder.image_size,
        )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise ConfigError(
            f"model.video.weights is timm, but timm's weights of {encoder.name} could not be had "
            f"({type(error).__name__}); save them as safetensors where there is a network and give the file"
        ) from None
    block = model.blocks[0]
    settings = {"num_attention_heads": block.attn.num_heads, "layer_norm_eps": block.norm1.eps}
    return model.state_dict(), settings


def _rename_tensors(state: dict[str, Tensor], rules: Any) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in state.items():
        for pattern, new in rules:
            name = re.sub(pattern, new, name)
        renamed[name] = tensor
    return renamed


def _convert_to_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A transformers ViT's tensors under timm's names; queries, keys and values are one matrix there."""
    converted = _rename_tensors(
        {n: t for n, t in state.items() if not re.search(r"\.[qkv]_proj\.|^pooler|^classifier", n)}, TIMM_RENAMING_RULES
    )
    for name in state:
        if match := re.fullmatch(r"layers\.(\d+)\.attention\.q_proj\.(weight|bias)", name):
            parts = [state.get(name.replace(".q_proj.", f".{x}_proj.")) for x in "qkv"]
            if all(p is not None for p in parts):
                converted[f"blocks.{match[1]}.attn.qkv.{match[2]}"] = torch.cat([p for p in parts if p is not None])
    return converted


@dataclass(frozen=True)
class _ExpectedSetting:
    """Something that shapes do not show, and that moves outputs and raises nothing where it differs."""

    name: str  # in the files
    expected_value: Any
    remedy: str  # which key to set, and to what; or why not


def _check_settings(settings: dict[str, Any], expected: list[_ExpectedSetting], key: str, weights: str) -> None:
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


def _list_ast_settings(encoder: AST) -> list[_ExpectedSetting]:
    model_config, fixed = encoder.model.config, "the filter bank has AudioSet's"
    return [
        _ExpectedSetting("num_attention_heads", model_config.num_attention_heads, "model.audio.heads"),
        _ExpectedSetting("time_stride", model_config.time_stride, "model.audio.stride"),
        _ExpectedSetting("frequency_stride", model_config.frequency_stride, "model.audio.stride"),
        _ExpectedSetting("layer_norm_eps", model_config.layer_norm_eps, "other weights are needed"),
        _ExpectedSetting("hidden_act", model_config.hidden_act, "other weights are needed"),
        _ExpectedSetting("mean", AUDIOSET_MEAN, fixed),
        _ExpectedSetting("std", AUDIOSET_SD, fixed),
    ]


def _list_vit_settings(encoder: ViT) -> list[_ExpectedSetting]:
    block: Any = encoder.model.blocks[0]
    pretrained_config: Any = encoder.model.pretrained_cfg
    scale = f"model.video.name={encoder.name} scales pixels so; name one that scales as the weights want"
    return [
        _ExpectedSetting("layer_norm_eps", block.norm1.eps, "model.video.norm_eps"),
        _ExpectedSetting("num_attention_heads", block.attn.num_heads, "model.video.heads"),
        _ExpectedSetting("hidden_act", "gelu", "other weights are needed"),
        _ExpectedSetting("image_mean", list(pretrained_config["mean"]), scale),
        _ExpectedSetting("image_std", list(pretrained_config["std"]), scale),
        _ExpectedSetting("mean", list(pretrained_config["mean"]), scale),
        _ExpectedSetting("std", list(pretrained_config["std"]), scale),
    ]


def _crop_position_table(encoder: AST, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The position table cut to the columns of a shorter spectrogram: the centre ones, as the original does."""
    name = "embeddings.position_embeddings"
    bands, have = encoder.n_patch_bands, state.get(name)
    n_columns = len(encoder.times_s)
    if have is None or have.ndim != 3 or (have.shape[1] - 2) % bands or have.shape[1] - 2 <= bands * n_columns:
        return state
    special, table = have[:, :2], have[:, 2:].unflatten(1, (bands, -1))
    start = (table.shape[2] - n_columns) // 2
    return state | {name: torch.cat([special, table[:, :, start : start + n_columns].flatten(1, 2)], 1)}


def _load_tensors(module: nn.Module, state: dict[str, Tensor], key: str, weights: str) -> None:
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
