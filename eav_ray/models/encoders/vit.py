"""A Vision Transformer (Dosovitskiy et al. 2021) of timm on the single frames of a window."""

import re
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from eav_ray.config import Preprocessing
from eav_ray.config.encoders.vit import ViTConfig
from eav_ray.errors import ConfigError, suggest_nearest
from eav_ray.models.encoders.base import (
    DataShapes,
    FrameEncoder,
    collect_module_arguments,
)
from eav_ray.models.encoders.pretrained import (
    RENAMING_RULES,
    ExpectedSetting,
    check_settings,
    check_timm_arguments,
    load_tensors,
    read_weights,
    rename_tensors,
)

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer


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


class ViT(FrameEncoder):
    """Video windows to one token a frame: its class token plus a learned time position.

    With `centre_patches` the mean colour of each patch is taken from it: light, skin and walls differ more between
    subjects than faces do in what they express, and a network trained from random values on few subjects may not see
    past them. Dual PatchNorm (Kumar et al. 2023, arXiv 2302.01327) divides by the patch's SD as well, which was worse
    here (docs/log.md, 2026-11-28).

    Args:
        name: Any `vit_*` of timm that is a plain Vision Transformer with a class token; the sizes that follow
            replace its own.
        norm_eps: Added to the variance in the LayerNorms.
        n_stored_frames: Frames of a stored window.
        frames: How many of them are used, evenly spaced.
        centre_patches: Whether patches get mean 0, each colour for itself, before they are embedded.
    """

    model: "VisionTransformer"

    def __init__(
        self,
        name: str,
        *,
        window_s: float,
        n_stored_frames: int,
        frames: int,
        image_size: int,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        dropout: float,
        norm_eps: float = 1e-6,
        centre_patches: bool = False,
    ) -> None:
        super().__init__()
        # A second and more, in every process that a search or a group starts; not all of them build one.
        import timm
        from timm.models.vision_transformer import VisionTransformer

        if not name.startswith("vit_") or not timm.is_model(name):
            known = timm.list_models("vit_*")
            raise ConfigError(f'model.video.name is "{name}", which timm does not have{suggest_nearest(name, known)}')
        self.name, self.image_size = name, image_size
        self.centred_patch = patch if centre_patches else 0
        try:
            model = timm.create_model(
                name,
                pretrained=False,
                img_size=image_size,
                patch_size=patch,
                embed_dim=width,
                depth=depth,
                num_heads=heads,
                num_classes=0,
                proj_drop_rate=dropout,
                norm_layer=partial(nn.LayerNorm, eps=norm_eps),
            )
        except (AssertionError, TypeError, ValueError):  # timm's way to say that a hybrid cannot have these sizes
            model = None
        if not isinstance(model, VisionTransformer) or model.cls_token is None or model.num_prefix_tokens < 1:
            raise ConfigError(
                f'model.video.name is "{name}", which is no plain Vision Transformer with a class token (as relpos, '
                "rope, dinov3, resnet, siglip and gap models are not); use for example vit_base_patch16_224"
            )
        self.model = model
        pretrained_config: Any = model.pretrained_cfg
        self.register_frames(
            width,
            window_s=window_s,
            n_stored_frames=n_stored_frames,
            frames=frames,
            mean=pretrained_config["mean"],
            sd=pretrained_config["std"],
        )

    def enable_gradient_checkpointing(self) -> None:
        self.model.set_grad_checkpointing(True)

    def embed_images(self, images_BCHW: Tensor) -> Tensor:
        if self.centred_patch:
            images_BCHW = centre_patches(images_BCHW, self.centred_patch)
        return self.model.forward_features(images_BCHW)[:, 0]

    def load_pretrained(self, weights: str) -> None:
        key = "model.video.weights"
        state, settings = read_weights(weights, key)
        settings = _read_timm_settings(settings) | settings
        state = rename_tensors(state, RENAMING_RULES)
        check_settings(settings, _list_expected_settings(self), key, weights)
        sizes = {"img_size", "num_classes", "patch_size", "embed_dim", "depth", "num_heads"}
        check_timm_arguments(settings, self.model, sizes, key, weights)
        if "embeddings.cls_token" in state:
            state = _convert_to_timm(state)
        load_tensors(self.model, state, key, weights)


def centre_patches(images_BCHW: Tensor, patch: int) -> Tensor:
    """Take the mean of each patch from its pixels, each channel for itself.

    Args:
        images_BCHW: (images, channels, height, width), both sides multiples of `patch`.
        patch: Pixels on each side of a patch.
    """
    b, c, height, width = images_BCHW.shape
    patches = images_BCHW.reshape(b, c, height // patch, patch, width // patch, patch)
    return (patches - patches.mean((3, 5), keepdim=True)).reshape(images_BCHW.shape)


def build(section: ViTConfig, preprocessing: Preprocessing, shapes: DataShapes) -> ViT:
    """Build the encoder that a section of an experiment describes."""
    n_stored_frames = preprocessing.video.fps * preprocessing.window_s
    return ViT(window_s=preprocessing.window_s, n_stored_frames=n_stored_frames, **collect_module_arguments(section))


def _read_timm_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Read heads and epsilon of a network that timm has saved, whose config.json may name the network alone."""
    import timm
    from timm.models.vision_transformer import VisionTransformer

    architecture = settings.get("architecture")
    if not isinstance(architecture, str) or not timm.is_model(architecture):
        return {}
    with torch.device("meta"):
        model: Any = timm.create_model(architecture, pretrained=False, num_classes=0)
    if not isinstance(model, VisionTransformer):
        return {}
    block: Any = model.blocks[0]
    found = {"num_attention_heads": block.attn.num_heads, "layer_norm_eps": block.norm1.eps}
    arguments = settings.get("model_args")
    if isinstance(arguments, dict) and "num_heads" in arguments:
        found["num_attention_heads"] = arguments["num_heads"]
    return found


def _convert_to_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A transformers ViT's tensors under timm's names; queries, keys and values are one matrix there."""
    converted = rename_tensors(
        {n: t for n, t in state.items() if not re.search(r"\.[qkv]_proj\.|^pooler|^classifier", n)}, TIMM_RENAMING_RULES
    )
    for name in state:
        if match := re.fullmatch(r"layers\.(\d+)\.attention\.q_proj\.(weight|bias)", name):
            parts = [state.get(name.replace(".q_proj.", f".{x}_proj.")) for x in "qkv"]
            if all(p is not None for p in parts):
                converted[f"blocks.{match[1]}.attn.qkv.{match[2]}"] = torch.cat([p for p in parts if p is not None])
    return converted


def _list_expected_settings(encoder: ViT) -> list[ExpectedSetting]:
    block: Any = encoder.model.blocks[0]
    pretrained_config: Any = encoder.model.pretrained_cfg
    scale = f"model.video.name={encoder.name} scales pixels so; name one that scales as the weights want"
    return [
        ExpectedSetting("layer_norm_eps", block.norm1.eps, "model.video.norm_eps"),
        ExpectedSetting("num_attention_heads", block.attn.num_heads, "model.video.heads"),
        ExpectedSetting("hidden_act", "gelu", "other weights are needed"),
        ExpectedSetting("image_mean", list(pretrained_config["mean"]), scale),
        ExpectedSetting("image_std", list(pretrained_config["std"]), scale),
        ExpectedSetting("mean", list(pretrained_config["mean"]), scale),
        ExpectedSetting("std", list(pretrained_config["std"]), scale),
    ]
