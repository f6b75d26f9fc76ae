"""What Ray Train and DeepSpeed cost beside a plain PyTorch loop, and beside bare DistributedDataParallel.

    python -m benchmarks.train [FOLDER] [rounds=5]

Three small encoders and their fusion, trained together on planted people, in steps of 50 to 100 ms: by the program
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

from benchmarks.common import Goal, arguments, finish, spread
from eav_ray.config import Experiment, load_experiment, override
from eav_ray.data.cache import Windows
from eav_ray.data.split import Split, items_of
from eav_ray.data.synthetic import Plan, generate_dataset
from eav_ray.models.build import Classifier, Shapes
from eav_ray.runtime import cluster
from eav_ray.runtime.groups import run_each
from eav_ray.runtime.preprocess import open_index, preprocess
from eav_ray.training.loop import Position, parameter_groups, schedule
from eav_ray.training.plan import Progress, Run
from eav_ray.training.source import Labels, Loader, RawSource

EPOCHS, BATCH = 4, 4  # windows of one worker
PLAN = Plan(n_subjects=2, per_class=8)  # 320 windows


def experiment_of(folder: Path, workers: int) -> Experiment:
    changes: dict[str, Any] = {"data.root": str(folder / "EAV"), "train.mode": "end_to_end"}
    changes |= {f"store.{k}": str(folder / k) for k in ("shards", "results", "cache")}
    changes |= {"optim.epochs": EPOCHS, "optim.batch": BATCH * workers, "optim.warmup": 0.0}
    # The loss by hand is the plain one, of the fusion and of each modality.
    changes |= {"runtime.workers": workers, "train.checkpoint_epochs": 2, "fusion.weight_loss": 0.0}
    return load_experiment("jobs/experiments/demo.yaml", changes)


def run_of(e: Experiment) -> Run:
    shards, index = open_index(e)
    windows = Windows(shards, index, cache=e.store.cache, cache_gb=e.store.cache_gb)
    return Run("joint", e, Split("within", tuple(sorted(set(windows.ids["id"]))), (), ()), "benchmark")


def plain(rank: int, e: Experiment, workers: int, out: str, port: int) -> None:
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
    shards, index = open_index(e)
    windows = Windows(shards, index, cache=e.store.cache, cache_gb=e.store.cache_gb)
    items = items_of(windows.ids, e.data, e.seed)
    labels = Labels.of(windows, {i.id: i.label for i in items})
    torch.manual_seed(e.seed)
    module = Classifier(e, Shapes(index.eeg_channels, len(index.classes)))
    rows = windows.rows_of(tuple(sorted(set(windows.ids["id"]))))
    dropout = e.fusion.modality_dropout
    loader = Loader(RawSource(windows, module.names), labels, rows, e.seed, e.optim.batch, dropout, rank, workers)
    rate = schedule(e.optim, loader.steps)
    optimizer = torch.optim.AdamW(parameter_groups(module.named_parameters(), e.optim), lr=e.optim.lr)
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
            for m, logits in output.unimodal.items():
                each = nn.functional.cross_entropy(logits, batch.label_B, reduction="none")
                loss = loss + (each * batch.present_BM[:, module.names.index(m)]).mean()
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


def by_hand(e: Experiment, workers: int, folder: Path) -> list[float]:
    """Seconds of each epoch."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    out = str(folder / "plain.json")
    mp.spawn(plain, args=(e, workers, out, port), nprocs=workers)
    return json.loads(Path(out).read_text())


