"""DeepSpeed trains what plain PyTorch trains, and both go on from a checkpoint as if they had never stopped."""

import os
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from deepspeed.accelerator import real_accelerator
from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator
from torch import nn

from eav_ray.config import RuntimeConfig
from eav_ray.errors import ConfigError
from eav_ray.models.classifier import ClassifierOutput
from eav_ray.training.dataloader import Batch
from eav_ray.training.engines import deepspeed_workarounds
from eav_ray.training.engines.base import Engine, seed_generators
from eav_ray.training.engines.select import make_engine
from eav_ray.training.losses import compute_loss_sum, compute_modality_weight_loss, restrict_to_modality
from tests.helpers.engines import ENGINES, OPTIM, STEPS, engines, make_module, make_token_batch, train_steps

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:deepspeed.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning:deepspeed.*"),
]


def make(name: Any, stage: Any, *, dropout: float = 0.0, start: nn.Module | None = None, **resume: Any) -> Engine:
    runtime = RuntimeConfig(engine=name, zero_stage=stage, workers=1)
    return make_engine(start or make_module(dropout), OPTIM, runtime, device=torch.device("cpu"), **resume)


@engines
def test_each_engine_takes_the_steps_of_plain_pytorch(name: Any, stage: Any, reference: list[float]) -> None:
    engine = make(name, stage)
    losses = train_steps(engine, 0, STEPS)
    engine.close()
    assert losses == pytest.approx(reference, abs=1e-6)  # mean losses of 50 steps in fp32
    assert sum(losses[-10:]) < sum(losses[:10])


@engines
def test_without_decay_and_clipping_each_engine_is_torchs_adam(name: Any, stage: Any) -> None:
    plain = make_module(0.0)
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-2)
    expected = []
    for step in range(12):
        batch = make_token_batch(step)
        loss = nn.functional.cross_entropy(plain(batch.inputs, batch.present_BM).logits_BK, batch.label_B)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    optim, runtime = replace(OPTIM, weight_decay=0.0, clip=0.0), RuntimeConfig(engine=name, zero_stage=stage, workers=1)
    engine = make_engine(make_module(0.0), optim, runtime, device=torch.device("cpu"))
    losses = [engine.train_step(make_token_batch(step), 1e-2) / 8 for step in range(12)]
    engine.close()
    assert losses == pytest.approx(expected, abs=1e-6)


@engines
@pytest.mark.parametrize("stop", [1, 7])
def test_a_resumed_training_ends_with_the_very_same_weights(name: Any, stage: Any, stop: int) -> None:
    whole = make(name, stage, dropout=0.3)
    train_steps(whole, 0, 12)
    first = make(name, stage, dropout=0.3)
    train_steps(first, 0, stop)
    weights, saved_optimizer_state = first.gather_weights(), first.optimizer_state()
    first.close()
    assert saved_optimizer_state["step"] == stop
    again = make_module(0.3)
    again.load_state_dict(weights)
    second = make(name, stage, start=again, resume=saved_optimizer_state)
    assert {k: v.tolist() for k, v in second.gather_weights().items()} == {k: v.tolist() for k, v in weights.items()}
    train_steps(second, stop, 10)
    second.gather_weights()  # of a checkpoint on the way
    train_steps(second, 10, 12)
    for wanted, found in (
        (whole.gather_weights(), second.gather_weights()),
        (whole.optimizer_state(), second.optimizer_state()),
    ):
        assert wanted.keys() == found.keys()
        for key in wanted:
            assert torch.equal(wanted[key], found[key]), key
    whole.close()
    second.close()


def test_moments_carry_names_and_no_engine() -> None:
    """What one engine leaves another takes over."""
    found = {}
    for name, stage in ENGINES:
        engine = make(name, stage)
        train_steps(engine, 0, 3)
        found[name, stage] = engine.optimizer_state()
        engine.close()
    names = {n for n, _ in make_module(0.0).named_parameters()}
    expected = {"step"} | {f"{n}.{m}" for n in names for m in ("exp_avg", "exp_avg_sq")}
    for saved_optimizer_state in found.values():
        assert saved_optimizer_state.keys() == expected
        for key, value in saved_optimizer_state.items():
            torch.testing.assert_close(value, found["torch", 0][key], rtol=1e-4, atol=1e-7)


