"""Training on one GPU: windows a second, and how much of the chip's own matrix rate they are worth.

    python -m benchmarks.gpu [device=cuda] [size=base] [batch=16] [steps=20]

ViT-B on 25 frames, AST, EEGformer and their fusion in bfloat16, with frozen encoders (heads and fusion learn) and in
full training, by the program's PyTorch engine on windows that lie in CPU memory. Utilisation is the arithmetic of the
model, counted, over that of a large matrix product in bfloat16, timed in the same run. Then one change at a time:
DeepSpeed, windows that lie on the GPU, torch.compile, fused AdamW, each attention kernel. `device=cpu size=small` shows
that the code runs; its figures mean nothing, and it writes no page.
"""

import contextlib
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import Goal, finish_benchmark, format_spread, parse_arguments
from eav_ray.config import Experiment, override
from eav_ray.models.classifier import Classifier
from eav_ray.models.encoders.base import DataShapes
from eav_ray.training.dataloader import Batch
from eav_ray.training.engines.base import Engine, build_parameter_groups, move_batch_to_device
from eav_ray.training.engines.ddp import TorchEngine
from eav_ray.training.engines.select import make_engine

SHAPES, WARM_UP = DataShapes(30, 5), 3
SIZES: dict[str, dict[str, Any]] = {
    "base": {},
    "small": {
        "preprocessing.video.size": 32,
        "preprocessing.video.fps": 1,
        "model.eeg": {"filters": 4, "width": 32, "temporal_width": 32, "depth": 1},
        "model.audio": {"width": 32, "depth": 1, "heads": 2, "stride": 16},
        "model.video": {"image_size": 32, "patch": 16, "width": 32, "depth": 1, "heads": 2, "frames": 5},
        "fusion.width": 32,
    },
}
KERNELS = {
    "flash attention": SDPBackend.FLASH_ATTENTION,
    "memory-efficient attention": SDPBackend.EFFICIENT_ATTENTION,
    "cuDNN attention": SDPBackend.CUDNN_ATTENTION,
    "attention step by step": SDPBackend.MATH,
}


def make_experiment(size: str) -> Experiment:
    plain = {"runtime.engine": "torch", "runtime.precision": "bf16", "runtime.workers": 1}
    return override(Experiment(), SIZES[size] | plain)


def make_batch(e: Experiment, n: int) -> Batch:
    """Drawn at random, whole, in CPU memory."""
    draw = torch.Generator().manual_seed(0)
    size, frames = e.preprocessing.video.size, e.preprocessing.video.fps * e.preprocessing.window_s
    inputs = {
        "audio": 0.1 * torch.randn(n, 16_000 * e.preprocessing.window_s, generator=draw),
        "eeg": torch.randn(n, SHAPES.eeg_channels, e.preprocessing.eeg.hz * e.preprocessing.window_s, generator=draw),
        "video": torch.randint(0, 256, (n, frames, size, size, 3), dtype=torch.uint8, generator=draw),
    }
    label_B = torch.arange(n) % SHAPES.n_outputs
    return Batch(inputs, torch.ones(n, 3, dtype=torch.bool), label_B, torch.ones(n), n, 0)


