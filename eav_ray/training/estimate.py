"""How long trainings will take, measured: a few real steps of each encoder, before anything long starts."""

import time
from dataclasses import replace

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from eav_ray.config import Experiment
from eav_ray.models.build import Classifier, Shapes
from eav_ray.training.engine import summed_loss
from eav_ray.training.loop import Batch

STEP_WINDOWS = 4
GPU_FLOPS = 5e13  # assumed of one GPU where there is none to measure on
START_S = 20.0  # a group of workers, from asking to its first step


def seconds_per_window(experiment: Experiment, shapes: Shapes) -> dict[str, float]:
    """Seconds that one worker needs to train each encoder on one window, timed here on random input.

    With `runtime.gpus_per_worker` the arithmetic of the model is counted instead, at 50 TFLOP/s a GPU.
    """
    return {m: _one(experiment, m, shapes) for m in sorted(experiment.data.modalities)}


def _one(experiment: Experiment, modality: str, shapes: Shapes) -> float:
    alone = replace(experiment, data=replace(experiment.data, modalities=(modality,)))
    model = Classifier(alone, shapes)
    batch = _random(experiment, modality, shapes)
    if experiment.runtime.gpus_per_worker:
        with FlopCounterMode(display=False) as counter:
            model(batch.inputs, batch.present_BM)
        return 3 * counter.get_total_flops() / STEP_WINDOWS / GPU_FLOPS
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, int(experiment.runtime.cpus_per_worker)))
    times = []
    for _ in range(3):
        began = time.perf_counter()
        summed_loss(model(batch.inputs, batch.present_BM).logits_BK, batch, 0.0).backward()
        times.append(time.perf_counter() - began)
    torch.set_num_threads(threads)
    return min(times) / STEP_WINDOWS


def _random(experiment: Experiment, modality: str, shapes: Shapes) -> Batch:
    p, n = experiment.profile, STEP_WINDOWS
    rng = np.random.default_rng(0)
    match modality:
        case "eeg":
            x = rng.standard_normal((n, shapes.eeg_channels, p.eeg.hz * p.window_s)).astype(np.float32)
        case "audio":
            x = 0.1 * rng.standard_normal((n, p.audio.hz * p.window_s)).astype(np.float32)
        case _:
            shape = (n, p.video.fps * p.window_s, p.video.size, p.video.size, 3)
            x = rng.integers(0, 256, shape, dtype=np.uint8)
    ones = torch.ones(n)
    label = torch.zeros(n, dtype=torch.long)
    return Batch({modality: torch.from_numpy(x)}, ones[:, None].bool(), label, ones, n, 0)
