"""A small fusion, its batches, and the engines that train it."""

from typing import Literal

import pytest
import torch

from eav_ray.config import MODALITIES, OptimConfig
from eav_ray.models.classifier import FusionClassifier
from eav_ray.models.fusion.shared_attention import SharedAttentionFusion
from eav_ray.training.dataloader import Batch
from eav_ray.training.engines.base import Engine

STEPS, WIDTH, TOKENS = 50, 6, 4
OPTIM = OptimConfig(lr=1e-2, batch=8, weight_decay=0.05, clip=0.5)
ENGINES: list[tuple[Literal["deepspeed", "torch"], Literal[0, 1, 2, 3]]] = [
    ("torch", 0),
    ("deepspeed", 0),
    ("deepspeed", 1),
    ("deepspeed", 2),
    ("deepspeed", 3),
]
engines = pytest.mark.parametrize(("name", "stage"), ENGINES)


def make_module(dropout: float) -> FusionClassifier:
    torch.manual_seed(0)
    times = {m: torch.arange(TOKENS) / TOKENS for m in MODALITIES}
    widths = dict.fromkeys(MODALITIES, WIDTH)
    fusion = SharedAttentionFusion(
        widths, times, window_s=1, n_outputs=5, width=16, heads=4, dropout=dropout, late_fusion_residual=False
    )
    return FusionClassifier(fusion, list(MODALITIES))


def make_token_batch(step: int, n: int = 8) -> Batch:
    draw = torch.Generator().manual_seed(step)
    inputs: dict[str, torch.Tensor] = {}
    for m in MODALITIES:
        inputs[f"{m}.tokens"] = torch.randn(n, TOKENS, WIDTH, generator=draw)
        inputs[f"{m}.mask"] = torch.ones(n, TOKENS, dtype=torch.bool)
        inputs[f"{m}.pooled"] = inputs[f"{m}.tokens"].mean(1)
        inputs[f"{m}.logits"] = torch.randn(n, 5, generator=draw)
    present = torch.rand(n, 3, generator=draw) < 0.7
    present[:, 0] |= ~present.any(1)
    label = (inputs["eeg.tokens"][:, 0, 0] > 0).long() + 2 * (inputs["audio.tokens"][:, 0, 0] > 0).long()
    return Batch(inputs, present, label, torch.ones(n), n, step)


def train_steps(engine: Engine, first: int, end: int) -> list[float]:
    # A rate that changes from step to step, as the schedule's does.
    return [engine.train_step(make_token_batch(s), 1e-2 * (1 - s / (2 * STEPS))) / 8 for s in range(first, end)]