def synchronize_device(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_action(action: Callable[[], Any], device: torch.device, runs: int) -> list[float]:
    found = []
    for run in range(WARM_UP + runs):
        synchronize_device(device)
        began = time.perf_counter()
        action()
        synchronize_device(device)
        if run >= WARM_UP:
            found.append(time.perf_counter() - began)
    return found


def measure_matrix_rate(device: torch.device, n: int) -> float:
    """Multiplications and additions a second of an n x n product in bfloat16, the best of ten."""
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * n**3 / min(time_action(lambda: a @ b, device, 10))


def make_classifier(e: Experiment, *, frozen: bool) -> Classifier:
    torch.manual_seed(0)
    module = Classifier(e, SHAPES)
    module.freeze_encoders(frozen)
    return module


def count_step_flops(e: Experiment, device: torch.device, *, frozen: bool) -> float:
    """Multiplications and additions of a training step on one window, forward and backward."""
    engine = make_engine(make_classifier(e, frozen=frozen), e.optim, e.runtime, device=device)
    # Attention step by step is made of matrix products, which are counted on every device.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        engine.train_step(make_batch(e, 1), 1e-4)
    engine.close()
    return counter.get_total_flops()


def compile_encoders(module: Classifier) -> None:
    for encoder in module.encoders.values():
        encoder.compile()


def use_fused_adamw(engine: Engine, module: nn.Module, e: Experiment) -> None:
    assert isinstance(engine, TorchEngine)
    groups = build_parameter_groups(module.named_parameters(), e.optim)
    engine.optimizer = torch.optim.AdamW(groups, lr=e.optim.lr, fused=True)


def time_training_steps(
    e: Experiment, device: torch.device, change: str, batch: int, steps: int, *, frozen: bool
) -> list[float] | str:
    """Seconds of each step with one change; or why this attention kernel cannot do it here."""
    if change == "DeepSpeed, ZeRO 1":
        e = override(e, {"runtime.engine": "deepspeed", "runtime.zero_stage": 1})
    module = make_classifier(e, frozen=frozen)
    step_batch = make_batch(e, batch)
    engine = make_engine(module, replace(e.optim, batch=batch), e.runtime, device=device)
    if change == "windows on the device":
        step_batch = move_batch_to_device(step_batch, device)
    if change == "torch.compile":
        compile_encoders(module)
    if change == "fused AdamW":
        use_fused_adamw(engine, module, e)
    kernel = sdpa_kernel(KERNELS[change]) if change in KERNELS else contextlib.nullcontext()
    try:
        with kernel:
            return time_action(partial(engine.train_step, step_batch, 1e-4), device, steps)
    except RuntimeError as error:
        if change not in KERNELS:
            raise
        return str(error).splitlines()[0]
    finally:
        engine.close()


def main() -> int:
    _, words = parse_arguments(__doc__, ("device", "size", "batch", "steps"))
    device, size = torch.device(words.get("device", "cuda")), words.get("size", "base")
    if size not in SIZES:
        sys.exit(f"error: size is {size!r}; use one of {', '.join(SIZES)}")
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("error: no GPU here; `device=cpu size=small` only shows that the code runs")
    batch, steps = int(words.get("batch", 16)), int(words.get("steps", 20))
    e = make_experiment(size)
    rate = measure_matrix_rate(device, 8192 if size == "base" else 512)
    changes = ["as it is", "DeepSpeed, ZeRO 1", "windows on the device", "torch.compile", "fused AdamW", *KERNELS]
    table, goals = [], []
    for training, frozen in (("frozen encoders", True), ("full", False)):
        flops_per_window = count_step_flops(e, device, frozen=frozen)
        print(f"{training}: {flops_per_window / 1e9:.3g} GFLOP a window", flush=True)
        for change in changes:
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            found = time_training_steps(e, device, change, batch, steps, frozen=frozen)
            if isinstance(found, str):
                table.append(f"| {training} | {change} | {found} | | |")
                continue
            utilization = 100 * flops_per_window * batch / np.median(found) / rate
            gib = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else float("nan")
            table.append(
                f"| {training} | {change} | {format_spread(batch / np.array(found), 1)} | {utilization:.1f} | "
                f"{gib:.1f} |"
            )
            print(table[-1], flush=True)
            if change == "as it is":
                goals.append(Goal(f"utilisation, {training}", utilization, 40, " %"))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    body = "\n".join(
        [
            f"{name}, torch {torch.__version__}. A product of bfloat16 matrices runs at {rate / 1e12:.3g} TFLOP/s. "
            f"{batch} windows a step, median (range) of {steps} steps; each change alone, against the first row.",
            "",
            "| training | change | windows/s | utilisation, % | memory, GiB |",
            "|---|---|---|---|---|",
            *table,
        ]
    )
    if (device.type, size) != ("cuda", "base"):
        print(body, "it runs; no page is written", sep="\n")
        return 0
    return finish_benchmark("gpu", "Training on one GPU", body, goals)


if __name__ == "__main__":
    sys.exit(main())