class Beside:
    """CPU time of all that the program started, but for the training workers, after the first epoch."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, dict[int, float]]] = []

    def record_sample(self, progress: Progress) -> None:
        if progress.epoch > 1:
            used = {}
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    times = process.cpu_times()
                    if "RayTrainWorker" not in " ".join(process.cmdline()):
                        used[process.pid] = times.user + times.system
            self._seen.append((time.perf_counter(), used))

    @property
    def percent(self) -> float:
        """Of one core."""
        (began, first), (ended, last) = self._seen[0], self._seen[-1]
        return 100 * sum(last[pid] - first[pid] for pid in first.keys() & last.keys()) / (ended - began)


def by_program(e: Experiment, runs: list[Run], background_cpu: Beside | None = None) -> list[Progress]:
    """What the program tells of trainings that it has never seen."""
    progress_reports: list[Progress] = []

    def listen(progress: Progress) -> None:
        progress_reports.append(progress)
        if background_cpu:
            background_cpu.record_sample(progress)

    shards, index = open_index(e)
    for run in runs:
        shutil.rmtree(Path(e.store.results) / "runs" / run.key, ignore_errors=True)
    run_each(e, runs, shards, index, runs[0].split.train, title="train", listen=listen)
    return progress_reports


def steps_of(e: Experiment) -> int:
    """Steps of an epoch, all of whole batches."""
    return PLAN.n_subjects * PLAN.recordings * 4 // e.optim.batch


def first_steps(folder: Path) -> list[str]:
    """From the command to the first step, and from one training to the next in the same group, seconds."""
    command = [sys.executable, "-c", "import eav_ray.runtime.train"]
    began = time.perf_counter()
    subprocess.run(command, check=True)
    loading = time.perf_counter() - began
    e = experiment_of(folder, 1)
    runs = [run_of(override(e, {"seed": seed, "optim.epochs": 1})) for seed in range(4)]
    began = time.perf_counter()
    with cluster.connect_to_ray(e.runtime):
        ray_s, started = time.perf_counter() - began, time.time()
        progress_reports = by_program(e, runs)
    first = {run.key: min(p.at for p in progress_reports if p.key == run.key) for run in runs}
    last = {run.key: max(p.at for p in progress_reports if p.key == run.key) for run in runs}
    between = [first[b.key] - last[a.key] for a, b in zip(runs, runs[1:], strict=False)]
    return [
        "| from the command to the first step | seconds |",
        "|---|---|",
        f"| Python loads the program | {loading:.1f} |",
        f"| Ray starts | {ray_s:.1f} |",
        f"| a group of one worker starts, loads torch, opens the windows, builds the model, takes a step | "
        f"{first[runs[0].key] - started:.1f} |",
        f"| from the end of a training to the first step of the next, in the same group | {spread(between)} |",
    ]


def main() -> int:
    folder, words = arguments(__doc__, ("rounds",))
    rounds = int(words.get("rounds", 5))
    print(f"to do: {rounds} rounds of 2 x 2 trainings; about {2 * rounds} minutes on 2 cores", flush=True)
    generate_dataset(folder / "EAV", PLAN, workers=os.cpu_count() or 1)
    e = experiment_of(folder, 1)
    preprocess(e)
    table: list[str] = []
    goals: list[Goal] = []
    for workers, rival in ((1, "a plain PyTorch loop"), (2, "bare DistributedDataParallel")):
        e = experiment_of(folder, workers)
        run = run_of(e)
        ratios, steps, waits, pauses, others = [], [], [], [], []
        for k in range(rounds):
            sides: dict[str, list[float]] = {}
            for side in ("hand", "program") if k % 2 == 0 else ("program", "hand"):
                if side == "hand":
                    sides[side] = by_hand(e, workers, folder)
                    continue
                background_cpu = Beside()
                with cluster.connect_to_ray(e.runtime):
                    progress_reports = by_program(e, [run], background_cpu)
                others.append(background_cpu.percent)
                ends = [p for p in progress_reports if p.step and p.step % steps_of(e) == 0 and p.epoch > 1]
                windows = e.optim.batch * steps_of(e)
                sides[side] = [windows / p.metrics["windows_s"] for p in ends]
                waits += [p.metrics["wait"] for p in ends]
                pauses += [p.metrics["pause_s"] for p in ends]
            hand, program = median(sides["hand"][1:]), median(sides["program"])
            ratios.append(program / hand)
            steps.append(1000 * hand / steps_of(e))
            print(f"{workers}: {1000 * hand / steps_of(e):.0f} ms a step, ratio {ratios[-1]:.3f}", flush=True)
        table.append(
            f"| {workers} | {rival} | {spread(steps, 0)} | {spread(ratios, 3)} | {100 * max(waits):.1f} % | "
            f"{1000 * max(pauses):.0f} | {spread(others, 0)} |"
        )
        goals.append(Goal(f"{workers} workers against {rival}", median(ratios), 1.03, "", False))
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
        *first_steps(folder),
    ]
    return finish("train", "What Ray Train and DeepSpeed cost", "\n".join(lines), goals)


if __name__ == "__main__":
    sys.exit(main())
