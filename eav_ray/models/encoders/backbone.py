"""Any image network of timm with pooled features, on the single frames of a window."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from eav_ray.config import Preprocessing
from eav_ray.config.encoders.backbone import BackboneConfig
from eav_ray.errors import ConfigError, suggest_nearest
from eav_ray.models.encoders.base import DataShapes, FrameEncoder, collect_module_arguments
from eav_ray.models.encoders.pretrained import (
    ExpectedSetting,
    check_settings,
    check_timm_arguments,
    load_tensors,
    read_weights,
)


class Backbone(FrameEncoder):
    """Video windows to one token a frame: the pooled features of an image network, plus a learned time position.

    Batch normalisation goes by the statistics of the published weights, in training too: those of a batch would be
    other ones on each worker, and would count frames of windows that have no video.

    Args:
        name: A network of timm.
        width: Of its pooled features; 0: what it makes.
        image_size: Pixels on each side of a stored frame.
        n_stored_frames: Frames of a stored window.
        frames: How many of them are used, evenly spaced.
        mean, sd: Of red, green and blue that the weights expect; empty: what timm has for the name.
        from_weights: Whether published weights will be put in.
    Raises:
        ConfigError: timm has no such network, it pools nothing, or to another width, it does not take frames of this
            size, or it normalises by batches and has no weights.
    """

    def __init__(
        self,
        name: str,
        *,
        window_s: float,
        image_size: int,
        n_stored_frames: int,
        width: int,
        frames: int,
        dropout: float,
        mean: Sequence[float] = (),
        sd: Sequence[float] = (),
        from_weights: bool,
    ) -> None:
        super().__init__()
        # A second and more, in every process that a search or a group starts; not all of them build one.
        import timm
        from timm.data.config import resolve_model_data_config
        from timm.layers.drop import DropPath
        from timm.layers.patch_embed import PatchEmbed

        if not timm.is_model(name):
            nearest = suggest_nearest(name, timm.list_models())
            raise ConfigError(f'model.video.name is "{name}", which timm does not have{nearest}')
        self.name = name
        fixed = timm.get_pretrained_cfg(name)
        size: dict[str, Any] = {"img_size": image_size} if fixed is not None and fixed.fixed_input_size else {}
        try:
            model = timm.create_model(name, pretrained=False, num_classes=0, drop_rate=dropout, **size)
            with torch.no_grad():
                pooled = model.eval()(torch.zeros(1, 3, image_size, image_size))
            model.train()
        except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(
                f'model.video.name is "{name}", which does not take frames of {image_size} x {image_size} pixels '
                f"(preprocessing.video.size): {reason}"
            ) from None
        if not isinstance(pooled, Tensor) or pooled.ndim != 2:
            raise ConfigError(f'model.video.name is "{name}", which pools no features; use for example convnext_atto')
        embedding = getattr(model, "patch_embed", None)
        patch: Any = embedding.patch_size if isinstance(embedding, PatchEmbed) else ()
        if any(image_size % side for side in patch):
            raise ConfigError(
                f'model.video.name is "{name}", whose patches of {patch[0]} pixels do not divide frames of '
                f"{image_size} (preprocessing.video.size) and would cut their edges off"
            )
        if width not in (0, pooled.shape[1]):
            raise ConfigError(f"model.video.width is {width}, but {name} makes {pooled.shape[1]}; leave it out")
        self.batch_norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        if self.batch_norms and not from_weights:
            raise ConfigError(
                f'model.video.name is "{name}", which normalises by batches and cannot be trained from random values '
                "here; give model.video.weights, or use a network without, such as convnext_atto"
            )
        for module in model.modules():
            if isinstance(module, DropPath):  # some networks come with it, beside `dropout`
                module.drop_prob = 0.0
        self.model: Any = model
        settings = resolve_model_data_config(model)
        self.register_frames(
            pooled.shape[1],
            window_s=window_s,
            n_stored_frames=n_stored_frames,
            frames=frames,
            mean=mean or settings["mean"],
            sd=sd or settings["std"],
        )

    def train(self, mode: bool = True) -> "Backbone":
        super().train(mode)
        for module in self.batch_norms:
            module.eval()
        return self

    def enable_gradient_checkpointing(self) -> None:
        try:
            self.model.set_grad_checkpointing(True)
        except AssertionError:
            raise ConfigError(
                f"runtime.gradient_checkpointing is true, which {self.name} of timm cannot do; set it to false"
            ) from None

    def group_parameters(self) -> list[list[str]]:
        from timm.models import group_parameters

        found: dict[int, list[str]] = group_parameters(self.model, self.model.group_matcher(coarse=False))
        groups = [[f"model.{name}" for name in found[depth]] for depth in sorted(found)]
        groups[-1] += [name for name, _ in self.named_parameters() if "." not in name]
        return groups

    def embed_images(self, images_BCHW: Tensor) -> Tensor:
        return self.model(images_BCHW)

    def load_pretrained(self, weights: str) -> None:
        key = "model.video.weights"
        state, published = read_weights(weights, key)
        colours = {"mean": ("mean", self.mean), "std": ("sd", self.sd)}
        expected = [ExpectedSetting(n, v.flatten().tolist(), f"model.video.{k}") for n, (k, v) in colours.items()]
        expected.append(ExpectedSetting("architecture", self.name.partition(".")[0], "model.video.name"))
        name = published.get("architecture")
        plain = {"architecture": name.partition(".")[0]} if isinstance(name, str) else {}
        check_settings(published | plain, expected, key, weights)
        check_timm_arguments(published, self.model, {"img_size", "num_classes"}, key, weights)
        heads = self.model.pretrained_cfg.get("classifier") or ()
        heads = (heads,) if isinstance(heads, str) else heads
        load_tensors(self.model, state, key, weights, tuple(f"{head}." for head in heads))


def build(section: BackboneConfig, preprocessing: Preprocessing, shapes: DataShapes) -> Backbone:
    """Build the encoder that a section of an experiment describes."""
    return Backbone(
        window_s=preprocessing.window_s,
        image_size=preprocessing.video.size,
        n_stored_frames=preprocessing.video.fps * preprocessing.window_s,
        from_weights=bool(section.weights),
        **collect_module_arguments(section),
    )
