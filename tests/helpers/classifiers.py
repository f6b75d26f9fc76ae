"""Small classifiers of raw signals, and what they are trained on."""

from typing import Any

import torch

from eav_ray.config import Experiment
from eav_ray.models.encoders.ast import AST
from eav_ray.training.dataloader import Batch

SMALL: dict[str, Any] = {
    "model.eeg": {"filters": 2, "width": 16, "temporal_width": 16, "segments": 4, "depth": 1, "heads": 4},
    "model.audio": {"width": 16, "depth": 1, "heads": 2, "stride": 16, "dropout": 0.3, "mask_bands": 16},
    "model.video": {"width": 16, "depth": 1, "heads": 2, "image_size": 16, "patch": 8, "frames": 2, "dropout": 0.3},
    "preprocessing.video": {"fps": 1, "size": 16},
    "fusion.width": 16,
    "fusion.heads": 4,
    "runtime.workers": 1,
}
AST_SIZES: dict[str, Any] = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=96)


def make_batch(e: Experiment, n: int = 4) -> Batch:
    torch.manual_seed(1)
    inputs = {
        "audio": 0.1 * torch.randn(n, 80_000),
        "eeg": torch.randn(n, 5, 500),
        "video": torch.randint(0, 256, (n, 5, 16, 16, 3), dtype=torch.uint8),
    }
    chosen = {m: inputs[m] for m in e.data.modalities}
    present = torch.ones(n, len(chosen), dtype=torch.bool)
    return Batch(chosen, present, torch.arange(n) % 3, torch.ones(n), n, 5)


def make_ast(max_length: int = 512, **changes: Any) -> AST:
    sizes = dict(width=24, depth=2, heads=2, stride=10, dropout=0.0, silence_db=30) | changes
    return AST(window_s=5, max_length=max_length, **sizes).eval()
