"""How long trainings will take: a few real steps of a small encoder, or the arithmetic of a large one, counted."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from eav_ray.config import Experiment
from eav_ray.data.modalities.registry import get_modality
from eav_ray.models.classifier import Classifier
from eav_ray.models.encoders.base import DataShapes, EncoderOutput
from eav_ray.models.fusion.factory import build_fusion
from eav_ray.training.dataloader import Batch
from eav_ray.training.engines.base import limit_training
from eav_ray.training.losses import compute_loss_sum

TIMED_WINDOWS = 4
MAX_TIMED_FLOPS = (
    2e9  # forward, of one window; a step of more would take long and gigabytes before the first line is said
)
ASSUMED_GPU_FLOPS = 5e13  # assumed of one GPU where there is none to measure on
CPU_EFFICIENCY = 0.75  # of a bare matrix product's speed, reached by training AST and ViT; measured on a CPU core
FUSION_EFFICIENCY = 0.2  # of what training encoders reaches, reached by fusions in stacks of 64; measured on a CPU core
MIN_FUSION_S = 5e-5  # a fusion takes for a window, however small it is
N_WARMUP_WINDOWS, MIN_REPEATS, MAX_REPEATS, MAX_LATENCY_RUN_S = (
    3,
    5,
    50,
    1.0,
)  # windows of a latency, and when there are enough
WORKER_GROUP_START_S = 20.0  # a group of workers, from asking to its first step

T = TypeVar("T")


def estimate_seconds_per_window(experiment: Experiment, shapes: DataShapes) -> dict[str, float]:
    """Seconds that one worker needs to train each encoder on one window.

    Small encoders are timed here on random input. Of large ones the arithmetic is counted, and divided by what a
    matrix product reaches here. With `runtime.gpus_per_worker` all are counted, at 50 TFLOP/s a GPU.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, int(experiment.runtime.cpus_per_worker)))
    try:
        return {m: _estimate_encoder_seconds(experiment, m, shapes) for m in sorted(experiment.data.modalities)}
    finally:
        torch.set_num_threads(threads)


def estimate_seconds_per_fused_window(experiment: Experiment, shapes: DataShapes) -> float:
    """Seconds that one worker needs to train a fusion on one window of the embedding cache; 0 where none is trained."""
    flops = _count_fusion_flops(experiment, shapes)
    if not flops:
        return 0.0
    rate = ASSUMED_GPU_FLOPS if experiment.runtime.gpus else measure_cpu_flops()
    return max(MIN_FUSION_S, 3 * flops / (FUSION_EFFICIENCY * rate))


def _count_fusion_flops(experiment: Experiment, shapes: DataShapes) -> int:
    """Forward, of one window; 0 where there is nothing to fuse."""
    e, n = experiment, len(experiment.data.modalities)
    if n < 2:
        return 0
    widths = {m: e.model[m].token_width for m in sorted(e.data.modalities)}
    # Where they are known no encoder is needed, whose libraries take seconds to load.
    if e.fusion.uses_pooled_features and all(widths.values()):
        with torch.device("meta"):
            fusion = build_fusion(e, widths, {m: torch.zeros(1) for m in widths}, shapes.n_outputs)
            tokens = {m: torch.zeros(1, 1, width) for m, width in widths.items()}
            encoded = {m: EncoderOutput(x, torch.ones(1, 1, dtype=torch.bool), x[:, 0]) for m, x in tokens.items()}
            logits = {m: torch.zeros(1, shapes.n_outputs) for m in widths}
    else:
        fusion, (encoded, logits) = _run_random_window(
            e, shapes, lambda model, inputs, present: (model.fusion, model.encode(inputs, present))
        )
    assert fusion is not None
    present = torch.ones(1, n, dtype=torch.bool, device=next(iter(logits.values())).device)
    with FlopCounterMode(display=False) as counter:
        fusion(encoded, logits, present)
    return counter.get_total_flops()


def compute_model_cost(experiment: Experiment, shapes: DataShapes) -> float:
    """The `search.cost` of a whole model: its parameters, or its multiplications for a window, in 10^9."""
    with torch.device("meta"):
        model = Classifier(experiment, shapes)
    if experiment.search.cost == "parameters":
        return float(sum(p.numel() for p in model.parameters()))
    encoders = sum(_count_forward_flops(_select_modality(experiment, m), m, shapes) for m in experiment.data.modalities)
    return (encoders + _count_fusion_flops(experiment, shapes)) / 2e9