@engines
def test_prediction_draws_nothing_and_leaves_training_as_it_was(name: Any, stage: Any) -> None:
    one, other = make(name, stage, dropout=0.3), make(name, stage, dropout=0.3)
    first, again = one.predict(make_token_batch(0)).logits_BK, one.predict(make_token_batch(0)).logits_BK
    assert torch.equal(first, again) and not first.requires_grad
    assert train_steps(one, 0, 3) == train_steps(other, 0, 3)
    one.close()
    other.close()


@engines
def test_dropout_comes_from_the_step_and_not_from_what_was_drawn_before(name: Any, stage: Any) -> None:
    losses = []
    for drawn in (0, 17):
        engine = make(name, stage, dropout=0.3)
        torch.rand(drawn)
        losses.append(train_steps(engine, 0, 2))
        engine.close()
    assert losses[0] == losses[1]


def test_the_weight_loss_counts_windows_by_their_class_and_does_not_sharpen_its_target() -> None:
    logits = {"audio": torch.tensor([[2.0, 0]]), "eeg": torch.tensor([[0.0, 1]])}

    def gradient(weight: float, mixed: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None) -> torch.Tensor:
        present = torch.tensor([[True, True]])
        batch = Batch({}, present, torch.tensor([0]), torch.tensor([weight]), 1, 0, mixed)
        scores = torch.zeros(1, 2, requires_grad=True)
        weights = scores.softmax(1)
        compute_modality_weight_loss(ClassifierOutput(torch.zeros(1, 2), logits, weights, weights), batch).backward()
        assert scores.grad is not None
        return scores.grad[0]

    torch.testing.assert_close(gradient(3.0), 3 * gradient(1.0))
    itself = (torch.tensor([0]), torch.tensor([5.0]), torch.tensor([0.25]))
    torch.testing.assert_close(gradient(1.0, itself), 4 * gradient(1.0))  # 0.25 * 1 + 0.75 * 5


def test_a_mixed_window_without_a_modality_adds_nothing_to_the_loss_of_it_alone() -> None:
    present = torch.tensor([[True, False], [True, False]])
    mixed = (torch.tensor([1, 0]), torch.ones(2), torch.full((2,), 0.3))
    batch = Batch({}, present, torch.tensor([0, 1]), torch.ones(2), 2, 0, mixed)
    logits = torch.full((2, 2), float("nan"))
    assert compute_loss_sum(logits, restrict_to_modality(batch, 1), 0.0) == 0
    assert compute_loss_sum(torch.randn(2, 2), restrict_to_modality(batch, 0), 0.0) > 0


def test_the_weight_loss_is_least_where_weights_follow_who_is_right() -> None:
    """Against autograd on a plain softmax: the gradient is the difference of the weights and their target."""
    logits = {"audio": torch.tensor([[4.0, 0], [4, 0]]), "eeg": torch.tensor([[0.0, 4], [0, 0]])}
    present = torch.tensor([[True, True], [True, False]])
    batch = Batch({}, present, torch.tensor([0, 1]), torch.ones(2), 2, 0)
    scores = torch.zeros(2, 2, requires_grad=True)
    weights = scores.masked_fill(~present, float("-inf")).softmax(1)
    compute_modality_weight_loss(ClassifierOutput(torch.zeros(2, 2), logits, weights, weights), batch).backward()
    alone = torch.tensor([-nn.functional.cross_entropy(logits[m], batch.label_B, reduction="none")[0] for m in logits])
    assert scores.grad is not None
    torch.testing.assert_close(scores.grad[0], 0.5 - alone.softmax(0))
    assert scores.grad[0, 0] < 0 < scores.grad[0, 1]
    assert scores.grad[1].tolist() == [0, 0]  # who is alone has all the weight, right or wrong


@engines
def test_parts_of_a_batch_train_what_the_whole_batch_trains(name: Any, stage: Any, reference: list[float]) -> None:
    """Mean losses of 50 steps in fp32, three windows at once of eight."""
    runtime = RuntimeConfig(engine=name, zero_stage=stage, workers=1, micro_batch=3)
    engine = make_engine(make_module(0.0), OPTIM, runtime, device=torch.device("cpu"))
    assert train_steps(engine, 0, STEPS) == pytest.approx(reference, abs=1e-6)
    engine.close()


