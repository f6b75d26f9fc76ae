"""What Ray Train and DeepSpeed cost beside a plain PyTorch loop, and beside bare DistributedDataParallel.

    python -m benchmarks.train [FOLDER] [rounds=5]

Three small encoders and their fusion, trained together on synthetic people, in steps of 50 to 100 ms: by the program
itself (Ray Train workers, DeepSpeed, a checkpoint every other epoch) and by a loop of a few lines in bare processes.
Same model, loss, batches, threads and order; one worker against one process, two against two. A round is one side after
the other, in turns; what is compared is the time of all steps after the first epoch, pair by pair.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.common import Goal, finish_benchmark, format_spread, parse_arguments
from eav_ray.config import Experiment, load_experiment, override
from eav_ray.data.shards.dataset import open_dataset
from eav_ray.data.splits import Split, list_labeled_recordings
from eav_ray.data.synthetic.generate import SyntheticSpec, generate_dataset
from eav_ray.distributed.connection import connect_experiment
from eav_ray.distributed.worker_groups import train_runs
from eav_ray.models.classifier import Classifier
from eav_ray.models.encoders.base import DataShapes
from eav_ray.pipelines.preprocess.preprocess import preprocess
from eav_ray.training.dataloader import BatchLoader, RawSource, WindowLabels
from eav_ray.training.engines.base import build_parameter_groups
from eav_ray.training.loop import make_lr_schedule
from eav_ray.training.run_spec import Position, Progress, Run

EPOCHS, BATCH = 4, 4  # windows of one worker
SPEC = SyntheticSpec(n_subjects=2, per_class=8)  # 320 windows


def make_experiment(folder: Path, workers: int) -> Experiment:
    changes: dict[str, Any] = {"data.root": str(folder / "EAV"), "train.mode": "end_to_end"}
    changes |= {f"store.{k}": str(folder / k) for k in ("shards", "results", "cache")}
    changes |= {"optim.epochs": EPOCHS, "optim.batch": BATCH * workers, "optim.warmup": 0.0}
    # The loss by hand is the plain one, of the fusion and of each modality.
    changes |= {"runtime.workers": workers, "train.checkpoint_epochs": 2, "fusion.modality_weight_loss": 0.0}
    return load_experiment("eav_ray/experiments/demo.yaml", changes)


def make_run(e: Experiment) -> Run:
    windows = open_dataset(e).windows
    return Run("joint", e, Split("within", tuple(sorted(set(windows.ids["id"]))), (), ()), "benchmark")


def train_plainly(rank: int, e: Experiment, workers: int, out: str, port: int) -> None:
    """The loop that someone writes who wants nothing but this one training."""
    torch.set_num_threads(1)
    if workers > 1:
        dist.init_process_group(
            "gloo",
            init_method=f"tcp://127.0.0.1:{port}",
            rank=rank,
            world_size=workers,
            timeout=timedelta(seconds=120),
        )
    windows = open_dataset(e).windows
    items = list_labeled_recordings(windows.ids, e.data, e.seed)
    labels = WindowLabels.from_windows(windows, {i.id: i.label for i in items})
    torch.manual_seed(e.seed)
    module = Classifier(e, DataShapes(windows.index.eeg_channels, len(windows.index.classes)))
    rows = windows.find_rows(tuple(sorted(set(windows.ids["id"]))))
    dropout = e.fusion.modality_dropout
    loader = BatchLoader(
        RawSource(windows, module.modalities), labels, rows, e.seed, e.optim.batch, dropout, rank, workers
    )
    rate = make_lr_schedule(e.optim, loader.steps_per_epoch)
    optimizer = torch.optim.AdamW(build_parameter_groups(module.named_parameters(), e.optim), lr=e.optim.lr)
    model = DistributedDataParallel(module) if workers > 1 else module
    model.train()
    seconds = []
    for epoch in range(EPOCHS):
        began = time.perf_counter()
        for step, batch in enumerate(loader.batches(Position(epoch, 0))):
            for group in optimizer.param_groups:
                group["lr"] = rate(Position(epoch, step)) * group["scale"]
            output = model(batch.inputs, batch.present_BM)
            loss = nn.functional.cross_entropy(output.logits_BK, batch.label_B)
            for m, logits in output.unimodal_logits.items():
                each = nn.functional.cross_entropy(logits, batch.label_B, reduction="none")
                loss = loss + (each * batch.present_BM[:, module.modalities.index(m)]).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(module.parameters(), e.optim.clip)
            optimizer.step()
            loss.item()
        seconds.append(time.perf_counter() - began)
    if rank == 0:
        Path(out).write_text(json.dumps(seconds))
    if workers > 1:
        dist.destroy_process_group()


def time_plain_loop(e: Experiment, workers: int, folder: Path) -> list[float]:
    """Seconds of each epoch."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    out = str(folder / "plain.json")
    mp.spawn(train_plainly, args=(e, workers, out, port), nprocs=workers)
    return json.loads(Path(out).read_text())


class BackgroundCPU:
    """CPU time of all that the program started, but for the training workers, after the first epoch."""

    def __init__(self) -> None:
        self._samples: list[tuple[float, dict[int, float]]] = []

    def record_sample(self, progress: Progress) -> None:
        if progress.epoch > 1:
            used = {}
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    times = process.cpu_times()
                    if "RayTrainWorker" not in " ".join(process.cmdline()):
                        used[process.pid] = times.user + times.system
            self._samples.append((time.perf_counter(), used))

    @property
    def percent(self) -> float:
        """Of one core."""
        (began, first), (ended, last) = self._samples[0], self._samples[-1]
        return 100 * sum(last[pid] - first[pid] for pid in first.keys() & last.keys()) / (ended - began)


