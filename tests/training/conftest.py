"""One process group of one for all engines of a test session, as DeepSpeed keeps those it saw, and a plain training."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.helpers.engines import STEPS, make_module, make_token_batch


@pytest.fixture(scope="session", autouse=True)
def group() -> Iterator[None]:
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.fixture(scope="session")
def reference() -> list[float]:
    """A loop in plain PyTorch, independent of both engines."""
    plain = make_module(0.0)
    matrices = [p for p in plain.parameters() if p.ndim > 1]
    vectors = [p for p in plain.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    losses = []
    for step in range(STEPS):
        for part in optimizer.param_groups:
            part["lr"] = 1e-2 * (1 - step / (2 * STEPS))
        made = make_token_batch(step)
        loss = nn.functional.cross_entropy(plain(made.inputs, made.present_BM).logits_BK, made.label_B)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        optimizer.step()
        losses.append(loss.item())
    return losses
