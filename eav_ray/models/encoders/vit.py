"""A Vision Transformer (Dosovitskiy et al. 2021) of timm on the single frames of a window."""

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from eav_ray.errors import ConfigError, suggest_nearest
from eav_ray.models.encoders.base import Encoder, EncoderOutput
from eav_ray.models.layers import build_position_embedding

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer


class ViT(Encoder):
    """Video windows to one token a frame: its class token plus a learned time position.

    Args:
        name: Any `vit_*` of timm that is a plain Vision Transformer with a class token; the sizes that follow
            replace its own.
        norm_eps: Added to the variance in the LayerNorms.
        stored: Frames of a stored window.
        frames: How many of them are used, evenly spaced.
    """

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
    ) -> None:
        super().__init__()
        # A second and more, in every process that a search or a group starts; not all of them build one.
        import timm
        from timm.models.vision_transformer import VisionTransformer

        if not name.startswith("vit_") or not timm.is_model(name):
            known = timm.list_models("vit_*")
            raise ConfigError(f'model.video.name is "{name}", which timm does not have{suggest_nearest(name, known)}')
        self.name, self.width, self.image_size = name, width, image_size
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

    def forward(self, x_BFHWC: Tensor, present_B: Tensor) -> EncoderOutput:
        """
        Args:
            x_BFHWC: Stored frames, uint8 RGB, (batch, frames, height, width, 3).
            present_B: True where the window has video.
        """
        frames = x_BFHWC[:, self.frame_indices]
        b, f = frames.shape[:2]
        pixels = frames.reshape(b * f, *frames.shape[2:]).permute(0, 3, 1, 2)
        scaled = (pixels.float() / 255 - self.mean) / self.sd
        class_tokens = self.model.forward_features(scaled)[:, 0]
        tokens = class_tokens.view(b, f, self.width) + self.position
        return self.build_output(tokens, tokens.mean(1), present_B)

    def hold_frame(self, tokens_BND: Tensor, frame: int) -> tuple[Tensor, Tensor]:
        """What `forward` makes of windows that hold one of their frames throughout: tokens, and their mean.

        Args:
            tokens_BND: What it made of the windows.
            frame: Which of the frames that are used.
        """
        tokens = (tokens_BND[:, frame] - self.position[frame])[:, None] + self.position
        return tokens, tokens.mean(1)
