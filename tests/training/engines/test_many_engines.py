"""A group trains one run after the other in the same processes: what an engine held is given back when it is closed."""

import gc
import weakref
from typing import Any

import psutil
import pytest
import torch

from eav_ray.config import MODALITIES, RuntimeConfig
from eav_ray.models.classifier import FusionClassifier
from eav_ray.models.fusion.shared_attention import SharedAttentionFusion
from eav_ray.training.engines.select import make_engine
from tests.helpers.engines import OPTIM, TOKENS, WIDTH, engines, make_token_batch

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:deepspeed.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning:deepspeed.*"),
]
ENGINES, WARM = 30, 5
MIB = 2**20


def large() -> FusionClassifier:
    """0.2 million parameters: with gradients and moments 4 MB, 100 MB in 25 engines."""
    times = {m: torch.arange(TOKENS) / TOKENS for m in MODALITIES}
    fusion = SharedAttentionFusion(
        dict.fromkeys(MODALITIES, WIDTH), times, window_s=1, n_outputs=5, width=128, heads=4, dropout=0.0
    )
    return FusionClassifier(fusion, list(MODALITIES))


@engines
def test_thirty_engines_in_one_process_take_no_more_memory_than_a_few(name: Any, stage: Any) -> None:
    runtime = RuntimeConfig(engine=name, zero_stage=stage, workers=1)
    living: list[weakref.ref[Any]] = []
    after: list[int] = []
    gc.freeze()  # what was there before need not be looked through 30 times
    for _ in range(ENGINES):
        module = large()
        assert sum(p.numel() for p in module.parameters()) > 2e5
        engine: Any = make_engine(module, OPTIM, runtime, device=torch.device("cpu"))
        engine.train_step(make_token_batch(0), 1e-2)
        engine.optimizer_state()
        engine.close()
        living += [weakref.ref(module), weakref.ref(next(engine.module.parameters()))]
        del module, engine
        gc.collect()
        after.append(psutil.Process().memory_info().rss)
    gc.unfreeze()
    assert all(ref() is None for ref in living)
    assert after[-1] - max(after[:WARM]) < 40 * MIB