@engines
def test_bfloat16_leaves_weights_and_moments_in_single_precision(name: Any, stage: Any) -> None:
    runtime = RuntimeConfig(engine=name, zero_stage=stage, workers=1, precision="bf16")
    engine = make_engine(make_module(0.3), OPTIM, runtime, device=torch.device("cpu"))
    train_steps(engine, 0, 3)
    weights, saved_optimizer_state = engine.gather_weights(), engine.optimizer_state()
    engine.close()
    whole = make_engine(make_module(0.3), OPTIM, runtime, device=torch.device("cpu"))
    train_steps(whole, 0, 6)
    assert any(not torch.equal(t, t.bfloat16().float()) for t in whole.gather_weights().values())
    again = make_module(0.3)
    again.load_state_dict(weights)
    second = make_engine(again, OPTIM, runtime, device=torch.device("cpu"), resume=saved_optimizer_state)
    losses = train_steps(second, 3, 6)
    assert all(torch.equal(t, second.gather_weights()[n]) for n, t in whole.gather_weights().items())
    exact = make(name, stage, dropout=0.3)
    single = train_steps(exact, 0, 6)[3:]
    assert losses != single and losses == pytest.approx(single, rel=0.05)
    for engine in (whole, second, exact):
        engine.close()


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_optimizer_state_in_cpu_memory_trains_the_same(stage: Any, reference: list[float]) -> None:
    """Mean losses of 50 steps in fp32, and a resumed end bit for bit."""
    runtime = RuntimeConfig(zero_stage=stage, workers=1, offload=True)
    engine = make_engine(make_module(0.0), OPTIM, runtime, device=torch.device("cpu"))
    assert train_steps(engine, 0, 20) == pytest.approx(reference[:20], abs=1e-6)
    again = make_module(0.0)
    again.load_state_dict(engine.gather_weights())
    second = make_engine(again, OPTIM, runtime, device=torch.device("cpu"), resume=engine.optimizer_state())
    assert train_steps(engine, 20, STEPS) == train_steps(second, 20, STEPS)
    assert all(torch.equal(tensor, second.gather_weights()[name]) for name, tensor in engine.gather_weights().items())
    engine.close()
    second.close()


class FakeGPU(CPU_Accelerator):
    """What DeepSpeed takes where it sees a GPU, though Ray gave the worker none."""

    def device_name(self, device_index: int | None = None) -> str:
        return "meta" if device_index is None else f"meta:{device_index}"


@pytest.mark.parametrize("stage", [0, 1])
def test_deepspeed_computes_on_the_cpu_though_it_sees_a_gpu(stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real_accelerator, "ds_accelerator", FakeGPU())
    engine: Any = make("deepspeed", stage)
    assert engine.engine.device == engine.device == next(engine.module.parameters()).device == torch.device("cpu")
    assert real_accelerator.get_accelerator().device_name() == "cpu"
    train_steps(engine, 0, 1)
    engine.close()


def test_an_engine_on_another_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real_accelerator, "ds_accelerator", FakeGPU())
    monkeypatch.setattr(deepspeed_workarounds, "choose_accelerator", lambda device: None)
    with pytest.raises(ConfigError, match="DeepSpeed computes on meta:0, but this worker on cpu; unset DS_ACCELERATOR"):
        make("deepspeed", 0)


@pytest.mark.parametrize(
    ("found", "asked", "right"),
    [
        ("cuda:0", "cuda", True),
        ("cuda:1", "cuda:1", True),
        ("cuda:1", "cuda:0", False),
        ("cuda:0", "cpu", False),
        ("cpu", "cuda:0", False),
    ],
)
def test_devices_are_compared_by_kind_and_number(found: str, asked: str, right: bool) -> None:
    engine = SimpleNamespace(device=torch.device(found))
    with nullcontext() if right else pytest.raises(ConfigError, match=f"computes on {found}.*this worker on {asked}"):
        deepspeed_workarounds.check_device(engine, torch.device(asked))


@pytest.mark.parametrize(("device", "expected"), [("cpu", "3"), ("cuda", "3"), ("cuda:1", "1")])
def test_deepspeed_takes_the_gpu_that_the_worker_has(
    device: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers that share a GPU have other numbers on their node than it has."""
    monkeypatch.setenv("LOCAL_RANK", "3")
    with deepspeed_workarounds.local_rank_variable(torch.device(device)):
        assert os.environ["LOCAL_RANK"] == expected
    assert os.environ["LOCAL_RANK"] == "3"


def test_generators_are_seeded_as_torch_seeds_them_and_no_other_device_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed((3 << 44) + 5)
    expected = torch.rand(4)
    for device in (torch.cuda, torch.xpu, torch.mtia):
        monkeypatch.setattr(device, "manual_seed_all", lambda seed: pytest.fail("it was asked"))
    seed_generators((3 << 44) + 5, torch.device("cpu"))
    assert torch.equal(torch.rand(4), expected)
