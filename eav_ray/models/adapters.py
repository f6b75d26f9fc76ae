"""Low-rank additions to the matrices of an encoder (LoRA, Hu et al., arXiv 2106.09685), by peft."""

import warnings
from typing import Any

from torch import nn

from eav_ray.config.extras import require_extra
from eav_ray.errors import ConfigError
from eav_ray.models.encoders.base import Encoder

ADDED = ".lora_"  # in the names of what peft adds


def add_adapters(encoder: Encoder, modality: str, *, rank: int, alpha: float, n_blocks: int) -> None:
    """Add adapters to every linear layer of an encoder's blocks; at first they add nothing.

    Args:
        rank: Of each addition.
        alpha: Of which `alpha / rank` is the scale of an addition.
        n_blocks: Only in the last so many blocks; 0: in all.
    Raises:
        ConfigError: peft is not installed, or the encoder has no blocks, or none with a linear layer.
    """
    require_extra("lora", f"train.encoders.{modality}.lora_rank", {"peft": "peft"}, "set it to 0")
    from peft import LoraConfig, inject_adapter_in_model

    blocks = encoder.list_blocks()
    wanted = {id(m) for block in blocks[-n_blocks:] for m in block.modules() if type(m) is nn.Linear}
    places = [name for name, module in encoder.named_modules() if id(module) in wanted]
    if not places:
        raise ConfigError(
            f"train.encoders.{modality}.lora_rank is {rank}, but the encoder has no blocks with linear layers; set it "
            "to 0"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a layer is a convolution, and the like
        settings: Any = {"r": rank, "lora_alpha": alpha, "target_modules": places}
        inject_adapter_in_model(LoraConfig(**settings), encoder)
    for module in encoder.modules():
        # Where nothing learns, torch's own layers read weights past the modules that hold them, and past adapters.
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0  # which ends the fast path


def is_adapter(name: str) -> bool:
    """Tell whether a parameter of this name belongs to an adapter."""
    return ADDED in name
