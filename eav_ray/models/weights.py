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
from eav_ray.models.audio import AST, MEAN, SD
from eav_ray.models.encoder import Encoder
from eav_ray.models.video import ViT

CONFIG = "config.json"
# For timm, which otherwise opens pytorch_model.bin, or a file of an address of its own, where there are no safetensors.
ONLY_SAFETENSORS = {"hf_hub_filename": "model.safetensors", "url": ""}
HEADS = ("head.", "head_dist.", "fc_norm.", "pooler.", "classifier.")  # of published classifiers: not taken
# Both libraries' older name of a module, and the one of transformers 5.
RENAMED = (
    (r"^(audio_spectrogram_transformer|vit)\.", ""),
    (r"^encoder\.layer\.", "layers."),
    (r"\.attention\.attention\.(query|key|value)\.", lambda m: f".attention.{m[1][0]}_proj."),
    (r"\.attention\.output\.dense\.", ".attention.o_proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"(layers\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
)
TO_TIMM = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^layers\.(\d+)\.layernorm_before\.", r"blocks.\1.norm1."),
    (r"^layers\.(\d+)\.layernorm_after\.", r"blocks.\1.norm2."),
    (r"^layers\.(\d+)\.attention\.o_proj\.", r"blocks.\1.attn.proj."),
    (r"^layers\.(\d+)\.mlp\.", r"blocks.\1.mlp."),
    (r"^layernorm\.", "norm."),
)


def load_published(encoder: Encoder, weights: str) -> None:
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
            state, facts = _read(weights, "model.audio.weights")
            _check(facts, _ast_facts(encoder), "model.audio.weights", weights)
            _fill(encoder.model, _cropped(encoder, _renamed(state, RENAMED)), "model.audio.weights", weights)
        case ViT():
            state, facts = _of_timm(encoder) if weights == "timm" else _read(weights, "model.video.weights")
            state = _renamed(state, RENAMED)
            _check(facts, _vit_facts(encoder), "model.video.weights", weights)
            if "embeddings.cls_token" in state:
                state = _as_timm(state)
            _fill(encoder.model, state, "model.video.weights", weights)
        case _:
            raise ConfigError(f"{type(encoder).__name__} has no published weights to start from")


def _read(weights: str, key: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
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
    facts: dict[str, Any] = {}
    try:
        for file in files:
            state |= load_file(file)
        for name in (CONFIG, "preprocessor_config.json"):
            if (folder / name).is_file():
                document = json.loads((folder / name).read_text(encoding="utf-8"))
                if not isinstance(document, dict):
                    raise ValueError(f"{name} is no JSON object")
                of_timm = document.get("pretrained_cfg")
                facts |= document | (of_timm if isinstance(of_timm, dict) else {})
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigError(f"{key} is {weights}, which cannot be read: {' '.join(str(error).split())}") from None
    return state, facts


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


def _of_timm(encoder: ViT) -> tuple[dict[str, Tensor], dict[str, Any]]:
    import timm  # loaded only where it is used: it takes a second

    try:
        whole: Any = timm.create_model(
            encoder.name,
            pretrained=True,
            pretrained_cfg_overlay=ONLY_SAFETENSORS,
            num_classes=0,
            img_size=encoder.image_size,
        )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise ConfigError(
            f"model.video.weights is timm, but timm's weights of {encoder.name} could not be had "
            f"({type(error).__name__}); save them as safetensors where there is a network and give the file"
        ) from None
    block = whole.blocks[0]
    facts = {"num_attention_heads": block.attn.num_heads, "layer_norm_eps": block.norm1.eps}
    return whole.state_dict(), facts


def _renamed(state: dict[str, Tensor], rules: Any) -> dict[str, Tensor]:
    found = {}
    for name, tensor in state.items():
        for pattern, new in rules:
            name = re.sub(pattern, new, name)
        found[name] = tensor
    return found


def _as_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A transformers ViT's tensors under timm's names; queries, keys and values are one matrix there."""
    found = _renamed(
        {n: t for n, t in state.items() if not re.search(r"\.[qkv]_proj\.|^pooler|^classifier", n)}, TO_TIMM
    )
    for name in state:
        if match := re.fullmatch(r"layers\.(\d+)\.attention\.q_proj\.(weight|bias)", name):
            parts = [state.get(name.replace(".q_proj.", f".{x}_proj.")) for x in "qkv"]
            if all(p is not None for p in parts):
                found[f"blocks.{match[1]}.attn.qkv.{match[2]}"] = torch.cat([p for p in parts if p is not None])
    return found


@dataclass(frozen=True)
class _Fact:
    """Something that shapes do not show, and that moves outputs and raises nothing where it differs."""

    name: str  # in the files
    ours: Any
    way: str  # which key to set, and to what; or why not


def _check(facts: dict[str, Any], wanted: list[_Fact], key: str, weights: str) -> None:
    """Compare what the files beside the weights say with the encoder; what they do not say is not checked."""
    wrong = []
    for fact in wanted:
        value = facts.get(fact.name)
        if fact.name not in facts:
            continue
        try:
            if isinstance(fact.ours, str):
                same = value == fact.ours
            else:
                same = np.allclose(np.asarray(value, dtype=float), fact.ours, rtol=1e-6, atol=0)
        except (TypeError, ValueError):
            same = False
        if not same:
            wrong.append(f"{fact.name} is {value!r} there and {fact.ours!r} here ({fact.way})")
    if wrong:
        raise ConfigError(f"{key} is {weights}: {'; '.join(wrong)}")


def _ast_facts(encoder: AST) -> list[_Fact]:
    ours, fixed = encoder.model.config, "the filter bank has AudioSet's"
    return [
        _Fact("num_attention_heads", ours.num_attention_heads, "model.audio.heads"),
        _Fact("time_stride", ours.time_stride, "model.audio.stride"),
        _Fact("frequency_stride", ours.frequency_stride, "model.audio.stride"),
        _Fact("layer_norm_eps", ours.layer_norm_eps, "other weights are needed"),
        _Fact("hidden_act", ours.hidden_act, "other weights are needed"),
        _Fact("mean", MEAN, fixed),
        _Fact("std", SD, fixed),
    ]


def _vit_facts(encoder: ViT) -> list[_Fact]:
    block: Any = encoder.model.blocks[0]
    expects: Any = encoder.model.pretrained_cfg
    scale = f"model.video.name={encoder.name} scales pixels so; name one that scales as the weights want"
    return [
        _Fact("layer_norm_eps", block.norm1.eps, "model.video.norm_eps"),
        _Fact("num_attention_heads", block.attn.num_heads, "model.video.heads"),
        _Fact("hidden_act", "gelu", "other weights are needed"),
        _Fact("image_mean", list(expects["mean"]), scale),
        _Fact("image_std", list(expects["std"]), scale),
        _Fact("mean", list(expects["mean"]), scale),
        _Fact("std", list(expects["std"]), scale),
    ]


def _cropped(encoder: AST, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The position table cut to the columns of a shorter spectrogram: the centre ones, as the original does."""
    name = "embeddings.position_embeddings"
    bands, have = encoder.bands, state.get(name)
    wanted = len(encoder.times_s)
    if have is None or have.ndim != 3 or (have.shape[1] - 2) % bands or have.shape[1] - 2 <= bands * wanted:
        return state
    special, table = have[:, :2], have[:, 2:].unflatten(1, (bands, -1))
    start = (table.shape[2] - wanted) // 2
    return state | {name: torch.cat([special, table[:, :, start : start + wanted].flatten(1, 2)], 1)}


def _fill(module: nn.Module, state: dict[str, Tensor], key: str, weights: str) -> None:
    """Every tensor of the module from `state`; a classifier that is there too is left."""
    unknown = [n for n in state if n not in module.state_dict() and not n.startswith(HEADS)]
    if unknown:
        raise ConfigError(
            f"{key} is {weights}, which has {unknown[0]}{f' and {len(unknown) - 1} more' if unknown[1:] else ''}, for "
            "which this encoder has no place; these are weights of another model"
        )
    for name, own in module.state_dict().items():
        given = state.get(name)
        if given is None:
            raise ConfigError(f"{key} is {weights}, which has no tensor {name}; these are weights of another model")
        if given.shape != own.shape:
            raise ConfigError(
                f"{key} is {weights}, where {name} is {tuple(given.shape)}, but the experiment's sizes make it "
                f"{tuple(own.shape)}; set the sizes under {key.rsplit('.', 1)[0]} to those of the weights"
            )
        if not given.isfinite().all():
            raise ConfigError(f"{key} is {weights}, where {name} has values that are not finite")
    module.load_state_dict({name: state[name] for name in module.state_dict()})
