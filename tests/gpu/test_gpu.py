"""Training on one GPU is training on a CPU: `pytest tests/gpu`, by itself and not among other tests.

What more than one GPU would show, and these tests do not:

- NCCL between devices: that gradients are the mean over ranks, that an overflow on one rank is left out on all, that
  weights are equal on all ranks after a step (tests/training/engines/test_ranks.py shows these with gloo on CPUs);
- ZeRO 2 and 3 with parts of gradients and parameters on different devices, and the memory that they save;
- that a rank that dies frees the others from a NCCL collective, and how long that takes;
- that trainings on 1, 2 and 4 GPUs see the same windows and reach the same losses, and their windows a second;
- one process for each GPU of a node by Ray (`runtime.gpus_per_worker=1`), and groups side by side on one node.
"""

from typing import Any, Literal

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from benchmarks.gpu import make_batch, make_classifier, make_experiment
from eav_ray.config import Precision, RuntimeConfig, override
from eav_ray.models.encoders.ast import FilterBank
from eav_ray.training import precision
from eav_ray.training.engines.base import Engine
from eav_ray.training.engines.select import make_engine
from tests.helpers.engines import OPTIM, engines, make_module, make_token_batch, train_steps

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
STEPS = 20
halves = pytest.mark.parametrize("computed_in", ["bf16", "fp16"])
precisions = pytest.mark.parametrize("computed_in", ["fp32", "bf16", "fp16"])


def make(
    device: torch.device,
    name: Any,
    stage: Any,
    computed_in: Precision = "fp32",
    *,
    dropout: float = 0.0,
    start: dict[str, torch.Tensor] | None = None,
    offload: bool = False,
    **resume: Any,
) -> Engine:
    runtime = RuntimeConfig(engine=name, zero_stage=stage, workers=1, precision=computed_in, offload=offload)
    made = make_module(dropout)
    if start is not None:
        made.load_state_dict(start)
    return make_engine(made, OPTIM, runtime, device=device, **resume)


def state(engine: Engine) -> dict[str, torch.Tensor]:
    return engine.gather_weights() | engine.optimizer_state()


@pytest.fixture(scope="module")
def on_cpu() -> list[float]:
    """Mean losses of the PyTorch engine on a CPU in fp32."""
    engine = make(torch.device("cpu"), "torch", 0)
    losses = train_steps(engine, 0, STEPS)
    engine.close()
    return losses


@engines
def test_each_engine_takes_the_steps_of_a_cpu(device: torch.device, name: Any, stage: Any, on_cpu: list[float]) -> None:
    """Mean losses of 20 steps in fp32, within 1e-4: the order of sums differs, and AdamW makes more of it."""
    engine = make(device, name, stage)
    assert train_steps(engine, 0, STEPS) == pytest.approx(on_cpu, abs=1e-4)
    engine.close()


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_optimizer_state_in_cpu_memory_trains_the_same(device: torch.device, stage: Any, on_cpu: list[float]) -> None:
    engine = make(device, "deepspeed", stage, offload=True)
    assert train_steps(engine, 0, STEPS) == pytest.approx(on_cpu, abs=1e-4)
    engine.close()


@engines
@halves
def test_half_precision_follows_single_precision(
    device: torch.device, name: Any, stage: Any, computed_in: Precision, on_cpu: list[float]
) -> None:
    """Mean losses of 20 steps, within 5 %."""
    engine = make(device, name, stage, computed_in)
    assert train_steps(engine, 0, STEPS) == pytest.approx(on_cpu, rel=0.05)
    assert all(tensor.dtype != torch.float16 and tensor.dtype != torch.bfloat16 for tensor in state(engine).values())
    engine.close()


@engines
def test_a_step_that_overflows_changes_nothing_but_the_scale(
    device: torch.device, name: Any, stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "INITIAL_LOSS_SCALE", 2.0**40)
    engine = make(device, name, stage, "fp16")
    before = state(engine)
    train_steps(engine, 0, 1)
    after = state(engine)
    assert {key for key in before if not torch.equal(before[key], after[key])} == {"scale"}
    assert after["scale"] == 2.0**39
    engine.close()


@engines
@precisions
def test_a_resumed_training_ends_with_the_same_weights(
    device: torch.device, name: Any, stage: Any, computed_in: Precision
) -> None:
    """With dropout. Within 1e-5 of what was not stopped: kernels of a GPU may add in another order each time."""
    whole = make(device, name, stage, computed_in, dropout=0.3)
    train_steps(whole, 0, 7)
    again = make(
        device, name, stage, computed_in, dropout=0.3, start=whole.gather_weights(), resume=whole.optimizer_state()
    )
    train_steps(whole, 7, 12)
    train_steps(again, 7, 12)
    wanted, found = state(whole), state(again)
    assert wanted.keys() == found.keys()
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}")
    whole.close()
    again.close()


@pytest.mark.parametrize("engine", ["torch", "deepspeed"])
@precisions
@pytest.mark.parametrize("frozen", [False, True])
def test_encoders_and_fusion_train_together(
    device: torch.device, engine: Literal["torch", "deepspeed"], computed_in: Precision, frozen: bool
) -> None:
    """EEGformer, AST, ViT and their fusion, small: the loss of the same four windows falls.

    In float16 the first steps overflow.
    """
    e = override(make_experiment("small"), {"runtime.engine": engine, "runtime.precision": computed_in})
    made = make_engine(make_classifier(e, frozen=frozen), e.optim, e.runtime, device=device)
    losses = [made.train_step(make_batch(e, 4), 1e-3) for _ in range(20)]
    assert losses[-1] < losses[0]
    assert made.predict(make_batch(e, 4)).logits_BK.isfinite().all()
    made.close()


def test_the_filter_bank_is_that_of_a_cpu(device: torch.device) -> None:
    """5 s of sound, loud and quiet, in normalised log-mel units; it computes in double precision on both."""
    loud = 2 * torch.rand(4, 80_000, generator=torch.Generator().manual_seed(0)) - 1
    sound = loud * torch.tensor([1, 0.1, 1e-3, 0])[:, None]
    bank = FilterBank(512)
    torch.testing.assert_close(bank(sound.to(device)).cpu(), bank(sound), rtol=0, atol=1e-5)


def test_collectives_run_on_the_device(device: torch.device) -> None:
    """NCCL in a world of one: what engines, checkpoints and `ranks` ask of it."""
    total = torch.arange(3.0, device=device)
    dist.all_reduce(total)
    dist.broadcast(total, 0)
    assert total.tolist() == [0, 1, 2]
    found: list[Any] = [None]
    dist.all_gather_object(found, {"loss_sum": 1.5})
    assert found == [{"loss_sum": 1.5}]
    dist.barrier()
    alone, replica = make_module(0.0).to(device), DistributedDataParallel(make_module(0.0).to(device))
    made = make_token_batch(0)
    inputs = {name: x.to(device) for name, x in made.inputs.items()}
    for model in (alone, replica):
        model(inputs, made.present_BM.to(device)).logits_BK.sum().backward()
    for one, other in zip(alone.parameters(), replica.parameters(), strict=True):
        if one.grad is not None:
            assert other.grad is not None
            torch.testing.assert_close(other.grad, one.grad)
