"""float16 trains what float32 trains, leaves out what overflows, and goes on from a checkpoint as if never stopped."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from eav_ray.config import Experiment, OptimConfig, RuntimeConfig, override
from eav_ray.data.splits import Split
from eav_ray.errors import ConfigError
from eav_ray.models.classifier import Classifier
from eav_ray.models.encoders.base import DataShapes
from eav_ray.training import precision
from eav_ray.training.dataloader import Batch
from eav_ray.training.engines.base import Engine
from eav_ray.training.engines.select import make_engine
from eav_ray.training.run_spec import plan_encoder_run
from tests.helpers.engines import OPTIM, STEPS, engines, make_module, make_token_batch, train_steps

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:deepspeed.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning:deepspeed.*"),
]


def make(name: Any, stage: Any, *, dropout: float = 0.0, micro_batch: int = 0, offload: bool = False) -> Engine:
    runtime = RuntimeConfig(
        engine=name, zero_stage=stage, workers=1, precision="fp16", micro_batch=micro_batch, offload=offload
    )
    return make_engine(make_module(dropout), OPTIM, runtime, device=torch.device("cpu"))


def state(engine: Engine) -> dict[str, torch.Tensor]:
    return engine.gather_weights() | engine.optimizer_state()


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {key for key in before if not torch.equal(before[key], after[key])}


@engines
def test_float16_follows_single_precision(name: Any, stage: Any, reference: list[float]) -> None:
    """Mean losses of 50 steps, within 5 %; three windows at once of eight, clipped gradients. Some steps overflow."""
    engine = make(name, stage, micro_batch=3)
    losses = train_steps(engine, 0, STEPS)
    saved_optimizer_state = engine.optimizer_state()
    engine.close()
    assert losses != reference and losses == pytest.approx(reference, rel=0.05)
    skipped = math.log2(precision.INITIAL_LOSS_SCALE / saved_optimizer_state["scale"].item())
    assert skipped <= 2 and saved_optimizer_state["step"] == STEPS - skipped


@engines
def test_a_step_that_overflows_changes_nothing_but_the_scale(
    name: Any, stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = make(name, stage)
    expected = train_steps(plain, 0, 1)
    monkeypatch.setattr(precision, "INITIAL_LOSS_SCALE", 2.0**24)  # gradients of the outputs are near 2^-4
    engine = make(name, stage)
    before, skipped = state(engine), 0
    while (losses := train_steps(engine, 0, 1)) and engine.optimizer_state()["step"] == 0:
        skipped += 1
        assert losses == expected  # of what was computed, which the scale of the loss does not touch
        assert changed(before, state(engine)) == {"scale"}
        assert engine.optimizer_state()["scale"] == 2.0 ** (24 - skipped)
    assert 2 <= skipped <= 8
    found = state(engine)
    assert found["step"] == found["scale_good_steps"] == 1
    for key, value in state(plain).items():  # the first step that counts is the same at another scale
        if not key.startswith("scale"):
            torch.testing.assert_close(found[key], value, rtol=1e-2, atol=1e-3)
    train_steps(engine, 1, 3)
    before = state(engine)
    bad = make_token_batch(3)
    bad.inputs["eeg.tokens"][2] = 1e30  # the forward pass overflows
    bad.present_BM[2, 1] = True
    engine.train_step(bad, 1e-2)
    assert changed(before, state(engine)) == {"scale", "scale_good_steps"}
    assert engine.optimizer_state()["scale_good_steps"] == 0
    train_steps(engine, 4, 6)
    assert engine.optimizer_state()["step"] > before["step"]
    plain.close()
    engine.close()


@engines
@pytest.mark.parametrize("stop", [1, 7])
def test_a_training_in_float16_resumes_bit_for_bit(
    name: Any, stage: Any, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first steps overflow; the scale grows in between. It stops before the first good step, and later."""
    monkeypatch.setattr(precision, "INITIAL_LOSS_SCALE", 2.0**21)
    monkeypatch.setattr(precision, "GROWTH_INTERVAL", 4)
    whole = make(name, stage, dropout=0.3)
    train_steps(whole, 0, stop)
    weights, saved_optimizer_state = whole.gather_weights(), whole.optimizer_state()
    again = make_module(0.3)
    again.load_state_dict(weights)
    monkeypatch.setattr(precision, "INITIAL_LOSS_SCALE", 2.0**16)
    runtime = RuntimeConfig(engine=name, zero_stage=stage, workers=1, precision="fp16")
    second = make_engine(again, OPTIM, runtime, device=torch.device("cpu"), resume=saved_optimizer_state)
    assert not changed(weights | saved_optimizer_state, state(second))
    assert train_steps(whole, stop, 12) == train_steps(second, stop, 12)
    assert not changed(state(whole), state(second))
    whole.close()
    second.close()