def measure_latency_ms(experiment: Experiment, shapes: DataShapes, device: torch.device) -> list[float]:
    """Milliseconds of one window through a whole model, warm, of each repeat.

    The model alone, on random input and fresh weights, which take as long as trained ones, by as many threads as a
    worker has.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, int(experiment.runtime.cpus_per_worker)))
    try:
        model = Classifier(_drop_normalisation(experiment), shapes).to(device).eval()
        modalities = sorted(experiment.data.modalities)
        inputs = {m: make_random_batch(experiment, m, shapes, 1).inputs[m].to(device) for m in modalities}
        present = torch.ones(1, len(modalities), dtype=torch.bool, device=device)
        times_ms: list[float] = []
        with torch.no_grad():
            began = time.perf_counter()
            while len(times_ms) < N_WARMUP_WINDOWS + MIN_REPEATS or (
                len(times_ms) < N_WARMUP_WINDOWS + MAX_REPEATS and time.perf_counter() - began < MAX_LATENCY_RUN_S
            ):
                start = time.perf_counter()
                model(inputs, present).logits_BK.cpu()  # which waits for a GPU
                times_ms.append(1e3 * (time.perf_counter() - start))
        return times_ms[N_WARMUP_WINDOWS:]
    finally:
        torch.set_num_threads(threads)


def _estimate_encoder_seconds(experiment: Experiment, modality: str, shapes: DataShapes) -> float:
    unimodal = _select_modality(_drop_normalisation(experiment), modality)
    forward_flops = _count_forward_flops(unimodal, modality, shapes)
    if experiment.runtime.gpus or forward_flops > MAX_TIMED_FLOPS:
        flops = _count_training_flops(unimodal, modality, shapes)
        return flops / (ASSUMED_GPU_FLOPS if experiment.runtime.gpus else measure_cpu_flops())
    model, batch = Classifier(unimodal, shapes), make_random_batch(experiment, modality, shapes, TIMED_WINDOWS)
    limit_training(model, experiment.train.encoders[modality])
    times = []
    for _ in range(3):
        began = time.perf_counter()
        compute_loss_sum(model(batch.inputs, batch.present_BM).logits_BK, batch, 0.0).backward()
        times.append(time.perf_counter() - began)
    return min(times) / TIMED_WINDOWS


def _drop_normalisation(experiment: Experiment) -> Experiment:
    """Copy an experiment without normalisation within subjects, which wants statistics and costs next to nothing."""
    sections = {m: replace(section, subject_normalisation="none") for m, section in experiment.model.items()}
    return replace(experiment, model=sections)


def _select_modality(experiment: Experiment, modality: str) -> Experiment:
    return replace(experiment, data=replace(experiment.data, modalities=(modality,)))


def _count_forward_flops(experiment: Experiment, modality: str, shapes: DataShapes) -> int:
    """Of one window."""
    counter = FlopCounterMode(display=False)

    def encode(model: Classifier, inputs: dict[str, torch.Tensor], present: torch.Tensor) -> None:
        with torch.no_grad(), counter:
            model.encode(inputs, present)

    _run_random_window(_select_modality(experiment, modality), shapes, encode)
    return counter.get_total_flops()


def _count_training_flops(experiment: Experiment, modality: str, shapes: DataShapes) -> int:
    """Of one window, forward and backward through what learns."""
    counter = FlopCounterMode(display=False)

    def train(model: Classifier, inputs: dict[str, torch.Tensor], present: torch.Tensor) -> None:
        limit_training(model, experiment.train.encoders[modality])
        with counter:
            model.encode(inputs, present)[1][modality].sum().backward()

    _run_random_window(_select_modality(experiment, modality), shapes, train)
    return counter.get_total_flops()


def _run_random_window(
    experiment: Experiment,
    shapes: DataShapes,
    run: Callable[[Classifier, dict[str, torch.Tensor], torch.Tensor], T],
) -> T:
    """Run a classifier on a window of noise on the meta device, where nothing is computed and weights take no memory.

    Args:
        run: Takes the classifier, inputs by modality, and which are present.
    """
    modalities = sorted(experiment.data.modalities)
    for device in ("meta", "cpu"):
        present = torch.ones(1, len(modalities), dtype=torch.bool, device=device)
        inputs = {m: make_random_batch(experiment, m, shapes, 1).inputs[m].to(device) for m in modalities}
        try:
            with torch.device(device):
                return run(Classifier(experiment, shapes), inputs, present)
        except RuntimeError:  # some networks of libraries look at values of tensors
            if device == "cpu":
                raise
    raise AssertionError


def count_learning_parameters(experiment: Experiment, modality: str, shapes: DataShapes) -> tuple[int, int]:
    """Count the parameters of an encoder and its head that learn, and all of them."""
    with torch.device("meta"):
        model = Classifier(_select_modality(experiment, modality), shapes)
    limit_training(model, experiment.train.encoders[modality])
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, learns in sizes if learns), sum(n for n, _ in sizes)


def measure_cpu_flops() -> float:
    """Measure the floating-point operations a second that the threads of this process reach in training."""
    x, times = torch.randn(1024, 1024), []
    for _ in range(3):
        began = time.perf_counter()
        torch.mm(x, x)
        times.append(time.perf_counter() - began)
    return CPU_EFFICIENCY * 2 * 1024**3 / min(times)


def make_random_batch(experiment: Experiment, modality: str, shapes: DataShapes, n: int) -> Batch:
    """Make `n` windows of noise of one modality, always the same ones."""
    windows = get_modality(modality)
    shape = (n, *windows.compute_shape(experiment.preprocessing, shapes.eeg_channels))
    x = windows.draw_noise(np.random.default_rng(0), shape)
    ones = torch.ones(n)
    label = torch.zeros(n, dtype=torch.long)
    return Batch({modality: torch.from_numpy(x)}, ones[:, None].bool(), label, ones, n, 0)