def train_by_program(e: Experiment, runs: list[Run], background_cpu: BackgroundCPU | None = None) -> list[Progress]:
    """What the program tells of trainings that it has never seen."""
    progress_reports: list[Progress] = []

    def collect_progress(progress: Progress) -> None:
        progress_reports.append(progress)
        if background_cpu:
            background_cpu.record_sample(progress)

    data = open_dataset(e)
    for run in runs:
        shutil.rmtree(Path(e.store.results) / "runs" / run.key, ignore_errors=True)
    train_runs(e, runs, data, title="train", on_progress=collect_progress)
    return progress_reports


def count_steps_per_epoch(e: Experiment) -> int:
    """Steps of an epoch, all of whole batches."""
    return SPEC.n_subjects * SPEC.recordings_per_subject * 4 // e.optim.batch


def time_first_steps(folder: Path) -> list[str]:
    """From the command to the first step, and from one training to the next in the same group, seconds."""
    command = [sys.executable, "-c", "import eav_ray.pipelines.train.train"]
    began = time.perf_counter()
    subprocess.run(command, check=True)
    loading = time.perf_counter() - began
    e = make_experiment(folder, 1)
    runs = [make_run(override(e, {"seed": seed, "optim.epochs": 1})) for seed in range(4)]
    began = time.perf_counter()
    with connect_experiment(e) as e:
        ray_s, started = time.perf_counter() - began, time.time()
        progress_reports = train_by_program(e, runs)
    first = {run.key: min(p.timestamp for p in progress_reports if p.key == run.key) for run in runs}
    last = {run.key: max(p.timestamp for p in progress_reports if p.key == run.key) for run in runs}
    between = [first[b.key] - last[a.key] for a, b in zip(runs, runs[1:], strict=False)]
    return [
        "| from the command to the first step | seconds |",
        "|---|---|",
        f"| Python loads the program | {loading:.1f} |",
        f"| Ray starts | {ray_s:.1f} |",
        f"| a group of one worker starts, loads torch, opens the windows, builds the model, takes a step | "
        f"{first[runs[0].key] - started:.1f} |",
        f"| from the end of a training to the first step of the next, in the same group | {format_spread(between)} |",
    ]


def main() -> int:
    folder, words = parse_arguments(__doc__, ("rounds",))
    rounds = int(words.get("rounds", 5))
    print(f"to do: {rounds} rounds of 2 x 2 trainings; about {2 * rounds} minutes on 2 cores", flush=True)
    generate_dataset(folder / "EAV", SPEC, workers=os.cpu_count() or 1)
    e = make_experiment(folder, 1)
    preprocess(e)
    table: list[str] = []
    goals: list[Goal] = []
    for workers, baseline in ((1, "a plain PyTorch loop"), (2, "bare DistributedDataParallel")):
        e = make_experiment(folder, workers)
        run = make_run(e)
        ratios, steps, waits, pauses, background_percents = [], [], [], [], []
        for k in range(rounds):
            sides: dict[str, list[float]] = {}
            for side in ("hand", "program") if k % 2 == 0 else ("program", "hand"):
                if side == "hand":
                    sides[side] = time_plain_loop(e, workers, folder)
                    continue
                background_cpu = BackgroundCPU()
                with connect_experiment(e) as connected:
                    progress_reports = train_by_program(connected, [run], background_cpu)
                background_percents.append(background_cpu.percent)
                ends = [
                    p for p in progress_reports if p.step and p.step % count_steps_per_epoch(e) == 0 and p.epoch > 1
                ]
                windows = e.optim.batch * count_steps_per_epoch(e)
                sides[side] = [windows / p.metrics["windows_per_s"] for p in ends]
                waits += [p.metrics["data_wait_fraction"] for p in ends]
                pauses += [p.metrics["checkpoint_pause_s"] for p in ends]
            hand, program = median(sides["hand"][1:]), median(sides["program"])
            ratios.append(program / hand)
            steps.append(1000 * hand / count_steps_per_epoch(e))
            print(
                f"{workers}: {1000 * hand / count_steps_per_epoch(e):.0f} ms a step, ratio {ratios[-1]:.3f}", flush=True
            )
        table.append(
            f"| {workers} | {baseline} | {format_spread(steps, 0)} | {format_spread(ratios, 3)} | "
            f"{100 * max(waits):.1f} % | {1000 * max(pauses):.0f} | {format_spread(background_percents, 0)} |"
        )
        goals.append(Goal(f"{workers} workers against {baseline}", median(ratios), 1.03, "", False))
        goals.append(Goal(f"waiting for data, {workers} workers", 100 * max(waits), 3, " %", False))
    lines = [
        f"Median (range) of {rounds} pairs. AST, EEGformer and ViT of small sizes and their fusion, {BATCH} windows a "
        f"worker and step, DeepSpeed at ZeRO {e.runtime.zero_stage}, fp32; a checkpoint every other epoch, written "
        "beside the training.",
        "",
        "| workers | against | its step, ms | ours to its time | most waiting for data | longest pause to save, ms | "
        "Ray's own processes, % of a core |",
        "|---|---|---|---|---|---|---|",
        *table,
        "",
        *time_first_steps(folder),
    ]
    return finish_benchmark("train", "What Ray Train and DeepSpeed cost", "\n".join(lines), goals)


if __name__ == "__main__":
    sys.exit(main())
