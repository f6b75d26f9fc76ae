"""Published weights for our encoders: from safetensors only, renamed where two libraries name the same thing twice.

A file of weights holds tensors and nothing that could run. Every tensor of the encoder must be found, in its shape.
"""

import json
import re
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from eav_ray.errors import ConfigError
from eav_ray.models.audio import AST
from eav_ray.models.encoder import Encoder
from eav_ray.models.video import ViT

CONFIG = "config.json"
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
            _check_ast(encoder, facts, weights)
            _fill(encoder.model, _cropped(encoder, _renamed(state, RENAMED)), "model.audio.weights", weights)
        case ViT():
            if weights == "timm":
                _fill(encoder.model, _timm_state(encoder), "model.video.weights", weights)
                return
            state, facts = _read(weights, "model.video.weights")
            state = _renamed(state, RENAMED)
            if "embeddings.cls_token" in state:
                _check_vit(encoder, facts, weights)
                state = _as_timm(state)
            _fill(encoder.model, state, "model.video.weights", weights)
        case _:
            raise ConfigError(f"{type(encoder).__name__} has no published weights to start from")


def _read(weights: str, key: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by name, and what `config.json` and `preprocessor_config.json` beside them say."""
    place = Path(weights).expanduser()
    if not place.exists():
        place = _download(weights, key)
    folder = place if place.is_dir() else place.parent
    files = [place] if place.is_file() else sorted(folder.glob("*.safetensors"))
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
                facts |= json.loads((folder / name).read_text(encoding="utf-8"))
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


def _timm_state(encoder: ViT) -> dict[str, Tensor]:
    model = encoder.model
    try:
        whole = timm.create_model(encoder.name, pretrained=True, num_classes=0, img_size=model.patch_embed.img_size)
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"model.video.weights is timm, but timm's weights of {encoder.name} could not be had "
            f"({type(error).__name__}); save them as safetensors where there is a network and give the file"
        ) from None
    return whole.state_dict()


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


def _check_ast(encoder: AST, facts: dict[str, Any], weights: str) -> None:
    ours = encoder.model.config
    wrong = [
        f"model.audio.{key} is {getattr(ours, name)}, but these weights have {facts[name]}"
        for key, name in (("heads", "num_attention_heads"), ("stride", "time_stride"), ("stride", "frequency_stride"))
        if name in facts and facts[name] != getattr(ours, name)
    ]
    if wrong:
        raise ConfigError(f"model.audio.weights is {weights}: {'; '.join(dict.fromkeys(wrong))}")


def _check_vit(encoder: ViT, facts: dict[str, Any], weights: str) -> None:
    """What shapes do not show: a wrong epsilon or scale of pixels moves the outputs and raises nothing."""
    block: Any = encoder.model.blocks[0]
    ours = {"layer_norm_eps": block.norm1.eps, "num_attention_heads": block.attn.num_heads}
    keys = {"layer_norm_eps": "norm_eps", "num_attention_heads": "heads"}
    wrong = [
        f"model.video.{keys[name]} is {value:g}, but these weights want {facts[name]:g}"
        for name, value in ours.items()
        if name in facts and facts[name] != value
    ]
    for name, value in (("image_mean", encoder.mean), ("image_std", encoder.sd)):
        if name in facts and list(facts[name]) != value.flatten().tolist():
            wrong.append(f"these weights want {name} {facts[name]}, but {encoder.name} has {value.flatten().tolist()}")
    if wrong:
        raise ConfigError(f"model.video.weights is {weights}: {'; '.join(wrong)}")


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
    """Every tensor of the module from `state`; what else is there, such as a classifier, is left."""
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
