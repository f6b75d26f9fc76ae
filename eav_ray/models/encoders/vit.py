"""A Vision Transformer (Dosovitskiy et al. 2021) of timm on the single frames of a window."""

import re
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from eav_ray.config import Preprocessing
from eav_ray.config.encoders.vit import ViTConfig
from eav_ray.errors import ConfigError, suggest_nearest
from eav_ray.models.encoders.base import (
    DataShapes,
    EncoderOutput,
    Features,
    FrameEncoder,
    SubjectStatistics,
    collect_module_arguments,
)
from eav_ray.models.encoders.pretrained import (
    RENAMING_RULES,
    ExpectedSetting,
    check_settings,
    load_tensors,
    read_weights,
    rename_tensors,
)
from eav_ray.models.layers import build_position_embedding

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
# For timm, which otherwise opens pytorch_model.bin, or a file of an address of its own, where there are no safetensors.
SAFETENSORS_ONLY_OVERLAY = {"hf_hub_filename": "model.safetensors", "url": ""}


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

    statistics_windows = 4  # of which 25 frames of 224 pixels are 60 MB
    frame_indices: Tensor  # (frames,) which stored frames are used
    mean: Tensor  # (3, 1, 1) of the pixels that the published weights of this model expect, and their SD
    sd: Tensor
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
        self.name, self.width, self.image_size = name, width, image_size
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
        for key, values in (("mean", pretrained_config["mean"]), ("sd", pretrained_config["std"])):
            self.register_buffer(key, torch.tensor(values)[:, None, None], persistent=False)
        frame_indices = ((torch.arange(frames) + 0.5) * n_stored_frames / frames).long()
        self.register_buffer("frame_indices", frame_indices, persistent=False)
        self.register_buffer("times_s", (frame_indices + 0.5) * window_s / n_stored_frames, persistent=False)
        self.position = build_position_embedding(frames, width)

    def enable_gradient_checkpointing(self) -> None:
        self.model.set_grad_checkpointing(True)

    def compute_features(self, x: Tensor) -> Features:
        """Scale the frames that are used: (batch, frames, height, width, 3), a colour a feature.

        Args:
            x: (batch, stored frames, height, width, 3), uint8 RGB.
        """
        frames = x[:, self.frame_indices]
        scaled = (frames.float() / 255 - self.mean.flatten()) / self.sd.flatten()
        return Features(scaled, torch.ones_like(scaled[..., 0], dtype=torch.bool))

    def forward(self, x_BFHWC: Tensor, present_B: Tensor, subject: SubjectStatistics | None = None) -> EncoderOutput:
        """
        Args:
            x_BFHWC: Stored frames, uint8 RGB, (batch, frames, height, width, 3).
            present_B: True where the window has video.
        """
        frames = self.normalise_features(x_BFHWC, subject).values
        b, f = frames.shape[:2]
        images = frames.flatten(0, 1)
        if self.centred_patch:
            images = centre_patches(images, self.centred_patch)
        class_tokens = self.model.forward_features(images.permute(0, 3, 1, 2))[:, 0]
        tokens = class_tokens.view(b, f, self.width) + self.position
        return self.build_output(tokens, tokens.mean(1), present_B)

    def hold_frame(self, tokens_BND: Tensor, frame: int) -> tuple[Tensor, Tensor]:
        tokens = (tokens_BND[:, frame] - self.position[frame])[:, None] + self.position
        return tokens, tokens.mean(1)

    def load_pretrained(self, weights: str) -> None:
        key = "model.video.weights"
        state, settings = _load_timm_weights(self) if weights == "timm" else read_weights(weights, key)
        state = rename_tensors(state, RENAMING_RULES)
        check_settings(settings, _list_expected_settings(self), key, weights)
        if "embeddings.cls_token" in state:
            state = _convert_to_timm(state)
        load_tensors(self.model, state, key, weights)


def centre_patches(images_BHWC: Tensor, patch: int) -> Tensor:
    """Take the mean of each patch from its pixels, each channel for itself.

    Args:
        images_BHWC: (images, height, width, channels), both sides multiples of `patch`.
        patch: Pixels on each side of a patch.
    """
    b, height, width, c = images_BHWC.shape
    patches = images_BHWC.reshape(b, height // patch, patch, width // patch, patch, c)
    return (patches - patches.mean((2, 4), keepdim=True)).reshape(images_BHWC.shape)


def build(section: ViTConfig, preprocessing: Preprocessing, shapes: DataShapes) -> ViT:
    """Build the encoder that a section of an experiment describes."""
    n_stored_frames = preprocessing.video.fps * preprocessing.window_s
    return ViT(window_s=preprocessing.window_s, n_stored_frames=n_stored_frames, **collect_module_arguments(section))


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