def test_engines_take_the_same_steps_in_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses of 20 steps within 1e-3, the same steps left out, the same growth of the scale."""
    monkeypatch.setattr(precision, "INITIAL_LOSS_SCALE", 2.0**21)
    monkeypatch.setattr(precision, "GROWTH_INTERVAL", 4)
    found = []
    for name, stage, offload in [("torch", 0, False), *(("deepspeed", s, o) for s in range(4) for o in (False, s > 0))]:
        engine = make(name, stage, offload=offload)
        losses, saved_optimizer_state = train_steps(engine, 0, 20), engine.optimizer_state()
        engine.close()
        found.append(((name, stage, offload), losses, {k: saved_optimizer_state[k].item() for k in ("step", "scale")}))
    _, losses, reported = found[0]
    assert 0 < reported["step"] < 20
    for what, others, other in found[1:]:
        assert others == pytest.approx(losses, abs=1e-3), what
        assert other == reported, what


def test_one_engine_in_float16_leaves_the_next_alone(reference: list[float]) -> None:
    """DeepSpeed keeps in mind that it once had one."""
    first = make("deepspeed", 1)
    train_steps(first, 0, 1)
    first.close()
    for stage in (1, 2, 3):
        engine = make_engine(
            make_module(0.0), OPTIM, RuntimeConfig(zero_stage=stage, workers=1), device=torch.device("cpu")
        )
        assert train_steps(engine, 0, 5) == pytest.approx(reference[:5], abs=1e-6)
        engine.close()


def test_a_training_that_overflows_at_any_scale_ends_with_a_reason() -> None:
    engine = make("torch", 0)
    bad = make_token_batch(0)
    bad.inputs["eeg.tokens"][:] = 1e30
    with pytest.raises(ConfigError, match="overflows at any scale of the loss; use bf16 or fp32"):
        for _ in range(40):
            engine.train_step(bad, 1e-2)
    engine.close()


def test_batch_statistics_stay_finite_where_the_forward_pass_does_not() -> None:
    e = override(Experiment(), {"data.modalities": ["eeg"], "model.eeg": {"kind": "eav_transformer", "depth": 1}})
    torch.manual_seed(0)
    runtime = RuntimeConfig(engine="torch", workers=1, precision="fp16")
    engine = make_engine(Classifier(e, DataShapes(30, 5)), OptimConfig(), runtime, device=torch.device("cpu"))

    def step(factor: float) -> None:
        x = torch.randn(2, 30, 500, generator=torch.Generator().manual_seed(0)) * factor
        engine.train_step(
            Batch({"eeg": x}, torch.ones(2, 1, dtype=torch.bool), torch.tensor([0, 1]), torch.ones(2), 2, 0), 1e-3
        )

    step(1)
    before = engine.gather_weights()
    step(1e6)
    assert not changed(before, engine.gather_weights())
    step(1)
    assert any("running" in key for key in changed(before, engine.gather_weights()))
    engine.close()


def test_precision_is_part_of_the_key_of_a_run() -> None:
    split = Split("within", ("1",), (), ())
    keys = {
        plan_encoder_run(override(Experiment(), {"runtime.precision": p}), "eeg", split, "data", ()).key
        for p in ("fp32", "bf16", "fp16")
    }
    assert len(keys) == 3


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"runtime\.precision is 'fp8'; use one of fp32, bf16, fp16"):
        override(Experiment(), {"runtime.precision": "fp8"})


def test_matrix_products_convolutions_and_attention_compute_in_float16_on_this_device() -> None:
    x = torch.randn(2, 4, 8)
    with precision.autocast(torch.device("cpu"), "fp16"):
        q = nn.Linear(8, 8)(x)
        assert q.dtype == torch.float16
        assert nn.Conv1d(4, 4, 3)(x).dtype == torch.float16
        assert nn.functional.scaled_dot_product_attention(q, q, q).dtype == torch.float16
